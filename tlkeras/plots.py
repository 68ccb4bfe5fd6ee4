"""Pictures: curves over the stages of a run, the blocks of a network, samples of a task.

Every function returns a matplotlib Figure and shows nothing itself: end a notebook cell with
the call, or use `figure.savefig`. Colours stay apart in grey and for the colour-blind; lines
carry their names, so no legend is needed.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from tlkeras.blocks import find_blocks

DARK, BLUE, ORANGE, PALE = "#222222", "#0b5fa5", "#e08214", "#c9d3dd"
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, DARK, "#7b9fbf", "#9b5d18", "#8a8a8a"]),
    "lines.linewidth": 2,
}


@contextmanager
def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.5), **options):
    """A figure and its axes in the course's style; closed at the end, so it is shown once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def history(run_history: dict[str, list]) -> Figure:
    """Loss, and the first other metric, over all epochs; a shaded band and a name a stage.

    Args:
        run_history: `Run.history`: one value an epoch in "stage", "epoch" and every metric.
    """
    epochs, stages = run_history["epoch"], run_history["stage"]
    others = [n for n in run_history if n not in ("stage", "epoch", "loss", "learning_rate")]
    measures = ["loss", *[n for n in others if not n.startswith("val_")][:1]]
    with canvas(1, len(measures), (4.6 * len(measures), 3.4), squeeze=False) as (figure, axes):
        for axis, measure in zip(axes[0], measures, strict=True):
            _shade_stages(axis, stages)
            ends = []
            for name, label, style in (
                (measure, "training", "--"),
                (f"val_{measure}", "validation", "-"),
            ):
                if name in run_history:
                    axis.plot(epochs, run_history[name], style, marker="o", markersize=3)
                    ends.append((run_history[name][-1], label, axis.lines[-1].get_color()))
            name_lines(axis, epochs[-1], ends)
            axis.set(xlabel="epoch", ylabel=measure, xlim=(0.5, epochs[-1] + 0.5))
            axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _shade_stages(axis, stages: Sequence[str]) -> None:
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(stages)], strict=True)):
        if number % 2:
            axis.axvspan(start + 0.5, end + 0.5, color=PALE, alpha=0.35, linewidth=0)
        axis.text((start + end + 1) / 2, 1.01, stages[start], ha="center", va="bottom",
                  transform=axis.get_xaxis_transform(), fontsize=9)  # fmt: skip


def name_lines(axis, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed down where they would overlap."""
    low, high = axis.get_ylim()
    gap, last = (high - low) * 0.08, np.inf
    for y, label, colour in sorted(ends, reverse=True):
        last = min(y, last - gap)
        axis.annotate(label, (x, last), (8, 0), textcoords="offset points", color=colour,
                      va="center", fontsize=9, annotation_clip=False)  # fmt: skip


def blocks(model: keras.Model) -> Figure:
    """The model's blocks from bottom to head: bars of parameters, filled where they learn."""
    found = find_blocks(model)
    with canvas(size=(max(5.0, 0.85 * len(found)), 3)) as (figure, axis):
        for x, block in enumerate(found):
            learning = sum(int(np.prod(w.shape)) for w in block.weights if w.trainable)
            axis.bar(x, block.params, 0.8, color="white", edgecolor=BLUE, linewidth=1.5)
            axis.bar(x, learning, 0.8, color=BLUE)
            axis.annotate(f"{block.params:,}", (x, block.params), (0, 3), ha="center",
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axis.set_yscale("log")
        names = [f"{block.name}\n{block.role}" for block in found]
        axis.set_xticks(range(len(found)), names, fontsize=9)
        axis.set(ylabel="parameters", title="filled: learns · empty: frozen")
    return figure


def samples(images: Any, labels: Any, classes: Sequence[str], columns: int = 10) -> Figure:
    """A grid of images with their class names above.

    Args:
        images: (n, height, width, 3), values 0..255.
        labels: (n,), class numbers.
        classes: names of the classes.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    rows = -(-len(images) // columns)
    with canvas(rows, columns, (columns, 1.25 * rows), squeeze=False) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        for axis, image, label in zip(axes.flat, images, labels, strict=False):
            axis.imshow(np.clip(image, 0, 255).astype("uint8"), interpolation="nearest")
            axis.set_title(classes[int(label)], fontsize=9, loc="center")
    return figure
