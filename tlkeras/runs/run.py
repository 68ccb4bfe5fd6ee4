"""The result of staged training: one result per stage, and one history over all stages."""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tlkeras.display import plots
from tlkeras.freezing.flags import Learning
from tlkeras.optimizers.rates import shown
from tlkeras.plans.plan import Plan
from tlkeras.runs import folder
from tlkeras.runs.diagnosing import Findings, diagnose
from tlkeras.utils.tables import html_table, text_table


@dataclass
class StageResult:
    """The result of one stage.

    Attributes:
        name, learning_rate: as planned.
        epochs: how many epochs were trained.
        best_epoch: the epoch whose weights were kept (0: the weights from before the stage).
        seconds: wall time of `fit`, including validation.
        learns: the table of what was trained.
        stopped: why the stage ended before its last planned epoch, or "".
        failed: why the whole run ended with this stage (a NaN loss, Ctrl-C, an error), or "".
        metrics: the metrics of the best epoch.
        cache: where the outputs of the frozen part were cached, or why they were not.
        monitor, mode: the metric that chose the best epoch, and "min" or "max"; both are "" if
            the last epoch was kept.
    """

    name: str
    learning_rate: Any
    epochs: int
    best_epoch: int
    seconds: float
    learns: Learning = field(repr=False)
    stopped: str
    failed: str
    metrics: dict[str, Any]
    cache: str = ""
    monitor: str = ""
    mode: str = ""


@dataclass
class Run:
    """The result of `fit_stages`: the plan, one result per stage, and one history over all stages.

    Attributes:
        model: the trained model, compiled as in the last stage.
        plan: the plan as given.
        stages: the results in order; fewer than planned if a stage diverged or was interrupted.
        history: a dictionary of lists with one value per epoch: "stage", "epoch" (counted over
            the whole run, from 1), and every metric.
        unsaved: what a saved file of the model would lose, and the call that restores it, or "".
        kept: with `keep="best_of_run"`, the stage whose weights the model has; otherwise "".

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> y = np.arange(48) % 3  # brighter images in the higher classes
    >>> x = 80 * y[:, None, None, None] + np.random.uniform(0, 80, (48, 32, 32, 3))
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(2), (x, y), verbose=0, seed=0)
    >>> run.history["epoch"], sorted(run.history)
    ([1, 2], ['accuracy', 'epoch', 'loss', 'stage'])
    >>> run.stages[0].learns.blocks, run.stopped
    (['head'], '')
    """

    model: keras.Model = field(repr=False)
    plan: Plan
    stages: list[StageResult] = field(default_factory=list)
    history: dict[str, list] = field(default_factory=dict)
    unsaved: str = ""
    kept: str = ""

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def stopped(self) -> str:
        """Why the run ended before its plan was finished, or ""."""
        return self.stages[-1].failed if self.stages else ""

    @property
    def worse(self) -> str:
        """If the last stage ended worse than an earlier one, which one and by how much; or ""."""
        last = self.stages[-1] if self.stages else None
        if last is None or not last.mode:
            return ""
        sign, name = -1 if last.mode == "max" else 1, last.monitor
        judged = [s for s in self.stages if s.monitor == name]
        judged = [s for s in judged if math.isfinite(s.metrics.get(name, math.nan))]
        best = min(judged, key=lambda s: sign * s.metrics[name], default=last)
        if last not in judged or best.metrics[name] == last.metrics[name]:
            return ""
        reached, now = best.metrics[name], last.metrics[name]
        return (
            f"stage {last.name!r} ended at {last.monitor} {now:.4f}, worse than stage "
            f"{best.name!r} at {reached:.4f}: "
            + (
                "the model has the weights of that stage"
                if self.kept
                else "keep='best_of_run' would have kept the weights of that stage"
            )
        )

    def plot(self) -> Figure:
        """Plot the loss and the first metric over all epochs, with the stages; returns a Figure.

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
        >>> run = tlk.fit_stages(model, tlk.recipes.full(epochs=2), (x, y), verbose=0)
        >>> [axis.get_ylabel() for axis in run.plot().axes]
        ['loss', 'accuracy']
        """
        return plots.history(self.history)

    def diagnose(
        self, train: Any = None, validation: Any = None, *, before: keras.Model | None = None
    ) -> Findings:
        """Check the run for the usual problems; see `tlk.diagnose`.

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
        >>> run = tlk.fit_stages(model, tlk.recipes.full(epochs=2), (x, y), verbose=0)
        >>> run.diagnose()
        Nothing found.
        """
        return diagnose(self, train, validation, before=before)

    def save(
        self,
        path: str | os.PathLike,
        classes: Sequence[str] | None = None,
        *,
        task: Any = None,
        force: bool = False,
        **known: Any,
    ) -> Path:
        """Save the run to a folder; `tlk.load_run` loads it again.

        The stored model takes pixels 0..255 and outputs probabilities; this run's own model is not
        changed. `tlkeras.runs.folder` lists the files. If saving fails, no new folder is left.

        Args:
            path: a new folder, or the folder of an earlier run, which is replaced.
            classes: the class names in label order. None: those of `task`, or numbers.
            task: what `tlk.load_task` returned: data, counts and image size for the model card.
            force: write into a folder that holds other files; those stay.
            known: further entries for the card and the report: `network` (its name) and `why` it
                was chosen, `seed`, `metrics` ({"test": {"accuracy": 0.9}}), `interpretation` (from
                `tlk.interpret`), `command`, `thresholds` (for several labels), `result` (anything
                that JSON can store).

        Returns:
            The folder.

        Raises:
            ValueError: if the folder holds other files, if the class names do not fit the model,
                or if the model cannot be stored in a file.

        >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=2)
        >>> x, y = np.random.uniform(0, 255, (32, 32, 32, 3)), np.arange(32) % 2
        >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), verbose=0)
        >>> folder = run.save("runs/a", classes=["cat", "dog"], seed=0)
        >>> sorted(file.name for file in folder.iterdir())
        ['README.md', 'history.csv', 'history.png', 'model.keras', 'report.html', 'run.json']
        """
        return folder.save(self, path, classes, task, force, **known)

    def save_report(
        self,
        path: str | os.PathLike,
        classes: Sequence[str] | None = None,
        *,
        task: Any = None,
        **known: Any,
    ) -> Path:
        """Write only the report: one self-contained HTML page.

        Args: as for `save`. With `interpretation=tlk.interpret(run, task)` the report also shows
        the model's scores and its mistakes.

        >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=2)
        >>> x, y = np.random.uniform(0, 255, (32, 32, 32, 3)), np.arange(32) % 2
        >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), verbose=0)
        >>> run.save_report("report.html", ["cat", "dog"]).name
        'report.html'
        """
        return folder.save_report(self, path, classes, task, known)

    def _add(self, result: StageResult, logs: list[dict[str, float]]) -> None:
        for epoch in logs:
            before = len(self.history.get("epoch", []))
            row = {"stage": result.name, "epoch": before + 1, **epoch}
            for name in {**self.history, **row}:
                column = self.history.setdefault(name, [math.nan] * before)
                column.append(row.get(name, math.nan))
        self.stages.append(result)

    def _rows(self) -> tuple[list[tuple], tuple]:
        names = [n for n in self.history if n not in ("stage", "epoch") and n.startswith("val_")]
        names = names or [n for n in self.history if n not in ("stage", "epoch")]
        rows = [
            (
                s.name, shown(s.learning_rate), f"{s.learns.trainable_params:,}", s.epochs,
                s.best_epoch, f"{s.seconds:.1f}",
                *(_shown(s.metrics.get(name, math.nan)) for name in names), s.cache, s.stopped,
            )
            for s in self.stages
        ]  # fmt: skip
        return rows, (
            "stage", "learning rate", "parameters", "epochs", "best", "seconds", *names, "cache",
            "stopped",
        )  # fmt: skip

    def __repr__(self) -> str:
        return "\n".join([text_table(*self._rows()), *self._said()])

    def _repr_html_(self) -> str:
        said = [f"<p>{html.escape(text)}</p>" for text in self._said()]
        return html_table(*self._rows()) + "".join(said)

    def _said(self) -> list[str]:
        return [text for text in (self.worse, self.unsaved) if text]


def _shown(value: Any) -> str:
    """Return a metric as text for a table; for a vector, each of its numbers."""
    return " ".join(f"{number:.4f}" for number in np.ravel(value))
