"""Controls in a notebook that answer as one drags, and a plain table where there are none."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tlkeras.advice.recommending import COMPUTE, guide, recommend
from tlkeras.utils.tables import Table

IMAGES = [step * 10**power for power in range(2, 6) for step in (1, 2, 5)]
ANY = "any"


def decision_guide(controls: bool | None = None) -> Any:
    """The decision guide: in JupyterLab `tlk.recommend` that answers as one drags, else a table.

    Args:
        controls: whether to show them. None: where a Jupyter server runs the notebook and
            ipywidgets is installed (`pip install 'tlkeras[widgets]'`); not in a terminal, nor where
            a notebook is run without a browser, since what is stored then answers nothing.

    Returns ipywidgets' `VBox` of the controls and the answer, or the table of `tlk.recommend`.
    Raises ImportError if controls are asked for and ipywidgets is not installed.
    Source: section 1.11.

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
    """A table with a list to choose from for each of some columns, in JupyterLab; else the table.

    Args:
        table: from `tlk.table`. columns: of its header. controls: as for `tlk.decision_guide`.

    Returns ipywidgets' `VBox` of the lists and the rows that have what was chosen; or `table`.
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
            layout={"max_width": "95%"},  # of a telephone
        )
        for place, name in zip(places, columns, strict=True)
    }
    return _answering(choose, **lists)


def _wanted(controls: bool | None) -> bool:
    """jupyter_server names its session to the kernels that it starts, and to no others."""
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
    except ValueError as error:  # a question without an answer: the reason is the answer
        print(error)


def _show(answer: Any) -> None:
    from IPython.display import display

    display(answer)
