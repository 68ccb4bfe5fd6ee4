"""Plain tables, for a terminal and for a notebook."""

import html
import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"^[-+]?[\d,.]+( ?%)?$")


def _columns(
    rows: Iterable[Iterable[object]], header: Sequence[str]
) -> tuple[list[list[str]], list[bool]]:
    """All cells as text, and for every column whether its cells are numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
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
        sides = ["right" if right else "left" for right in numeric]
        filled = [
            f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(row, sides, strict=True)
        ]
        return f"<tr>{''.join(filled)}</tr>"

    head, body = line("th", map(str, header)), "".join(line("td", row) for row in cells)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
