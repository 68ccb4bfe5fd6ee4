"""`fit_stages`: runs a Plan, one `fit` a stage, and checks that what was frozen stayed."""

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras import feed
from tlkeras.plan import Plan, Stage
from tlkeras.policies import Learning, freeze
from tlkeras.progress import Progress
from tlkeras.run import Run, StageResult


def fit_stages(
    model: keras.Model,
    plan: Plan | Sequence[Stage],
    data: Any,
    validation_data: Any = None,
    *,
    optimizer: keras.optimizers.Optimizer | None = None,
    loss: Any = None,
    metrics: Sequence[Any] | None = None,
    batch_size: int = 32,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int | None = None,
    verbose: int = 1,
) -> Run:
    """Runs a plan: freezes, compiles and fits once a stage, and checks what was frozen.

    Each stage ends at the weights of its best epoch. A loss that becomes NaN ends the run at
    the last good weights, with a RuntimeWarning.

    Args:
        model: built, with weights and, for most plans, a head.
        plan: a Plan or a list of stages.
        data: a tf.data.Dataset, (x, y) or (x, y, sample_weight) arrays, or a PyDataset.
        validation_data: the same; chooses the best epoch.
        optimizer: a pattern for the optimizer of every stage, which takes the stage's learning
            rate; AdamW if None.
        loss, metrics: as for `compile`. If None, those the model was compiled with; if it was
            not, cross-entropy that fits labels and outputs, and accuracy.
        batch_size: for arrays.
        callbacks: given to the `fit` of every stage.
        seed: for `keras.utils.set_random_seed`, before the first stage; None leaves it alone.
        verbose: 0 shows no progress.

    Returns:
        The Run; `model` itself is trained in place.

    Raises:
        ValueError: the plan, the data or a policy does not fit the model.
        RuntimeError: a frozen weight changed during a stage.
    """
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    fit_arguments = feed.fit_arguments(data, batch_size)
    objective = _objective(model, loss, metrics, data)
    feed.check(model, data, objective["loss"])
    if seed is not None:
        keras.utils.set_random_seed(seed)
    run = Run(model, plan)
    for number, stage in enumerate(plan.stages, start=1):
        learns = freeze(model, stage.policy, stage.batchnorm)
        model.compile(optimizer=_optimizer(optimizer, stage.learning_rate), **objective)
        keeper = _Keeper(stage, validated=validation_data is not None)
        progress = Progress(f"stage {number}/{len(plan.stages)} {stage.name}") if verbose else None
        held = [_copy(weight) for weight in learns.held]
        start = time.perf_counter()
        logs = model.fit(
            **fit_arguments,
            validation_data=validation_data,
            epochs=stage.epochs,
            callbacks=[*callbacks, keeper, *([progress] if progress else [])],
            verbose=0,
        ).history
        seconds = time.perf_counter() - start
        _check_held(stage, learns.held, held)
        run._add(keeper.result(learns, seconds), logs)
        if progress:
            progress.finish(keeper.stopped)
        if keeper.diverged:
            warnings.warn(f"Stage {stage.name!r}: {keeper.stopped}", RuntimeWarning, stacklevel=2)
            break
    return run


class _Keeper(keras.callbacks.Callback):
    """Keeps the weights of the best epoch and ends a stage that got stuck or diverged.

    Unlike `keras.callbacks.EarlyStopping` it never keeps weights of an epoch with a NaN loss.
    """

    async_safe = True

    def __init__(self, stage: Stage, validated: bool):
        super().__init__()
        self.stage, self.monitor = stage, stage.monitor if validated else None
        self.lower = any(word in stage.monitor for word in ("loss", "error"))
        self.best, self.best_epoch, self.metrics = math.inf, 0, {}
        self.epochs, self.stopped, self.diverged = 0, "", False

    def on_train_begin(self, logs=None):
        self.weights = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float((logs or {}).get("loss", 0))):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = epoch + 1
        if not math.isfinite(logs["loss"]):
            self.diverged, self.model.stop_training = True, True
            kept = f"epoch {self.best_epoch}" if self.best_epoch else "before the stage"
            self.stopped = (
                f"the loss became {logs['loss']} in epoch {epoch + 1}; the weights are those of "
                f"{kept}. Lower the learning rate ({self.stage.learning_rate:g}), and look for "
                "extreme inputs."
            )
            return
        if self.monitor and self.monitor not in logs:
            raise ValueError(
                f"Stage {self.stage.name!r} monitors {self.monitor!r}; found {', '.join(logs)}."
            )
        value = logs[self.monitor] * (1 if self.lower else -1) if self.monitor else -epoch
        if value < self.best:
            self.best, self.best_epoch, self.metrics = value, epoch + 1, dict(logs)
            self.weights = self.model.get_weights()
        elif self.stage.patience and self.epochs - self.best_epoch >= self.stage.patience:
            self.model.stop_training = True
            self.stopped = f"no better {self.monitor} for {self.stage.patience} epochs"

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)

    def result(self, learns: Learning, seconds: float) -> StageResult:
        return StageResult(
            self.stage.name, self.stage.learning_rate, self.epochs, self.best_epoch, seconds,
            learns, self.stopped, self.diverged, self.metrics,
        )  # fmt: skip


def _optimizer(pattern: keras.optimizers.Optimizer | None, learning_rate: float):
    if pattern is None:
        return keras.optimizers.AdamW(learning_rate)
    return type(pattern).from_config(pattern.get_config() | {"learning_rate": learning_rate})


def _objective(model: keras.Model, loss: Any, metrics: Any, data: Any) -> dict[str, Any]:
    """What to compile every stage with, besides the optimizer."""
    if loss is None and model.compiled:
        compiled = model._compile_config.config  # the objects themselves; public calls give copies
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        return {name: compiled.get(name) for name in names} | (
            {"metrics": metrics} if metrics else {}
        )
    if loss is None:
        loss = feed.default_loss(model, data)
        metrics = ["accuracy"] if metrics is None else metrics
    return {"loss": loss, "metrics": metrics}


def _check_held(stage: Stage, weights: list[keras.Variable], before: list[np.ndarray]) -> None:
    changed = [
        weight.path
        for weight, old in zip(weights, before, strict=True)
        if _copy(weight).tobytes() != old.tobytes()
    ]
    if changed:
        raise RuntimeError(
            f"Stage {stage.name!r} changed {len(changed)} frozen weight(s): "
            f"{', '.join(changed[:5])}. Something wrote to them during fit: a callback, a layer "
            "that updates its own state, or flags changed by hand."
        )


def _copy(weight: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(weight))
