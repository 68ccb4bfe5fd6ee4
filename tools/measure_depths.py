"""How deep to unfreeze a network trained on letters: data size x domain shift x depth; five rates.

    python tools/measure_depths.py      # about 12 minutes on 2 cores

Writes data/results/depths.csv, which chapter 07 reads, one row per run, as it goes. Stored rows are
not measured again, so it can be stopped at any time. The seed draws the labelled images and the
initial weights of the head.

Parts: `grid` trains the head alone first, then for as many steps the blocks of a depth (head only:
the head again), at 1e-3, which on validation data is as good as 3e-4 or better. Outputs of frozen
blocks are computed once. `where` unfreezes the head and the first two blocks instead of the last
two. `sweep` does the same with all blocks at other rates. `shift` looks for a target whose middle
blocks should learn: one draw of digits that are transformed in several ways, with one part of the
network unfrozen, scored on validation data. Other scores are balanced accuracy on test data.
Seconds are those of training without tracing. Drift is how far the weights of the backbone moved,
in percent of their norm.
"""

import itertools
import time
from collections.abc import Iterator
from functools import cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from trials import accuracy, behind_blinds, class_weights, drawn, drift, fit

ROWS = Rows(
    "depths", ("part", "target", "labels_per_class", "depth", "seed", "rate"),
    ("score", "seconds", "parameters", "drift"),
)  # fmt: skip
TARGETS = ("digits", "blinds", "lesions")  # from near to far
LABELS = (5, 30, 0)  # per class; 0: all
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
Data = dict[str, tuple[np.ndarray, np.ndarray]]


def tiles(images: np.ndarray) -> np.ndarray:
    """Reorder sixteen tiles of 8x8 pixels, in the same way for all images."""
    order = np.random.default_rng(3).permutation(16)
    cut = images.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8, 8, 3)
    back = cut[:, order].reshape(-1, 4, 4, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return back.reshape(images.shape)


def wave(images: np.ndarray) -> np.ndarray:
    """Shift rows to the left and to the right."""
    out = np.empty_like(images)
    for row in range(32):
        out[:, row] = np.roll(images[:, row], round(6 * np.sin(2 * np.pi * row / 10)), axis=1)
    return out


def copies(images: np.ndarray) -> np.ndarray:
    """Replace each image by four copies of half the size."""
    return np.tile(images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)), (1, 2, 2, 1))


def rows_mixed(images: np.ndarray) -> np.ndarray:
    return images[:, (np.arange(32) * 5) % 32]


SHIFTS = {"tiles": tiles, "wave": wave, "copies": copies, "rows mixed": rows_mixed}


@cache
def load(target: str) -> Data:
    """Return splits at 32x32; "blinds": digits behind stripes that invert them (synthetic)."""
    task = tlk.load_task("digits" if target == "blinds" else target, image_size=32)
    splits = {split: task.arrays(split) for split in ("train", "validation", "test")}
    if target == "blinds":
        splits = {split: (behind_blinds(x), y) for split, (x, y) in splits.items()}
    return splits


def labelled(target: str, labels: int, seed: int) -> Data:
    """Return the splits with `labels` training images of each class."""
    x, y = load(target)["train"]
    some = drawn(y, labels, seed)
    return load(target) | {"train": (x[some], y[some])}


def shifted(name: str, seed: int) -> Data:
    """Return transformed digits with 30 labels per class."""
    task = tlk.load_task("digits", labels_per_class=30, seed=seed)
    splits = {split: task.arrays(split) for split in ("train", "validation", "test")}
    return {split: (SHIFTS[name](x).astype("float32"), y) for split, (x, y) in splits.items()}


def new_model(classes: int, dropout: float = 0.2) -> keras.Model:
    return tlk.add_head(tlk.load_backbone("glyph_resnet"), classes, dropout)


class Learner:
    """The network with a new head, unfrozen to one depth; built and traced once for many runs."""

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
        """Train the head, then everything that learns; return the seconds."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights([*self.start[:-2], *new_model(self.classes).get_weights()[-2:]])
        rng, clock = np.random.default_rng(seed), time.perf_counter()
        head_steps = 2 * steps if self.depth == "head" else steps
        weights = class_weights(y, self.classes)
        features = self.backbone.predict(x, 64, verbose=0)
        fit(self.head, features, y, HEAD_RATE, head_steps, BATCH, rng, class_weight=weights)
        if self.depth != "head":
            inputs = x if self.bottom is None else self.bottom.predict(x, 64, verbose=0)
            fit(self.top, inputs, y, rate, steps, BATCH, rng, class_weight=weights)
        return time.perf_counter() - clock


@cache
def kept_learner(classes: int, depth: str) -> Learner:
    """Return a learner whose steps are traced, so that no timed run includes tracing."""
    learner = Learner(classes, depth)
    learner.train(np.zeros((32, 32, 32, 3), "float32"), np.arange(32) % classes, 0, RATE, 4)
    return learner


def measure(part: str, target: str, labels: int, depth: str, seed: int, rate: float) -> dict:
    data = shifted(target, seed) if part == "shift" else labelled(target, labels, seed)
    learner = kept_learner(int(data["test"][1].max()) + 1, depth)
    seconds = learner.train(*data["train"], seed, rate, STEPS[labels])
    judged = data["validation" if part == "shift" else "test"]
    return {
        "score": accuracy(learner.model, *judged, batch=64), "seconds": f"{seconds:.2f}",
        "parameters": learner.parameters, "drift": f"{drift(learner.model, learner.start):.3f}",
    }  # fmt: skip


def runs() -> Iterator[tuple]:
    """Yield the keys of all rows, in the order in which they are measured."""
    for seed in SEEDS:
        for depth, target, labels in itertools.product(DEPTHS, TARGETS, LABELS):
            yield "grid", target, labels, depth, seed, HEAD_RATE if depth == "head" else RATE
        for target, labels in itertools.product(TARGETS, LABELS):
            yield "where", target, labels, "first 2", seed, RATE
        for rate in SWEEP:
            yield "sweep", "blinds", 30, "all", seed, rate
    for shift, depth in itertools.product(SHIFTS, ("last 1", "middle", "bottom")):
        yield "shift", shift, 30, depth, SHIFT_SEED, RATE


def main() -> None:
    for run in runs():
        ROWS.once(run, measure, *run)


if __name__ == "__main__":
    main()
