import numpy as np
from conftest import easy_data

from tlkeras import plots, policies
from tlkeras.policies import freeze


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


def test_the_block_map_fills_what_learns(model):
    freeze(model, policies.head_only())
    figure = plots.blocks(model)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    empty, filled = heights[::2], heights[1::2]
    assert filled[:-1] == [0] * (len(filled) - 1) and filled[-1] == empty[-1]


def test_samples_show_class_names():
    x, y = easy_data(12)
    figure = plots.samples(np.abs(x) * 100, y, ["ant", "bee", "cat"], columns=5)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["ant", "bee", "cat", "ant"] and len(figure.axes) == 15
