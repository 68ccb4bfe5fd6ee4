"""Parts of a Markdown page. `bullets`, `text` and the rows of `table` escape their text."""

import html
import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {text(line)}" for line in lines)


def code(lines: str, language: str = "") -> str:
    return f"```{language}\n{lines.replace('```', '')}\n```"


def text(words: str) -> str:
    """Return the words as one line, with Markdown and HTML characters escaped."""
    escaped = html.escape(one_line(words), quote=False)
    return re.sub(r"([\\`*\[\]|#]|\b_|_\b)", r"\\\1", escaped)


def one_line(words: str) -> str:
    return " ".join(str(words).split())
