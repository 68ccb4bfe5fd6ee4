"""Pictures of measurements: what is drawn is what was measured, and names do not touch."""

import numpy as np
import pytest

from tlkeras.display import plots
from tlkeras.display.canvas import apart

SCORES = {"frozen": {5: [60, 64], 30: [71, 73]}, "from scratch": {5: [30, 32], 30: [72, 73]}}


def overlaps(figure):
    """Pairs of texts of an axis that touch."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    return [
        (i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])
    ]  # fmt: skip


def test_curves_go_through_the_means_and_name_their_ends():
    figure = plots.curves(SCORES, x="labels", log=True, level=(50, "chance"))
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [62, 72])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["5", "30"]
    assert {text.get_text() for text in axis.texts} == {"frozen", "from scratch", "chance"}
    assert overlaps(figure) == []


def test_lines_that_end_together_are_named_apart():
    scores = {f"method number {i} of many": {1: [0.0], 2: [50.0 + i / 10]} for i in range(5)}
    scores["low"] = {1: [10.0], 2: [0.0]}
    scores["lower"] = {1: [20.0], 2: [-0.1]}
    assert overlaps(plots.curves(scores)) == []


def test_a_line_that_ends_early_is_named_where_it_ends():
    (axis,) = plots.curves(SCORES | {"short": {5: [40]}}).axes
    assert {text.get_text(): text.xy[0] for text in axis.texts}["short"] == 5


def test_labels_stay_on_the_axis():
    places = apart([0.5, 0.02, 0.01], [0.1, 0.1, 0.1])
    np.testing.assert_allclose(places, [0.5, 0.15, 0.05])


@pytest.mark.parametrize("grouped", [False, True])
def test_bars_say_mean_and_spread(grouped):
    scores = {"frozen": [60, 64], "from scratch": 33}
    figure = plots.bars({"few": scores, "many": scores} if grouped else scores, digits=0)
    (axis,) = figure.axes
    found = [text.get_text() for text in axis.texts if text.get_text() not in ("few", "many")]
    assert found == ["62 ± 3", "33"] * (1 + grouped)
    assert [bar.get_width() for bar in axis.patches] == [62, 33] * (1 + grouped)
    assert overlaps(figure) == []


def test_strips_cut_rows_to_their_columns():
    figure = plots.strips({"one": np.zeros((9, 4, 4)), "two": np.zeros((2, 4, 4, 3))}, columns=3)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 1, 0]
