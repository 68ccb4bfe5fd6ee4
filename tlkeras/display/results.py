"""Stored measurements: read them, select rows, average over draws."""

import csv
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tlkeras.utils.paths import data_root
from tlkeras.utils.tables import Table, table

_ROWS_SHOWN = 8


class Results:
    """The rows of a stored measurement, and how they were measured.

    A draw is one random choice of the labelled training images; rows usually have one value per
    draw.

    Attributes:
        rows: one dictionary per row. Columns of numbers hold numbers, with nan for values that
            were not measured. `pandas.DataFrame(results.rows)` makes a data frame.
        columns: the names of the columns.
        name: the name of the file, data/results/NAME.csv.
        command: the command that measured them.
        settings: the settings of the measurement, as text.

    >>> found = tlk.results("tasks", preset="efficientnet_lite0", task="lesions", method="frozen")
    >>> sorted(found.scores("labels_per_class", scale=100))
    [0, 5, 10, 30]
    """

    def __init__(self, name: str, rows: list[dict[str, Any]], command: str, settings: str):
        self.name, self.rows, self.command, self.settings = name, rows, command, settings
        self.columns = list(rows[0])

    @property
    def note(self) -> str:
        """Where the numbers come from, in one or two sentences."""
        return f"data/results/{self.name}.csv, measured with: {self.command}. {self.settings}"

    def where(self, **wanted: Any) -> "Results":
        """Return only the rows with the given values.

        Args:
            wanted: for each column, a value or a list of accepted values.

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
        """Group the measured values of all draws by one or two columns.

        Args:
            by: one or two columns to group by.
            value: the column with the measured values.
            scale: a factor for the values, such as 100 for percent.

        Returns a dictionary for `tlk.plots.curves`, `tlk.plots.bars` and `tlk.table`.
        Raises ValueError if two rows of the same group have the same seed.

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
        """Raise ValueError if a seed occurs twice: then the rows also differ in something else."""
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
                f"select some of them with .where(), or group by one of {other}."
            )

    def mean_by(self, *by: str, value: str = "score", scale: float = 1, digits: int = 1) -> Table:
        """Return a table of mean ± standard deviation over draws.

        There is one row per value of the first column in `by`, and one column per value of the
        second. Arguments as for `scores`; `digits` counts the digits after the decimal point.

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
    """Read a measurement that comes with tlkeras, data/results/NAME.csv.

    Args:
        name: the name of the measurement. For example, "tasks" reads data/results/tasks.csv, which
            was made by tools/measure_tasks.py; its command and settings are in tasks.json next to
            it.
        where: columns and the values wanted, as for `Results.where`.

    Raises:
        ValueError: if there is no such measurement, column or value.

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
    """Convert columns of numbers: to int if all values are whole numbers, otherwise to float."""
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
