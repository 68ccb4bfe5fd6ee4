"""A new task, or a narrower version of the old one: which head, and how much of the network learns.

    python tools/measure_polishing.py      # about 10 minutes on 2 cores; continues where it stopped

Writes data/results/polishing.csv, which chapter 03 reads, one row per (task, head, learns, rate,
seed). One network that classifies clothes (`efficientnet_lite0` up to block4-5 at 64 pixels, its
head trained on 100 photographs per class) is used for two tasks: `lesions` (a new task; synthetic),
and other clothes with motion blur, as on a moving belt (the old task, narrower; real photographs
with synthetic blur). Both have five labelled images of each class.

All runs have 100 steps of 16 images and AdamW at a constant rate, the one of RATES that is best on
validation data with a separate draw. They differ in the head at the start (the old one, whose first
outputs stand for the classes of lesions, or a new one) and in what learns (the head alone, or all
blocks with BatchNorm frozen). "nothing" is the network without training.

Columns: `score`, balanced accuracy on test data (clothes: every other image; lesions: at most 50
per class); `clothes`, the same on the original clothes, with the trained blocks and the old head
(as trained, if the run started with it); `seconds` of training.
"""

import time
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from trials import drawn, forget, in_passes

ROWS = Rows(
    "polishing", ("task", "head", "learns", "rate", "seed", "split"),
    ("score", "clothes", "seconds"),
)  # fmt: skip
SIZE, CUT, SMEAR = 64, "block4-5", 9
ORIGINAL, LABELS, STEPS, BATCH = 100, 5, 100, 16
RATES = (1e-4, 1e-3, 1e-2, 3e-2)
SEEDS, CHOICE_SEED = range(3), 100
TASKS = ("belt", "lesions")
Data = tuple[np.ndarray, np.ndarray]


def on_the_belt(images: np.ndarray) -> np.ndarray:
    """Return the images with a horizontal motion blur, as if they moved past a camera."""
    side = SMEAR // 2
    wide = np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), mode="edge")
    return np.mean([wide[:, :, i : i + SIZE] for i in range(SMEAR)], axis=0)


def first(data: Data, count: int, after: int = 0) -> Data:
    """Return the first `count` images of each class in the split, after skipping `after`."""
    members = [np.flatnonzero(data[1] == c)[after : after + count] for c in np.unique(data[1])]
    chosen = np.concatenate(members)
    return data[0][chosen], data[1][chosen]


def network() -> keras.Model:
    backbone = tlk.load_backbone("efficientnet_lite0", SIZE)
    return tlk.find_blocks(backbone).split(CUT)[0]


class Trained:
    """A network with a head of `answers` outputs, compiled once for all runs of a kind."""

    def __init__(self, answers: int, learns: str):
        keras.utils.set_random_seed(0)
        self.model = tlk.add_head(network(), answers, dropout=0)
        self.start, self.learns = self.model.get_weights(), learns
        tlk.freeze(self.model, tlk.policies.all_blocks(), batchnorm="frozen")
        self.below = keras.Model(self.model.input, self.model.layers[-2].output)  # pooled
        self.head = keras.Sequential(
            [keras.Input(self.below.output.shape[1:]), self.model.layers[-1]]
        )
        self.part = self.head if learns == "head" else self.model
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.part.compile(keras.optimizers.AdamW(1e-3), loss)

    def fit(self, data: Data, rate: float, seed: int, head: list | None, steps: int = STEPS):
        """Train from the initial weights, with the given head or a new one; return the seconds."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.start)
        kernel, bias = self.model.layers[-1].get_weights()
        new = [keras.initializers.GlorotUniform(seed)(kernel.shape), np.zeros_like(bias)]
        self.model.layers[-1].set_weights(head or new)
        forget(self.part.optimizer)
        self.part.optimizer.learning_rate = rate
        x, y = data
        order = in_passes(len(y), steps * BATCH, np.random.default_rng(seed))
        started = time.perf_counter()
        if self.learns == "head":
            x = self.below.predict(x, verbose=0)
        self.part.fit(x[order], y[order], batch_size=BATCH, shuffle=False, verbose=0)
        return time.perf_counter() - started

    def score(self, data: Data, head: list | None = None) -> float:
        """Return balanced accuracy in [0, 1], with the given head instead of its own if any."""
        pooled = self.below.predict(data[0], batch_size=100, verbose=0)
        kernel, bias = head or self.model.layers[-1].get_weights()
        found = (pooled @ np.asarray(kernel) + np.asarray(bias)).argmax(axis=1)
        return float(np.mean([np.mean(found[data[1] == c] == c) for c in np.unique(data[1])]))


class Bench:
    """The data, the head for clothes, and the models."""

    def __init__(self) -> None:
        clothes = tlk.load_task("clothes", image_size=SIZE)
        lesions = tlk.load_task("lesions", image_size=SIZE)
        train, held, test = (clothes.arrays(s)[:2] for s in ("train", "validation", "test"))
        held, test = (held[0][::3], held[1][::3]), (test[0][::2], test[1][::2])
        self.original, self.clothes, others = first(train, ORIGINAL), test, first(train, 200, 100)
        skin = [lesions.arrays(s)[:2] for s in ("train", "validation", "test")]
        self.data = {
            "belt": [(on_the_belt(x), y) for x, y in (others, held, test)],
            "lesions": [skin[0], first(skin[1], 30), first(skin[2], 50)],
        }
        self.models: dict[tuple[int, str], Trained] = {}
        head = self.trained(10, "head")
        head.fit(self.original, 1e-2, 0, None, steps=1500)
        head.fit(self.original, 1e-3, 0, head.model.layers[-1].get_weights(), steps=500)
        self.old: list = head.model.layers[-1].get_weights()

    def trained(self, answers: int, learns: str) -> Trained:
        if (answers, learns) not in self.models:
            self.models[answers, learns] = Trained(answers, learns)
        return self.models[answers, learns]

    def measure(
        self, task: str, head: str, learns: str, rate: float, seed: int, split: str
    ) -> dict[str, object]:
        (x, y), held, test = self.data[task]
        some = drawn(y, LABELS, seed)
        answers = 7 if task == "lesions" and head == "new" else 10
        model, start = self.trained(answers, learns), self.old if head == "old" else None
        seconds = model.fit((x[some], y[some]), rate, seed, start)
        if split == "validation":
            return {"score": model.score(held), "seconds": f"{seconds:.1f}"}
        clothes = model.score(self.clothes, None if head == "old" else self.old)
        return {"score": model.score(test), "clothes": clothes, "seconds": f"{seconds:.1f}"}

    def untouched(self, task: str) -> dict[str, object]:
        model = self.trained(10, "head")
        model.model.set_weights(model.start)
        score, clothes = (model.score(on, self.old) for on in (self.data[task][2], self.clothes))
        return {"score": score, "clothes": clothes, "seconds": "0.0"}


def main() -> None:
    bench = Bench()
    for task in TASKS:
        ROWS.once((task, "old", "nothing", 0, 0, "test"), bench.untouched, task)
    for learns, head, task in product(("head", "all blocks"), ("old", "new"), TASKS):
        tried = {}
        for rate in RATES:
            key = (task, head, learns, rate, CHOICE_SEED, "validation")
            tried[rate] = float(ROWS.once(key, bench.measure, *key)["score"])
        best = max(tried, key=tried.get)
        for seed in SEEDS:
            key = (task, head, learns, best, seed, "test")
            ROWS.once(key, bench.measure, *key)


if __name__ == "__main__":
    main()
