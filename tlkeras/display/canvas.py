"""What all plots share: the course's style, a figure to draw on, labels at the ends of lines."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

DARK, BLUE, ORANGE, PALE = "#222222", "#0b5fa5", "#e08214", "#c9d3dd"
COLOURS = (BLUE, ORANGE, DARK, "#6f9fc8", "#9b5d18", "#8a8a8a")
STYLES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=COLOURS),
    "lines.linewidth": 2,
}


@contextmanager
def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.5), **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """Create a figure and its axes in the course's style.

    The figure is closed on exit, so that a notebook does not show it twice.

    Args:
        rows, columns: the grid of axes; if there is more than one, they come as an array.
        size: width and height in inches.
        options: passed to `matplotlib.pyplot.subplots`.

    >>> with tlk.plots.canvas(size=(4, 2)) as (figure, axis):
    ...     lines = axis.plot([1, 2, 3], [0.9, 0.5, 0.3])
    >>> figure.get_size_inches().tolist()
    [4.0, 2.0]
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def name_lines(
    axis: Axes, x: float, ends: list[tuple[float, str, Any]], fontsize: float = 9
) -> None:
    """Write names at the right ends of lines, moved apart where they would overlap.

    Args:
        axis: the axes that hold the lines.
        x: where the lines end.
        ends: the last value of each line, its name, and its colour.
        fontsize: in points; a name can have several lines.

    >>> with tlk.plots.canvas() as (figure, axis):
    ...     lines = axis.plot([1, 2, 3], [0.9, 0.5, 0.3])
    ...     tlk.plots.name_lines(axis, 3, [(0.3, "validation", lines[0].get_color())])
    >>> axis.texts[0].get_text()
    'validation'
    """
    figure = axis.figure.canvas.figure
    figure.draw_without_rendering()  # computes the final height of the axis
    scale = axis.transScale.transform  # takes the logarithm on a log axis
    back = axis.transScale.inverted().transform
    (_, low), (_, high) = scale([(1, y) for y in axis.get_ylim()])
    points = axis.get_window_extent().height * 72 / figure.dpi
    ends = sorted((end for end in ends if np.isfinite(end[0])), reverse=True)
    heights = [1.3 * fontsize * (1 + label.count("\n")) / points for _, label, _ in ends]
    wanted = [float((scale((1, y))[1] - low) / (high - low)) for y, _, _ in ends]
    for place, (_, label, colour) in zip(apart(wanted, heights), ends, strict=True):
        y = back((0, low + place * (high - low)))[1]
        axis.annotate(label, (x, y), (8, 0), textcoords="offset points", color=colour,
                      va="center", fontsize=fontsize, annotation_clip=False,
                      parse_math=False)  # fmt: skip


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return centres of labels that do not overlap, between 1 (top of the axis) and 0 (bottom).

    Args:
        wanted: where the labels belong, highest first.
        heights: the heights of the labels.
    """
    places, last = [], np.inf
    for y, height in zip(wanted, heights, strict=True):
        places.append(min(y, last - height / 2))
        last = places[-1] - height / 2
    floor = 0.0  # labels that were pushed below the axis move up again
    for i in reversed(range(len(places))):
        places[i] = max(places[i], floor + heights[i] / 2)
        floor = places[i] + heights[i] / 2
    return places


def wrapped(text: str, width: int) -> str:
    """Wrap text at `width` characters, and keep the line breaks that it already has."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
