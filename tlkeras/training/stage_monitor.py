"""Monitor a stage: keep the best weights, and stop a stage that no longer improves or diverges."""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.freezing.flags import Learning
from tlkeras.optimizers.rates import shown
from tlkeras.optimizers.state import averages
from tlkeras.plans.plan import Stage
from tlkeras.runs.run import StageResult

LESS = ("loss", "error")  # lower is better for metrics whose names end in these


class StageMonitor(keras.callbacks.Callback):
    """Keeps the weights of the best epoch and the history of a stage.

    Which epoch is better, and when to stop, is decided as in `keras.callbacks.EarlyStopping`.
    Without validation data the last epoch is the best. An epoch whose loss, `val_loss` or
    `monitor` is not finite is never better than an earlier one, and ends the stage. If the
    optimizer averages the weights (`use_ema`), the averages are kept, as at the end of `fit`.

    Args:
        stage: the stage that is being trained.
        weights: the weights that can change during it.
        validated: whether there are validation data, so that `stage.monitor` can be followed.

    `ordered` is the data if their order depends on the epoch, `cache` the Run's text about the
    cache, and `swapped` is True if a callback swaps the averages into the model before an epoch
    ends. `state()` and `restore()` carry the monitor over to another process.
    """

    async_safe = True

    def __init__(self, stage: Stage, weights: list, validated: bool):
        super().__init__()
        self.stage, self.changing, self.cache = stage, weights, ""
        self.ordered: Any = None
        self.swapped = False
        self.watched = stage.monitor if validated else None
        self.mode = ""  # "min" or "max" once it is known
        self.best, self.best_epoch = math.inf, 0
        self.logs: list[dict[str, Any]] = []
        self.stopped, self.failed, self.before = "", "", 0.0
        self.weights = values(weights)
        self.start = time.perf_counter()

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.logs)

    @property
    def done(self) -> bool:
        return bool(self.stopped) or self.epochs >= self.stage.epochs

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def begin(self) -> None:
        """Start the clock; time that the stage needs for preparation counts as well."""
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.ordered is not None:
            self.ordered.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not _finite((logs or {}).get("loss", 0)):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}
        self.logs.append(logs)
        if not _finite(logs.get("loss", 0)):
            self._fail(
                f"the loss became {logs['loss']} in epoch {epoch + 1}; the weights are those of "
                f"{self._kept()}. Lower the learning rate ({shown(self.stage.learning_rate)}), "
                "and look for extreme inputs."
            )
            return
        value = self._judged(logs) if self.watched else -epoch
        odd = next((n for n in (self.watched, "val_loss") if n and not _finite(logs.get(n, 0))), "")
        if odd:
            if not self.best_epoch and all(map(_finite, weights := self._now())):
                self.best_epoch, self.weights = self.epochs, weights
            self._fail(
                f"{odd} became {logs[odd]} in epoch {epoch + 1}, while the loss is a number; the "
                f"weights are those of {self._kept()}. Look for labels and inputs of the "
                "validation data that are no numbers, or lower the learning rate "
                f"({shown(self.stage.learning_rate)})."
            )
        elif value + (self.stage.min_delta if self.watched else 0) < self.best:
            self.best, self.best_epoch, self.weights = value, self.epochs, self._now()
        elif self.stage.patience and self.epochs - self.best_epoch >= self.stage.patience:
            self.model.stop_training = True
            self.stopped = f"no better {self.watched} for {self.stage.patience} epochs"

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.best_epoch == self.epochs and not self.failed:
            self.weights = values(self.changing)  # a user's callback can have changed them

    def _judged(self, logs: dict[str, Any]) -> float:
        """Return the monitored value, negated if higher is better, so that lower is better."""
        where, value = f"Stage {self.stage.name!r} monitors {self.watched!r}", None
        if self.watched not in logs:
            raise ValueError(f"{where}; found {', '.join(logs)}.")
        value = logs[self.watched]
        if isinstance(value, list):
            raise ValueError(f"{where}: expected one number; found {np.size(value)} numbers.")
        self.mode = self.mode or better(self.stage, self.model)
        return -value if self.mode == "max" else value

    def _now(self) -> list[np.ndarray]:
        """Return the weights at the end of an epoch: their averages if the optimizer has them."""
        pairs = [] if self.swapped else averages(self.model.optimizer)
        kept = {id(variable): average for variable, average in pairs}
        return values([kept.get(id(weight), weight) for weight in self.changing])

    def _fail(self, why: str) -> None:
        self.failed = self.stopped = why
        self.model.stop_training = True

    def interrupt(self, how: str = "interrupted") -> None:
        """Record that the user or an error stopped training."""
        self.failed = self.stopped = (
            f"{how} in epoch {self.epochs + 1}; the weights are those of {self._kept()}"
        )

    def finish(self) -> None:
        """Restore the weights of the best epoch."""
        for weight, value in zip(self.changing, self.weights, strict=True):
            weight.assign(value)

    def _kept(self) -> str:
        return f"epoch {self.best_epoch}" if self.best_epoch else "before the stage"

    def result(self, learns: Learning) -> StageResult:
        metrics = self.logs[self.best_epoch - 1] if self.best_epoch else {}
        return StageResult(
            self.stage.name, self.stage.learning_rate, self.epochs, self.best_epoch, self.seconds,
            learns, self.stopped, self.failed, metrics, self.cache, self.watched or "", self.mode,
        )  # fmt: skip

    def state(self) -> dict:
        """Return the state as JSON; the best weights are separate, in `weights`."""
        return {
            "best": self.best, "best_epoch": self.best_epoch, "logs": self.logs,
            "stopped": self.stopped, "failed": self.failed, "seconds": self.seconds,
            "cache": self.cache, "mode": self.mode,
        }  # fmt: skip

    def restore(self, state: dict, weights: list[np.ndarray]) -> None:
        self.best, self.best_epoch, self.logs = state["best"], state["best_epoch"], state["logs"]
        self.stopped, self.failed, self.before = state["stopped"], state["failed"], state["seconds"]
        self.cache, self.mode, self.weights = state["cache"], state["mode"], weights


def values(weights: list) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]


def better(stage: Stage, model: keras.Model) -> str:
    """Return "min" or "max": whether a lower or a higher `stage.monitor` is better.

    This is `stage.mode` unless that is "auto". Otherwise it is the direction of the metric of that
    name, as in `keras.callbacks.EarlyStopping`; the name of an output in front of it is ignored.
    If there is no such metric, a name that ends in "loss" or "error" means "min".

    Raises:
        ValueError: none of these applies.
    """
    if stage.mode != "auto":
        return stage.mode
    name = stage.monitor.removeprefix("val_")
    outputs = [f"{output}_" for output in getattr(model, "output_names", None) or ()]
    for known in [name, *(name.removeprefix(o) for o in outputs if name.startswith(o))]:
        with contextlib.suppress(ValueError):  # Keras cannot tell
            judge = keras.callbacks.EarlyStopping(known, patience=2)
            judge.set_model(model)
            judge.on_epoch_end(0, {known: 1.0})
            judge.on_epoch_end(0, {known: 0.0})
            return "min" if judge.best == 0 else "max"
    if name.endswith(LESS):
        return "min"
    raise _unsure(stage)


def ask(stages: Sequence[Stage], model: keras.Model, objective: dict, batch: tuple) -> None:
    """Raise ValueError before training if a stage's monitor does not exist or has no direction.

    Args:
        stages: the stages to check.
        model: the model that will be trained.
        objective: loss and metrics, as for `compile`.
        batch: (x, y) or (x, y, sample_weight).

    Do not use this for a model with its own train or test step: what that logs is known only after
    the first epoch.
    """
    judge = keras.Model()
    if getattr(model, "output_names", None):
        judge.output_names = model.output_names
    judge.compile(**objective)
    x, y, *weight = batch
    prediction = model(x, training=False)
    judge.compute_loss(x, y, prediction, *weight)
    names = {*judge.compute_metrics(x, y, prediction, *weight)}
    names |= {metric.name for metric in model.metrics}
    judge.reset_metrics()
    for stage in stages:
        if stage.monitor.removeprefix("val_") not in names:
            found = ", ".join(sorted(f"val_{name}" for name in names))
            raise ValueError(f"Stage {stage.name!r} monitors {stage.monitor!r}; found {found}.")
        better(stage, judge)


def _unsure(stage: Stage) -> ValueError:
    return ValueError(
        f"Stage {stage.name!r} monitors {stage.monitor!r}, and no metric of that name says whether "
        "less or more of it is better. Pass Stage(mode='min') or Stage(mode='max')."
    )


def _finite(value: Any) -> bool:
    return bool(np.isfinite(np.asarray(value, "float64")).all())
