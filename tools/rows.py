"""Rows that are measured once, and stored in data/results/NAME.csv as they are measured.

A row has a key, which says what was done and with which seed, and the measured values. Stored rows
are not measured again, so a measurement can be stopped at any time and continued later; to repeat
a row, delete it. NAME.json next to the file gives the command and the settings; `tlk.results` reads
both.
"""

import csv
import io
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
Row = dict[str, str]


class Rows:
    """The rows of a measurement, stored and new ones.

    Args:
        name: name of the file, data/results/NAME.csv.
        key: the columns that identify a row.
        measured: the other columns.
    """

    def __init__(self, name: str, key: tuple[str, ...], measured: tuple[str, ...]):
        self.path, self.key, self.columns = RESULTS / f"{name}.csv", key, (*key, *measured)

    @cached_property
    def stored(self) -> list[Row]:
        """All stored rows, in the order of the file. Raises ValueError if its columns differ."""
        text = ""
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                text = finished(file.read())
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if text and tuple(reader.fieldnames or ()) != self.columns:
            raise ValueError(f"{self.path}: expected {self.columns}, found {reader.fieldnames}.")
        return list(reader)

    def where(self, **wanted: object) -> list[Row]:
        """Return the rows with these values in these columns."""
        texts = {column: _text(value, "g") for column, value in wanted.items()}
        return [row for row in self.stored if texts.items() <= row.items()]

    def find(self, *key: object) -> Row | None:
        """Return the first row whose key is `key` or begins with it, or None."""
        texts = [_text(value, "g") for value in key]
        columns = self.key[: len(texts)]
        return next((row for row in self.stored if [row[c] for c in columns] == texts), None)

    def best(self, column: str, **wanted: object) -> str:
        """Return the value of a column with the best mean `validation` among the wanted rows."""
        scores: dict[str, list[float]] = {}
        for row in self.where(**wanted):
            scores.setdefault(row[column], []).append(float(row["validation"]))
        return max(scores, key=lambda value: np.mean(scores[value]))

    def once(self, key: tuple, measure: Callable[..., dict], *args: object) -> Row:
        """Return the stored row; if there is none, add one with the values of `measure(*args)`."""
        return self.find(*key) or self.add(key, measure(*args))

    def add(self, key: tuple, found: dict) -> Row:
        """Store and print a row. A column that is not in `found` is empty."""
        self.add_all([(key, found)])
        return self.stored[-1]

    def add_all(self, found: Iterable[tuple[tuple, dict]]) -> None:
        """Store and print rows that belong together, except those that are already stored."""
        rows = []
        for key, values in found:
            if not self.find(*key):
                row = dict.fromkeys(self.columns, "")
                row |= dict(zip(self.key, (_text(value, "g") for value in key), strict=True))
                row |= {column: _text(value, ".4f") for column, value in values.items()}
                rows.append(row)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            before = file.read()
            kept = finished(before)
            if kept != before:
                file.truncate(len(kept.encode()))
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if not kept:
                writer.writeheader()
            writer.writerows(rows)
        self.stored.extend(rows)
        for row in rows:
            print(*row.values(), time.strftime("%H:%M:%S"), flush=True)


def finished(text: str) -> str:
    """Return the text of a CSV file without its last row, if that is incomplete.

    >>> finished("seed,score\\n0,0.91\\n1,0.")
    'seed,score\\n0,0.91\\n'
    """
    while text and not (text.endswith("\n") and text.count('"') % 2 == 0):
        text = text[: text.rfind("\n", 0, -1) + 1]
    return text


def _text(value: object, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, float) else str(value)
