"""Collect examples worth looking at: the most wrong and the least certain predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlkeras.advice.gradcam import gradcam
from tlkeras.advice.predictions import CLASS, LABELS, NUMBER
from tlkeras.advice.trained_model import TrainedModel


@dataclass(frozen=True, repr=False)
class Example:
    """One image, and the model's prediction for it.

    Attributes:
        image: pixels 0..255, (height, width, 3).
        truth, said: the true label and the predicted one, as text.
        probability: the probability of the prediction; None if a number was predicted.
        file: the path of the image if it is known, or "".
        heat: where the model looked (Grad-CAM), (rows, columns) of 0..1, or None.
    """

    image: np.ndarray
    truth: str
    said: str
    probability: float | None
    file: str = ""
    heat: np.ndarray | None = None

    @property
    def answer(self) -> str:
        """The prediction, with its probability if there is one."""
        return self.said if self.probability is None else f"{self.said} ({self.probability:.2f})"


class ExampleKeeper:
    """Keeps the most wrong and the least certain examples of all that it has seen.

    Args:
        kind: "class", "labels" or "number".
        count: how many examples of each sort to keep.
    """

    def __init__(self, kind: str, count: int):
        self.kind, self.count = kind, count
        self.found: list[list[tuple]] = [[], []]  # (how bad, number, image, given, truth)

    def look(self, x: Any, given: np.ndarray, truth: np.ndarray, start: int) -> None:
        if not self.count or not isinstance(x, np.ndarray) or x.ndim != 4 or x.shape[-1] != 3:
            return
        for rows, bad in zip(self.found, self._badness(given, truth), strict=True):
            for i in np.argsort(-bad)[: self.count]:
                if np.isfinite(bad[i]):
                    rows.append((float(bad[i]), start + int(i), x[i].copy(), given[i], truth[i]))
            rows.sort(key=lambda row: (-row[0], row[1]))
            del rows[self.count :]

    def _badness(self, given: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == NUMBER:
            return np.abs(given - truth).sum(1), np.full(len(given), -np.inf)
        if self.kind == CLASS:
            right = given[np.arange(len(truth)), truth]
            second, first = np.sort(given, axis=1)[:, -2:].T
            return np.where(given.argmax(1) == truth, -np.inf, 1 - right), second - first
        off = np.abs(given - truth).max(1)
        return np.where(off < 0.5, -np.inf, off), -np.abs(given - 0.5).min(1)


def shown(
    rows: list[tuple],
    trained: TrainedModel,
    names: Sequence[str],
    files: Sequence[str],
    thresholds: Sequence[float] | None,
) -> tuple[Example, ...]:
    """Return the rows of `ExampleKeeper` as examples, with maps of where the model looked."""
    if not rows:
        return ()
    explained = np.array([row[3].argmax() for row in rows])
    if trained.two:  # a lower score speaks for the first class
        explained = 2.0 * explained[:, None] - 1
    heats = gradcam(trained.model, np.stack([row[2] for row in rows]), explained)
    limits, found = np.array(thresholds or 0.5), []
    sure: float | None
    for place, (_, number, image, given, truth) in enumerate(rows):
        if trained.kind == CLASS:
            said, sure = given.argmax(), float(given.max())
        elif trained.kind == LABELS:
            said, sure = given >= limits, float(np.maximum(given, 1 - given).min())
        else:
            said, sure = given, None
        true, answer = (_words(value, names, trained.kind) for value in (truth, said))
        heat = None if heats is None else heats[place]
        file = str(files[number]) if len(files) else ""
        found.append(Example(image, true, answer, sure, file, heat))
    return tuple(found)


def _words(value: Any, names: Sequence[str], kind: str) -> str:
    """Return a class number, a row of labels or a row of numbers as text."""
    if kind == CLASS:
        return names[int(value)]
    if kind == NUMBER:
        return " ".join(f"{number:.4g}" for number in value)
    return ", ".join(name for name, there in zip(names, value, strict=True) if there) or "none"
