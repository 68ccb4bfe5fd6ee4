"""Pictures of measurements, drawn from what was measured in every draw.

`scores` are a mapping from names to draws; `Results.scores` gives one. A single number is a single
draw. The spread is the standard deviation over draws.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tlkeras.display.canvas import COLOURS, STYLES, canvas, name_lines, wrapped
from tlkeras.utils.tables import mean_and_spread

WIDTH = 5.8  # inches: letters of 12 points can still be read when a phone shows the whole
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
    """A line a name through the means, a band of one standard deviation, names at the right end.

    Args:
        scores: of every name, from x to the draws measured there.
        x, y: what the axes show, with units. title: what is to be seen.
        log: a logarithmic x axis.
        level: a height to compare with, and its name: chance, or another method's score.

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
    """A bar a name, as long as the mean; a dot a draw; mean and spread in figures beside it.

    Args:
        scores: of every name its draws; or of every group such a mapping.
        x: what the axis shows, with its unit. title: what is to be seen.
        digits: after the point, of the figures.

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
    """A row of pictures a name, with the name above the row.

    Args:
        rows: of every name its pictures, (n, height, width) or (n, height, width, 3), values
            0..255; the first `columns` are shown.

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
