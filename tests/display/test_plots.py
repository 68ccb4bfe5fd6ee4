import keras
import numpy as np
import pytest
from small import easy_data

from tlkeras.blocks.find import find_blocks
from tlkeras.display import plots
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.plans.plan import Plan, Stage


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def test_the_history_names_its_stages_and_lines():
    figure = plots.history(
        {
            "stage": ["head", "head", "tune"],
            "epoch": [1, 2, 3],
            "loss": [3, 2, 1],
            "accuracy": [0.1, 0.5, 0.9],
            "val_loss": [3, 2.5, 2],
            "val_accuracy": [0.1, 0.4, 0.8],
        }
    )
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "accuracy"]
    assert {"head", "tune", "training", "validation"} <= texts(figure)


@pytest.mark.filterwarnings("error")
def test_a_run_that_broke_off_or_diverged_has_a_picture():
    assert plots.history({}).axes[0].get_title(loc="left") == "no epoch was completed"
    diverged = {"stage": ["head"], "epoch": [1], "loss": [np.nan], "accuracy": [0.3]}
    plots.history(diverged).draw_without_rendering()


def test_the_block_map_fills_what_learns(model):
    freeze(model, policies.head_only())
    figure = plots.blocks(model)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    empty, filled = heights[::2], heights[1::2]
    assert filled[:-1] == [0] * (len(filled) - 1) and filled[-1] == empty[-1]


def test_samples_show_class_names():
    x, y = easy_data(12)
    figure = plots.samples(np.abs(x) * 100, y, ["ant", "bee", "$\\cat$"], columns=5, title="$\\a$")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["ant", "bee", "$\\cat$", "ant"] and len(figure.axes) == 15
    figure.draw_without_rendering()  # names are no formulas


def rates_of(figure):
    """The lines of a plot of learning rates, by the blocks they are named after."""
    axis = figure.axes[0]
    assert axis.get_yscale() == "log"
    return [line.get_ydata() for line in axis.lines]


def test_a_plan_shows_the_learning_rate_of_every_block(model):
    plan = Plan(
        [
            Stage("warm up", policies.head_only(), 1e-3, epochs=2),
            Stage("tune", policies.last_blocks(2), 1e-4, epochs=2, rates={"head": 1, "*": 0.1}),
        ]
    )
    figure = plots.learning_rates(plan, model)
    *_, below, top, head = [block.name for block in find_blocks(model)]
    assert {"warm up", "tune", f"{below}, {top}", head} <= texts(figure)
    backbone, head = rates_of(figure)
    np.testing.assert_allclose(backbone, [np.nan, np.nan, 1e-5, 1e-5, 1e-5])
    np.testing.assert_allclose(head, [1e-3, 1e-3, 1e-4, 1e-4, 1e-4])


def test_schedules_are_drawn_step_by_step(model):
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 1, 0.5)
    rates = {"*": keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.1])}
    plan = Plan([Stage("head", policies.head_only(), schedule, epochs=2, rates=rates)])
    (line,) = rates_of(plots.learning_rates(plan, model, steps_per_epoch=2))
    np.testing.assert_allclose(line, [1e-2, 5e-3, 2.5e-3, 1.25e-4, 1.25e-4], rtol=1e-5)
