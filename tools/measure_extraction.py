"""Frozen features: which network, which depth, which classifier; for images and for text.

    python tools/measure_extraction.py              # about twelve minutes of one quiet core
    python tools/measure_extraction.py --part text  # or a part

Writes data/results/extraction.csv, which chapter 08_01 reads, one row per run, as it goes. Stored
rows are not measured again. Seconds are CPU time.

All hyperparameters (strength C, number of neighbours and their distance, width and rate of the
small network) are chosen by the mean balanced accuracy on validation data of three draws that are
not used again. These runs are not stored; the choice is (column `choice`). Then five draws are
tested. A draw is a number of labelled training images of each class. Features are scaled to mean 0
and spread 1 over the labelled images; text features only if that is better on validation data.

Parts:
- depth: logistic regression on the pooled outputs of every block, for two networks (the CNN
  `efficientnet_lite0` at 96 pixels, the ViT `glyph_vit` at 32) and two tasks. `validation` is the
  mean of the three draws.
- classifier: three classifiers on the outputs of the block that is best on validation data in part
  depth: of the CNN for lesions (synthetic), of the ViT for digits. The small network has 300 steps
  of AdamW with cosine decay, batches of 32, dropout of 0.2.
- views: logistic regression for lesions on that block, with the labelled images once, or in all
  eight positions (quarter turns and mirrored), each of which goes through the network once.
- text: logistic regression on representations of the reports of lesions. `words`: TF-IDF of the
  words. `co-occurrence`: 64 numbers per word, from counts of its neighbours (at most four words
  away) in all 3,600 training reports, without labels: positive pointwise mutual information, then
  SVD; a report is their sum with TF-IDF weights. `random`: the same with 64 random numbers per
  word. `BERT, trained here`: KerasHub's BertBackbone, two layers of 64, trained to predict masked
  words of the same reports for 10 epochs; a report is the mean of its outputs over the words.
  `BERT, untrained`: the same without training. One seed of each, five draws of labels.
- cache: ten epochs of a new head with 30 images per class, with the network inside `fit`, or with
  features computed once. `choice` is the number of images that went through the network. One run.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import keras_hub
import numpy as np
from rows import Rows
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from trials import cosine, drawn, forget

ROWS = Rows(
    "extraction", ("part", "task", "network", "what", "labels_per_class", "seed"),
    ("choice", "validation", "score", "seconds", "parameters"),
)  # fmt: skip
SEARCH, SEEDS = (120, 121, 122), range(20, 25)
LABELS = (5, 30)
SIDE = {"efficientnet_lite0": 96, "glyph_vit": 32}
PAIRS = (("lesions", "efficientnet_lite0"), ("digits", "glyph_vit"))
STRENGTHS = (1e-3, 1e-2, 0.1, 1.0)
STEPS, BATCH, DROPOUT = 300, 32, 0.2
SPLITS = ("train", "validation", "test")

# --- data ----------------------------------------------------------------------------------------


@cache
def images(task: str, side: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = tlk.load_task(task, image_size=side)
    return {split: found.arrays(split) for split in SPLITS}


@cache
def reader(network: str) -> keras.Model:
    """Return a model that outputs every block, averaged over positions, in one pass."""
    backbone = tlk.load_backbone(network, SIDE[network])
    if network == "glyph_vit":
        *_, scaled, vit = backbone.layers  # a layer that scales pixels, and the transformer
        encoder = vit.get_layer("vit_encoder")
        x = keras.Model(vit.input, encoder.input)(scaled.output)
        found = {"stem": x}
        for number, layer in enumerate(encoder.encoder_layers, 1):
            x = found[f"transformer_block_{number}"] = layer(x)
        found[f"transformer_block_{number}"] = encoder.layer_norm(x)
    else:
        _, scale, inside = backbone.layers
        blocks = tlk.find_blocks(inside)
        cuts = [*(block.cut for block in blocks[:-1]), inside.output]
        outputs = keras.Model(inside.input, cuts)(scale(backbone.input))
        found = dict(zip(blocks.names, outputs, strict=True))
    pooled = {name: keras.ops.mean(x, range(1, len(x.shape) - 1)) for name, x in found.items()}
    return keras.Model(backbone.input, pooled)


def outputs(network: str, x: np.ndarray) -> dict[str, np.ndarray]:
    return reader(network).predict(x, batch_size=100, verbose=0)


@cache
def features(task: str, network: str) -> dict[str, dict[str, np.ndarray]]:
    data = images(task, SIDE[network])
    return {split: outputs(network, data[split][0]) for split in SPLITS}


# --- classifiers ---------------------------------------------------------------------------------


def linear(strength: float) -> Callable:
    def build(seed: int):
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))

    return build


def plain(strength: float) -> Callable:
    def build(seed: int):
        return make_pipeline(LogisticRegression(C=strength, max_iter=300))

    return build


def neighbours(count: int, metric: str) -> Callable:
    def build(seed: int):
        judge = KNeighborsClassifier(count, weights="distance", metric=metric)
        return make_pipeline(StandardScaler(), judge)

    return build


@cache
def network(size: int, width: int, classes: int) -> keras.Model:
    """Return a small network that is traced once for all runs."""
    model = new_network(size, width, classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
    model.train_on_batch(np.zeros((BATCH, size)), np.zeros(BATCH))
    return model


def new_network(size: int, width: int, classes: int) -> keras.Model:
    x = keras.Input((size,))
    hidden = keras.layers.Dropout(DROPOUT)(keras.layers.Dense(width, "relu")(x))
    return keras.Model(x, keras.layers.Dense(classes)(hidden))


class Small:
    """A network of one hidden layer, with the methods `fit` and `predict` of scikit-learn."""

    def __init__(self, width: int, rate: float, seed: int):
        self.width, self.rate, self.seed = width, rate, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Small":
        self.scale = StandardScaler().fit(x)
        x = self.scale.transform(x)
        size = (x.shape[1], self.width, len(np.unique(y)))
        keras.utils.set_random_seed(self.seed)
        self.model = network(*size)
        self.model.set_weights(new_network(*size).get_weights())
        forget(self.model.optimizer)
        rng = np.random.default_rng(self.seed)
        for step in range(STEPS):
            some = rng.integers(len(x), size=BATCH)
            self.model.optimizer.learning_rate = cosine(self.rate, step, STEPS)
            self.model.train_on_batch(x[some], y[some])
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        said = self.model.predict(self.scale.transform(x), 400, verbose=0)
        return said.argmax(axis=1)


def small(width: int, rate: float) -> Callable:
    def build(seed: int):
        return Small(width, rate, seed)

    return build


def numbers(judge, x: np.ndarray, classes: int) -> int:
    """Return how many numbers a classifier stores: learned ones, or the examples themselves."""
    if isinstance(judge, Small):
        return judge.model.count_params()
    return x.size if isinstance(judge[-1], KNeighborsClassifier) else (x.shape[1] + 1) * classes


GRIDS = {
    "linear probe": {f"C={c:g}": linear(c) for c in STRENGTHS},
    "nearest neighbours": {
        f"{k} {metric}": neighbours(k, metric)
        for k, metric in product((1, 3, 5, 10, 20), ("euclidean", "cosine"))
    },
    "small network": {
        f"{width} wide, rate {rate:g}": small(width, rate)
        for width, rate in product((16, 128), (1e-3, 3e-3))
    },
}

TEXT_GRID = GRIDS["linear probe"] | {f"C={c:g}, as they are": plain(c) for c in (0.1, 1, 10, 100)}

Draws = Callable[[int], tuple[np.ndarray, np.ndarray]]


def search(grid: dict, draws: Draws, new: np.ndarray, truth: np.ndarray) -> tuple[str, float]:
    """Return the entry of the grid that is best on validation data, and its mean score there."""
    found = {}
    for name, build in grid.items():
        scores = []
        for seed in SEARCH:
            x, y = draws(seed)
            scores.append(balanced_accuracy_score(truth, build(seed).fit(x, y).predict(new)))
        found[name] = float(np.mean(scores))
    best = max(found, key=lambda name: found[name])
    return best, found[best]


def measure(key: tuple, grid: dict, draws: Draws, validation: tuple, test: tuple) -> None:
    """Measure the five draws of one setting."""
    left = [seed for seed in SEEDS if not ROWS.find(*key, seed)]
    if not left:
        return
    best, there = search(grid, draws, *validation)
    for seed in left:
        x, y = draws(seed)
        clock = time.process_time()
        judge = grid[best](seed).fit(x, y)
        seconds = time.process_time() - clock
        score = balanced_accuracy_score(test[1], judge.predict(test[0]))
        size = numbers(judge, x, len(np.unique(y)))
        found = {"choice": best, "validation": there, "score": score, "parameters": size}
        ROWS.add((*key, seed), found | {"seconds": f"{seconds:.3f}"})


# --- parts ---------------------------------------------------------------------------------------


def settings(task: str, network: str, block: str) -> Iterator[tuple[int, Draws, tuple, tuple]]:
    """Yield numbers of labels, with draws, validation and test data of one block's features."""
    found, data = features(task, network), images(task, SIDE[network])
    (x, y), *rest = [(found[split][block], data[split][1]) for split in SPLITS]
    for count in LABELS:

        def draws(seed: int, count=count) -> tuple[np.ndarray, np.ndarray]:
            some = drawn(y, count, seed)
            return x[some], y[some]

        yield count, draws, *rest


def depth() -> None:
    for (task, _), network in product(PAIRS, SIDE):
        for block in reader(network).output:
            draws = product(LABELS, SEEDS)
            if all(ROWS.find("depth", task, network, block, *draw) for draw in draws):
                continue
            for count, *data in settings(task, network, block):
                key = ("depth", task, network, block, count)
                measure(key, GRIDS["linear probe"], *data)


def best_block(task: str, network: str) -> str:
    """Return the block that is best on validation data, at 30 labels."""
    return ROWS.best("what", part="depth", task=task, network=network, labels_per_class=30)


def classifier() -> None:
    for task, network in PAIRS:
        for count, *data in settings(task, network, best_block(task, network)):
            for name, grid in GRIDS.items():
                measure(("classifier", task, network, name, count), grid, *data)


def views() -> None:
    task, network = PAIRS[0]
    block = best_block(task, network)
    x, y = images(task, SIDE[network])["train"]

    for count, once, *rest in settings(task, network, block):

        @cache
        def eight(seed: int, count=count) -> tuple[np.ndarray, np.ndarray]:
            some = drawn(y, count, seed)
            turned = [np.rot90(x[some], k, axes=(1, 2)) for k in range(4)]
            turned += [view[:, :, ::-1] for view in turned]
            seen = [outputs(network, np.ascontiguousarray(view))[block] for view in turned]
            return np.concatenate(seen), np.tile(y[some], 8)

        for name, draws in {"as they are": once, "in eight positions": eight}.items():
            measure(("views", task, network, name, count), GRIDS["linear probe"], draws, *rest)


# --- text ----------------------------------------------------------------------------------------

SIZE, WINDOW, LENGTH = 64, 4, 32
PAD, MASK, UNKNOWN = range(3)
BERT_EPOCHS = 10


@cache
def reports() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    task = tlk.load_task("lesions")
    return {split: task.arrays(split, "report", "label") for split in SPLITS}


def words(report: str) -> list[str]:
    return re.findall("[a-z]+", report.lower())


@cache
def counter() -> TfidfVectorizer:
    return TfidfVectorizer(analyzer=words).fit(reports()["train"][0])


def co_occurrence() -> np.ndarray:
    """Return a row of 64 numbers for each word, from its neighbours."""
    place = counter().vocabulary_
    counts = np.zeros((len(place), len(place)))
    for report in reports()["train"][0]:
        found = [place[word] for word in words(report)]
        for i, word in enumerate(found):
            for other in found[max(0, i - WINDOW) : i]:
                counts[word, other] += 1
                counts[other, word] += 1
    expected = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
    surprise = np.log(np.maximum(counts / expected, 1))
    found = TruncatedSVD(SIZE, random_state=0).fit_transform(surprise)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def tokens(found: np.ndarray) -> np.ndarray:
    place = counter().vocabulary_
    ids = np.full((len(found), LENGTH), PAD)
    for row, report in zip(ids, found, strict=True):
        numbers = [3 + place[word] if word in place else UNKNOWN for word in words(report)]
        row[: len(numbers[:LENGTH])] = numbers[:LENGTH]
    return ids


def bert_inputs(ids: np.ndarray) -> dict[str, np.ndarray]:
    there = (ids != PAD).astype("int32")
    return {"token_ids": ids, "segment_ids": 0 * there, "padding_mask": there}


def bert(epochs: int) -> keras.Model:
    """Return a BERT that outputs 64 numbers per word, trained on masked words for `epochs`."""
    keras.utils.set_random_seed(0)
    vocabulary = 3 + len(counter().vocabulary_)
    backbone = keras_hub.models.BertBackbone(
        vocabulary, num_layers=2, num_heads=4, hidden_dim=SIZE, intermediate_dim=128,
        max_sequence_length=LENGTH, dropout=0.0,
    )  # fmt: skip
    answers = keras.layers.Dense(vocabulary)(backbone.output["sequence_output"])
    model = keras.Model(backbone.input, answers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(2e-3), loss, jit_compile=False)
    ids, rng = tokens(reports()["train"][0]), np.random.default_rng(0)
    for epoch in range(epochs):
        hidden = (rng.random(ids.shape) < 0.2) & (ids != PAD)
        given = np.where(hidden, MASK, ids)
        weights = hidden.astype("float32")
        clock = time.process_time()
        lost = model.fit(bert_inputs(given), ids, 64, sample_weight=weights, verbose=0)
        print(epoch, lost.history["loss"], time.process_time() - clock, flush=True)
    return backbone


def say(backbone: keras.Model, found: np.ndarray) -> np.ndarray:
    ids = tokens(found)
    said = backbone.predict(bert_inputs(ids), 200, verbose=0)["sequence_output"]
    there = (ids != PAD)[..., None]
    return (said * there).sum(axis=1) / there.sum(axis=1)


def text() -> None:
    rare = {split: counter().transform(found).toarray() for split, (found, _) in reports().items()}
    chance = np.random.default_rng(0).normal(size=(len(counter().vocabulary_), SIZE))
    chance /= np.linalg.norm(chance, axis=1, keepdims=True)

    def averaged(table: np.ndarray) -> dict[str, np.ndarray]:
        return {split: x @ table for split, x in rare.items()}

    def said(epochs: int) -> dict[str, np.ndarray]:
        backbone = bert(epochs)
        return {split: say(backbone, found) for split, (found, _) in reports().items()}

    kinds: dict[str, Callable] = {
        "words": lambda: rare,
        "co-occurrence": lambda: averaged(co_occurrence()),
        "random": lambda: averaged(chance),
        "BERT, trained here": lambda: said(BERT_EPOCHS),
        "BERT, untrained": lambda: said(0),
    }
    y = reports()["train"][1]
    for name, make in kinds.items():
        if ROWS.find("text", "lesions", name, "linear probe", LABELS[-1], SEEDS[-1]):
            continue
        clock = time.process_time()
        x = make()
        if not ROWS.find("made", "lesions", name):
            spent = time.process_time() - clock
            ROWS.add(("made", "lesions", name, "reports", 0, 0), {"seconds": f"{spent:.1f}"})
        rest = [(x[split], reports()[split][1]) for split in SPLITS[1:]]
        for count in LABELS:

            def draws(seed: int, count=count, x=x) -> tuple[np.ndarray, np.ndarray]:
                some = drawn(y, count, seed)
                return x["train"][some], y[some]

            measure(("text", "lesions", name, "linear probe", count), TEXT_GRID, draws, *rest)


# --- cache ---------------------------------------------------------------------------------------


def cached() -> None:
    task, network = PAIRS[0]
    x, y = images(task, SIDE[network])["train"]
    some = drawn(y, 30, 0)
    x, y = x[some], y[some]
    epochs = 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for what in ("in fit", "once"):
        if ROWS.find("cache", task, network, what):
            continue
        backbone = tlk.load_backbone(network, SIDE[network])
        backbone.trainable = False
        pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
        reader = keras.Model(backbone.input, pooled)
        keras.utils.set_random_seed(0)
        head = keras.Sequential([keras.Input(pooled.shape[1:]), keras.layers.Dense(7)])
        clock = time.process_time()
        if what == "once":
            features, model = reader.predict(x, 30, verbose=0), head
        else:
            features, model = x, keras.Model(reader.input, head(reader.output))
        model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=False)
        model.fit(features, y, batch_size=30, epochs=epochs, verbose=0)
        seconds = time.process_time() - clock
        seen = len(x) * (1 if what == "once" else epochs)
        found = {"choice": seen, "seconds": f"{seconds:.1f}"}
        ROWS.add(("cache", task, network, what, 30, 0), found)


PARTS = {
    "cache": cached,
    "depth": depth,
    "classifier": classifier,
    "views": views,
    "text": text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="only this one")
    only = parser.parse_args().part
    for name, part in PARTS.items():
        if only in (None, name):
            part()


if __name__ == "__main__":
    main()
