"""Plots: curves over the stages of a run, the blocks of a network, samples of a task.

Every function returns a matplotlib Figure and shows nothing itself: end a notebook cell with the
call, or use `figure.savefig`. The colours can be told apart in grey and by colour-blind readers.
Lines are labelled directly, so no legend is needed.

>>> figure = tlk.plots.blocks(tlk.load_backbone("glyph_resnet_small"))
>>> figure.savefig("blocks.png")
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tlkeras.blocks.find import find_blocks
from tlkeras.display.canvas import BLUE, DARK, ORANGE, PALE, STYLES, canvas, name_lines
from tlkeras.display.charts import bars, curves, strips
from tlkeras.optimizers.rates import block_rates

__all__ = [
    "BLUE",
    "DARK",
    "ORANGE",
    "PALE",
    "bars",
    "blocks",
    "canvas",
    "curves",
    "history",
    "learning_rates",
    "name_lines",
    "samples",
    "strips",
]


def history(run_history: dict[str, list]) -> Figure:
    """Plot the loss and the first other metric over all epochs.

    The name of each stage is written above its epochs, and every second stage is shaded.

    Args:
        run_history: `Run.history`: one value per epoch in "stage", "epoch" and every metric.

    >>> figure = tlk.plots.history(
    ...     {"stage": ["head", "tune"], "epoch": [1, 2], "loss": [0.9, 0.4], "accuracy": [0.6, 0.8]}
    ... )
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['loss', 'accuracy']
    """
    if not run_history.get("epoch"):
        with canvas() as (figure, axis):
            axis.set(xlabel="epoch", ylabel="loss", title="no epoch was completed")
        return figure
    epochs, stages = run_history["epoch"], run_history["stage"]
    others = [n for n in run_history if n not in ("stage", "epoch", "loss", "learning_rate")]
    numbers = [n for n in others if not any(isinstance(v, list) for v in run_history[n])]
    measures = ["loss"] if "loss" in run_history or not numbers else []
    measures += [n for n in numbers if not n.startswith("val_")][: 2 - len(measures)]
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
            axis.set(xlabel="epoch", ylabel=measure, xlim=(0.5, epochs[-1] + 0.5))
            name_lines(axis, epochs[-1], ends)
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def _shade_stages(axis: Axes, stages: Sequence[str]) -> None:
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(stages)], strict=True)):
        if number % 2:
            axis.axvspan(start + 0.5, end + 0.5, color=PALE, alpha=0.35, linewidth=0)
        room = 40 * (end - start) / len(stages)  # roughly how many letters fit above the band
        axis.text((start + end + 1) / 2, 1.01, stages[start], ha="center", va="bottom",
                  transform=axis.get_xaxis_transform(), parse_math=False,
                  fontsize=9 if len(stages[start]) < room else 7)  # fmt: skip


def learning_rates(plan: Any, model: keras.Model, steps_per_epoch: int = 1) -> Figure:
    """Plot the learning rate of every block over a whole plan, on a log axis.

    Frozen blocks have no line.

    Args:
        plan: a Plan; every stage is drawn with its full number of epochs.
        model: the model whose blocks are drawn.
        steps_per_epoch: batches per epoch, for schedules, which count them.

    Raises ValueError if a policy or the rates do not fit the blocks.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> figure = tlk.plots.learning_rates(tlk.recipes.two_stage(head_epochs=2), model)
    >>> figure.axes[0].get_yscale()
    'log'
    """
    found = find_blocks(model)
    edges = (
        0.5 + np.arange(sum(s.epochs for s in plan.stages) * steps_per_epoch + 1) / steps_per_epoch
    )
    curves = {block.name: np.full(len(edges), np.nan) for block in found}
    start = 0
    for stage in plan.stages:
        names = {block.name for block in stage.policy(found)}
        rates = block_rates(stage.rates, found, names)
        steps = np.arange(stage.epochs * steps_per_epoch)
        for name in names:
            values = _values(stage.learning_rate, steps) * _values(rates[name], steps)
            curves[name][start + steps] = np.where(values > 0, values, np.nan)
        start += len(steps)
    stages = [stage.name for stage in plan.stages for _ in range(stage.epochs)]
    with canvas(size=(7, 3.6)) as (figure, axis):
        axis.set(xlabel="epoch", ylabel="learning rate", yscale="log", xlim=(0.5, edges[-1]))
        _draw_curves(axis, edges, curves)
        _shade_stages(axis, stages)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _values(rate: Any, steps: np.ndarray) -> np.ndarray:
    """Return the value of a number or a schedule at every step."""
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return np.array([float(keras.ops.convert_to_numpy(rate(int(step)))) for step in steps])
    return np.full(len(steps), float(rate))


def _draw_curves(axis: Axes, edges: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Draw one line for all blocks that share a curve, with their names at its end.

    If several lines end at the same point, they are named at their start as well. The last line,
    that of the head, is the thinnest and lies on top.
    """
    names: dict[bytes, list[str]] = {}
    for name, curve in curves.items():
        if np.isfinite(curve).any():
            names.setdefault(curve.tobytes(), []).append(name)
    ends: dict[tuple, list[tuple]] = {}
    for i, (key, same) in enumerate(names.items()):
        curve, place = np.frombuffer(key), len(names) - 1 - i
        first, last = np.flatnonzero(np.isfinite(curve))[[0, -1]]
        line = np.where(np.arange(len(edges)) == last + 1, curve[last], curve)  # to the next edge
        axis.plot(edges, line, STYLES[place % 4], drawstyle="steps-post",
                  linewidth=1.5 + 3 * place / len(names))  # fmt: skip
        end = (float(edges[last + 1]), float(f"{curve[last]:.6g}"))
        begin = (edges[first], curve[first])
        ends.setdefault(end, []).append((same, axis.lines[-1].get_color(), begin))
    axis.margins(y=0.1)
    order = list(curves)
    for x in {x for x, _ in ends}:
        labels = [
            (y, _joined([n for same, *_ in lines for n in same], order), lines[-1][1])
            for (end, y), lines in ends.items()
            if end == x
        ]
        name_lines(axis, x, labels)
    for same, colour, begin in (
        line for lines in ends.values() if len(lines) > 1 for line in lines
    ):
        inside = begin[0] > edges[0]
        axis.annotate(_joined(same, order), begin, (-5, 0) if inside else (3, 6),
                      textcoords="offset points", ha="right" if inside else "left",
                      va="center", color=colour, fontsize=8)  # fmt: skip


def _joined(names: Sequence[str], order: Sequence[str]) -> str:
    """Join names in order; more than three neighbours become "first to last"."""
    names = sorted(names, key=order.index)
    neighbours = order.index(names[-1]) - order.index(names[0]) == len(names) - 1
    return f"{names[0]} to {names[-1]}" if neighbours and len(names) > 3 else ", ".join(names)


def blocks(model: keras.Model) -> Figure:
    """Plot the parameters of the model's blocks, from bottom to head; the filled part is trainable.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> learning = tlk.freeze(model, tlk.policies.head_only())
    >>> [label.get_text() for label in tlk.plots.blocks(model).axes[0].get_xticklabels()]
    ['stem\\nbottom', 'stack0\\nmiddle', 'stack1\\ntop', 'head\\nhead']
    """
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


def samples(
    images: Any, labels: Any, classes: Sequence[str], columns: int = 10, title: str | None = None
) -> Figure:
    """Show a grid of images with their class names above; long names are shortened.

    Args:
        images: (n, height, width, 3), values 0..255.
        labels: (n,), class numbers.
        classes: names of the classes.
        columns: images per row.
        title: a title above the grid, or None.

    >>> images = np.random.uniform(0, 255, (6, 32, 32, 3))
    >>> figure = tlk.plots.samples(images, [0, 1, 0, 1, 1, 0], ["cat", "dog"], columns=3)
    >>> [axis.get_title() for axis in figure.axes]
    ['cat', 'dog', 'cat', 'dog', 'dog', 'cat']
    """
    images, labels = np.asarray(images), np.asarray(labels)
    rows = -(-len(images) // columns)
    height = 1.25 * rows + (0.3 if title else 0)
    with canvas(rows, columns, (columns, height), squeeze=False) as (figure, axes):
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, image, label in zip(axes.flat, images, labels, strict=False):
            axis.imshow(np.clip(image, 0, 255).astype("uint8"), interpolation="nearest")
            name = classes[int(label)]
            name = name if len(name) <= 14 else name[:13] + "…"
            size = 9 if len(name) <= 10 else 7
            axis.set_title(name, fontsize=size, loc="center", parse_math=False)
    return figure
