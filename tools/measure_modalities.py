"""Classifying a lesion from an image, from a report, and from both (section 1.8, no. 10).

    python tools/measure_modalities.py            # about 10 minutes of one core
    python tools/measure_modalities.py features   # or only a part: features, bert, black

Writes data/results/modalities.csv, which chapter 08_10 reads, one row per run, as it goes. Stored
rows are not measured again. Task `lesions` (synthetic; its reports are made of stock phrases), with
30 labels per class, or all 3,600 (0).

The image is represented by the outputs of two blocks of the frozen `efficientnet_lite0` at 96
pixels, averaged over positions: 192 numbers, each scaled to mean 0 and spread 1 over the training
images. The report is a bag of words, with entries of 0 and 1 (multi-hot) or with weights (tf-idf).
A missing modality is all zeros.

- features: the same small network (dropout 0.2, 64 hidden units, a Dense layer) on the image, on
  the report, and on both concatenated ("early"). "modality dropout": the same, but in training each
  modality is set to zero for a share of the examples (`strength`), by `keras.layers.Dropout` with
  one draw per example; "no scaling": by a layer that does not scale up the rest; "plain dropout":
  each number separately. "late": the mean log-probabilities of the two networks. "shuffled": early,
  trained and tested with reports of other patients. "leak": early, but in training and validation
  data every report names the class (with a strength: also with modality dropout).
- bert: KerasHub's BertBackbone (2 layers of width 64, 2 heads), from random weights, on the words
  in order. It is slow: one draw for the search, at 30 labels, and three for the test.

All have 400 steps of AdamW (cosine decay, no choice of epoch) and the same batches of 32, in which
all classes are equally frequent. The rate is chosen for each method, strength and number of labels
among 1e-3, 3e-3 and 1e-2 (for bert 3e-4, 1e-3, 3e-3) by mean balanced accuracy on validation data
of two draws (one with all labels) that are not used again (part "search"). Then five draws are
tested (part "test"). Columns of balanced accuracy: `validation`, `score`; `no_image` and
`no_report`, tested without that modality; `strangers`, tested with reports of other patients.
`seconds` is CPU time of training only.

Part "black": `score` of "early" and "modality dropout", trained as above, when the missing image is
replaced by a black image instead of zeros.

Parts "recall" (one row per class, which is after the colon in `method`) and "overlap" (the share
that both, only the image, only the report or neither got right, with equal weight for all classes)
come from the test draws of the image and the report alone; "recall" also from "early" and "late".
"""

import argparse
import time
from collections.abc import Iterator
from functools import cache
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import keras_hub
import numpy as np
from rows import Rows
from sklearn.metrics import balanced_accuracy_score, recall_score
from trials import drawn, forget, pooled_reader

ROWS = Rows(
    "modalities", ("part", "labels_per_class", "method", "strength", "rate", "seed"),
    ("validation", "score", "no_image", "no_report", "strangers", "parameters", "seconds"),
)  # fmt: skip
SPLITS = ("train", "validation", "test")
LABELS, RATES, STRENGTHS = (30, 0), (1e-3, 3e-3, 1e-2), (0.1, 0.3, 0.5)
BERT_RATES = (3e-4, 1e-3, 3e-3)
SEARCH, SEEDS = (100, 101), range(10, 15)
BATCH, STEPS, UNITS, CLASSES, WORDS = 32, 400, 64, 7, 40
METHODS = {
    "features": [
        ("image", 0), ("report, multi-hot", 0), ("report, tf-idf", 0), ("early", 0),
        *[("modality dropout", share) for share in STRENGTHS],
        ("no scaling", 0.5),
        ("plain dropout", 0.3),
        ("shuffled", 0), ("leak", 0), ("leak", 0.3), ("late", 0),
    ],
    "bert": [("report, bert", 0)],
    "black": [("early", 0), ("modality dropout", 0.3)],
}  # fmt: skip
RIGHT = ("both", 1, 1), ("only the image", 1, 0), ("only the report", 0, 1), ("neither", 0, 0)
layers = keras.layers


# --- data ----------------------------------------------------------------------------------------


@cache
def read() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Return the network up to the features, and their mean and spread over training images."""
    reader = pooled_reader("efficientnet_lite0", 96)
    images = tlk.load_task("lesions", image_size=96).arrays("train")[0]
    x = reader.predict(images, 100, verbose=0)
    return reader, x.mean(axis=0), x.std(axis=0)


@cache
def raw() -> dict[str, tuple[np.ndarray, ...]]:
    """Return features of the images, reports and labels for each split."""
    task, (reader, mean, spread), found = tlk.load_task("lesions", image_size=96), read(), {}
    for split in SPLITS:
        images, reports, labels = task.arrays(split, "image", "report", "label")
        found[split] = reader.predict(images, 100, verbose=0), reports, labels
    return {key: ((x - mean) / spread, *more) for key, (x, *more) in found.items()}


@cache
def words(mode: str, leak: bool = False) -> dict[str, np.ndarray]:
    """Return the reports as numbers; with a leak, training and validation ones name the class."""
    texts = {split: raw()[split][1] for split in SPLITS}
    if leak:
        for split in ("train", "validation"):
            codes = [f" code{label}" for label in raw()[split][2]]
            texts[split] = np.char.add(texts[split], codes)
    length = {"output_sequence_length": WORDS} if mode == "int" else {}
    vectorize = layers.TextVectorization(output_mode=mode, **length)
    vectorize.adapt(texts["train"])
    return {split: np.asarray(vectorize(text)) for split, text in texts.items()}


def inputs(method: str, split: str) -> list[np.ndarray]:
    x, _, labels = raw()[split]
    if method == "image":
        return [x]
    if method == "report, bert":
        return [words("int")[split]]
    if method.startswith("report"):
        return [words(method.partition(", ")[2].replace("multi-hot", "multi_hot")
                      .replace("tf-idf", "tf_idf"))[split]]  # fmt: skip
    report = words("multi_hot", method == "leak")[split]
    if method == "shuffled":
        report = np.random.default_rng(0).permutation(report)
    return [x, report]


@cache
def black() -> np.ndarray:
    """Return the features of a black image, scaled as in `raw`."""
    reader, mean, spread = read()
    return (reader.predict(np.zeros((1, 96, 96, 3)), verbose=0) - mean) / spread


# --- networks ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tlkeras_tools")
class Unscaled(layers.Layer):
    """Sets a share of the examples to zero in training, without scaling up the others."""

    def __init__(self, share: float):
        super().__init__()
        self.share, self.seeds = share, keras.random.SeedGenerator()

    def call(self, x, training=False):
        if not training:
            return x
        kept = keras.random.uniform((keras.ops.shape(x)[0], 1), seed=self.seeds) >= self.share
        return x * keras.ops.cast(kept, x.dtype)


def between(method: str, strength: float) -> layers.Layer:
    if not strength:
        return layers.Identity()
    if method == "no scaling":
        return Unscaled(strength)
    shape = None if method == "plain dropout" else (None, 1)
    return layers.Dropout(strength, noise_shape=shape)


def network(method: str, strength: float) -> keras.Model:
    parts = inputs(method, "validation")
    if method == "report, bert":
        tokens = keras.Input((WORDS,), dtype="int32")
        bert = keras_hub.models.BertBackbone(
            vocabulary_size=int(words("int")["train"].max()) + 1, num_layers=2, num_heads=2,
            hidden_dim=64, intermediate_dim=128, max_sequence_length=WORDS,
        )  # fmt: skip
        given = {
            "token_ids": tokens, "segment_ids": keras.ops.zeros_like(tokens),
            "padding_mask": keras.ops.cast(tokens > 0, "int32"),
        }  # fmt: skip
        sequence = bert(given)["sequence_output"]
        x = layers.GlobalAveragePooling1D()(sequence, given["padding_mask"])
        return keras.Model(tokens, layers.Dense(CLASSES)(layers.Dropout(0.2)(x)))
    taken = [keras.Input((part.shape[1],)) for part in parts]
    branches = [between(method, strength)(x) for x in taken]
    x = layers.Concatenate()(branches) if len(taken) > 1 else branches[0]
    x = layers.Dense(UNITS, "relu")(layers.Dropout(0.2)(x))
    return keras.Model(taken, layers.Dense(CLASSES)(x))


class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine decay to zero from `start`, a variable that can be changed."""

    def __init__(self) -> None:
        self.start = keras.Variable(1e-3, trainable=False)

    def __call__(self, step):
        turned = keras.ops.cos(np.pi * keras.ops.cast(step, "float32") / STEPS)
        return self.start * (1 + turned) / 2


class Learner:
    """A network that is traced once and reinitialised for each run."""

    def __init__(self, method: str, strength: float):
        self.method, self.strength = method, strength
        self.model = network(method, strength)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.rate = Cosine()
        self.model.compile(
            keras.optimizers.AdamW(self.rate), loss, jit_compile=False, steps_per_execution=50
        )
        self._fit(np.zeros(BATCH * STEPS, int))

    def _fit(self, some: np.ndarray) -> None:
        x = [part[some] for part in inputs(self.method, "train")]
        x = x if len(x) > 1 else x[0]
        self.model.fit(x, raw()["train"][2][some], BATCH, shuffle=False, verbose=0)

    def train(self, count: int, rate: float, seed: int) -> float:
        """Train from new weights; return the CPU seconds."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(network(self.method, self.strength).get_weights())
        forget(self.model.optimizer)
        rng, y = np.random.default_rng(seed), raw()["train"][2]
        some = drawn(y, count, seed)
        members = [some[y[some] == c] for c in range(CLASSES)]
        batches = rng.integers(CLASSES, size=BATCH * STEPS)
        order = np.array([rng.choice(members[c]) for c in batches])
        self.rate.start.assign(rate)
        clock = time.process_time()
        self._fit(order)
        return time.process_time() - clock

    def answers(
        self, split: str, image: np.ndarray | None = None, without: int | None = None,
        strangers: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Return log-probabilities, `without` image (0) or report (1), or with another image."""
        x = list(inputs(self.method, split))
        if image is not None:
            x[0] = np.repeat(image, len(x[1]), axis=0)
        if without is not None:
            x[without] = np.zeros_like(x[without])
        if strangers:
            x[1] = np.random.default_rng(1).permutation(x[1])
        logits = self.model.predict(x if len(x) > 1 else x[0], 400, verbose=0)
        return keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))


def judged(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Return balanced accuracies: `validation` on that split, other columns on test data."""
    return {
        column: balanced_accuracy_score(
            raw()["validation" if column == "validation" else "test"][2], answers.argmax(axis=1)
        )
        for column, answers in found.items()
    }


# --- runs ----------------------------------------------------------------------------------------


kept_learner = cache(Learner)


def best_rate(method: str, strength: float, count: int) -> float:
    rows = {"part": "search", "method": method, "strength": strength, "labels_per_class": count}
    return float(ROWS.best("rate", **rows))


def measure(part: str, count: int, method: str, strength: float, rate: float, seed: int) -> dict:
    learner = kept_learner(method, strength)
    seconds = learner.train(count, rate, seed)
    if part == "black":
        return judged({"score": learner.answers("test", black())})
    found = {"validation": learner.answers("validation")}
    if part == "test":
        found["score"] = learner.answers("test")
        if len(inputs(method, "test")) > 1:
            found["no_image"] = learner.answers("test", without=0)
            found["no_report"] = learner.answers("test", without=1)
            found["strangers"] = learner.answers("test", strangers=True)
    return judged(found) | {"parameters": learner.model.count_params(), "seconds": seconds}


def searched_and_tested(method: str, strength: float) -> None:
    slow = method == "report, bert"
    for count in LABELS:
        draws = SEARCH if count and not slow else SEARCH[:1]
        for rate, seed in product(BERT_RATES if slow else RATES, draws):
            key = ("search", count, method, strength, rate, seed)
            if not slow or count == 30:
                ROWS.once(key, measure, *key)
        rate = best_rate(method, strength, 30 if slow else count)
        for seed in SEEDS[: 3 if slow else 5]:
            key = ("test", count, method, strength, rate, seed)
            ROWS.once(key, measure, *key)


def late() -> None:
    for count, seed in product(LABELS, SEEDS):
        if not ROWS.find("test", count, "late", 0, 0, seed):
            ROWS.add_all(put_together(count, seed))


def put_together(count: int, seed: int) -> Iterator[tuple[tuple, dict]]:
    """Yield rows of "late", made from the two single networks, and of recall and overlap."""
    names, answers, seconds = ("image", "report, multi-hot", "early"), {}, 0.0
    learners = {name: kept_learner(name, 0) for name in names}
    for name, learner in learners.items():
        took = learner.train(count, best_rate(name, 0, count), seed)
        seconds += took if name != "early" else 0
        answers[name] = [learner.answers(split) for split in ("validation", "test")]
    (v_image, image), (v_report, report) = answers["image"], answers[names[1]]
    strangers = np.random.default_rng(1).permutation(report)
    y = raw()["test"][2]
    answers["late"] = [v_image + v_report, image + report]
    for name, (_, test) in answers.items():
        recalls = recall_score(y, test.argmax(axis=1), average=None)
        for c, recall in enumerate(recalls):
            yield ("recall", count, f"{name}: {c}", 0, 0, seed), {"score": float(recall)}
    right = [answers[name][1].argmax(axis=1) == y for name in names[:2]]
    for name, i, r in RIGHT:
        those = (right[0] == i) & (right[1] == r)
        share = float(np.mean([those[y == c].mean() for c in range(CLASSES)]))
        yield ("overlap", count, name, 0, 0, seed), {"score": share}
    found = judged({
        "validation": v_image + v_report, "score": image + report,
        "no_image": report, "no_report": image, "strangers": image + strangers,
    })  # fmt: skip
    size = sum(learners[name].model.count_params() for name in names[:2])
    yield ("test", count, "late", 0, 0, seed), found | {"parameters": size, "seconds": seconds}


def in_the_dark(method: str, strength: float) -> None:
    for count, seed in product(LABELS, SEEDS):
        key = ("black", count, method, strength, best_rate(method, strength, count), seed)
        ROWS.once(key, measure, *key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(METHODS))
    for part in parser.parse_args().parts:
        for method, strength in METHODS[part]:
            if part == "black":
                in_the_dark(method, strength)
            elif method == "late":
                late()
            else:
                searched_and_tested(method, strength)


if __name__ == "__main__":
    main()
