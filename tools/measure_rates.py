"""Orders of unfreezing, rates by block, and schedules, on two targets and over many rates.

    python tools/measure_rates.py               # about half an hour of one quiet core
    python tools/measure_rates.py --part order  # or only a part

Writes data/results/rates.csv, which chapters 08_05, 10_2 and 10_4 read, one row per run, as it
goes. Stored rows are not measured again, so it can be stopped at any time. The seed draws the
labelled images, the initial weights of the head, the order of training, and the hundred letters of
the old task.

All runs use `glyph_resnet_small`, trained on printed letters, at 32 pixels, with 30 labels per
class, AdamW, 160 steps of 16 images and BatchNorm frozen. Targets: `digits`, similar to letters,
and `blinds`, the same digits behind stripes that invert them, a synthetic domain shift.

Columns. `order`: "head only"; "at once": everything from the first step; "head first": 40 steps
of the head at 1e-2, then everything; "gradual": the same 40, then 40 steps each after unfreezing
the top, the middle and the bottom in turn. `rule`: factors of the rate by block: "one rate": 1;
"two rates": 1 in the head and 0.1 below; "decay": 1 in the head and 0.3 times as much in every
block below. `schedule`: "constant"; "cosine" decay to zero; "warm-up" over the first 40 steps;
"both". Then `rate`, that of the head, and the seed. `validation` and `score` are balanced accuracy
on the target, `letters` is accuracy on the old task with the old head (class means of the original
features); `finite` is 1 if the last loss was a number; `seconds` is the time of training without
tracing; the rest says how far each block of the backbone moved, in percent of its norm.
"""

import argparse
import itertools
import math
import time
from functools import cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.neighbors import NearestCentroid
from trials import accuracy, behind_blinds, forget, in_passes, new_head

BLOCKS = ("stem", "stack0", "stack1")
ROWS = Rows(
    "rates", ("target", "order", "rule", "schedule", "rate", "seed"),
    ("validation", "score", "letters", "finite", "seconds", *BLOCKS),
)  # fmt: skip
SEEDS = range(5)
BATCH, STAGE, STEPS, HEAD_RATE = 16, 40, 160, 1e-2
RULES = {
    "one rate": dict.fromkeys((*BLOCKS, "head"), 1.0),
    "two rates": dict.fromkeys(BLOCKS, 0.1) | {"head": 1.0},
    "decay": {"stem": 0.3**3, "stack0": 0.3**2, "stack1": 0.3, "head": 1.0},
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PARTS = {
    "head": [("blinds", "digits"), ("head only",), ("one rate",), ("constant",), (HEAD_RATE,)],
    "order": [("blinds",), ("at once", "head first", "gradual"), ("one rate", "decay"),
              ("constant",), (3e-4, 1e-3, 3e-3, 1e-2)],
    "near order": [("digits",), ("at once", "head first", "gradual"), ("one rate", "decay"),
                   ("constant",), (1e-3,)],
    "rule": [("blinds",), ("at once",), RULES, ("constant",), RATES],
    "near rule": [("digits",), ("at once",), ("one rate", "decay"), ("constant",), RATES],
    "schedule": [("blinds",), ("at once",), ("one rate", "decay"),
                 ("constant", "cosine", "warm-up", "both"), RATES[2:]],
}  # fmt: skip
Data = dict[str, tuple[np.ndarray, np.ndarray]]


def shape(schedule: str, step: int, steps: int = STEPS) -> float:
    """Return the factor of the rate that a schedule has at a step."""
    warm = STAGE if schedule in ("warm-up", "both") else 0
    if step < warm:
        return (step + 1) / warm
    if schedule in ("cosine", "both"):
        return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
    return 1.0


class Knob(keras.optimizers.schedules.LearningRateSchedule):
    """A block's rate as a variable that is set from outside, so that no run needs a new graph."""

    def __init__(self) -> None:
        self.value = keras.Variable(1.0, trainable=False)

    def __call__(self, step):
        return self.value.value


class Learner:
    """The network, and for each depth the part that learns, compiled and traced once."""

    def __init__(self, classes: int = 10):
        self.model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes, 0.2)
        tlk.freeze(self.model, tlk.policies.all_blocks())
        self.knobs = {name: Knob() for name in (*BLOCKS, "head")}
        blocks = tlk.find_blocks(self.model)
        self.parts = [blocks.split(name) for name in reversed(BLOCKS)] + [(None, self.model)]
        for _, part in self.parts:
            base = keras.optimizers.AdamW(1.0)
            optimizer = tlk.optimizers.discriminative(base, self.model, self.knobs)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            part.compile(optimizer, loss, jit_compile=False)
        self.start = self.model.get_weights()
        self.where = {block.name: [
            (weight, keras.ops.convert_to_numpy(weight)) for layer in block.layers
            for weight in layer.trainable_weights
        ] for block in blocks[:-1]}  # fmt: skip

    def train(self, x, y, order: str, rule: str, schedule: str, rate: float, seed: int) -> tuple:
        """Train; return the seconds and the last loss."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights([*self.start[:-2], *new_head(self.start)])
        stages = {  # depth, steps
            "head only": [(0, STEPS)],
            "at once": [(3, STEPS)],
            "head first": [(0, STAGE), (3, STEPS - STAGE)],
            "gradual": [(depth, STAGE) for depth in range(4)],
        }[order]
        rng, seconds, loss = np.random.default_rng(seed), 0.0, 0.0
        for depth, steps in stages:
            rates = RULES["one rate" if depth == 0 else rule]
            base = HEAD_RATE if depth == 0 else rate
            clock = time.perf_counter()
            loss = self._fit(depth, x, y, base, rates, schedule, steps, rng)
            seconds += time.perf_counter() - clock
        return seconds, loss

    def _fit(self, depth, x, y, base, rates, schedule, steps, rng) -> float:
        bottom, part = self.parts[depth]

        def turn(step, logs=None):
            for name, knob in self.knobs.items():
                knob.value.assign(base * rates[name] * shape(schedule, step, steps))

        forget(part.optimizer)
        drawn = in_passes(len(y), steps * BATCH, rng)
        inputs = x if bottom is None else predict(bottom, x)
        turning = keras.callbacks.LambdaCallback(on_train_batch_begin=turn)
        told = part.fit(
            inputs[drawn], y[drawn], BATCH, verbose=0, shuffle=False, callbacks=[turning]
        )
        return told.history["loss"][-1]

    def drift(self, block: str) -> float:
        moved = size = 0.0
        for weight, first in self.where[block]:
            moved += float(np.sum((keras.ops.convert_to_numpy(weight) - first) ** 2))
            size += float(np.sum(first**2))
        return 100 * (moved / size) ** 0.5


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=100, verbose=0)


class Letters:
    """A hundred classes of letters, and the old head: class means of the original features."""

    def __init__(self, learner: Learner, seed: int):
        task = tlk.load_task("glyphs", labels_per_class=30, seed=seed)
        chosen = np.random.default_rng(seed).choice(len(task.classes), 100, replace=False)
        known, self.new = (
            tuple(part[np.isin(task.arrays(split)[1], chosen)] for part in task.arrays(split))
            for split in ("train", "test")
        )
        learner.model.set_weights(learner.start)
        self.body = tlk.find_blocks(learner.model).split(BLOCKS[-1])[0]
        self.head = NearestCentroid().fit(self.features(known[0]), known[1])

    def features(self, x: np.ndarray) -> np.ndarray:
        rows = predict(self.body, x)
        return rows.mean(axis=(1, 2)) if rows.ndim == 4 else rows

    def score(self) -> float:
        rows = self.features(self.new[0])
        return self.head.score(rows, self.new[1]) if np.isfinite(rows).all() else 0.0


@cache
def load(target: str, seed: int) -> Data:
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    data = {split: task.arrays(split) for split in ("train", "validation", "test")}
    if target == "digits":
        return data
    return {split: (behind_blinds(x), y) for split, (x, y) in data.items()}


@cache
def kept_learner() -> Learner:
    learner = Learner()
    few = tuple(part[:64] for part in load("digits", 0)["train"])
    learner.train(*few, "gradual", "one rate", "constant", 1e-3, 0)  # traced now
    return learner


@cache
def letters(seed: int) -> Letters:
    return Letters(kept_learner(), seed)


def measure(
    target: str, order: str, rule: str, schedule: str, rate: float, seed: int
) -> dict[str, str]:
    learner, old, data = kept_learner(), letters(seed), load(target, seed)
    seconds, loss = learner.train(*data["train"], order, rule, schedule, rate, seed)
    found = {
        "validation": accuracy(learner.model, *data["validation"]),
        "score": accuracy(learner.model, *data["test"]),
        "letters": old.score(), "finite": int(math.isfinite(loss)), "seconds": seconds,
        **{block: learner.drift(block) for block in BLOCKS},
    }  # fmt: skip
    return {column: f"{value:.4g}" for column, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="only this")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this")
    only = parser.parse_args()
    tlk.accelerate()
    seeds = SEEDS if only.seed is None else [only.seed]
    for part, seed in itertools.product(PARTS if only.part is None else [only.part], seeds):
        for run in itertools.product(*PARTS[part], [seed]):
            ROWS.once(run, measure, *run)


if __name__ == "__main__":
    main()
