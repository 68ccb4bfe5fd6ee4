"""Plots of a model's evaluation: confusion matrix, calibration, predictions and examples."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tlkeras.display.canvas import BLUE, DARK, PALE, canvas

NAMED = 30  # the axes show names only for up to this many classes
NUMBERED = 15  # the cells show numbers only for up to this many classes


def confusion(matrix: Any, classes: Sequence[str]) -> Figure:
    """Plot a confusion matrix: one row per true class, coloured by the shares of that class.

    Args:
        matrix: counts, (classes, classes).
        classes: the names of the classes.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count = len(counts)
    side = float(np.clip(0.45 * count + 1.6, 3.2, 9))
    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    with canvas(size=(side, side)) as (figure, axis):
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if count <= NAMED:
            axis.set_xticks(
                range(count), names, rotation=45, ha="right", fontsize=8, parse_math=False
            )
            axis.set_yticks(range(count), names, fontsize=8, parse_math=False)
        if count <= NUMBERED:
            for (row, column), number in np.ndenumerate(counts):
                if number:
                    colour = "white" if shares[row, column] > 0.5 else DARK
                    axis.text(column, row, f"{number}", ha="center", va="center", color=colour,
                              fontsize=8)  # fmt: skip
        axis.set(xlabel="taken for", ylabel="is")
    return figure


def reliability(confidence: Sequence[float], accuracy: Sequence[float], share: Any) -> Figure:
    """Plot accuracy against confidence; the size of a dot shows its share of the examples."""
    with canvas(size=(4.2, 4)) as (figure, axis):
        axis.plot([0, 1], [0, 1], color=PALE)
        axis.plot(confidence, accuracy, color=BLUE, linewidth=1)
        axis.scatter(confidence, accuracy, 20 + 400 * np.asarray(share), color=BLUE, alpha=0.6,
                     clip_on=False)  # fmt: skip
        axis.set(xlabel="probability of the class chosen", ylabel="share that is right",
                 xlim=(0, 1), ylim=(0, 1))  # fmt: skip
        axis.text(0.6, 0.52, "as sure as it should be", fontsize=8, color="#555555")
    return figure


def scatter(truth: Any, said: Any, name: str) -> Figure:
    """Plot predicted numbers against the true ones."""
    with canvas(size=(4.2, 4)) as (figure, axis):
        low, high = min(np.min(truth), np.min(said)), max(np.max(truth), np.max(said))
        axis.plot([low, high], [low, high], color=PALE)
        axis.scatter(truth, said, 8, color=BLUE, alpha=0.4)
        axis.set_xlabel(f"{name}, true", parse_math=False)
        axis.set_ylabel("predicted")
    return figure


def warm(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image (height, width, 3) of 0..255, in grey, under a coloured heat map of 0..1."""
    small = Image.fromarray(np.asarray(heat, "float32"))
    full = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    grey = image.mean(axis=-1, keepdims=True)
    return 0.5 * grey + 127.5 * plt.get_cmap("inferno")(full)[..., :3]


def gallery(
    images: Sequence[np.ndarray], titles: Sequence[str], heats: Sequence[np.ndarray | None]
) -> Figure:
    """Show images with a title above each, and below each where the network looked."""
    columns, rows = max(len(images), 1), 1 + any(heat is not None for heat in heats)
    with canvas(rows, columns, (1.6 * columns, 1.5 * rows + 0.4), squeeze=False) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        for column, (image, title, heat) in enumerate(zip(images, titles, heats, strict=True)):
            axes[0, column].imshow(np.clip(image, 0, 255).astype("uint8"))
            axes[0, column].set_title(title, fontsize=7, loc="center", parse_math=False)
            if heat is not None:
                axes[1, column].imshow(np.clip(warm(image, heat), 0, 255).astype("uint8"))
    return figure
