"""A new task, or the old one narrowed: which head, and how much of the network, like for like.

    python tools/measure_polishing.py      # about 10 minutes on 2 cores; goes on where it stopped

Writes data/results/polishing.csv, which chapter 03 reads: a row a (task, head, learns, rate, seed).
One network that names clothes (`efficientnet_lite0` up to block4-5 at 64 pixels, its head trained
on 100 photographs a class) is put to two uses: on `lesions` (a new task; synthetic) and on other
clothes as a camera smears them over a moving belt (the old task, narrower; real photographs, the
smear is ours). Both with five labelled images of each class.

Every cell has the same: 100 steps of 16 images, AdamW at a constant rate, the rate out of RATES
that does best on validation with a draw of its own. What differs is the head it starts with (the
old one, whose first answers are renamed on lesions, or a new one) and what learns (the head alone,
or all blocks with BatchNorm frozen). What learns "nothing" is the network as it is.

Columns: score, balanced accuracy on test (clothes: every other image; lesions: at most 50 of a
class); `clothes`, the same on clothes as they were, read by the old head on the blocks as they are
afterwards; seconds of training.
"""

import csv
import time
from itertools import product
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "polishing.csv"
HEADER = ("task", "head", "learns", "rate", "seed", "split", "score", "clothes", "seconds")
SIZE, CUT, SMEAR = 64, "block4-5", 9
ORIGINAL, LABELS, STEPS, BATCH = 100, 5, 100, 16
RATES = (1e-4, 1e-3, 1e-2, 3e-2)
SEEDS, CHOICE_SEED = range(3), 100
TASKS = ("belt", "lesions")
Data = tuple[np.ndarray, np.ndarray]


def on_the_belt(images: np.ndarray) -> np.ndarray:
    """The images as a camera takes them while they pass: smeared sideways."""
    side = SMEAR // 2
    wide = np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), mode="edge")
    return np.mean([wide[:, :, i : i + SIZE] for i in range(SMEAR)], axis=0)


def first(data: Data, count: int, after: int = 0) -> Data:
    """So many images of each class, those that come first in the split."""
    members = [np.flatnonzero(data[1] == c)[after : after + count] for c in np.unique(data[1])]
    chosen = np.concatenate(members)
    return data[0][chosen], data[1][chosen]


def drawn(data: Data, seed: int) -> Data:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(data[1] == c) for c in np.unique(data[1])]
    chosen = np.concatenate([rng.choice(m, LABELS, replace=False) for m in members])
    return data[0][chosen], data[1][chosen]


def network() -> keras.Model:
    backbone = tlk.load_backbone("efficientnet_lite0", SIZE)
    return tlk.find_blocks(backbone).split(CUT)[0]


class Trained:
    """A network with a head of so many answers, compiled once for all runs of a kind."""

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
        """Trains from the first weights, with the given head or a new one; the seconds it took."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.start)
        kernel, bias = self.model.layers[-1].get_weights()
        new = [keras.initializers.GlorotUniform(seed)(kernel.shape), np.zeros_like(bias)]
        self.model.layers[-1].set_weights(head or new)
        for variable in self.part.optimizer.variables:
            variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        self.part.optimizer.learning_rate = rate
        x, y = data
        rng, rounds = np.random.default_rng(seed), -(-steps * BATCH // len(y))
        order = np.concatenate([rng.permutation(len(y)) for _ in range(rounds)])[: steps * BATCH]
        started = time.perf_counter()
        if self.learns == "head":
            x = self.below.predict(x, verbose=0)
        self.part.fit(x[order], y[order], batch_size=BATCH, shuffle=False, verbose=0)
        return time.perf_counter() - started

    def score(self, data: Data, head: list | None = None) -> float:
        """Balanced accuracy in [0, 1]; with the given head instead of its own, if there is one."""
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

    def row(self, task: str, head: str, learns: str, rate: float, seed: int, split: str) -> list:
        answers = 7 if task == "lesions" and head == "new" else 10
        model, start = self.trained(answers, learns), self.old if head == "old" else None
        seconds = model.fit(drawn(self.data[task][0], seed), rate, seed, start)
        if split == "validation":
            return [model.score(self.data[task][1]), "", seconds]
        old = None if head == "old" else self.old
        return [model.score(self.data[task][2]), model.score(self.clothes, old), seconds]

    def untouched(self, task: str) -> list:
        model = self.trained(10, "head")
        model.model.set_weights(model.start)
        return [model.score(self.data[task][2], self.old), model.score(self.clothes, self.old), 0.0]


def main() -> None:
    rows = list(csv.reader(STORE.open()))[1:] if STORE.exists() else []
    if not rows:
        STORE.write_text(",".join(HEADER) + "\n")
    bench = Bench()

    def measured(*key) -> list[str]:
        """The stored row, or a new one, stored."""
        key = tuple(map(str, key))
        found = [row for row in rows if tuple(row[:6]) == key]
        if not found:
            task, head, learns, rate, seed, split = key
            if learns == "nothing":
                result = bench.untouched(task)
            else:
                result = bench.row(task, head, learns, float(rate), int(seed), split)
            cells = [f"{x:.4f}" if isinstance(x, float) else x for x in result[:2]]
            found = [[*key, *cells, f"{result[2]:.1f}"]]
            rows.extend(found)
            with STORE.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(found)
            print(*found[0], flush=True)
        return found[0]

    kept = [measured(task, "old", "nothing", 0, 0, "test") for task in TASKS]
    for learns, head, task in product(("head", "all blocks"), ("old", "new"), TASKS):
        tried = [measured(task, head, learns, r, CHOICE_SEED, "validation") for r in RATES]
        rate = max(tried, key=lambda row: float(row[6]))[3]
        kept += tried + [measured(task, head, learns, rate, seed, "test") for seed in SEEDS]
    with STORE.open("w", newline="") as file:  # without what earlier choices left
        csv.writer(file, lineterminator="\n").writerows([HEADER, *kept])


if __name__ == "__main__":
    main()
