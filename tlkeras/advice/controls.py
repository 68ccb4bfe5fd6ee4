"""Interactive controls for notebooks, with a plain table where they cannot be shown."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tlkeras.advice.recommending import COMPUTE, guide, recommend
from tlkeras.utils.tables import Table

IMAGES = [step * 10**power for power in range(2, 6) for step in (1, 2, 5)]
ANY = "any"


def decision_guide(controls: bool | None = None) -> Any:
    """Show the decision guide: interactive controls for `tlk.recommend`, or a table of its rules.

    Args:
        controls: whether to show the controls. None: show them if a Jupyter server runs the
            notebook and ipywidgets is installed (`pip install 'tlkeras[widgets]'`). They are not
            shown in a terminal, or in a notebook that runs without a browser, because they would
            not respond there.

    Returns an ipywidgets `VBox` with the controls and the answer, or a table of all rules.
    Raises ImportError if controls are requested and ipywidgets is not installed.
    Source: course section 1.11.

    >>> tlk.decision_guide().header
    ['images', 'shift', 'compute, at least', 'strategy', 'from']
    """
    if not _wanted(controls):
        return _noted(guide(), "four controls that answer as you drag")
    import ipywidgets

    narrow = {"button_width": "6em"}
    return _answering(
        _advise,
        images=ipywidgets.SelectionSlider(
            options=[(f"{n:,}", n) for n in IMAGES], value=1_000, description="images"
        ),
        shift=ipywidgets.ToggleButtons(options=["low", "high"], description="shift", style=narrow),
        compute=ipywidgets.ToggleButtons(options=COMPUTE, description="compute", style=narrow),
        percent=ipywidgets.IntSlider(100, 0, 100, 5, description="labelled, %"),
    )


def filtered(table: Table, *columns: str, controls: bool | None = None) -> Any:
    """Show a table that can be filtered by some of its columns; without JupyterLab, the table.

    Args:
        table: from `tlk.table`.
        columns: names from the table's header; each gets a dropdown list.
        controls: as for `tlk.decision_guide`.

    Returns an ipywidgets `VBox` with the lists and the rows that match, or `table` with a note.
    Raises ValueError for a column that the table does not have.

    >>> tlk.filtered(tlk.table([["LoRA", 30], ["prompts", 5]], ["flavour", "labels"]), "labels")
    flavour  labels
    -------  ------
    LoRA         30
    prompts       5
    <BLANKLINE>
    Run in JupyterLab, with ipywidgets, this cell shows a list to choose from for: labels.
    """
    if unknown := [name for name in columns if name not in table.header]:
        raise ValueError(f"Expected columns among {table.header}; found {unknown}.")
    if not _wanted(controls):
        return _noted(table, f"a list to choose from for: {', '.join(columns)}")
    import ipywidgets

    places = [table.header.index(name) for name in columns]

    def choose(**wanted: str) -> None:
        pairs = list(zip(places, wanted.values(), strict=True))
        rows = [r for r in table.cells if all(word in (ANY, r[place]) for place, word in pairs)]
        _show(Table(rows, table.header, table.note))

    lists = {
        f"column{place}": ipywidgets.Dropdown(
            options=[ANY, *dict.fromkeys(row[place] for row in table.cells)],
            description=name,
            style={"description_width": "initial"},
            layout={"max_width": "95%"},  # fits on a phone
        )
        for place, name in zip(places, columns, strict=True)
    }
    return _answering(choose, **lists)


def _wanted(controls: bool | None) -> bool:
    """Return whether to show controls. Only kernels that a Jupyter server starts have the name."""
    if controls is None:
        return "JPY_SESSION_NAME" in os.environ and find_spec("ipywidgets") is not None
    return controls


def _noted(table: Table, shown: str) -> Table:
    note = f"Run in JupyterLab, with ipywidgets, this cell shows {shown}."
    return Table(table.cells, table.header, f"{table.note} {note}".strip())


def _answering(answer: Callable[..., None], **controls: Any) -> Any:
    import ipywidgets

    return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(answer, controls)])


def _advise(images: int, shift: str, compute: str, percent: int) -> None:
    try:
        _show(recommend(images, shift, compute, labelled=round(images * percent / 100)))
    except ValueError as error:  # nothing to recommend: show the reason instead
        print(error)


def _show(answer: Any) -> None:
    from IPython.display import display

    display(answer)
