"""The result of `predict`: names and probabilities, as a table and as a CSV file."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.utils.tables import html_table, text_table

SHOWN = 20  # rows in a table
CLASS, LABELS, NUMBER = "class", "labels", "number"


@dataclass(frozen=True, repr=False)
class Predictions:
    """The result of `predict`: one row per example, in the given order.

    Attributes:
        classes: names of the outputs.
        probabilities: float32 (examples, classes); the predicted numbers if kind is "number".
        kind: "class" (probabilities sum to 1), "labels" (independent probabilities) or "number".
        files: paths of the examples; () for arrays.
        unreadable: files that could not be read, with the reason. They have no row.
        seconds: time for reading and predicting, without loading the model.
        top: how many classes tables show for each example.
        thresholds: the probability from which each label counts as present; () means 0.5.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    kind: str
    files: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    top: int = 3
    thresholds: tuple[float, ...] = ()

    @property
    def names(self) -> list[Any]:
        """For each example, the most likely class, the list of its labels, or its number(s)."""
        given = self.probabilities
        if self.kind == LABELS:
            there = given >= np.array(self.thresholds or 0.5)
            return [[self.classes[i] for i in np.flatnonzero(row)] for row in there]
        if self.kind == NUMBER:
            return given.squeeze(1).tolist() if len(self.classes) == 1 else given.tolist()
        return [self.classes[i] for i in given.argmax(-1)]

    @property
    def images_per_second(self) -> float:
        """Measured speed, including decoding."""
        return len(self) / self.seconds if self.seconds else 0.0

    def ranked(self, row: int) -> list[tuple[str, float]]:
        """Return the `top` most likely classes of an example with their probabilities.

        If kind is "number": all outputs with their values.
        """
        given = self.probabilities[row]
        order = range(len(given)) if self.kind == NUMBER else np.argsort(-given)[: self.top]
        return [(self.classes[i], float(given[i])) for i in order]

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write a CSV file: one line per example, and one per file that could not be read.

        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax"),
        ... ])
        >>> tlk.predict(model, np.zeros((3, 8, 8, 3))).to_csv("out.csv")
        >>> len(open("out.csv").readlines())
        4
        """
        path = Path(path).expanduser()
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([self.header(), *self.lines()])

    def header(self) -> list[str]:
        """Return the header line of the CSV file."""
        if self.kind == NUMBER:
            return ["file", *self.classes, "problem"]
        ranks = range(1, min(self.top, len(self.classes)) + 1)
        columns = [f"{what}_{rank}" for rank in ranks for what in ("class", "probability")]
        return ["file", *(["labels"] if self.kind == LABELS else []), *columns, "problem"]

    def lines(self) -> Iterator[list[str]]:
        """Yield the other lines: one per example, and one per file that could not be read."""
        labels = self.names
        for row, source in enumerate(self._sources()):
            cells = [";".join(labels[row])] if self.kind == LABELS else []
            for name, value in self.ranked(row):
                cells += [f"{value:.6g}"] if self.kind == NUMBER else [name, f"{value:.6f}"]
            yield [source, *cells, ""]
        for source, why in self.unreadable.items():
            yield [source, *[""] * (len(self.header()) - 2), why]

    def __len__(self) -> int:
        return len(self.probabilities)

    def _sources(self) -> tuple[str, ...]:
        return self.files or tuple(map(str, range(len(self))))

    def _rows(self) -> list[tuple]:
        return [
            (source, "  ".join(f"{name} {value:.3f}" for name, value in self.ranked(row)))
            for row, source in enumerate(self._sources()[:SHOWN])
        ]

    def _said(self) -> list[str]:
        more = [f"... {len(self) - SHOWN:,} more"] if len(self) > SHOWN else []
        speed = f"{len(self):,} images in {self.seconds:.2f} s ({self.images_per_second:.0f} per s)"
        broken = [f"cannot read {name}: {why}" for name, why in self.unreadable.items()]
        return [*more, speed, *broken]

    def __repr__(self) -> str:
        return "\n".join([text_table(self._rows(), ("image", self.kind)), *self._said()])

    def _repr_html_(self) -> str:
        said = html_table([(line,) for line in self._said()], ("",))
        return html_table(self._rows(), ("image", self.kind)) + said
