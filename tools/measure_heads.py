"""Which head is worth its cost on a frozen backbone, by number of labels.

    python tools/measure_heads.py              # about half an hour of one quiet core
    python tools/measure_heads.py --labels 30  # or a part; 0 is all labels

Writes data/results/heads.csv, which chapter 08_03 reads, one row per run, as it goes. Stored rows
are not measured again. Task `lesions` (synthetic) at 96 pixels. Every head gets the same stored
outputs of the frozen `efficientnet_lite0` after block4-5: a map of 6 x 6 positions, 112 channels.

All heads have the same 400 steps of AdamW (cosine decay, no choice of epoch), the same batches of
32, in which all classes are equally frequent, and dropout of 0.2 before the last layer. The rate
(3e-4, 1e-3, 3e-3 or 1e-2) is chosen for each head and number of labels by the mean balanced
accuracy on validation data of two draws (one with all labels) that are not used again (part
"search"). Then five draws are tested with that rate (part "test"). The seed draws the labelled
images, the initial weights and the batches. (3e-2, tried for the first four heads at 30 labels, was
never best.)

Every channel of the map is scaled to mean 0 and spread 1 over the training images, which needs no
labels. "GRU, raw map" has no scaling. "shuffled" is the same head on maps whose 36 positions are in
a random order, different for each image. These and the flattened MLP run at 30 labels only.

Results for 30 labels per class are stored so far; the same command measures the rest.

Columns: `validation` and `score`, balanced accuracy on 800 and 1,600 images (no score in a search);
`parameters` of the head; `seconds` of its training, without computing the map.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from trials import accuracy, cosine, drawn, forget

ROWS = Rows(
    "heads", ("part", "labels_per_class", "head", "rate", "seed"),
    ("validation", "score", "parameters", "seconds"),
)  # fmt: skip
LABELS = (30, 0, 5)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEARCH, SEEDS = (100, 101), range(5)
BATCH, STEPS = 32, 400
PLACES, CHANNELS, CLASSES = (6, 6), 112, 7
layers = keras.layers


def answer(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Dense(CLASSES)(layers.Dropout(0.2)(x))


def linear(x: keras.KerasTensor) -> keras.KerasTensor:
    return answer(layers.GlobalAveragePooling2D()(x))


def mlp(units: int) -> Callable:
    def head(x: keras.KerasTensor) -> keras.KerasTensor:
        return answer(layers.Dense(units, "relu")(layers.GlobalAveragePooling2D()(x)))

    return head


def flattened(x: keras.KerasTensor) -> keras.KerasTensor:
    return answer(layers.Dense(34, "relu")(layers.Flatten()(x)))


def convolution(x: keras.KerasTensor) -> keras.KerasTensor:
    return answer(layers.GlobalAveragePooling2D()(layers.Conv2D(138, 3, activation="relu")(x)))


def rows(x: keras.KerasTensor) -> keras.KerasTensor:
    """Return the output of a recurrent layer that reads the map row by row, like a page."""
    return answer(layers.GRU(64)(layers.Reshape((PLACES[0], -1))(x)))


@keras.saving.register_keras_serializable("tlkeras_tools")
class Positions(layers.Layer):
    """Adds a learned vector to each token, one for each position."""

    def build(self, shape: tuple) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x + self.table


def transformer(x: keras.KerasTensor) -> keras.KerasTensor:
    """Apply a ViT block to the 36 positions: attention, then a small network per position."""
    tokens = Positions()(layers.Reshape((-1, CHANNELS))(x))
    seen = layers.LayerNormalization()(tokens)
    tokens += layers.MultiHeadAttention(4, CHANNELS // 4, dropout=0.1)(seen, seen)
    inner = layers.Dense(376, "gelu")(layers.LayerNormalization()(tokens))
    tokens += layers.Dense(CHANNELS)(inner)
    return answer(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(tokens)))


HEADS = {
    "linear": linear,
    "MLP": mlp(256),
    "large MLP": mlp(1180),
    "flattened MLP": flattened,
    "convolution": convolution,
    "GRU over rows": rows,
    "transformer block": transformer,
    "convolution, shuffled": convolution,
    "GRU, shuffled": rows,
    "GRU, raw map": rows,
}
CONTROLS = ("flattened MLP", "convolution, shuffled", "GRU, shuffled", "GRU, raw map")


def maps() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outputs of the frozen blocks and the labels, for each split."""
    task = tlk.load_task("lesions", image_size=96)
    backbone = tlk.load_backbone("efficientnet_lite0", image_size=96)
    below, _ = tlk.find_blocks(backbone).split("block4-5")
    return {
        split: (below.predict(task.arrays(split)[0], 100, verbose=0), task.arrays(split)[1])
        for split in ("train", "validation", "test")
    }


def shuffled(x: np.ndarray) -> np.ndarray:
    """Return the same maps with the positions of each in a different random order."""
    flat = x.reshape(len(x), -1, CHANNELS)
    order = np.random.default_rng(0).random(flat.shape[:2]).argsort(axis=1)
    return np.take_along_axis(flat, order[..., None], axis=1).reshape(x.shape)


class Learner:
    """A head that is traced once and reinitialised for each run."""

    def __init__(self, name: str):
        tensor = keras.Input((*PLACES, CHANNELS))
        self.build = HEADS[name]
        self.model = keras.Model(tensor, self.build(tensor))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
        self.model.train_on_batch(np.zeros((BATCH, *tensor.shape[1:])), np.zeros(BATCH))
        self.parameters = self.model.count_params()

    def train(self, x: np.ndarray, y: np.ndarray, rate: float, seed: int) -> float:
        """Train the head from new weights; return the seconds."""
        keras.utils.set_random_seed(seed)
        fresh = keras.Input(self.model.input_shape[1:])
        self.model.set_weights(keras.Model(fresh, self.build(fresh)).get_weights())
        forget(self.model.optimizer)
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(y == c) for c in range(CLASSES)]
        clock = time.perf_counter()
        for step in range(STEPS):
            some = [rng.choice(members[c]) for c in rng.integers(CLASSES, size=BATCH)]
            self.model.optimizer.learning_rate = cosine(rate, step, STEPS)
            self.model.train_on_batch(x[some], y[some])
        return time.perf_counter() - clock


def feeds() -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the inputs of the heads, by the text after the comma in their names."""
    raw = maps()
    mean, spread = (f(raw["train"][0], axis=(0, 1, 2)) for f in (np.mean, np.std))
    data = {split: ((x - mean) / spread, y) for split, (x, y) in raw.items()}
    mixed = {split: (shuffled(x), y) for split, (x, y) in data.items()}
    return {"": data, "raw map": raw, "shuffled": mixed}


def measure(learner: Learner, data: dict, part: str, count: int, rate: float, seed: int) -> dict:
    x, y = data["train"]
    some = drawn(y, count, seed)
    seconds = learner.train(x[some], y[some], rate, seed)
    found = {"validation": accuracy(learner.model, *data["validation"], 400)}
    if part == "test":
        found["score"] = accuracy(learner.model, *data["test"], 400)
    return found | {"parameters": learner.parameters, "seconds": f"{seconds:.2f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, choices=LABELS, help="only this many a class")
    parser.add_argument("--head", choices=HEADS, help="only this one")
    only = parser.parse_args()
    data = feeds()
    for count in LABELS if only.labels is None else [only.labels]:
        for head in [only.head] if only.head else HEADS:
            if count != 30 and head in CONTROLS:
                continue
            learner, feed = Learner(head), data[head.partition(", ")[2]]
            for rate, seed in itertools.product(RATES, SEARCH if count else SEARCH[:1]):
                key = ("search", count, head, rate, seed)
                ROWS.once(key, measure, learner, feed, "search", count, rate, seed)
            best = ROWS.best("rate", part="search", head=head, labels_per_class=count)
            for seed in SEEDS:
                key = ("test", count, head, float(best), seed)
                ROWS.once(key, measure, learner, feed, "test", count, float(best), seed)


if __name__ == "__main__":
    main()
