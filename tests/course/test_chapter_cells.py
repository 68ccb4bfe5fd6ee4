"""What a reader sees: exercises folded, pictures described, plumbing collapsed, ways on."""

import build_chapters
import chapter_cells
import pytest
from nbformat.v4 import new_code_cell, new_output

EXERCISE = """\
# %% [markdown]
# # A chapter

# %% tags=["nbval-check-output"]
SEED = 0
two = 2
two

# %% tags=["plumbing", "nbval-check-output"] alt="One dot, \\"in\\" the middle: 5 %."
from IPython.display import display
dot = {"image/png": "iVBORw0KGgo=", "text/plain": "a dot"}
display(dot, raw=True)

# %% tags=["nbval-check-output"]
two + 1

# %% [markdown]
# ## Try it: yourself, now?

# %% [markdown] tags=["question"]
# ### Exercise 1: what is two and two?

# %% [markdown] tags=["hint"]
# Add *them*.

# %% tags=["answer"]
import tlkeras as tlk
print("sum:", two + two)
tlk.table([["sum", two + two]], ["what", "number"])

# %% [markdown] tags=["answer"]
# Because **two** and two are four.
"""


def root_with(path, text, others=()):
    (path / "chapters/source").mkdir(parents=True)
    (path / "chapters/source/02_the_middle.py").write_text(text)
    for name in others:
        (path / f"chapters/source/{name}.py").write_text("# %% [markdown]\n# # Other\n")
    (path / "pyproject.toml").write_text('[tool.tlkeras]\nrepository = ""\n')
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = root_with(tmp_path_factory.mktemp("exercise"), EXERCISE)
    assert build_chapters.main([], root) == 0
    return root, build_chapters.load(root / "chapters/02_the_middle.ipynb")


def cells_with(notebook, tag):
    return [cell for cell in notebook.cells if tag in chapter_cells.tags(cell)]


def test_an_answer_is_run_and_shown_closed(built):
    notebook = built[1]
    (work,) = cells_with(notebook, "exercise")
    (hint,) = cells_with(notebook, "hint")
    (answer,) = cells_with(notebook, "answer")
    assert work.cell_type == "code" and work.execution_count is None and not work.outputs
    assert hint.source.startswith("<details>\n<summary>Hint</summary>\n\nAdd *them*.")
    assert '```python\nimport tlkeras as tlk\nprint("sum:", two + two)\n' in answer.source
    assert "```text\nsum: 4\n```" in answer.source
    assert '<td style="text-align:right;white-space:nowrap">4</td>' in answer.source
    assert answer.source.endswith("Because **two** and two are four.\n\n</details>")
    place = notebook.cells.index(work)
    assert notebook.cells[place - 1].source == "### Exercise 1: what is two and two?"
    assert notebook.cells[place + 1 : place + 3] == [hint, answer]
    assert build_chapters.find_problems(notebook) == []


def test_a_picture_is_described_to_programs_and_to_people(built):
    notebook = built[1]
    (cell,) = cells_with(notebook, "plumbing")
    alt = 'One dot, "in" the middle: 5 %.'
    assert cell.metadata.alt == alt and cell.metadata.jupyter.source_hidden
    assert cell.outputs[-1].metadata == {"image/png": {"alt": alt}}
    words = notebook.cells[notebook.cells.index(cell) + 1].source
    assert "<summary>The picture in words</summary>" in words and alt in words


def test_what_answers_showed_needs_no_run_to_be_checked(built):
    root, notebook = built
    assert build_chapters.main(["--check"], root) == 0
    (answer,) = cells_with(notebook, "answer")
    answer.source = answer.source.replace("Because", "Since")
    build_chapters.write(notebook, root / "chapters/02_the_middle.ipynb")
    assert "differs" in build_chapters.check(root / "chapters")[0]
    answer.source = answer.source.replace("Since", "Because")
    build_chapters.write(notebook, root / "chapters/02_the_middle.ipynb")


def test_links_are_renewed_without_a_run(built, tmp_path, capsys):
    root, notebook = root_with(tmp_path, EXERCISE, ["01_start", "10_the_end"]), built[1]
    path = root / "chapters/02_the_middle.ipynb"
    build_chapters.write(notebook, path)
    assert build_chapters.check(root / "chapters")[1] == (
        "02_the_middle.ipynb: cell 2 differs. Edit the source only, then: "
        "make chapters ONLY=02_the_middle"
    )
    build_chapters.renew(root / "chapters/source/02_the_middle.py", "")
    renewed = build_chapters.load(path)
    top, bottom = cells_with(renewed, "navigation")
    ways = (
        "← [1 · Start](01_start.ipynb) · [All chapters](README.md) · "
        "[10 · The end](10_the_end.ipynb) →"
    )
    assert top.source.startswith(ways) and renewed.cells[1] == top
    assert top.source.endswith("[Try it: yourself, now?](#Try-it:-yourself,-now?)")
    assert ways in bottom.source and renewed.cells[-1] == bottom
    assert "sum: 4" in cells_with(renewed, "answer")[0].source
    assert [c.get("outputs") for c in renewed.cells] == [c.get("outputs") for c in notebook.cells]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            ' alt="One dot, \\"in\\" the middle: 5 %."',
            "",
            'picture and its header has no alt="..."',
        ),
        ('print("sum:", two + two)', "1 / 0", "ZeroDivisionError"),
        ('print("sum:", two + two)', "import sys; sys.stderr.write('bad')", "to stderr: bad"),
        (
            'tlk.table([["sum", two + two]], ["what", "number"])',
            "display(dot, raw=True)",
            "shows a picture",
        ),
        ("# Add *them*.", "# ![](a.png)", "a picture without alternative text"),
        ('# %% [markdown] tags=["hint"]', "# %% [markdown]", "expected a markdown cell tagged"),
        ('tags=["question"]', "", "no cell tagged question before 'Add *them*.'"),
    ],
)
def test_what_a_reader_could_not_see_is_refused(tmp_path, capsys, old, new, problem):
    assert old in EXERCISE
    root = root_with(tmp_path, EXERCISE.replace(old, new))
    assert build_chapters.main([], root) == 1
    assert problem in capsys.readouterr().err
    assert not (root / "chapters/02_the_middle.ipynb").exists()


def test_an_answers_lines_count(built):
    notebook = build_chapters.load(built[0] / "chapters/02_the_middle.ipynb")
    (answer,) = cells_with(notebook, "answer")
    answer.source = answer.source.replace("print(", "1\n" * 195 + "print(")
    assert build_chapters.find_problems(notebook) == [
        "answer 1 has more than 20 lines",
        "205 lines of code, more than 200",
    ]


def test_colours_and_pictures_stay_out_of_what_an_answer_shows():
    shown = new_output("stream", name="stdout", text="\x1b[1mbold\x1b[0m\n")
    assert chapter_cells._in_markdown(shown) == "\n```text\nbold\n```\n"
    silent = new_output("execute_result", {"text/plain": ""})
    assert chapter_cells._in_markdown(silent) == ""
    cell = new_code_cell("1", outputs=[shown])
    assert chapter_cells.answer_problems([cell]) == []
