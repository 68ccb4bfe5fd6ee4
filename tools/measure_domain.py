"""Domain adaptation: labels on the source, none on the target (section 1.8, no. 4).

    python tools/measure_domain.py            # about 40 minutes of one core
    python tools/measure_domain.py features   # or only a part; or network

Writes data/results/domain.csv, which chapter 08_04 reads, one row per run, as it goes. Stored rows
are not measured again. Pairs: `lesions` (synthetic) from dermatoscope to phone, with labels for
half of the source patients in each draw; and printed (synthetic) to handwritten digits (real), with
30 labels per class. The rest of the source and all training images of the target are used without
labels. `score` is balanced accuracy on test images of the target, `source` on test images of the
source, `validation` on validation images of the source. `information` is that of the predictions on
the unlabelled training images of the target. Choices can be made by the last two, but not by labels
of the target.

- features: frozen features, for lesions of two middle blocks of `efficientnet_lite0` at 96 pixels,
  for digits of `glyph_resnet` at 32. The same small network is trained on them with the same steps
  every time. For methods that differ only in their data, its domain classifier is present but
  passes no gradient back (strength 0).
- believed: for the first pseudo-labels, one row per class (after the colon in `method`): their
  `number` and the share that is right (`score`). The share is known only because the labels of the
  target are hidden, not missing.
- network: middle and top blocks retrained on source labels over a frozen bottom, with and without a
  domain classifier; and the head alone, for as many steps. Three draws.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from functools import cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.metrics import balanced_accuracy_score
from trials import drawn, forget, in_passes, pooled_reader, standard

from tlkeras.flavors import domain

ROWS = Rows(
    "domain", ("part", "pair", "method", "strength", "seed"),
    ("validation", "information", "source", "score", "number", "seconds"),
)  # fmt: skip
PAIRS = {"lesions": ("dermatoscope", "phone"), "digits": ("printed", "handwritten")}
LETTERS = {"printed": "glyphs/digits", "handwritten": "digits"}
SIDE = {"lesions": 96, "digits": 32}
NETWORK = {"lesions": "efficientnet_lite0", "digits": "glyph_resnet"}
BOTTOM = {"lesions": "block3", "digits": "stack0-1"}
SEEDS = range(10, 15)  # 0 to 9 were used while the steps were chosen, on validation
STRENGTHS = (0.1, 0.3, 1.0, 3.0)
LABELS = 30  # per class, for digits
STEPS, BATCH, UNITS, DROPOUT, RATE, DECAY = 1200, 64, 64, 0.2, 1e-3, 1.0
ROUNDS = 3  # rounds of self-training
NETWORK_STEPS, NETWORK_BATCH, NETWORK_RATE = 200, 32, 3e-4


# --- data and features ---------------------------------------------------------------------------


@cache
def data(pair: str, name: str, split: str) -> tuple[np.ndarray, ...]:
    """Return images, labels, and the patient of each image (for digits: the image itself)."""
    if name in LETTERS:
        x, y = tlk.load_task(LETTERS[name], image_size=SIDE[pair]).arrays(split)
        return x, y, np.arange(len(y))
    task = tlk.load_task("lesions", domain=name, image_size=SIDE[pair])
    return task.arrays(split, "image", "label", "patient")


@cache
def reader(pair: str, adapted_to: str = "") -> keras.Model:
    network = pooled_reader(NETWORK[pair], SIDE[pair])
    if adapted_to:
        domain.adapt_batchnorm(network, data(pair, adapted_to, "train")[0])
    return network


@cache
def features(pair: str, name: str, split: str, adapted: bool = False) -> np.ndarray:
    network = reader(pair, name if adapted else "")
    return network.predict(data(pair, name, split)[0], batch_size=100, verbose=0)


def known(pair: str, name: str, seed: int) -> np.ndarray:
    """Return the labels of a draw, with -1 for hidden ones."""
    _, labels, patient = data(pair, name, "train")
    if pair == "lesions":
        patients, rng = np.unique(patient), np.random.default_rng(seed)
        some = np.isin(patient, rng.choice(patients, len(patients) // 2, replace=False))
    else:
        some = np.isin(np.arange(len(labels)), drawn(labels, LABELS, seed))
    return np.where(some, labels, -1)


# --- one network, the same steps -----------------------------------------------------------------


def new_network(size: int, classes: int, strength: float) -> tuple[keras.Model, keras.Model]:
    x = keras.Input((size,))
    hidden = keras.layers.Dropout(DROPOUT)(x)
    hidden = keras.layers.Dense(UNITS, "relu", name="hidden")(hidden)
    model = keras.Model(x, keras.layers.Dense(classes)(hidden))
    return model, compiled(domain.adversarial(model, "hidden", strength, rise=STEPS), RATE, DECAY)


def compiled(both: keras.Model, rate: float, decay: float) -> keras.Model:
    loss = {
        "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "domain": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    both.compile(keras.optimizers.AdamW(rate, weight_decay=decay), loss, jit_compile=False)
    return both


cached_network = cache(new_network)


def renew(both: keras.Model, weights: list[np.ndarray]) -> None:
    both.set_weights(weights)
    forget(both.optimizer)


def fit(both: keras.Model, x, labels, target, steps: int, batch: int, seed: int) -> None:
    """Train with equal weight for all classes, as in the score."""
    inputs, y, weights = domain.two_domains(x, labels, target)
    counts = np.bincount(labels[labels >= 0])
    weights["label"][: len(x)] *= np.where(labels < 0, 0, (1 / np.maximum(counts, 1))[labels])
    weights["label"] /= weights["label"].mean()
    order = in_passes(len(inputs), steps * batch, np.random.default_rng(seed))
    y, weights = ({key: part[order] for key, part in kind.items()} for kind in (y, weights))
    both.fit(inputs[order], y, batch, sample_weight=weights, shuffle=False, verbose=0)


def learn(x, labels, target, classes: int, seed: int, strength: float = 0) -> keras.Model:
    model, both = cached_network(x.shape[1], classes, strength)
    keras.utils.set_random_seed(seed)
    renew(both, new_network(x.shape[1], classes, strength)[1].get_weights())
    fit(both, x, labels, target, STEPS, BATCH, seed)
    return model


def answers(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Return the predicted probabilities."""
    logits = model.predict(x, batch_size=100, verbose=0)
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(balanced_accuracy_score(labels, probabilities.argmax(axis=1)))


# --- methods on frozen features ------------------------------------------------------------------


def surest(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Return predictions as labels for the most confident share of the images, -1 for others."""
    count = int(share * len(probabilities))
    sure = np.argsort(-probabilities.max(axis=1), kind="stable")[:count]
    labels = np.full(len(probabilities), -1)
    labels[sure] = probabilities[sure].argmax(axis=1)
    return labels


def equal_shares(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Return the most confident images of each class as labels, equally many; -1 for others."""
    classes = probabilities.shape[1]
    labels = np.full(len(probabilities), -1)
    for c in range(classes):
        labels[np.argsort(-probabilities[:, c])[: int(share * len(labels)) // classes]] = c
    return labels


BELIEF = {"self-training": surest, "self-training, equal shares": equal_shares}
METHODS = (
    "as it is", "AdaBN", "own statistics", "CORAL", *BELIEF, "self-training, true labels",
    "target labels",
)  # fmt: skip


class Draw:
    """Features and labels of a draw, and the results of the methods on them."""

    def __init__(self, pair: str, seed: int):
        self.pair, self.seed, (self.of, self.to) = pair, seed, PAIRS[pair]
        self.labels = known(pair, self.of, seed)
        self.truth = {name: data(pair, name, "test")[1] for name in PAIRS[pair]}
        self.classes = int(self.truth[self.of].max()) + 1

    def adapt(self, method: str, strength: float = 0) -> dict[str, float]:
        adapted = method == "AdaBN"
        get = {key: features(self.pair, *key, adapted) for key in self._needed()}
        source, target = get[self.of, "train"], get[self.to, "train"]
        own = source if method in ("as it is", "AdaBN") else target
        x, z = standard(source, source), standard(target, own)
        clock = time.perf_counter()
        if method == "CORAL":
            x = standard(domain.coral(source, target), own)
        labels, args = self.labels, (z, self.classes, self.seed, strength)
        if method == "target labels":
            x, labels = z, known(self.pair, self.to, self.seed)
        model = learn(x, labels, *args)
        if method.startswith("self-training"):
            for turn in range(1, ROUNDS + 1):
                believed = BELIEF.get(method, surest)(answers(model, z), turn / (ROUNDS + 1))
                if method.endswith("true labels"):  # of the same images
                    believed = np.where(believed < 0, -1, data(self.pair, self.to, "train")[1])
                both = np.concatenate([x, z]), np.concatenate([labels, believed])
                model = learn(*both, *args)
        seconds = time.perf_counter() - clock
        validation = standard(get[self.of, "validation"], source)
        return {
            "validation": accuracy(
                data(self.pair, self.of, "validation")[1], answers(model, validation)
            ),
            "information": domain.information(answers(model, z)),
            "source": accuracy(
                self.truth[self.of], answers(model, standard(get[self.of, "test"], source))
            ),
            "score": accuracy(
                self.truth[self.to], answers(model, standard(get[self.to, "test"], own))
            ),
            "seconds": seconds,
        }

    def _needed(self) -> list[tuple[str, str]]:
        tests = [(name, split) for name in (self.of, self.to) for split in ("train", "test")]
        return [*tests, (self.of, "validation")]

    def first_beliefs(self, method: str) -> Iterator[tuple[int, int, float]]:
        """Yield each class, the number of its pseudo-labels, and the share that is right."""
        source, target = (features(self.pair, name, "train") for name in (self.of, self.to))
        x, z = standard(source, source), standard(target, target)
        probabilities = answers(learn(x, self.labels, z, self.classes, self.seed), z)
        believed = BELIEF[method](probabilities, 1 / (ROUNDS + 1))
        truth = data(self.pair, self.to, "train")[1]
        for c in range(self.classes):
            there = believed == c
            yield c, int(there.sum()), float(np.mean(truth[there] == c)) if there.any() else 0.0


# --- middle and top of the network itself --------------------------------------------------------


@cache
def network_parts(pair: str, classes: int, strength: float, what: str) -> tuple:
    """Return the frozen part, the part that learns, that part with domain classifier, weights."""
    model = tlk.add_head(tlk.load_backbone(NETWORK[pair], image_size=SIDE[pair]), classes)
    tlk.freeze(model, tlk.policies.all_blocks())  # BatchNorm keeps its statistics
    blocks = tlk.find_blocks(model)
    below, above = blocks.split(BOTTOM[pair] if what == "network" else blocks[-2].name)
    shared = [layer.name for layer in above.layers if "pool" in layer.name]
    shared = shared[-1] if shared else above.layers[0].name
    both = compiled(
        domain.adversarial(above, shared, strength, rise=NETWORK_STEPS), NETWORK_RATE, 0.01
    )
    return below, above, both, both.get_weights()


@cache
def maps(pair: str, name: str, split: str, what: str) -> np.ndarray:
    below = network_parts(pair, 7 if pair == "lesions" else 10, 0.0, what)[0]
    return below.predict(data(pair, name, split)[0], batch_size=100, verbose=0)


def retrain(pair: str, what: str, strength: float, seed: int) -> dict[str, float]:
    """Train and score "network" (middle and top) or "head", as `what` says."""
    draw = Draw(pair, seed)
    _, above, both, weights = network_parts(pair, draw.classes, strength, what)
    x, z = maps(pair, draw.of, "train", what), maps(pair, draw.to, "train", what)
    keras.utils.set_random_seed(seed)
    fresh = [
        np.random.default_rng(seed).normal(0, 0.03, w.shape) if w.shape[-1:] == (draw.classes,)
        and w.ndim == 2 else w for w in weights
    ]  # fmt: skip
    renew(both, fresh)
    clock = time.perf_counter()
    fit(both, x, draw.labels, z, NETWORK_STEPS, NETWORK_BATCH, seed)
    seconds = time.perf_counter() - clock
    found = {
        key: answers(above, maps(pair, name, split, what))
        for key, name, split in (
            ("validation", draw.of, "validation"), ("source", draw.of, "test"),
            ("score", draw.to, "test"), ("information", draw.to, "train"),
        )
    }  # fmt: skip
    return {
        "validation": accuracy(data(pair, draw.of, "validation")[1], found["validation"]),
        "source": accuracy(draw.truth[draw.of], found["source"]),
        "score": accuracy(draw.truth[draw.to], found["score"]),
        "information": domain.information(found["information"]),
        "seconds": seconds,
    }


# --- runs ----------------------------------------------------------------------------------------


def runs(parts: list[str]) -> Iterator[tuple]:
    """Yield the key of each row, and the function and arguments that measure it."""
    for pair, seed in itertools.product(PAIRS, SEEDS if "features" in parts else ()):
        draw = Draw(pair, seed)
        for method in METHODS:
            yield ("features", pair, method, 0, seed), draw.adapt, method
        for strength in STRENGTHS:
            yield ("features", pair, "DANN", strength, seed), draw.adapt, "DANN", strength
    for pair, seed in itertools.product(reversed(PAIRS), SEEDS[:3] if "network" in parts else ()):
        for what, name, strength in (
            ("head", "head alone", 0.0), ("network", "middle and top", 0.0),
            ("network", "middle and top, DANN", 1.0),
        ):  # fmt: skip
            yield ("network", pair, name, strength, seed), retrain, pair, what, strength, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["features", "network"])
    parts = parser.parse_args().parts
    for run in runs(parts):
        ROWS.once(*run)
    if "features" in parts:
        for pair, seed, method in itertools.product(PAIRS, SEEDS, BELIEF):
            if not ROWS.find("believed", pair, f"{method}: 0", 0, seed):
                ROWS.add_all(
                    (("believed", pair, f"{method}: {c}", 0, seed), {"number": n, "score": right})
                    for c, n, right in Draw(pair, seed).first_beliefs(method)
                )


if __name__ == "__main__":
    main()
