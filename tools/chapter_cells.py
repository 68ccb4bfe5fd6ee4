"""Turns a chapter's source into what a reader sees: folded answers, image descriptions, links.

Cells go in and cells come out; nothing is executed here. `run_cells` returns the cells of the
source, to be executed. `reader_cells` turns them, executed or not, into the cells of the notebook.

- An exercise is four cells tagged question, hint, answer (code) and answer (markdown). A reader
  sees the question, a cell to work in, and two closed `<details>`: one with the hint, one with the
  code of the answer, its output when the chapter was built, and the explanation.
- The alternative text of an image, `# %% alt="..."`, is stored in the metadata of cell and output.
  nbconvert's classic template uses it there. JupyterLab 4 and nbconvert's lab template use no
  alternative text, and GitHub and Colab do not document it. So the text also follows the image as a
  closed `<details>`, which screen readers read everywhere and which stays when the cell is rerun.
- Cells tagged plumbing are collapsed in JupyterLab and VS Code (jupyter.source_hidden), Colab
  (cellView) and Kaggle (_kg_hide-input).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

CHECKED = "nbval-check-output"  # nbval compares the output of cells with this tag
INSTALL = "colab-install"
QUESTION, HINT, ANSWER, EXERCISE = "question", "hint", "answer", "exercise"
PLUMBING = "plumbing"
NAVIGATION = "navigation"
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "_kg_hide-input": True}
WORK_HERE = "# Your turn."
SHOWN = re.compile(r"(?<=<!-- shown -->\n).*?(?=<!-- end of shown -->)", re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

INSTALL_CODE = """\
import os, sys

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    # --no-deps: the TensorFlow, Keras and NumPy that are there stay as they are.
    %pip install -q --no-deps keras-hub keras-cv "tlkeras @ git+{repository}"\
"""


class BuildError(Exception):
    """Raised if a chapter cannot be built; the message says which one, why, and what to do."""


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def is_picture(output: NotebookNode) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


# --- the cells of the source ---------------------------------------------------------------------


def run_cells(source: Path) -> list[NotebookNode]:
    """Return the cells of a source in order, with the metadata that notebooks keep."""
    cells = jupytext.reads(source.read_text("utf-8"), fmt="py:percent").cells
    for cell in cells:
        metadata = {"tags": list(tags(cell))} if tags(cell) else {}
        if alt := cell.metadata.get("alt"):
            metadata["alt"] = alt
        if PLUMBING in tags(cell):
            metadata |= FOLDED
        cell.metadata = NotebookNode(metadata)
    return cells


# --- the cells of the notebook -------------------------------------------------------------------


def reader_cells(
    cells: Sequence[NotebookNode], source: Path, repository: str = ""
) -> list[NotebookNode]:
    """Return the cells of the notebook for the cells of a source, executed or not."""
    seen = _with_navigation(_fold(cells, source.name), source)
    if repository:
        install = new_code_cell(INSTALL_CODE.format(repository=repository))
        install.metadata = NotebookNode(tags=[INSTALL])
        first = new_markdown_cell(_badges(source.stem, repository) + "\n\n" + seen[0].source)
        seen = [first, install, *seen[1:]]
    # Ids depend on the content, not the position, so a new cell does not change those of others.
    found: Counter[str] = Counter()
    for cell in seen:
        text = SHOWN.sub("", cell.source)
        digest = hashlib.sha256(f"{cell.cell_type}\n{text}".encode()).hexdigest()[:8]
        found[digest] += 1
        repeat = f"-{found[digest]}" if found[digest] > 1 else ""
        cell.id = f"{source.stem[:40]}-{digest}{repeat}"
    return seen


def _fold(cells: Sequence[NotebookNode], name: str) -> list[NotebookNode]:
    """Return the cells with folded exercises, and with descriptions after images."""
    seen, left = [], list(cells)
    while left:
        cell = left.pop(0)
        seen.append(cell)
        if QUESTION in tags(cell):
            parts, left = left[:3], left[3:]
            seen += _exercise(cell, parts, name)
        elif {HINT, ANSWER} & {*tags(cell)}:
            raise BuildError(f"{name}: no cell tagged question before {cell.source[:60]!r}")
        elif alt := cell.metadata.get("alt"):
            seen.append(_details("The picture in words", alt))
    return seen


def _exercise(
    question: NotebookNode, parts: Sequence[NotebookNode], name: str
) -> list[NotebookNode]:
    kinds = [(part.cell_type, *tags(part)) for part in parts]
    if kinds != [("markdown", HINT), ("code", ANSWER), ("markdown", ANSWER)]:
        title = question.source.partition("\n")[0]
        raise BuildError(
            f"{name}: {title!r}: after a cell tagged question expected a markdown cell tagged "
            f"hint, a code cell tagged answer and a markdown cell tagged answer; found {kinds}"
        )
    hint, code, why = parts
    shown = "\n\n".join(filter(None, map(_in_markdown, code.get("outputs", []))))
    body = (
        f"```python\n{code.source}\n```\n\nIt shows:\n\n<!-- shown -->\n{shown}"
        f"<!-- end of shown -->\n\n{why.source}"
    )
    return [
        new_code_cell(WORK_HERE, metadata={"tags": [EXERCISE]}),
        _details("Hint", hint.source, HINT),
        _details("Answer", body, ANSWER),
    ]


def _details(summary: str, text: str, tag: str | None = None) -> NotebookNode:
    cell = new_markdown_cell(f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>")
    cell.metadata = NotebookNode({"tags": [tag]} if tag else {})
    return cell


def _in_markdown(output: NotebookNode) -> str:
    """Return an output of an answer as Markdown: a table as HTML without line breaks, or text."""
    data = output.get("data", {})
    if data.get("text/html", "").startswith("<table"):
        return "\n" + data["text/html"].replace("\n", "") + "\n"
    text = ANSI.sub("", output.get("text") or data.get("text/plain", "")).rstrip()
    return f"\n```text\n{text}\n```\n" if text else ""


def answer_problems(cells: Sequence[NotebookNode]) -> list[str]:
    """Return problems of executed answers, which nobody would see once these are folded."""
    problems = []
    for cell in cells:
        for output in cell.get("outputs", []) if ANSWER in tags(cell) else []:
            first = cell.source.partition("\n")[0]
            if output.output_type == "stream" and output.name == "stderr":
                problems.append(f"the answer {first!r} writes to stderr: {output.text.strip()}")
            if is_picture(output):
                problems.append(f"the answer {first!r} shows a picture; expected a table or text")
    return problems


# --- ways through a chapter and on ---------------------------------------------------------------


def _with_navigation(cells: list[NotebookNode], source: Path) -> list[NotebookNode]:
    headings = [
        line.removeprefix("## ").strip()
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    contents = " · ".join(f"[{h}](#{_anchor(h)})" for h in headings)
    ways = _ways(source)
    top = ways + (f"\n\n**In this chapter:** {contents}" if contents else "")
    bottom = f"---\n{ways} · [Glossary](glossary.md) · [Cheat sheet](cheatsheet.md)"
    first, last = (
        new_markdown_cell(text, metadata=NotebookNode(tags=[NAVIGATION])) for text in (top, bottom)
    )
    return [*cells[:1], first, *cells[1:], last]


def _anchor(heading: str) -> str:
    """Return the anchor of a heading. JupyterLab finds none with an escaped colon or comma."""
    return quote(heading.replace(" ", "-"), safe=":,?!'")


def _ways(source: Path) -> str:
    """Return links to the previous chapter, to all chapters, and to the next chapter."""
    stems = sorted(path.stem for path in source.parent.glob("*.py"))
    place = stems.index(source.stem)
    links = ["[All chapters](README.md)"]
    if place:
        links.insert(0, f"← [{_name(stems[place - 1])}]({stems[place - 1]}.ipynb)")
    if place + 1 < len(stems):
        links.append(f"[{_name(stems[place + 1])}]({stems[place + 1]}.ipynb) →")
    return " · ".join(links)


def _name(stem: str) -> str:
    """Turn 08_02_fine_tuning into "8.2 · Fine tuning", so a new title changes no other chapter."""
    parts = stem.split("_")
    numbers = [str(int(part)) for part in parts if part.isdigit()]
    words = " ".join(part for part in parts if not part.isdigit())
    return f"{'.'.join(numbers)} · {words.capitalize()}"


def _badges(stem: str, repository: str) -> str:
    place = f"{repository.removeprefix('https://github.com/')}/blob/main/chapters/{stem}.ipynb"
    colab, kaggle = "https://colab.research.google.com", "https://kaggle.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{place})\n"
        f"[![Open in Kaggle]({kaggle}/static/images/open-in-kaggle.svg)]"
        f"({kaggle}/kernels/welcome?src=https://github.com/{place})"
    )
