"""What the options of `tlkeras fit` stand for, and which do not go together."""

import argparse

import keras

from tlkeras.flavors import lora
from tlkeras.freezing.policies import head_only
from tlkeras.freezing.stored import remark
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
