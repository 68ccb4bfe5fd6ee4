"""Follows a stage: keeps the best weights, and ends a stage that is stuck or diverges."""

import math
import time
from typing import Any

import keras
import numpy as np

from tlkeras.freezing.flags import Learning
from tlkeras.optimizers.rates import shown
from tlkeras.plans.plan import Stage
from tlkeras.training.run import StageResult


class StageMonitor(keras.callbacks.Callback):
    """Keeps the weights of the best epoch and the history of a stage.

    Unlike `keras.callbacks.EarlyStopping` it never keeps weights of an epoch with a NaN loss.

    Args:
        stage: being trained.
        weights: those that may change during it.
        validated: whether there are validation data, so that `stage.monitor` can be followed.

    `ordered` is the data if their order depends on the epoch, `cache` what the Run says of the
    cache. `state()` and `restore()` carry it over to another process.
    """

    async_safe = True

    def __init__(self, stage: Stage, weights: list, validated: bool):
        super().__init__()
        self.stage, self.changing, self.cache = stage, weights, ""
        self.ordered: Any = None
        self.watched = stage.monitor if validated else None
        self.lower = any(word in stage.monitor for word in ("loss", "error"))
        self.best, self.best_epoch = math.inf, 0
        self.logs: list[dict[str, float]] = []
        self.stopped, self.failed, self.before = "", "", 0.0
        self.weights = values(weights)

    @property
    def epochs(self) -> int:
        """Finished ones."""
        return len(self.logs)

    @property
    def done(self) -> bool:
        return bool(self.stopped) or self.epochs >= self.stage.epochs

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def begin(self) -> None:
        """Starts the clock: what the stage prepares counts as well."""
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.ordered is not None:
            self.ordered.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not math.isfinite(float((logs or {}).get("loss", 0))):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        self.logs.append({name: float(value) for name, value in logs.items()})
        if not math.isfinite(logs["loss"]):
            self.failed = self.stopped = (
                f"the loss became {logs['loss']} in epoch {epoch + 1}; the weights are those of "
                f"{self._kept()}. Lower the learning rate ({shown(self.stage.learning_rate)}), "
                "and look for extreme inputs."
            )
            self.model.stop_training = True
            return
        if self.watched and self.watched not in logs:
            raise ValueError(
                f"Stage {self.stage.name!r} monitors {self.watched!r}; found {', '.join(logs)}."
            )
        value = logs[self.watched] * (1 if self.lower else -1) if self.watched else -epoch
        if value < self.best:
            self.best, self.best_epoch = float(value), epoch + 1
            self.weights = values(self.changing)
        elif self.stage.patience and self.epochs - self.best_epoch >= self.stage.patience:
            self.model.stop_training = True
            self.stopped = f"no better {self.watched} for {self.stage.patience} epochs"

    def interrupt(self) -> None:
        """The user stopped training."""
        self.failed = self.stopped = (
            f"interrupted in epoch {self.epochs + 1}; the weights are those of {self._kept()}"
        )

    def finish(self) -> None:
        """Puts the weights of the best epoch back."""
        for weight, value in zip(self.changing, self.weights, strict=True):
            weight.assign(value)

    def _kept(self) -> str:
        return f"epoch {self.best_epoch}" if self.best_epoch else "before the stage"

    def result(self, learns: Learning) -> StageResult:
        metrics = self.logs[self.best_epoch - 1] if self.best_epoch else {}
        return StageResult(
            self.stage.name, self.stage.learning_rate, self.epochs, self.best_epoch, self.seconds,
            learns, self.stopped, self.failed, metrics, self.cache,
        )  # fmt: skip

    def state(self) -> dict:
        """What JSON can hold of this; the best weights are `weights`."""
        return {
            "best": self.best, "best_epoch": self.best_epoch, "logs": self.logs,
            "stopped": self.stopped, "failed": self.failed, "seconds": self.seconds,
            "cache": self.cache,
        }  # fmt: skip

    def restore(self, state: dict, weights: list[np.ndarray]) -> None:
        self.best, self.best_epoch, self.logs = state["best"], state["best_epoch"], state["logs"]
        self.stopped, self.failed, self.before = state["stopped"], state["failed"], state["seconds"]
        self.cache, self.weights = state["cache"], weights


def values(weights: list) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]
