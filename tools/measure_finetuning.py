"""Class weights in the head and in partial fine-tuning, on lesions as unevenly as they come.

    python tools/measure_finetuning.py  # about 5 minutes of one quiet core

Writes data/results/finetuning.csv, which chapter 08_02 reads, a row a run, as it goes: what is
there is not measured again, so it can be stopped at any time. `efficientnet_lite0` at 64 pixels on
`lesions` (synthetic), whose largest class has 59 times the images of its smallest. The seed draws
the training images, as many of each class as its share (at least two), and the head's first
weights; all 3,600 are always the same.

The head learns first, 200 steps at 3e-3, then 200 more with what `learns` says ("head": again the
head), at 1e-4 in the last block (1e-3 ruins it); `weights` is 1 with class weights, so that every
class counts as much as any other. AdamW, cosine decay, batches of 16, BatchNorm frozen. Columns:
`validation` and `score` are balanced accuracy, `accuracy` is on test, and so are the last seven,
the share of each class that is found; `seconds` those of training without tracing.
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
    """What is above `block4-5`, fed with the outputs of what is below, which never learns."""

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
        """Seconds of training, without those in which TensorFlow builds its graphs."""
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
    """So many images, of every class its share, and at least two."""
    if images == len(y):
        return x, y
    rng = np.random.default_rng(seed)
    chosen = []
    for c in range(len(CLASSES)):
        members = np.flatnonzero(y == c)
        chosen.append(rng.permutation(members)[: max(2, round(images * len(members) / len(y)))])
    return x[np.concatenate(chosen)], y[np.concatenate(chosen)]


def measure(learner: Learner, data: dict, images: int, learns: str, weights: int, seed: int):
    """data: what the learner is fed with, and labels."""
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
