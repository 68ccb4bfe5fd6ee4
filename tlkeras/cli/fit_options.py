"""What the options of `tlkeras fit` stand for, and which do not go together."""

import argparse

from tlkeras.flavors import lora
from tlkeras.freezing.policies import head_only
from tlkeras.freezing.stored import remark
from tlkeras.plans.augmentation import augmentation
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.tasks.contents import CLASS, NUMBER

FACTORS_FASTER = 10  # LoRA's factors start from zero (tools/measure_adapters.py)
VIEWS = 4  # augmented views of an image, drawn once, where only the head learns


def check_auto(options: argparse.Namespace, kind: str) -> None:
    """Raises ValueError for what `--recipe auto` decides itself, or cannot judge."""
    for name in ("epochs", "augment", "lora"):
        if getattr(options, name):
            raise ValueError(f"--{name} does not go with --recipe auto: name another recipe.")
    if kind != CLASS:
        raise ValueError(
            "--recipe auto is for one class an image; these have "
            f"{'a number' if kind == NUMBER else 'several labels'} each: name another recipe."
        )


def for_adapters(plan: Plan) -> Plan:
    """A plan in which adapters learn faster than the blocks that hold them would."""
    stages = [
        stage
        if _head_alone(stage)
        else stage.replace(learning_rate=FACTORS_FASTER * stage.learning_rate)
        for stage in plan.stages
    ]
    return Plan(stages)


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
    cached = strength == "light" and _head_alone(stage)
    return stage.replace(augment=layers, views=VIEWS if cached else None)


def _head_alone(stage: Stage) -> bool:
    return getattr(stage.policy, "kind", "") == "head_only"
