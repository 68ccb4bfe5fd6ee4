"""How often `tlk.diagnose` is right: deliberate faults and healthy runs, over tasks and seeds.

    python tools/measure_pitfalls.py      # about 15 minutes of one core

Writes data/results/pitfalls.csv, which chapter 09 reads, one row per run, as it goes. Stored rows
are not measured again, so it can be stopped at any time. `glyph_resnet_small`, trained on printed
letters, at 32 pixels with 30 labels per class; for BatchNorm `efficientnet_lite0` at 64 pixels with
10 labels. The seed draws labels and initial weights. `fault` is what was done; "none 1" to "none 4"
are four ways of training without a fault. `wanted` is the symptom that should be found, `found`
those that were, separated by semicolons. `validation` is the accuracy at the end.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
import trials
from rows import Rows

ROWS = Rows("pitfalls", ("task", "fault", "seed"), ("wanted", "found", "validation"))
TASKS, SEEDS = ("digits", "glyphs/digits", "clothes"), range(2)
DROP = "accuracy dropped when layers were unfrozen"
Data = dict[str, tuple[np.ndarray, np.ndarray]]


def two_stage(rate: float = 3e-4, **options: Any) -> tlk.Plan:
    return tlk.recipes.two_stage(8, 6, 1e-2, rate, **options)


def behind_blinds(data: Data) -> Data:
    return {split: (trials.behind_blinds(x), y) for split, (x, y) in data.items()}


def noisy(data: Data) -> Data:
    x, y = data["train"]
    rng = np.random.default_rng(0)
    return data | {"train": (x, np.where(rng.random(len(y)) < 0.4, rng.permutation(y), y))}


def without_a_class(data: Data) -> Data:
    x, y = data["train"]
    return data | {"train": (x[y != 3], y[y != 3])}


def mixed_up(data: Data) -> Data:
    x, y = data["validation"]
    return data | {"validation": (x, np.random.default_rng(0).permutation(y))}


def leaked(data: Data) -> Data:
    (x, y), (seen, known) = data["validation"], data["train"]
    both = np.concatenate([x[:-20], seen[:20]]), np.concatenate([y[:-20], known[:20]])
    return data | {"validation": both}


def scarce(data: Data) -> Data:
    x, y = data["validation"]
    return data | {"validation": (x[:20], y[:20])}


def dimmed(data: Data) -> Data:
    return {split: (x / 255, y) for split, (x, y) in data.items()}


# The plan, the change to the data, and the symptom that should be found; "": none.
FAULTS: dict[str, tuple[tlk.Plan, Callable[[Data], Data] | None, str]] = {
    "rate ten times too high": (two_stage(3e-2, blocks=3), None, DROP),
    "wrong labels learned by heart": (
        tlk.recipes.full(25, 1e-3), noisy, "training improves, validation does not"),
    "BatchNorm learns, batches of 2": (
        tlk.Plan([
            tlk.Stage("head", tlk.policies.head_only(), 3e-3, 5),
            tlk.Stage("tune", tlk.policies.last_blocks(1), 1e-4, 2, "train", batch_size=2)]), None,
        "accuracy dropped when BatchNorm learned again"),
    "everything at 1e-2": (
        tlk.recipes.full(8, 1e-2), None, "the network has moved far from what it knew"),
    "head alone, behind blinds": (
        tlk.recipes.head_only(60, 1e-2), behind_blinds, "the head alone has stopped improving"),
    "rate of infinity": (
        tlk.recipes.full(3, 1e30), None, "the loss is no longer a number"),
    "rate of 3e-5 for a head": (
        tlk.recipes.head_only(9, 3e-5), None, "the end came while the loss was still falling"),
    "labels mixed up": (two_stage(), mixed_up, "validation is guessed, training is not"),
    "a class left out": (two_stage(), without_a_class, "a class is never predicted"),
    "training images in validation": (two_stage(), leaked, "validation images were trained on"),
    "20 images to judge by": (two_stage(), scarce, "too few validation images to tell"),
    "pixels scaled twice": (two_stage(), dimmed, "refused before training"),
    "none 1": (two_stage(patience=3), None, ""),
    "none 2": (tlk.recipes.head_only(40, 1e-2, patience=5), None, ""),
    "none 3": (tlk.recipes.progressive(8, 4, 1e-2, 3e-4, 2, patience=3), None, ""),
    "none 4": (two_stage(1e-4, blocks=2, patience=3), None, ""),
}  # fmt: skip


def measure(task: str, fault: str, seed: int) -> dict[str, Any]:
    plan, change, wanted = FAULTS[fault]
    norms = "BatchNorm" in fault  # use ImageNet's network, whose momentum is 0.9 rather than 0.99
    network, side = ("efficientnet_lite0", 64) if norms else ("glyph_resnet_small", 32)
    loaded = tlk.load_task(task, 10 if norms else 30, seed, side)
    data = {split: loaded.arrays(split) for split in ("train", "validation")}
    data = change(data) if change else data
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = tlk.add_head(tlk.load_backbone(network, side), len(loaded.classes))
    try:
        run = tlk.fit_stages(
            model, plan, data["train"], data["validation"], seed=seed, verbose=0,
            batch_size=16,
        )  # fmt: skip
    except ValueError as refusal:
        if "pixels" not in str(refusal):
            raise
        return {"wanted": wanted, "found": "refused before training"}
    before = tlk.load_backbone(network, side)
    found = run.diagnose(data["train"], data["validation"], before=before)
    x, y = data["validation"]
    right = np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y)
    said = "; ".join(finding.symptom for finding in found)
    return {"wanted": wanted, "found": said, "validation": right}


def main() -> None:
    for seed, task, fault in product(SEEDS, TASKS, FAULTS):
        if task == "clothes" and fault == "none 2":
            continue  # features of letters do not suit clothes: a head alone is not a healthy run
        ROWS.once((task, fault, seed), measure, task, fault, seed)


if __name__ == "__main__":
    main()
