"""Compare runs side by side: the final metric, the cost, and what looks wrong."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tlkeras.display import charts
from tlkeras.display.page import Section, page, picture, table, write
from tlkeras.runs.loading import load_run
from tlkeras.runs.run import Run
from tlkeras.utils.tables import html_table, text_table

COST = ("stages and their epochs", "parameters that learned", "seconds", "looks wrong")


@dataclass(repr=False)
class Comparison:
    """Runs side by side; shown as a table in a notebook.

    Attributes:
        runs: a dictionary from names to runs.
        metric: the metric they are compared by, a column of every run's history.
    """

    runs: dict[str, Run] = field(repr=False)
    metric: str

    def plot(self) -> Figure:
        """Plot the metric over the epochs, one line per run; returns a Figure.

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
        >>> run = tlk.fit_stages(model, tlk.recipes.full(epochs=2), (x, y), verbose=0)
        >>> tlk.compare({"once": run, "again": run}, "loss").plot().axes[0].get_ylabel()
        'loss'
        """
        lines = {
            name: dict(zip(run.history["epoch"], run.history[self.metric], strict=True))
            for name, run in self.runs.items()
        }
        return charts.curves(lines, x="epoch", y=self.metric, title="Epoch by epoch")

    def save(self, path: str | os.PathLike) -> Path:
        """Write one self-contained HTML page, and return its path."""
        rows, header = self._rows()
        ends = ", ".join(f"{row[0]} ends at {row[1]}" for row in rows)
        shown = picture(self.plot(), f"{self.metric} over the epochs: {ends}")
        lead = [f"By {self.metric}. Differences of a few validation examples are ties."]
        made = page("Runs side by side", lead, [
            Section("Where each ended", [table(rows, header)]),
            Section("How each went", [shown]),
        ])  # fmt: skip
        return write(Path(path).expanduser(), made)

    def _rows(self) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        tests = {name: _tested(run) for name, run in self.runs.items()}
        header = ("run", self.metric, *(["test"] if any(tests.values()) else []), *COST)
        rows = []
        for name, run in self.runs.items():
            learned = max((stage.learns.trainable_params for stage in run.stages), default=0)
            stages = ", ".join(f"{stage.name} {stage.epochs}" for stage in run.stages)
            wrong = "; ".join(finding.symptom for finding in run.diagnose()) if run.plan else ""
            ended = [_ended(run, self.metric), *([tests[name]] if any(tests.values()) else [])]
            cost = (stages, f"{learned:,}", f"{run.seconds:.1f}", run.stopped or wrong)
            rows.append((name, *ended, *cost))
        return rows, header

    def __repr__(self) -> str:
        return text_table(*self._rows())

    def _repr_html_(self) -> str:
        return html_table(*self._rows())


def compare(
    runs: Mapping[str, Run | str | os.PathLike] | Sequence[Run | str | os.PathLike],
    metric: str | None = None,
) -> Comparison:
    """Compare runs side by side: final metric, stages, trained parameters, seconds.

    Args:
        runs: a dictionary from names to runs, or a list. In a list, a run is named after its
            folder, or numbered. Each run is what `tlk.fit_stages` or `tlk.load_run` returned, or
            the path of its folder.
        metric: a column of every run's history. None: the first validation metric other than the
            loss that all runs have, otherwise the validation loss or the training loss.

    Returns:
        A Comparison, shown as a table; `.plot()` makes a figure, `.save("runs.html")` a page. For
        saved runs with test results, the first test score and its interval are shown as well.

    Raises:
        ValueError: if there are fewer than two runs, if two have the same name, or if no suitable
            column is in the history of all of them.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
    >>> plans = {"short": tlk.recipes.full(epochs=1), "long": tlk.recipes.full(epochs=3)}
    >>> runs = {
    ...     name: tlk.fit_stages(model, plan, (x, y), (x, y), verbose=0)
    ...     for name, plan in plans.items()
    ... }
    >>> tlk.compare(runs).metric
    'val_accuracy'
    """
    named = _named(runs)
    if len(named) < 2:
        raise ValueError(f"Expected two runs or more to compare; found {len(named)}.")
    columns = [set(run.history) - {"stage", "epoch"} for run in named.values()]
    shared = [
        name for name in next(iter(named.values())).history
        if all(name in found for found in columns)
        and all(np.ndim(value) == 0 for run in named.values() for value in run.history[name])
    ]  # fmt: skip
    judged = [name for name in shared if name.startswith("val_") and name != "val_loss"]
    wanted = [metric] if metric else [*judged, "val_loss", "loss"]
    for name in wanted:
        if name in shared:
            return Comparison(named, name)
    raise ValueError(
        f"Expected {' or '.join(wanted)} in the history of every run; they share {shared}."
    )


def _named(runs: Any) -> dict[str, Run]:
    pairs = list(runs.items()) if isinstance(runs, Mapping) else [("", run) for run in runs]
    found: dict[str, Run] = {}
    for number, (name, given) in enumerate(pairs, 1):
        run = given if isinstance(given, Run) else load_run(given)
        folder = getattr(run, "folder", None)
        name = str(name or (folder.name if folder else f"run {number}"))
        if name in found:
            raise ValueError(
                f"Expected a different name for each run; found {name!r} twice. Give a dict."
            )
        found[name] = run
    return found


def _ended(run: Run, metric: str) -> str:
    """Return the metric for the model's final weights: those of the kept or else last stage."""
    ends = [stage.metrics for stage in run.stages if stage.name == (run.kept or stage.name)]
    return f"{ends[-1].get(metric, math.nan):.4f}" if ends else "-"


def _tested(run: Run) -> str:
    """Return the first test score of a saved run with its interval, or ""."""
    scores = (getattr(run, "record", {}).get("interpretation") or {}).get("scores") or {}
    if not scores:
        return ""
    name, value = next(iter(scores.items()))
    if isinstance(value, list | tuple):
        return f"{name} {value[0]:.1%} ({value[1]:.1%} to {value[2]:.1%})"
    return f"{name} {value:.4g}"
