"""Plain tables, for a terminal and for a notebook."""

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_NUMBER = re.compile(r"^[-+]?[\d,.]+( ± [\d,.]+)?( ?%)?$")


def printable(text: object) -> str:
    """Return the text with every character that UTF-8 cannot encode replaced by a question mark.

    Some systems allow such characters in file names.
    """
    return str(text).encode("utf-8", "replace").decode()


def _columns(
    rows: Iterable[Iterable[object]], header: Sequence[str]
) -> tuple[list[list[str]], list[bool]]:
    """Return all cells as text, and for every column whether all its cells are numbers."""
    cells = [[printable(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"Expected a cell for each of {list(header)}; found {row}.")
    numeric = [
        bool(cells) and all(_NUMBER.match(row[i]) or row[i] in ("", "-") for row in cells)
        for i in range(len(header))
    ]
    return cells, numeric


def text_table(rows: Iterable[Iterable[object]], header: Sequence[str]) -> str:
    """Return `rows` (lists of cells, any type) under `header` as aligned lines of text.

    Columns of numbers are aligned to the right, all others to the left.
    """
    cells, numeric = _columns(rows, header)
    lines = [[str(name) for name in header], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def html_table(rows: Iterable[Iterable[object]], header: Sequence[str]) -> str:
    """Return the same table as HTML, for `_repr_html_`; every cell is escaped."""
    cells, numeric = _columns(rows, header)

    def line(tag: str, row: Iterable[str]) -> str:
        whole = ";white-space:nowrap" * (tag == "td")  # no break within 44.7 ± 5.6 on a phone
        sides = [f"right{whole}" if right else "left" for right in numeric]
        filled = [
            f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(row, sides, strict=True)
        ]
        return f"<tr>{''.join(filled)}</tr>"

    head, body = line("th", map(str, header)), "".join(line("td", row) for row in cells)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


class Table:
    """Cells under a header, with a note below: text in a terminal, HTML in a notebook.

    Attributes:
        cells: the cells as text, one list per row.
        header: names of the columns.
        note: text shown below the table, or "".
    """

    def __init__(self, cells: Iterable[Iterable[object]], header: Iterable[object], note: str = ""):
        self.cells = [[str(cell) for cell in row] for row in cells]
        self.header = [str(name) for name in header]
        self.note = note

    def __repr__(self) -> str:
        note = "\n\n" + textwrap.fill(self.note, 100) if self.note else ""
        return text_table(self.cells, self.header) + note

    def _repr_html_(self) -> str:
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return html_table(self.cells, self.header) + note


def table(
    rows: Iterable[Iterable[Any]] | Mapping[Any, Any],
    header: Sequence[str] | str = "",
    digits: int = 1,
    note: str = "",
) -> Table:
    """Return a table to show at the end of a notebook cell.

    Args:
        rows: lists of cells. Several numbers in one cell are the draws of a measurement, shown as
            their mean ± standard deviation. Or a mapping from names to draws, or from names to
            mappings from columns to draws, as `tlk.plots.bars` and `curves` take them.
        header: names of the columns; for a mapping, the name of the first column is enough.
        digits: number of decimals; -1 rounds to tens. Integers are shown without decimals.
        note: text shown below the table.

    >>> tlk.table({"ImageNet": [60, 64, 65], "pixels": [31, 30, 32]}, "features", digits=0)
    features  mean ± spread
    --------  -------------
    ImageNet         63 ± 3
    pixels           31 ± 1
    >>> tlk.table([("head", 1285, 0.913), ("all", 3414309, 0.92)], ["opened", "numbers", "score"])
    opened    numbers  score
    ------  ---------  -----
    head        1,285    0.9
    all     3,414,309    0.9
    """
    if isinstance(rows, Mapping):
        nested = all(isinstance(draws, Mapping) for draws in rows.values())
        inner = {column: None for draws in rows.values() if nested for column in draws}
        if isinstance(header, str):
            header = [header, *(map(str, inner) if nested else ["mean ± spread"])]
        rows = [
            [name, *(draws.get(column, "-") for column in inner)] if nested else [name, draws]
            for name, draws in rows.items()
        ]
    return Table([[_shown(cell, digits) for cell in row] for row in rows], header, note)


def mean_and_spread(draws: Any) -> tuple[float, float]:
    """Return the mean and the standard deviation (n - 1) of draws; 0 for a single draw."""
    values = np.ravel(np.asarray(draws, float))
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _shown(cell: Any, digits: int) -> str:
    if isinstance(cell, str | bool | np.bool_) or cell is None:
        return str(cell)
    if np.ndim(cell):
        mean, spread = mean_and_spread(cell)
        shown = _rounded(mean, digits)
        return f"{shown} ± {_rounded(spread, digits)}" if np.size(cell) > 1 else shown
    if isinstance(cell, int | np.integer) and digits >= 0:
        return f"{cell:,}"
    if isinstance(cell, int | float | np.number):
        return _rounded(float(cell), digits)
    return str(cell)


def _rounded(value: float, digits: int) -> str:
    return f"{round(float(value), digits) + 0.0:,.{max(digits, 0)}f}"
