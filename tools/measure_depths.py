"""How deep to unfreeze a network of letters: data size x domain shift x depth, and five rates.

    python tools/measure_depths.py      # about 12 minutes on 2 cores

Writes data/results/depths.csv, which chapter 07 reads, a row a run, as it goes: what is there is
not measured again, so it can be stopped at any time. The seed draws the labelled images and the
head's first weights.

Parts: `grid` trains the head first, alone, then as many steps again with the blocks of a depth
(head only: again with the head), at 1e-3, on validation as good as 3e-4 or better; outputs of
frozen blocks are computed once. `where` opens the head and the first two blocks instead of the
last two. `sweep` does the same with all blocks at other rates. `shift` looks for a target whose
middle should learn: one draw, scored on validation, of digits that are changed by hand, with one
part of the network open. Scores are balanced accuracy on
test, seconds those of training without tracing, drift is how far the backbone's weights moved, in
percent of their size.
"""

import csv
import itertools
import time
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from sklearn.metrics import balanced_accuracy_score

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "depths.csv"
KEY = ("part", "target", "labels_per_class", "depth", "seed", "rate")
HEADER = (*KEY, "score", "seconds", "parameters", "drift")
TARGETS = ("digits", "blinds", "lesions")  # from near to far
LABELS = (5, 30, 0)  # a class; 0: all
DEPTHS = {
    "head": tlk.policies.head_only(),
    "last 1": tlk.policies.last_blocks(1),
    "last 2": tlk.policies.last_blocks(2),
    "all": tlk.policies.all_blocks(),
}
BOTTOM = tlk.policies.named("stem", "stack0-1", "head")
WHERE = {"first 2": BOTTOM, "bottom": BOTTOM, "middle": tlk.policies.middle_blocks()}
SEEDS = range(3)
HEAD_RATE, RATE = 1e-2, 1e-3
SHIFT_SEED = 100
SWEEP = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BATCH, STEPS = 16, {5: 100, 30: 100, 0: 200}
BLINDS = 128 + 127 * np.sin(1.3 * np.arange(32))


def tiles(images: np.ndarray) -> np.ndarray:
    """Sixteen tiles of 8x8 pixels, in another order, the same for all images."""
    order = np.random.default_rng(3).permutation(16)
    cut = images.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8, 8, 3)
    back = cut[:, order].reshape(-1, 4, 4, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return back.reshape(images.shape)


def wave(images: np.ndarray) -> np.ndarray:
    """Rows pushed to the left and to the right."""
    out = np.empty_like(images)
    for row in range(32):
        out[:, row] = np.roll(images[:, row], round(6 * np.sin(2 * np.pi * row / 10)), axis=1)
    return out


def copies(images: np.ndarray) -> np.ndarray:
    """Four copies of half the size."""
    return np.tile(images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)), (1, 2, 2, 1))


def rows_mixed(images: np.ndarray) -> np.ndarray:
    return images[:, (np.arange(32) * 5) % 32]


SHIFTS = {"tiles": tiles, "wave": wave, "copies": copies, "rows mixed": rows_mixed}


def load(target: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Splits at 32x32; "blinds": digits behind stripes that invert them, a synthetic shift."""
    task = tlk.load_task("digits" if target == "blinds" else target, image_size=32)
    splits = {split: task.arrays(split) for split in ("train", "validation", "test")}
    if target == "blinds":
        hidden = {s: np.abs(x - BLINDS[:, None]).astype("float32") for s, (x, _) in splits.items()}
        splits = {split: (hidden[split], y) for split, (_, y) in splits.items()}
    return splits


def shifted(name: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits with 30 labels a class, changed by hand."""
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    splits = {split: task.arrays(split) for split in ("train", "validation", "test")}
    return {split: (SHIFTS[name](x).astype("float32"), y) for split, (x, y) in splits.items()}


def new_model(classes: int, dropout: float = 0.2) -> keras.Model:
    return tlk.add_head(tlk.load_backbone("glyph_resnet"), classes, dropout)


class Learner:
    """The network with a new head, open to one depth; made and traced once for many runs."""

    def __init__(self, classes: int, depth: str):
        self.classes, self.depth = classes, depth
        self.model = new_model(classes)
        blocks = tlk.find_blocks(self.model)
        policy = (DEPTHS | WHERE)[depth]
        self.parameters = tlk.freeze(self.model, policy).trainable_params
        learns = {block.name for block in policy(blocks)}
        below = list(itertools.takewhile(lambda name: name not in learns, blocks.names))
        self.backbone, self.head = blocks.split(blocks[-2].name)
        self.bottom, self.top = blocks.split(below[-1]) if below else (None, self.model)
        for part in (self.head, self.top):
            if not getattr(part, "optimizer", None):
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                part.compile(keras.optimizers.AdamW(), loss)
        self.start = self.model.get_weights()

    def train(self, x, y, seed: int, rate: float, steps: int) -> float:
        """Seconds it took: head first, then all that learns."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights([*self.start[:-2], *new_model(self.classes).get_weights()[-2:]])
        rng, clock = np.random.default_rng(seed), time.perf_counter()
        head_steps = 2 * steps if self.depth == "head" else steps
        self._fit(self.head, _predict(self.backbone, x), y, HEAD_RATE, head_steps, rng)
        if self.depth != "head":
            inputs = x if self.bottom is None else _predict(self.bottom, x)
            self._fit(self.top, inputs, y, rate, steps, rng)
        return time.perf_counter() - clock

    def _fit(self, part, x, y, rate: float, steps: int, rng) -> None:
        def set_rate(step, logs=None):  # cosine decay, without tracing another rate anew
            part.optimizer.learning_rate = rate * (1 + np.cos(np.pi * step / steps)) / 2

        for variable in part.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        passes = range(-(-steps * BATCH // len(y)))
        order = np.concatenate([rng.permutation(len(y)) for _ in passes])[: steps * BATCH]
        counts = np.maximum(np.bincount(y, minlength=self.classes), 1)
        weights = dict(enumerate(len(y) / self.classes / counts))
        schedule = keras.callbacks.LambdaCallback(on_train_batch_begin=set_rate)
        part.fit(x[order], y[order], BATCH, verbose=0, shuffle=False, class_weight=weights,
                 callbacks=[schedule])  # fmt: skip

    def score(self, x, y) -> float:
        return _score(self.model, x, y)

    def drift(self) -> float:
        return _drift(self.model, self.start)


def _score(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return balanced_accuracy_score(y, _predict(model, x).argmax(axis=-1))


def _drift(model: keras.Model, start: list[np.ndarray]) -> float:
    """Of all but the head's two weights."""
    pairs = list(zip(model.get_weights()[:-2], start[:-2], strict=True))
    moved = sum(float(np.sum((new - old) ** 2)) for new, old in pairs)
    return 100 * (moved / sum(float(np.sum(old**2)) for _, old in pairs)) ** 0.5


def _predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=64, verbose=0)


class Bench:
    def __init__(self):
        self.data, self.learners, self.rows = {}, {}, {}
        if STORE.exists():
            with STORE.open() as file:
                self.rows = {tuple(row[k] for k in KEY): row for row in csv.DictReader(file)}

    def measure(self, part: str, target: str, labels: int, depth: str, seed: int, rate: float):
        """A run, unless it is stored."""
        key = (part, target, str(labels), depth, str(seed), f"{rate:g}")
        if key in self.rows:
            return
        splits = shifted(target, seed) if part == "shift" else self.drawn(target, labels, seed)
        learner = self.learner(int(splits["test"][1].max()) + 1, depth, splits["train"])
        seconds = learner.train(*splits["train"], seed, rate, STEPS[labels])
        judged = splits["validation" if part == "shift" else "test"]
        score, drift = learner.score(*judged), learner.drift()
        row = (*key, f"{score:.4f}", f"{seconds:.2f}", learner.parameters, f"{drift:.3f}")
        new = not STORE.exists()
        with STORE.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, row] if new else [row])
        print(*row, flush=True)

    def drawn(self, target: str, labels: int, seed: int) -> dict:
        """The splits, with that many training images of each class."""
        if target not in self.data:
            self.data[target] = load(target)
        x, y = self.data[target]["train"]
        if not labels:
            return self.data[target]
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(y == c) for c in range(int(y.max()) + 1)]
        chosen = np.concatenate([rng.choice(m, labels, replace=False) for m in members])
        return self.data[target] | {"train": (x[chosen], y[chosen])}

    def learner(self, classes: int, depth: str, data: tuple) -> Learner:
        if (classes, depth) not in self.learners:
            self.learners[classes, depth] = Learner(classes, depth)
            few = tuple(part[:32] for part in data)
            self.learners[classes, depth].train(*few, 0, RATE, 4)  # so that no run is timed tracing
        return self.learners[classes, depth]


def main() -> None:
    bench = Bench()
    for seed in SEEDS:
        for depth in DEPTHS:
            for target in TARGETS:
                for labels in LABELS:
                    rate = HEAD_RATE if depth == "head" else RATE
                    bench.measure("grid", target, labels, depth, seed, rate)
        for target in TARGETS:
            for labels in LABELS:
                bench.measure("where", target, labels, "first 2", seed, RATE)
        for rate in SWEEP:
            bench.measure("sweep", "blinds", 30, "all", seed, rate)
    for shift in SHIFTS:
        for depth in ("last 1", "middle", "bottom"):
            bench.measure("shift", shift, 30, depth, SHIFT_SEED, RATE)


if __name__ == "__main__":
    main()
