"""What was measured and stored: read, narrowed down, averaged over draws."""

import csv
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tlkeras.utils.paths import data_root
from tlkeras.utils.tables import Table, table

_ROWS_SHOWN = 8


class Results:
    """Rows of a stored measurement, and how they came about.

    Attributes:
        rows: a dictionary a row; where all of a column are numbers they are numbers, and what was
            not measured is nan. `pandas.DataFrame(results.rows)` is a data frame.
        columns: their names. name: the file, data/results/NAME.csv.
        command: what measured them. settings: with what, in words.

    >>> found = tlk.results("tasks", preset="efficientnet_lite0", task="lesions", method="frozen")
    >>> sorted(found.scores("labels_per_class", scale=100))
    [0, 5, 10, 30]
    """

    def __init__(self, name: str, rows: list[dict[str, Any]], command: str, settings: str):
        self.name, self.rows, self.command, self.settings = name, rows, command, settings
        self.columns = list(rows[0])

    @property
    def note(self) -> str:
        """Where the numbers come from, in a sentence or two."""
        return f"data/results/{self.name}.csv, measured with: {self.command}. {self.settings}"

    def where(self, **wanted: Any) -> "Results":
        """The rows that have these values: one a column, or a list of those that will do.

        Raises ValueError if there is no such column, or no such row.

        >>> len(tlk.results("tasks").where(task="lesions", method=["frozen", "pixels"]).rows) > 9
        True
        """
        rows = self.rows
        for column, value in wanted.items():
            if column not in self.columns:
                raise ValueError(f"{self.name}: no column {column!r}; it has {self.columns}.")
            values = value if isinstance(value, list | tuple | set) else [value]
            kept = [row for row in rows if row[column] in values]
            if not kept:
                there = list(dict.fromkeys(row[column] for row in rows))
                raise ValueError(f"{self.name}: no row has {column}={value!r}; there are {there}.")
            rows = kept
        return Results(self.name, rows, self.command, self.settings)

    def scores(self, *by: str, value: str = "score", scale: float = 1) -> dict[Any, Any]:
        """The draws of every value of one column, or of every pair of values of two columns.

        Args:
            by: one or two columns. value: the column that was measured.
            scale: what it is multiplied with: 100, for shares in percent.

        Returns a dictionary for `tlk.plots.curves`, `tlk.plots.bars` and `tlk.table`.
        Raises ValueError if rows that are to be draws of one thing have the same seed.

        >>> found = tlk.results("tasks", preset="efficientnet_lite0", task="clothes")
        >>> scores = found.scores("method", "labels_per_class", scale=100)
        >>> scores["frozen"][30].shape
        (5,)
        """
        if len(by) not in (1, 2):
            raise ValueError(f"Expected one or two columns to group by; found {list(by)}.")
        for column in (*by, value):
            if column not in self.columns:
                raise ValueError(f"{self.name}: no column {column!r}; it has {self.columns}.")
        first, *second = by
        found: dict[Any, Any] = {}
        for key in dict.fromkeys(row[first] for row in self.rows):
            rows = [row for row in self.rows if row[first] == key]
            if second:
                narrowed = Results(self.name, rows, self.command, self.settings)
                found[key] = narrowed.scores(*second, value=value, scale=scale)
            else:
                self._refuse_mixture(key, rows, value)
                found[key] = scale * np.array([row[value] for row in rows], float)
        return found

    def _refuse_mixture(self, key: Any, rows: list[dict[str, Any]], value: str) -> None:
        """Draws differ in their seed; what has a seed twice differs in something else."""
        seeds = [row.get("seed", number) for number, row in enumerate(rows)]
        if len(set(seeds)) < len(seeds):
            other = [
                column
                for column in self.columns
                if column not in ("seed", value) and not isinstance(rows[0][column], float)
                if len({row[column] for row in rows}) > 1
            ]
            raise ValueError(
                f"{self.name}: the {len(rows)} rows of {key!r} differ in more than their seed: "
                f"narrow them down with .where(), or group by one of {other}."
            )

    def mean_by(self, *by: str, value: str = "score", scale: float = 1, digits: int = 1) -> Table:
        """Mean ± standard deviation over draws: a row a value of the first column, and a column
        a value of the second. Arguments as for `scores`, and `digits` after the point.

        >>> found = tlk.results("tasks", preset="efficientnet_lite0", task="clothes")
        >>> found.mean_by("method", "labels_per_class", scale=100).header[:2]
        ['method', '5']
        """
        return table(self.scores(*by, value=value, scale=scale), by[0], digits, self.note)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def _table(self) -> Table:
        cells = [list(row.values()) for row in self.rows[:_ROWS_SHOWN]]
        more = len(self.rows) - len(cells)
        return Table(
            cells, self.columns, (f"... and {more} more rows. " if more else "") + self.note
        )

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def results(name: str, **where: Any) -> Results:
    """Reads data/results/NAME.csv, which comes with tlkeras, and how it was measured.

    Args:
        name: of the measurement: "tasks" for data/results/tasks.csv, made by
            tools/measure_tasks.py; the command and the settings stand in tasks.json beside it.
        where: columns and the values wanted, as for `Results.where`.

    Raises:
        ValueError: no such measurement, column or value.

    >>> found = tlk.results("tasks", preset="efficientnet_lite0", task="lesions")
    >>> found.command
    'python tools/measure_tasks.py'
    """
    folder = data_root() / "results"
    if not (folder / f"{name}.csv").exists():
        there = sorted(path.stem for path in folder.glob("*.csv"))
        raise ValueError(f"No stored measurement {name!r}; there are {there}.")
    told = json.loads((folder / f"{name}.json").read_text("utf-8"))
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        rows = _typed(list(csv.DictReader(file)))
    return Results(name, rows, told["command"], told["settings"]).where(**where)


def _typed(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Columns of numbers as numbers: whole ones as int, where there is nothing else."""
    kinds = {column: _kind([row[column] for row in rows]) for column in rows[0]}
    return [{column: kinds[column](text) for column, text in row.items()} for row in rows]


def _kind(texts: list[str]) -> Any:
    for kind in (int, _number):
        try:
            for text in texts:
                kind(text)
        except ValueError:
            continue
        if any(texts):
            return kind
    return str


def _number(text: str) -> float:
    return float(text) if text else float("nan")
