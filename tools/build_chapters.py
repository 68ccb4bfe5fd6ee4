"""Build chapters/NN_slug.ipynb from chapters/source/NN_slug.py (py:percent) by executing it.

Only the source is edited; the executed notebook is built from it and never edited. If a build does
not pass `find_problems`, the old notebook is kept. Every chapter has a line `SEED = 0`. It is also
run with the seeds 1 and 2, and refused if a checked cell then shows anything else.

    python tools/build_chapters.py                  # build every chapter
    python tools/build_chapters.py --only 06        # build one
    python tools/build_chapters.py --only 06 --draft  # one seed, into build/drafts, while writing
    python tools/build_chapters.py --check          # does every notebook match its source?
    python tools/build_chapters.py --links          # update links after adding/removing a chapter
    python tools/build_chapters.py --repository https://github.com/you/your-fork
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from chapter_cells import (
    ANSI,
    ANSWER,
    CHECKED,
    CODE,
    EXERCISE,
    INSTALL,
    NAVIGATION,
    SHOWN,
    BuildError,
    answer_problems,
    is_picture,
    reader_cells,
    run_cells,
    tags,
)
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]

SEED = re.compile(r"^SEED = 0\b", re.MULTILINE)
SEEDS = [0, 1, 2]
MIN_CHECKED_CELLS = 3
MAX_SECONDS = 90
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)
PATIENCE = 10  # a cell counts as hanging after this many times MAX_SECONDS, on a busy machine
MAX_CELL_LINES = 20
MAX_CODE_LINES = 200
MAX_BYTES = 1_500_000

METADATA = {
    # Versions and display names differ between machines and do not matter to a reader.
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Students do not have these set, so they must not change what a built notebook shows.
FOREIGN_SETTINGS = ("TF_", "KERAS_", "TLKERAS_", "MPLBACKEND", "PYTHONWARNINGS")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_text(output: NotebookNode) -> str:
    """Return all text of an output, without its images."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "\n".join(str(value) for kind, value in data.items() if not kind.startswith("image/"))


# --- what a chapter must be ----------------------------------------------------------------------


def find_problems(notebook: NotebookNode) -> list[str]:
    """Return the reasons why a notebook is not a valid chapter, one line each; empty if it is."""
    problems = []
    cells = code_cells(notebook)
    for number, cell in enumerate(cells, 1):
        if cell.execution_count is None and EXERCISE not in tags(cell):
            problems.append(f"code cell {number} was not executed")
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"code cell {number} ends in {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                first = output.text.strip().partition("\n")[0]
                problems.append(f"code cell {number} writes to stderr: {first}")
            problems += [f"code cell {number} {noise}" for noise in _noise(output_text(output))]
        if CHECKED in tags(cell) and not any(output_text(output) for output in cell.outputs):
            problems.append(f"code cell {number} is to be checked, but shows no text")
        if len(cell.source.splitlines()) > MAX_CELL_LINES:
            problems.append(f"code cell {number} has more than {MAX_CELL_LINES} lines")
    own = [c for c in cells if not {INSTALL, EXERCISE} & {*tags(c)}]
    answers = [code for c in notebook.cells if ANSWER in tags(c) for code in CODE.findall(c.source)]
    problems += [
        f"answer {number} has more than {MAX_CELL_LINES} lines"
        for number, code in enumerate(answers, 1)
        if len(code.splitlines()) > MAX_CELL_LINES
    ]
    problems += [f"an answer {noise}" for c in notebook.cells if ANSWER in tags(c)
                 and c.cell_type == "markdown" for noise in _noise(c.source)]  # fmt: skip
    total = sum(len(code.splitlines()) for code in [*(c.source for c in own), *answers])
    if total > MAX_CODE_LINES:
        problems.append(f"{total} lines of code, more than {MAX_CODE_LINES}")
    checked = sum(CHECKED in tags(cell) for cell in cells)
    if checked < MIN_CHECKED_CELLS:
        problems.append(f"{checked} cells tagged {CHECKED}, fewer than {MIN_CHECKED_CELLS}")
    seconds = notebook.metadata.get("tlkeras", {}).get("seconds")
    if seconds is None:
        problems.append("no recorded running time")
    elif seconds > MAX_SECONDS:
        problems.append(f"takes {seconds} s, more than {MAX_SECONDS} s")
    if (seeds := notebook.metadata.get("tlkeras", {}).get("seeds")) != SEEDS:
        problems.append(f"its claims were checked with the seeds {seeds}, not with {SEEDS}")
    if "widgets" in notebook.metadata:
        problems.append('has metadata.widgets, which GitHub answers with "Invalid Notebook"')
    size = len(dump(notebook).encode())
    if size > MAX_BYTES:
        problems.append(f"{size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.1f} MB")
    return list(dict.fromkeys(problems + _undescribed(notebook)))


def _undescribed(notebook: NotebookNode) -> list[str]:
    """Return a line for every image without a text for blind readers."""
    problems = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if any(map(is_picture, cell.outputs)) and not cell.metadata.get("alt"):
            problems.append(f'code cell {number} shows a picture and its header has no alt="..."')
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(
            r"!\[\s*\]\(|<img(?![^>]*\salt=\S)", cell.source
        ):
            problems.append(f"a picture without alternative text: {cell.source.strip()[:60]!r}")
    return problems


def _noise(text: str) -> list[str]:
    """Return descriptions of text that differs between runs or between machines."""
    noise = []
    if re.search(r"\bat 0x[0-9a-f]{6,}", text):
        noise.append("shows a memory address")
    if str(Path.home()) + "/" in text or str(ROOT) in text:
        noise.append("shows a path of the machine it was built on")
    return noise


# --- source to notebook --------------------------------------------------------------------------


def compose(source: Path, repository: str = "") -> NotebookNode:
    """Return the notebook that corresponds to a source, without outputs."""
    return as_notebook(reader_cells(run_cells(source), source, repository))


def as_notebook(cells: Sequence[NotebookNode]) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def execute(notebook: NotebookNode, folder: Path) -> float:
    """Run every cell in a fresh kernel of this Python, in `folder`; return the seconds it took.

    On a busy machine the kernel gets one thread. The result is the smaller of elapsed time and CPU
    time; CPU time on one thread is at least the time that two idle cores would take.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN_SETTINGS)}
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1):
        environment |= ONE_THREAD  # several threads would wait for each other, using CPU time
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=PATIENCE * MAX_SECONDS,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    started, computed = time.monotonic(), _children_seconds()
    client.execute(env=environment)
    waited, computed = time.monotonic() - started, _children_seconds() - computed
    return min(waited, computed or waited)


def _children_seconds() -> float:
    """Return the CPU seconds of finished processes that this one started."""
    times = os.times()  # zero on Windows, which does not count them
    return times.children_user + times.children_system


def tidy(notebook: NotebookNode, seconds: float) -> None:
    """Make outputs the same from build to build, and record the running time."""
    for number, cell in enumerate(code_cells(notebook), 1):
        if EXERCISE in tags(cell):
            continue
        cell.execution_count = number
        for output in cell.outputs:
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                alt = cell.metadata.get("alt")
                kinds = [kind for kind in output.data if alt and kind.startswith("image/")]
                output.metadata = {kind: {"alt": alt} for kind in kinds}
            if output.output_type == "execute_result":
                output.execution_count = number
            # Not in checked cells, where nbval compares the kernel's output including colours.
            if CHECKED not in tags(cell):
                _strip_colours(output)
    # In steps of 5 s, so that a rebuild seldom changes it.
    recorded = {"seconds": 5 * -int(-seconds // 5), "seeds": SEEDS}
    notebook.metadata = {**METADATA, "tlkeras": recorded}


def _strip_colours(output: NotebookNode) -> None:
    if output.output_type == "stream":
        output.text = ANSI.sub("", output.text)
    elif "text/plain" in output.get("data", {}):
        output.data["text/plain"] = ANSI.sub("", output.data["text/plain"])


def dump(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, version=4) + "\n"


def load(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    temporary = path.with_suffix(".ipynb.tmp")
    temporary.write_text(dump(notebook), "utf-8")
    os.replace(temporary, path)


def run(source: Path, repository: str = "", seed: int = 0) -> tuple[NotebookNode, float]:
    """Return the chapter executed with a seed and tidied, and the seconds; raises BuildError."""
    executed = as_notebook(run_cells(source))
    if seed:
        for cell in code_cells(executed):
            cell.source = SEED.sub(f"SEED = {seed}", cell.source)
    reader_cells(executed.cells, source)  # refuses a wrong order of cells before anything is run
    try:
        seconds = execute(executed, source.parent.parent)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        text = ANSI.sub("", str(error))
        raise BuildError(f"{source.name}, seed {seed}: {text}") from error
    if problems := answer_problems(executed.cells):
        raise BuildError("\n".join(f"{source.name}, seed {seed}: {p}" for p in problems))
    notebook = as_notebook(reader_cells(executed.cells, source, repository))
    tidy(notebook, seconds)
    print(f"{source.stem}, seed {seed}: {seconds:.0f} s", flush=True)
    return notebook, seconds


def build(source: Path, repository: str = "") -> Path:
    """Build one chapter; raises BuildError, and keeps the old notebook, if it is not a chapter."""
    target = notebook_of(source)
    if not SEED.search(source.read_text("utf-8")):
        raise BuildError(f"{source.name}: expected a line SEED = 0, which other seeds replace")
    notebook, _ = run(source, repository)
    problems = find_problems(notebook)
    for seed in [] if problems else SEEDS[1:]:
        problems += differing_claims(notebook, run(source, repository, seed)[0], seed)
    if problems:
        raise BuildError("\n".join(f"{source.name}: {problem}" for problem in problems))
    write(notebook, target)
    return target


def differing_claims(notebook: NotebookNode, other: NotebookNode, seed: int) -> list[str]:
    """Return a line for every checked cell that shows something else with another seed."""
    problems = []
    pairs = zip(code_cells(notebook), code_cells(other), strict=True)
    for number, (cell, again) in enumerate(pairs, 1):
        texts = ["\n".join(map(output_text, c.outputs)) for c in (cell, again)]
        if CHECKED in tags(cell) and texts[0] != texts[1]:
            problems.append(f"code cell {number} shows with seed {seed}: {texts[1].strip()}")
    return problems


def draft(source: Path, seed: int) -> Path:
    """Run the chapter once for its author to look at, even if it has problems."""
    notebook, _ = run(source, seed=seed)
    target = source.parents[2] / "build" / "drafts" / f"{source.stem}-{seed}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    write(notebook, target)
    print(*find_problems(notebook), sep="\n")
    return target


def renew(source: Path, repository: str) -> None:
    """Update links, badges and install cell of a built notebook, and keep its outputs.

    The install cell does nothing outside Colab and Kaggle, so the notebook need not be run again.
    """
    target = notebook_of(source)
    old, notebook = load(target), compose(source, repository)
    pairs = zip(own_cells(old), own_cells(notebook), strict=True)
    for before, cell in pairs:
        cell.source = with_shown(cell.source, before.source)
        if cell.cell_type == "code":
            cell.outputs = before.outputs
    tidy(notebook, old.metadata.tlkeras.seconds)
    write(notebook, target)


def own_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that come from the source and do not depend on other chapters."""
    return [cell for cell in notebook.cells if not {INSTALL, NAVIGATION} & {*tags(cell)}]


def with_shown(text: str, other: str) -> str:
    """Return the text of an answer's cell with the shown output of another version of it."""
    shown = SHOWN.search(other)
    return SHOWN.sub(lambda _: shown.group() if shown else "", text)


# --- do they correspond? -------------------------------------------------------------------------


def notebook_of(source: Path) -> Path:
    return source.parent.parent / f"{source.stem}.ipynb"


def difference(source: Path, repository: str = "", links: bool = True) -> str | None:
    """Return why a notebook does not match its source, or None; nothing is executed.

    Without `links`, cells that depend only on the names of other chapters are not compared.
    """
    target = notebook_of(source)
    if not target.exists():
        return "not built yet"
    expected, found = compose(source, repository), load(target)
    metadata = {k: v for k, v in found.metadata.items() if k != "tlkeras"}
    if metadata != expected.metadata:
        return "its metadata was changed"
    both = [own_cells(n) if not links else n.cells for n in (expected, found)]
    if len(both[0]) != len(both[1]):
        return f"it has {len(both[1])} cells, its source {len(both[0])}"
    for number, (a, b) in enumerate(zip(*both, strict=True), 1):
        b.source = with_shown(b.source, "")
        if any(a.get(key) != b.get(key) for key in ("cell_type", "id", "source", "metadata")):
            return f"cell {number} differs"
    return None


def check(folder: Path, repository: str = "", links: bool = True) -> list[str]:
    """Return one line for every notebook that does not match its source."""
    found = []
    sources = sorted((folder / "source").glob("*.py"))
    for source in sources:
        if reason := difference(source, repository, links):
            command = f"make chapters ONLY={source.stem}"
            found.append(f"{source.stem}.ipynb: {reason}. Edit the source only, then: {command}")
    stems = {source.stem for source in sources}
    for notebook in sorted(folder.glob("*.ipynb")):
        if notebook.stem not in stems:
            found.append(f"{notebook.name}: it has no source/{notebook.stem}.py")
    return found


# --- the repository address ----------------------------------------------------------------------


def configured_repository(pyproject: Path) -> str:
    return tomllib.loads(pyproject.read_text("utf-8"))["tool"]["tlkeras"]["repository"]


def configure_repository(pyproject: Path, address: str) -> str:
    """Write the address into pyproject.toml and return it in its plain form; "" removes it."""
    plain = address.strip().rstrip("/").removesuffix(".git")
    if plain and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", plain):
        raise BuildError(f"{address!r} is not of the form https://github.com/OWNER/NAME")
    if plain != configured_repository(pyproject):
        line = re.compile(r'^repository = ".*"$', re.MULTILINE)
        text = line.sub(f'repository = "{plain}"', pyproject.read_text("utf-8"), count=1)
        pyproject.write_text(text, "utf-8")
    return plain


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Build the chapters from chapters/source.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--only", metavar="NN", help="build one chapter, by the start of its name")
    parser.add_argument("--draft", type=int, nargs="?", const=0, metavar="SEED",
                        help="run with this seed only, into build/drafts")  # fmt: skip
    action.add_argument("--check", action="store_true", help="compare only, exit 1 if any differs")
    action.add_argument("--links", action="store_true", help="renew links and badges and exit")
    action.add_argument(
        "--repository", metavar="URL", help="set the GitHub address of the badges and exit"
    )
    options = parser.parse_args(arguments)
    folder, pyproject = root / "chapters", root / "pyproject.toml"
    sources = sorted((folder / "source").glob(f"{options.only or ''}*.py"))
    try:
        if options.only and not sources:
            raise BuildError(f"no chapters/source/{options.only}*.py")
        repository = configured_repository(pyproject)
        renewing = options.links or options.repository is not None
        if options.check or renewing:
            # Also before updating links: outputs are kept, so they must belong to the source.
            differences = check(folder, repository, links=options.check)
            if differences:
                raise BuildError("\n".join(differences))
        if options.repository is not None:
            repository = configure_repository(pyproject, options.repository)
        for source in sources if not options.check else []:
            if renewing:
                renew(source, repository)
            elif options.draft is None:
                build(source, repository)
            else:
                draft(source, options.draft)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
