"""What the options of `tlkeras fit` stand for: augmentation, how long to train."""

import time

import keras

from tlkeras.flavors import lora
from tlkeras.freezing.policies import head_only
from tlkeras.freezing.stored import remark
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.tasks.contents import CLASS, NUMBER

VIEWS = 4  # augmented views of an image, drawn once, where only the head learns


class OutOfTime(Exception):
    """The time given for training is used up."""


class TimeBudget(keras.callbacks.Callback):
    """Ends a staged training before an epoch that would go over the time.

    An epoch is expected to take as long as the one before it; the first always runs.

    Args:
        minutes: counted from the beginning of training.

    Raises OutOfTime out of `fit_stages`; its attribute `run` is the Run so far.
    """

    def __init__(self, minutes: float):
        super().__init__()
        self.minutes, self.start, self.began, self.last = minutes, 0.0, 0.0, 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.start = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.began = time.monotonic()
        if epoch and self.began - self.start + self.last > 60 * self.minutes:
            raise OutOfTime(f"after {epoch} epochs the time of {self.minutes:g} minutes is used up")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.last = time.monotonic() - self.began


def ended(error: OutOfTime) -> Run:
    """The Run so far: as planned, though shorter than it might have been."""
    run: Run = error.run  # type: ignore[attr-defined]
    run.stages[-1].failed, run.stages[-1].stopped = "", str(error)
    return run


def merge_adapters(run: Run) -> None:
    """Leaves plain layers, which a file holds as they are, and a backbone that is frozen."""
    lora.merge(run.model)
    run.unsaved = remark(run.model, head_only(), ["head"], "frozen")


def changed(plan: Plan, epochs: int | None, augment: str | None, kind: str, seed: int) -> Plan:
    """A plan with as many epochs a stage, at most, and with augmentation."""
    stages = list(plan.stages)
    if epochs is not None:
        stages = [stage.replace(epochs=epochs) for stage in stages]
    if augment is not None:
        stages = [_augmented(stage, augment, kind, seed) for stage in stages]
    return Plan(stages)


def judged(plan: Plan, monitor: str, kind: str) -> Plan:
    """A plan whose best epochs are chosen by `monitor`. What a recipe stops by stays what it is,
    where this kind of label has it: a loss, or for classes an accuracy."""
    stages = [
        stage
        if stage.patience and (kind == CLASS or stage.monitor == "val_loss")
        else stage.replace(monitor=monitor)
        for stage in plan.stages
    ]
    return Plan(stages)


def _augmented(stage: Stage, strength: str, kind: str, seed: int) -> Stage:
    """A stage of the head alone keeps a few views, which can be cached."""
    layers = augmentation(strength, seed, mixing=kind != NUMBER)
    cached = strength == "light" and getattr(stage.policy, "kind", "") == "head_only"
    return stage.replace(augment=layers, views=VIEWS if cached else None)


def augmentation(strength: str, seed: int, mixing: bool = True) -> keras.Sequential:
    """Layers for `Stage(augment=...)` on pixels 0..255.

    "light" mirrors left and right, cuts out parts and shifts colours a little; "strong" does so
    more, adds RandAugment, and with `mixing` MixUp, which needs labels in rows.
    """
    shift, zoom, colour = (0.08, -0.15, 0.1) if strength == "light" else (0.15, -0.3, 0.2)
    range_ = {"value_range": (0, 255)}
    layers = [
        keras.layers.RandomFlip("horizontal", seed=seed),
        keras.layers.RandomTranslation(shift, shift, fill_mode="reflect", seed=seed + 1),
        keras.layers.RandomZoom((zoom, 0.0), fill_mode="reflect", seed=seed + 2),
        keras.layers.RandomBrightness(colour, seed=seed + 3, **range_),
        keras.layers.RandomContrast(colour, seed=seed + 4, **range_),
        keras.layers.RandomSaturation((0.5 - colour, 0.5 + colour), seed=seed + 5, **range_),
    ]
    if strength == "strong":
        layers.append(keras.layers.RandAugment(num_ops=2, factor=0.3, seed=seed + 6, **range_))
    if strength == "strong" and mixing:
        layers.append(keras.layers.MixUp(alpha=0.2, seed=seed + 7))
    layers.append(keras.layers.ReLU(max_value=255.0))  # contrast may lead out of 0..255
    return keras.Sequential(layers, name=f"augment_{strength}")
