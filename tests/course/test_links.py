"""Links between chapters, glossary and cheat sheet lead somewhere."""

import re
from pathlib import Path
from urllib.parse import unquote

import build_chapters
import pytest

CHAPTERS = Path(__file__).resolve().parents[2] / "chapters"
PAGES = [*sorted(CHAPTERS.glob("*.md")), *sorted(CHAPTERS.glob("*.ipynb"))]
LINK = re.compile(r"\]\((?!https?:|attachment:)([^)#\s]*)(?:#([^)\s]*))?\)")


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = build_chapters.load(path).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors(path: Path) -> set[str]:
    """As JupyterLab makes them; GitHub writes the glossary's in the same way."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    plain = [heading.replace(" ", "-") for heading in headings]
    return {*plain, *(anchor.replace(",", "") for anchor in plain)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page):
    for place, anchor in LINK.findall(text_of(page)):
        target = (CHAPTERS / place) if place else page
        assert target.exists(), place
        assert not anchor or unquote(anchor) in anchors(target), f"{place}#{anchor}"


def test_the_glossary_has_each_term_once():
    terms = re.findall(r"^### (.*)$", (CHAPTERS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(terms) == len(set(terms)) > 30
    assert all(term == term.lower() for term in terms), "so that anchors are alike everywhere"


def test_the_cheat_sheet_fits_a_page():
    assert len((CHAPTERS / "cheatsheet.md").read_text("utf-8").splitlines()) <= 90
