"""The options and playbooks of section 1.6, on a target near the source and on one far from it.

    python tools/measure_unfreezing.py      # about 8 minutes on 2 cores

Writes data/results/unfreezing.csv, which chapter 06 reads: one row a target, option and seed. The
seed draws the 300 training images and the head's first weights; plans are those of the chapter.
"""

import csv
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
SEEDS = range(3)
HEAD = tlk.Stage("head", tlk.policies.head_only(), learning_rate=1e-2, epochs=10)


def option(policy: tlk.policies.Policy) -> tlk.Plan:
    return tlk.Plan([HEAD, tlk.Stage("tune", policy, learning_rate=3e-4, epochs=10)])


PLANS = {
    "head only": option(tlk.policies.head_only()),
    "top block": option(tlk.policies.last_blocks(1)),
    "middle blocks": option(tlk.policies.middle_blocks()),
    "all blocks": option(tlk.policies.all_blocks()),
    "progressive": tlk.recipes.progressive(10, 4, 1e-2, 3e-4, blocks=3),
    "rushed": tlk.recipes.full(epochs=10, lr=1e-2),
}
BLINDS = 128 + 127 * np.sin(1.3 * np.arange(32))


def behind_blinds(images: np.ndarray) -> np.ndarray:
    """Digits behind bright and dark stripes that invert them; a synthetic domain shift."""
    return np.abs(images - BLINDS[:, None]).astype("float32")


def measure(target: str, name: str, seed: int) -> tuple:
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    splits = {split: task.arrays(split) for split in ("train", "validation", "test")}
    if target == "far":
        splits = {split: (behind_blinds(x), y) for split, (x, y) in splits.items()}
    keras.utils.set_random_seed(seed)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=10)
    run = tlk.fit_stages(
        model, PLANS[name], splits["train"], splits["validation"], seed=seed, verbose=0
    )
    accuracy = model.evaluate(*splits["test"], verbose=0, return_dict=True)["accuracy"]
    learned = run.stages[-1].learns.trainable_params
    return target, name, seed, round(accuracy, 5), learned, round(run.seconds, 1)


def main() -> None:
    rows = [("target", "option", "seed", "test_accuracy", "parameters", "seconds")]
    for target, names in (("near", ("head only", "all blocks")), ("far", PLANS)):
        for name in names:
            for seed in SEEDS:
                rows.append(measure(target, name, seed))
                print(*rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "unfreezing.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
