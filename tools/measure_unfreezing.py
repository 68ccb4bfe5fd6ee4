"""The options and playbooks of section 1.6 on handwritten digits, over five seeds.

    python tools/measure_unfreezing.py      # about 15 minutes on 2 cores

Writes data/results/unfreezing.csv, which chapter 06 reads: one row an option and seed. The seed
draws the 300 training images and the head's first weights; plans are those of the chapter.
"""

import csv
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
SEEDS = range(5)
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


def measure(name: str, seed: int) -> tuple:
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    keras.utils.set_random_seed(seed)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=10)
    run = tlk.fit_stages(model, PLANS[name], task.train, task.validation, seed=seed, verbose=0)
    accuracy = model.evaluate(task.test, verbose=0, return_dict=True)["accuracy"]
    learned = run.stages[-1].learns.trainable_params
    return name, seed, round(accuracy, 5), learned, round(run.seconds, 1)


def main() -> None:
    rows = [("option", "seed", "test_accuracy", "parameters", "seconds")]
    for name in PLANS:
        for seed in SEEDS:
            rows.append(measure(name, seed))
            print(*rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "unfreezing.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
