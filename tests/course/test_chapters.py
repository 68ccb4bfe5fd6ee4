"""The guard: what a notebook has to be before it counts as a chapter."""

import re
from pathlib import Path

import build_chapters
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("chapters/*.ipynb")), ids=lambda path: path.stem)
def test_chapter(path):
    assert build_chapters.find_problems(build_chapters.load(path)) == []
    assert (path.parent / "source" / f"{path.stem}.py").exists()


@pytest.mark.parametrize("index", ["README.md", "chapters/README.md"])
def test_the_index_lists_every_chapter(index):
    text = (ROOT / index).read_text(encoding="utf-8")
    folder = "" if index.startswith("chapters") else "chapters/"
    for path in ROOT.glob("chapters/*.ipynb"):
        assert f"[{path.stem}]({folder}{path.name})" in text


def test_the_map_says_the_seconds_that_were_recorded():
    text = (ROOT / "chapters" / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"\]\((\w+)\.ipynb\) \|[^|]*\| (\d+) \|", text))
    notebooks = {path.stem: build_chapters.load(path) for path in ROOT.glob("chapters/*.ipynb")}
    assert said == {name: str(nb.metadata.tlkeras.seconds) for name, nb in notebooks.items()}


def chapter() -> NotebookNode:
    """The smallest notebook that passes."""
    cells = []
    for _ in range(build_chapters.MIN_CHECKED_CELLS):
        cell = new_code_cell("1 + 1", execution_count=1)
        cell.metadata.tags = [build_chapters.CHECKED]
        cell.outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
        cells.append(cell)
    return new_notebook(cells=cells, metadata={"tlkeras": {"seconds": 10, "seeds": [0, 1, 2]}})


def show(text: str, name: str = "stdout"):
    return lambda nb: nb.cells[0].outputs.append(new_output("stream", name=name, text=text))


def test_the_smallest_chapter_passes():
    assert build_chapters.find_problems(chapter()) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda nb: nb.cells[0].update(execution_count=None), "code cell 1 was not executed"),
        (
            lambda nb: nb.cells[0].outputs.append(
                new_output("error", ename="ValueError", evalue="bad", traceback=[])
            ),
            "code cell 1 ends in ValueError: bad",
        ),
        (show("W0000 noise\nmore", "stderr"), "code cell 1 writes to stderr: W0000 noise"),
        (show("<Thing at 0x7f1234567890>"), "code cell 1 shows a memory address"),
        (show(f"{ROOT}/data"), "code cell 1 shows a path of the machine it was built on"),
        (
            lambda nb: nb.cells[0].outputs.clear(),
            "code cell 1 is to be checked, but shows no text",
        ),
        (lambda nb: nb.cells[0].metadata.pop("tags"), "2 cells tagged nbval-check-output"),
        (lambda nb: nb.metadata.tlkeras.pop("seconds"), "no recorded running time"),
        (
            lambda nb: nb.metadata.tlkeras.update(seeds=[0]),
            "its claims were checked with the seeds",
        ),
        (lambda nb: nb.metadata.tlkeras.update(seconds=95), "takes 95 s, more than 90 s"),
        (lambda nb: nb.cells[0].update(source="1\n" * 21), "code cell 1 has more than 20 lines"),
        (
            lambda nb: nb.cells.extend(
                new_code_cell("1\n" * 20, execution_count=1) for _ in range(10)
            ),
            "203 lines of code, more than 200",
        ),
        (lambda nb: nb.metadata.update(widgets={}), "has metadata.widgets"),
        (
            lambda nb: nb.cells[0].outputs.append(new_output("display_data", {"image/png": ""})),
            "code cell 1 shows a picture and its header has no alt",
        ),
        (
            lambda nb: nb.cells.append(new_markdown_cell("![ ](a.png)")),
            "a picture without alternative text: '![ ](a.png)'",
        ),
        (show("x" * 1_600_000), "1.6 MB, more than 1.5 MB"),
    ],
)
def test_a_spoiled_chapter_does_not(spoil, problem):
    notebook = chapter()
    spoil(notebook)
    (found,) = build_chapters.find_problems(notebook)
    assert found.startswith(problem)


def test_the_install_cell_does_not_count_as_lines():
    notebook = chapter()
    notebook.cells.extend(new_code_cell("1\n" * 19, execution_count=1) for _ in range(10))
    install = new_code_cell("1\n" * 8, execution_count=1, metadata={"tags": ["colab-install"]})
    notebook.cells.append(install)
    assert build_chapters.find_problems(notebook) == []
