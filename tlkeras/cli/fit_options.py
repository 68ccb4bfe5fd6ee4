"""Apply the options of `tlkeras fit` to a plan, and refuse those that do not go together."""

import argparse

from tlkeras.flavors import lora
from tlkeras.freezing.policies import head_only
from tlkeras.freezing.stored import remark
from tlkeras.plans.augmentation import augmentation
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.tasks.contents import CLASS, NUMBER

FACTORS_FASTER = 10  # times the block's rate, as LoRA starts from zero (tools/measure_adapters.py)
VIEWS = 4  # augmented views per image, drawn once for a stage in which only the head learns


def check_auto(options: argparse.Namespace, kind: str) -> None:
    """Raise ValueError for options that `--recipe auto` decides itself, or labels it cannot use."""
    for name in ("epochs", "augment", "lora"):
        if getattr(options, name):
            raise ValueError(f"--{name} does not go with --recipe auto: name another recipe.")
    if kind != CLASS:
        raise ValueError(
            "--recipe auto is for one class per image; these have "
            f"{'a number' if kind == NUMBER else 'several labels'} each: name another recipe."
        )


def for_adapters(plan: Plan) -> Plan:
    """Return the plan with higher learning rates for adapters than for the blocks they are in."""
    stages = [
        stage
        if _head_alone(stage)
        else stage.replace(learning_rate=FACTORS_FASTER * stage.learning_rate)
        for stage in plan.stages
    ]
    return Plan(stages)


def merge_adapters(run: Run) -> None:
    """Merge the adapters of a run's model into plain layers, which can be saved.

    Updates `run.unsaved`, the remark on what a saved file would lose.
    """
    lora.merge(run.model)
    run.unsaved = remark(run.model, head_only(), ["head"], "frozen")


def changed(plan: Plan, epochs: int | None, augment: str | None, kind: str, seed: int) -> Plan:
    """Return the plan with `epochs` as the maximum per stage, and with augmentation."""
    stages = list(plan.stages)
    if epochs is not None:
        stages = [stage.replace(epochs=epochs) for stage in stages]
    if augment is not None:
        stages = [_augmented(stage, augment, kind, seed) for stage in stages]
    return Plan(stages)


def judged(plan: Plan, monitor: str, kind: str) -> Plan:
    """Return the plan with `monitor` choosing the best epochs.

    A stage with early stopping keeps its own monitor if this kind of label has it: the loss or,
    for classes, the accuracy.
    """
    stages = [
        stage
        if stage.patience and (kind == CLASS or stage.monitor == "val_loss")
        else stage.replace(monitor=monitor)
        for stage in plan.stages
    ]
    return Plan(stages)


def _augmented(stage: Stage, strength: str, kind: str, seed: int) -> Stage:
    """Add augmentation to a stage; with "light", a head-only stage draws a few cacheable views."""
    layers = augmentation(strength, seed, mixing=kind != NUMBER)
    cached = strength == "light" and _head_alone(stage)
    return stage.replace(augment=layers, views=VIEWS if cached else None)


def _head_alone(stage: Stage) -> bool:
    return getattr(stage.policy, "kind", "") == "head_only"
