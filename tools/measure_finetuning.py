"""Class weights in the head and in partial fine-tuning, on lesions with uneven classes.

    python tools/measure_finetuning.py  # about 5 minutes of one quiet core

Writes data/results/finetuning.csv, which chapter 08_02 reads, one row per run, as it goes. Stored
rows are not measured again, so it can be stopped at any time. `efficientnet_lite0` at 64 pixels on
`lesions` (synthetic), whose largest class has 59 times as many images as the smallest. The seed
draws the training images, in proportion to the classes (at least two of each), and the initial
weights of the head; with all 3,600 images, only the weights.

The head is trained first for 200 steps at 3e-3. Then 200 more steps train what `learns` says
("head": the head again), the last block at 1e-4 (1e-3 ruins it). `weights` is 1 with class weights,
which make all classes count the same. AdamW, cosine decay, batches of 16, BatchNorm frozen.
Columns: `validation` and `score` are balanced accuracy on validation and test data, `accuracy` is
on test data, and so are the last seven columns, the share of each class that is recognised;
`seconds` is the time of training without tracing.
"""

import itertools
import time

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.metrics import recall_score
from trials import class_weights, fit, new_head

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ROWS = Rows(
    "finetuning", ("images", "learns", "weights", "seed"),
    ("validation", "score", "accuracy", "seconds", "parameters", *CLASSES),
)  # fmt: skip
RATES = {"head": 3e-3, "last block": 1e-4}
IMAGES, STEPS, BATCH, SEEDS = (300, 3600), 200, 16, range(5)


class Learner:
    """The part above `block4-5`; its inputs are the outputs of the part below, always frozen."""

    def __init__(self):
        model = tlk.add_head(tlk.load_backbone("efficientnet_lite0", 64), len(CLASSES), 0.2)
        tlk.freeze(model, tlk.policies.all_blocks())
        self.below, self.model = tlk.find_blocks(model).split("block4-5")
        blocks = tlk.find_blocks(self.model)
        self.last_block, head = blocks.split(blocks[-2].name)
        self.parts = {"head": head, "last block": self.model}
        for part in self.parts.values():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            part.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
        self.start = self.model.get_weights()
        self.traced = set()

    def train(self, x, y, learns: str, weights: bool, seed: int, steps: int = STEPS) -> float:
        """Train; return the seconds, without those in which TensorFlow builds its graphs."""
        if learns not in self.traced:
            self.traced.add(learns)
            self.train(x[:32], y[:32], learns, True, seed, steps=2)
        keras.utils.set_random_seed(seed)
        self.model.set_weights([*self.start[:-2], *new_head(self.start)])
        rng, clock = np.random.default_rng(seed), time.perf_counter()
        balanced = class_weights(y, len(CLASSES))
        balanced = balanced if weights else dict.fromkeys(balanced, 1.0)
        for stage in ("head", learns):
            inputs = predict(self.last_block, x) if stage == "head" else x
            part, rate = self.parts[stage], RATES[stage]
            fit(part, inputs, y, rate, steps, BATCH, rng, class_weight=balanced)
        return time.perf_counter() - clock


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=100, verbose=0)


def draw(x: np.ndarray, y: np.ndarray, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw about `images` images in proportion to the classes, at least two of each."""
    if images == len(y):
        return x, y
    rng = np.random.default_rng(seed)
    chosen = []
    for c in range(len(CLASSES)):
        members = np.flatnonzero(y == c)
        chosen.append(rng.permutation(members)[: max(2, round(images * len(members) / len(y)))])
    return x[np.concatenate(chosen)], y[np.concatenate(chosen)]


def measure(learner: Learner, data: dict, images: int, learns: str, weights: int, seed: int):
    """Train and score a learner; `data` has its inputs and labels by split."""
    train = draw(*data["train"], images, seed)
    seconds = learner.train(*train, learns, bool(weights), seed)
    truth = {split: data[split][1] for split in ("validation", "test")}
    found = {split: predict(learner.model, data[split][0]).argmax(-1) for split in truth}
    recalls = {s: recall_score(truth[s], found[s], average=None) for s in truth}
    measured = {
        "validation": recalls["validation"].mean(), "score": recalls["test"].mean(),
        "accuracy": np.mean(found["test"] == truth["test"]), "seconds": seconds,
        **dict(zip(CLASSES, recalls["test"], strict=True)),
    }  # fmt: skip
    parameters = sum(w.numpy().size for w in learner.parts[learns].trainable_weights)
    return {k: f"{v:.4g}" for k, v in measured.items()} | {"parameters": parameters}


def main() -> None:
    tlk.accelerate()
    task = tlk.load_task("lesions", image_size=64)
    data = {split: task.arrays(split) for split in ("train", "validation", "test")}
    learner = Learner()
    data = {split: (predict(learner.below, x), y) for split, (x, y) in data.items()}  # once
    for seed, *run in itertools.product(SEEDS, IMAGES, RATES, (1, 0)):
        ROWS.once((*run, seed), measure, learner, data, *run, seed)


if __name__ == "__main__":
    main()
