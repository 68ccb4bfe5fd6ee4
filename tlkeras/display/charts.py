"""Plots of measurements that were repeated over several draws.

A draw is one random choice of the labelled training images. `scores` maps names to the values of
all draws; `Results.scores` returns such a mapping. A single number counts as a single draw. The
spread is the standard deviation over draws.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tlkeras.display.canvas import COLOURS, STYLES, canvas, name_lines, wrapped
from tlkeras.utils.tables import mean_and_spread

WIDTH = 5.8  # inches; text of 12 points stays readable when a phone shows the whole width
FONT = 12
MARKERS = "os^vD*"


def curves(
    scores: Mapping[str, Mapping[float, Any]],
    x: str = "",
    y: str = "balanced accuracy (%)",
    title: str = "",
    log: bool = False,
    level: tuple[float, str] | None = None,
) -> Figure:
    """Plot one line per name through the means, with a band of one standard deviation.

    The names are written at the right ends of the lines.

    Args:
        scores: for each name, a mapping from x to the values of the draws.
        x, y: labels of the axes, with units.
        title: what the plot shows.
        log: whether the x axis is logarithmic.
        level: the height and name of a horizontal line to compare with, such as chance or another
            method's score.

    >>> scores = {"ImageNet": {5: [60, 64], 30: [71, 72]}, "untrained": {5: [30, 33], 30: [41, 40]}}
    >>> figure = tlk.plots.curves(scores, x="labels per class", title="ImageNet needs few labels")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['ImageNet', 'untrained']
    """
    with canvas(size=(WIDTH, 3.4)) as (figure, axis):
        ends: dict[float, list[tuple[float, str, Any]]] = {}
        for number, (name, points) in enumerate(scores.items()):
            colour = COLOURS[number % len(COLOURS)]
            places = list(points)
            means, spreads = np.transpose([mean_and_spread(points[place]) for place in places])
            axis.plot(places, means, STYLES[number % 4], marker=MARKERS[number % 6], color=colour)
            axis.fill_between(places, means - spreads, means + spreads, color=colour, alpha=0.18,
                              linewidth=0)  # fmt: skip
            ends.setdefault(places[-1], []).append((float(means[-1]), wrapped(name, 16), colour))
        if log:
            axis.set_xscale("log")
        shown = sorted({place for points in scores.values() for place in points})
        if len(shown) <= 8:
            axis.set_xticks(shown, [f"{place:g}" for place in shown], minor=False)
            axis.minorticks_off()
        if level:
            height, name = level
            axis.axhline(height, color="#555555", linewidth=1.2, linestyle=":")
            axis.annotate(name, (0, height), (4, 3), xycoords=axis.get_yaxis_transform(),
                          textcoords="offset points", color="#444444",
                          fontsize=FONT - 2)  # fmt: skip
        _finish(axis, x, y, title)
        for place, lines in ends.items():
            name_lines(axis, place, lines, FONT - 1)
    return figure


def bars(
    scores: Mapping[str, Any],
    x: str = "balanced accuracy (%)",
    title: str = "",
    digits: int = 1,
) -> Figure:
    """Plot one bar per name with the length of the mean, and one dot per draw.

    Mean and spread are written next to each bar.

    Args:
        scores: the draws of each name; or one such mapping for each group.
        x: label of the axis, with its unit.
        title: what the plot shows.
        digits: digits after the decimal point in the written numbers.

    >>> figure = tlk.plots.bars({"frozen": [60, 64], "from scratch": [30, 33]}, title="Few labels")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['62.0 ± 2.8', '31.5 ± 2.1']
    """
    grouped = all(isinstance(draws, Mapping) for draws in scores.values())
    groups: Mapping[str, Mapping[str, Any]] = scores if grouped else {"": scores}
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    places, ticks, row = [], [], 0.0
    with canvas(size=(WIDTH, _height(groups, title))) as (figure, axis):
        for group, members in groups.items():
            if group:
                axis.annotate(group, (0, row), (5, 0), xycoords=axis.get_yaxis_transform(),
                              textcoords="offset points", va="center", fontsize=FONT,
                              fontweight="bold", parse_math=False)  # fmt: skip
                row += 0.8
            for name, draws in members.items():
                _draw_bar(axis, row, draws, COLOURS[names.index(name) % 6 if group else 0], digits)
                places.append(row)
                ticks.append(wrapped(name, 20))
                row += 1
            row += 0.3
        axis.set_yticks(places, ticks, parse_math=False)
        axis.set_ylim(row - 0.6, -0.7)
        axis.tick_params(axis="y", length=0)
        _finish(axis, x, "", title)
    return figure


def _height(groups: Mapping[str, Mapping[str, Any]], title: str) -> float:
    lines = sum(0.36 * len(members) + 0.4 * bool(group) for group, members in groups.items())
    return 1.0 + lines + 0.2 * title.count("\n")


def _draw_bar(axis: Axes, row: float, draws: Any, colour: str, digits: int) -> None:
    mean, spread = mean_and_spread(draws)
    values = np.ravel(draws)
    axis.barh(row, mean, 0.62, color=colour, alpha=0.35, edgecolor=colour, linewidth=1.2)
    figure = f"{mean:.{digits}f}"
    if len(values) > 1:
        axis.plot(values, np.full(len(values), row), "o", color=colour, markersize=4, alpha=0.9)
        figure += f" ± {spread:.{digits}f}"
    axis.annotate(figure, (max(mean, values.max()), row), (7, 0), textcoords="offset points",
                  va="center", fontsize=FONT - 1)  # fmt: skip


def _finish(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlabel(wrapped(x, 48), fontsize=FONT)
    axis.set_ylabel(wrapped(y, 30), fontsize=FONT)
    axis.tick_params(labelsize=FONT - 1)
    if title:
        axis.figure.suptitle(wrapped(title, 62), x=0.01, ha="left", fontsize=FONT)


def strips(rows: Mapping[str, Any], columns: int = 6, title: str = "") -> Figure:
    """Show one row of images per name, with the name above the row.

    Args:
        rows: the images of each name, (n, height, width) or (n, height, width, 3), values 0..255.
        columns: how many images of each name to show.
        title: what the plot shows.

    >>> images = np.random.uniform(0, 255, (6, 32, 32, 3))
    >>> figure = tlk.plots.strips({"source": images, "target": images[::-1]}, columns=4)
    >>> [axis.get_title("left") for axis in figure.axes[::4]]
    ['source', 'target']
    """
    size = (WIDTH, (WIDTH / columns + 0.35) * len(rows) + (0.35 if title else 0))
    with canvas(len(rows), columns, size, squeeze=False) as (figure, axes):
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            line[0].set_title(name, fontsize=FONT, loc="left")
            for axis in line:
                axis.axis("off")
            for axis, image in zip(line, images, strict=False):
                axis.imshow(np.clip(image, 0, 255).astype("uint8"), cmap="gray", vmin=0, vmax=255)
        if title:
            figure.suptitle(wrapped(title, 62), x=0.01, ha="left", fontsize=FONT)
    return figure
