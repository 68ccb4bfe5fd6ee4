"""The chapter builder, on a tiny chapter that a real kernel runs."""

import json
import sys
from pathlib import Path

import build_chapters
import nbformat
import pytest

SOURCE = """\
# %% [markdown]
# # A tiny chapter

# %% tags=["nbval-check-output"]
SEED = 0  # another draw
1 + 1

# %% tags=["nbval-check-output"]
print("two")
print("lines")

# %% tags=["nbval-check-output"]
import os, sys
from pathlib import Path
Path.cwd().name, "TF_CPP_MIN_LOG_LEVEL" in os.environ

# %%
Path("python.txt").write_text(sys.executable);
print("\\x1b[1mbold\\x1b[0m")
"""
FORK = "https://github.com/someone/fork"


def make_root(path: Path, text: str = SOURCE) -> Path:
    (path / "chapters/source").mkdir(parents=True)
    (path / "chapters/source/01_tiny.py").write_text(text)
    (path / "pyproject.toml").write_text('[tool.tlkeras]\nrepository = ""\n')
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = make_root(tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
        assert build_chapters.main([], root) == 0
    return root


@pytest.fixture
def root(built, tmp_path) -> Path:
    """A copy of the built chapter that a test may change."""
    root = make_root(tmp_path)
    (root / "chapters/01_tiny.ipynb").write_bytes((built / "chapters/01_tiny.ipynb").read_bytes())
    return root


def read(root: Path) -> nbformat.NotebookNode:
    return build_chapters.load(root / "chapters/01_tiny.ipynb")


def test_a_build_is_executed_here_and_passes_its_check(built):
    notebook = read(built)
    one, two, three, four = build_chapters.code_cells(notebook)
    assert one.outputs[0].data["text/plain"] == "2"
    assert [output.text for output in two.outputs] == ["two\nlines\n"]
    # In chapters/, and without the settings that would hide from us what a student sees.
    assert three.outputs[0].data["text/plain"] == "('chapters', False)"
    assert (built / "chapters/python.txt").read_text() == sys.executable
    assert four.outputs[0].text == "bold\n"
    assert notebook.metadata == {
        **build_chapters.METADATA,
        "tlkeras": {"seconds": notebook.metadata.tlkeras.seconds, "seeds": [0, 1, 2]},
    }
    assert build_chapters.find_problems(notebook) == []
    assert build_chapters.main(["--check"], built) == 0
    assert not list(built.glob("chapters/*.tmp"))


def test_two_builds_are_the_same_bytes(root, built):
    assert build_chapters.main(["--only", "01"], root) == 0
    first, second = read(built), read(root)
    first.metadata.tlkeras.seconds = second.metadata.tlkeras.seconds = 0
    assert build_chapters.dump(first) == build_chapters.dump(second)


def test_a_new_cell_keeps_the_ids_of_the_others(root):
    source = root / "chapters/source/01_tiny.py"
    before = [cell.id for cell in build_chapters.compose(source).cells]
    source.write_text(SOURCE.replace("# %% tags", "# %%\n3\n\n# %%\n3\n\n# %% tags", 1))
    after = [cell.id for cell in build_chapters.compose(source).cells]
    assert [i for i in after if i in before] == before
    assert len(set(after)) == len(before) + 2


def test_check_names_the_chapter_and_the_command(root, capsys):
    source = root / "chapters/source/01_tiny.py"
    source.write_text(SOURCE.replace("1 + 1", "1 + 2"))
    assert build_chapters.main(["--check"], root) == 1
    message = capsys.readouterr().err
    assert "01_tiny.ipynb: cell 3 differs" in message
    assert "make chapters ONLY=01_tiny" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda nb: nb.cells[2].update(source="1 + 2"), "cell 3 differs"),
        (lambda nb: nb.cells[2].metadata.pop("tags"), "cell 3 differs"),
        (lambda nb: nb.cells.pop(), "it has 6 cells, its source 7"),
        (lambda nb: nb.metadata.language_info.update(version="3.11"), "metadata was changed"),
    ],
)
def test_check_sees_an_edited_notebook(root, change, reason):
    notebook = read(root)
    change(notebook)
    build_chapters.write(notebook, root / "chapters/01_tiny.ipynb")
    assert reason in build_chapters.check(root / "chapters")[0]


def test_check_sees_what_is_missing(root):
    (root / "chapters/source/01_tiny.py").rename(root / "chapters/source/02_other.py")
    assert build_chapters.check(root / "chapters") == [
        "02_other.ipynb: not built yet. Edit the source only, then: make chapters ONLY=02_other",
        "01_tiny.ipynb: it has no source/01_tiny.py",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("print('noise', file=sys.stderr)", "code cell 4 writes to stderr: noise"),
        (
            '# %% tags=["nbval-check-output"]\nprint("holds:", SEED < 2)',
            "code cell 5 shows with seed 2: holds: False",
        ),
    ],
)
def test_a_failed_build_keeps_the_old_notebook(root, capsys, line, reason):
    notebook = root / "chapters/01_tiny.ipynb"
    before = notebook.read_bytes()
    (root / "chapters/source/01_tiny.py").write_text(SOURCE + line + "\n")
    assert build_chapters.main([], root) == 1
    message = capsys.readouterr().err
    assert "01_tiny.py" in message and reason in message
    assert notebook.read_bytes() == before


def test_a_chapter_without_a_seed_is_not_built(root, capsys):
    (root / "chapters/source/01_tiny.py").write_text(SOURCE.replace("SEED", "OTHER"))
    assert build_chapters.main([], root) == 1
    assert "expected a line SEED = 0" in capsys.readouterr().err


def test_a_draft_is_run_with_one_seed_beside_the_chapters(root, capsys):
    before = (root / "chapters/01_tiny.ipynb").read_bytes()
    (root / "chapters/source/01_tiny.py").write_text(SOURCE + "print(SEED)\nprint('/home/x/')\n")
    assert build_chapters.main(["--draft", "2"], root) == 0
    draft = build_chapters.load(root / "build/drafts/01_tiny-2.ipynb")
    assert "2\n/home/x/" in draft.cells[-2].outputs[0].text
    assert (root / "chapters/01_tiny.ipynb").read_bytes() == before


def test_badges_come_and_go_with_one_command(root, built):
    target = root / "chapters/01_tiny.ipynb"
    assert build_chapters.main(["--repository", f"{FORK}.git/"], root) == 0
    assert build_chapters.configured_repository(root / "pyproject.toml") == FORK
    assert build_chapters.main(["--check"], root) == 0
    notebook = read(root)
    title, install, *others = notebook.cells
    assert title.source.startswith("[![Open in Colab](")
    assert "/github/someone/fork/blob/main/chapters/01_tiny.ipynb)" in title.source
    assert f'--no-deps keras-hub keras-cv "tlkeras @ git+{FORK}"' in install.source
    assert install.metadata.tags == ["colab-install"]
    assert len(install.source.splitlines()) <= 8
    assert [cell.id for cell in others] == [cell.id for cell in read(built).cells[1:]]
    assert "open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://" in title.source
    assert build_chapters.find_problems(notebook) == []
    assert build_chapters.main(["--repository", ""], root) == 0
    assert target.read_bytes() == (built / "chapters/01_tiny.ipynb").read_bytes()


def test_a_badge_needs_a_github_address_and_a_notebook_of_its_source(root, capsys):
    before = (root / "pyproject.toml").read_text()
    assert build_chapters.main(["--repository", "https://example.org/fork"], root) == 1
    assert "https://github.com/OWNER/NAME" in capsys.readouterr().err
    (root / "chapters/source/01_tiny.py").write_text(SOURCE + "4\n")
    assert build_chapters.main(["--repository", FORK], root) == 1
    assert "cell 5 differs" in capsys.readouterr().err
    assert (root / "pyproject.toml").read_text() == before


def test_only_names_a_chapter_that_exists(root, capsys):
    assert build_chapters.main(["--only", "07"], root) == 1
    assert "no chapters/source/07*.py" in capsys.readouterr().err


def test_a_built_notebook_is_plain_json_with_a_last_newline(built):
    text = (built / "chapters/01_tiny.ipynb").read_text()
    assert text.endswith("}\n") and json.loads(text)["nbformat"] == 4
