"""The options and playbooks of section 1.6, on targets near to the source and far from it.

    python tools/measure_unfreezing.py      # about 15 minutes on 2 cores
    python tools/measure_unfreezing.py --seed 3 --target near   # a part; other rows are kept

Writes data/results/unfreezing.csv, which chapter 06 reads, one row per target, option and seed, as
it goes. Stored rows are not measured again. The seed draws the training images (30 per class), the
initial weights of the head, and the hundred letters on which forgetting is measured. The plans are
those of the chapter, with more epochs.

Columns: accuracy on test images of the target; accuracy on letters, classified by class means of
the original backbone's features ("letters") and by newly computed means ("letters_relearned");
drift of the backbone's weights, without BatchNorm's statistics, in percent of their norm;
parameters that learn in the last stage; seconds of all stages.
"""

import argparse
from collections.abc import Callable, Sequence

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.neighbors import NearestCentroid
from trials import behind_blinds

from tlkeras.blocks.find import Block

ROWS = Rows(
    "unfreezing", ("target", "option", "seed"),
    ("test_accuracy", "letters", "letters_relearned", "drift", "parameters", "seconds"),
)  # fmt: skip
SEEDS = range(5)
HEAD_LR, TUNE_LR = 3e-3, 3e-4
HEAD = tlk.Stage("head", tlk.policies.head_only(), HEAD_LR, epochs=15)
RATES = {"head": 1, "top": 0.1, "middle": 0.03, "bottom": 0.01}


def bottom_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the bottom and the head as the blocks that learn: a policy that tlkeras lacks."""
    return [block for block in blocks if block.role in ("bottom", "head")]


def tune(policy: Callable, learning_rate: float = TUNE_LR, rates=None) -> tlk.Plan:
    return tlk.Plan([tlk.Stage("tune", policy, learning_rate, epochs=10, rates=rates)])


AFTER_HEAD = {  # plans that follow the stage of the head
    "top block": tune(tlk.policies.last_blocks(1)),
    "middle blocks": tune(tlk.policies.middle_blocks()),
    "bottom blocks": tune(bottom_blocks),
    "all blocks": tune(tlk.policies.all_blocks()),
    "discriminative": tune(tlk.policies.all_blocks(), HEAD_LR, RATES),
    "progressive": tlk.Plan(tlk.recipes.progressive(1, 4, HEAD_LR, TUNE_LR, blocks=3).stages[1:]),
    "head first, head's rate": tune(tlk.policies.all_blocks(), HEAD_LR),
}
FROM_START = {  # plans that replace it
    "head, 100 epochs": tlk.recipes.head_only(epochs=100, head_lr=HEAD_LR),
    "rushed": tlk.recipes.full(epochs=10, lr=HEAD_LR),
    "rushed, Keras's rate": tlk.recipes.full(epochs=10, lr=1e-3),
    "at once, small rate": tlk.recipes.full(epochs=25, lr=TUNE_LR),  # as many epochs as head first
}
PLANS = {  # the options measured on each target
    "near": ["head only", "all blocks", "head, 100 epochs"],
    "far": ["head only", *AFTER_HEAD, *FROM_START],
}


def new_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=10)


class Source:
    """A hundred letters, and class means of the original backbone's features for them."""

    def __init__(self, seed: int):
        task = tlk.load_task("glyphs", labels_per_class=30, seed=seed)
        chosen = np.random.default_rng(seed).choice(len(task.classes), 100, replace=False)
        self.known, self.new = (only(task.arrays(split), chosen) for split in ("train", "test"))
        backbone = new_model(seed).layers[1]
        self.start = weights_of(backbone)
        self.reader = NearestCentroid().fit(features(backbone, self.known[0]), self.known[1])

    def measure(self, backbone: keras.Model) -> tuple[float, float, float]:
        rows = features(backbone, self.new[0])
        again = NearestCentroid().fit(features(backbone, self.known[0]), self.known[1])
        pairs = zip(weights_of(backbone), self.start, strict=True)
        squares = [np.sum((w - w0) ** 2) for w, w0 in pairs]
        drift = 100 * np.sqrt(sum(squares) / sum(np.sum(w0**2) for w0 in self.start))
        return self.reader.score(rows, self.new[1]), again.score(rows, self.new[1]), drift


def only(arrays: tuple, labels: np.ndarray) -> list[np.ndarray]:
    chosen = np.isin(arrays[1], labels)
    return [array[chosen] for array in arrays]


def weights_of(backbone: keras.Model) -> list[np.ndarray]:
    """Return the weights that training can move: all but BatchNorm's statistics, frozen here."""
    weights = [weight for weight in backbone.weights if "moving" not in weight.name]
    return [keras.ops.convert_to_numpy(weight) for weight in weights]


def features(backbone: keras.Model, images: np.ndarray) -> np.ndarray:
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, pooled).predict(images, batch_size=250, verbose=0)


def arrays(target: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    data = {split: task.arrays(split) for split in ("train", "validation", "test")}
    if target == "far":
        data = {split: (behind_blinds(x), y) for split, (x, y) in data.items()}
    return data


def train(source: Source, data: dict, plan: tlk.Plan, seed: int, headed: tuple = (None, 0.0)):
    """Return measurements, weights and seconds.

    `headed` has the weights and the seconds of a stage of the head, from which the plan continues.
    """
    start, seconds = headed
    model = new_model(seed)
    if start is not None:
        model.set_weights(start)
    run = tlk.fit_stages(model, plan, data["train"], data["validation"], seed=seed, verbose=0)
    accuracy = model.evaluate(*data["test"], verbose=0, return_dict=True)["accuracy"]
    letters, relearned, drift = source.measure(model.layers[1])
    seconds += run.seconds
    found = {
        "test_accuracy": accuracy, "letters": letters, "letters_relearned": relearned,
        "drift": f"{drift:.4f}", "parameters": run.stages[-1].learns.trainable_params,
        "seconds": f"{seconds:.1f}",
    }  # fmt: skip
    return found, model.get_weights(), seconds


def measure(target: str, options: list[str], seed: int) -> None:
    """Measure the options that are not stored; those that follow the head's stage share it."""
    left = [option for option in options if not ROWS.find(target, option, seed)]
    if not left:
        return
    source, data = Source(seed), arrays(target, seed)
    of_head, *headed = train(source, data, tlk.Plan([HEAD]), seed)
    for option in left:
        found = of_head
        if option in AFTER_HEAD:
            found = train(source, data, AFTER_HEAD[option], seed, headed)[0]
        elif option in FROM_START:
            found = train(source, data, FROM_START[option], seed)[0]
        ROWS.add((target, option, seed), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, action="append", help="only these; others are kept")
    parser.add_argument("--target", action="append", choices=PLANS, help="only these")
    parser.add_argument("--option", action="append", choices=PLANS["far"], help="only these")
    chosen = parser.parse_args()
    tlk.accelerate()
    for seed in chosen.seed or SEEDS:
        for target in chosen.target or PLANS:
            wanted = chosen.option or PLANS[target]
            measure(target, [option for option in PLANS[target] if option in wanted], seed)


if __name__ == "__main__":
    main()
