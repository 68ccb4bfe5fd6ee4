"""The strategies of section 1.4 without labels: how much a source still helps a target.

    python tools/measure_strategies.py               # about 5 minutes on 2 cores
    python tools/measure_strategies.py transductive  # one part; or unsupervised

Writes data/results/strategies.csv, which chapter 04 reads, one row per strategy, source, target,
method, labels of the target, target patients and draw, as it goes. Stored rows are not measured
again. The score is balanced accuracy on test images of the target. The features are pooled outputs
of a frozen network: two middle blocks of efficientnet_lite0 at 64 pixels for lesions (synthetic),
the last block of glyph_resnet at 32 for digits. The head is a logistic regression with C=0.01, the
best of 0.001, 0.01, 0.1 and 1 on validation images of the source.

- transductive: 30 labels per class on the source, none on the target, whose training images are
  used without labels. Target labels are used for the score and for the row "target labels".
- unsupervised: features are whitened by the differences between images of the same lesion, without
  class labels; then few labels on the target. Every method gets the same labelled images of a draw.
"""

import argparse
from collections.abc import Iterator
from functools import cache
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from trials import drawn, pooled_reader, standard

ROWS = Rows(
    "strategies",
    ("strategy", "source", "target", "method", "labels_per_class", "patients", "seed"),
    ("score",),
)
LETTERS = {"printed": "glyphs/digits", "handwritten": "digits"}
SEEDS = range(5)
LABELS, FEW, PATIENTS = 30, (5, 10, 30), (10, 30, 100, 300, 1000)
REGULARISE = 0.1  # added to the diagonal of a covariance, in units of its mean diagonal


# --- data and features ---------------------------------------------------------------------------


@cache
def data(domain: str, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels, and the lesion of each image (for digits: the image itself)."""
    if domain in LETTERS:
        x, y = tlk.load_task(LETTERS[domain], image_size=32).arrays(split)
        return x, y, np.arange(len(y))
    x, y, lesion = tlk.load_task("lesions", domain=domain, image_size=64).arrays(
        split, "image", "label", "lesion"
    )
    return x, y, lesion


@cache
def patients(domain: str) -> np.ndarray:
    return tlk.load_task("lesions", domain=domain).arrays("train", "patient")[0]


def new_reader(domain: str) -> keras.Model:
    network = ("glyph_resnet", 32) if domain in LETTERS else ("efficientnet_lite0", 64)
    return pooled_reader(*network)


reader = cache(new_reader)


@cache
def adapted_reader(domain: str) -> keras.Model:
    """Return a reader with BatchNorm statistics of 800 domain images (AdaBN, Li et al. 2016)."""
    network = new_reader(domain)
    inside = network.layers[0] if domain in LETTERS else network
    for layer in inside.layers[-1].layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the next batch replaces the statistics
    network(data(domain, "train")[0][:800], training=True)
    return network


def to_features(network: keras.Model, images: np.ndarray) -> np.ndarray:
    return network.predict(images, batch_size=128, verbose=0)


@cache
def features(domain: str, split: str, adapted: bool = False) -> np.ndarray:
    network = (adapted_reader if adapted else reader)(domain)
    return to_features(network, data(domain, split)[0])


def head(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=0.01, max_iter=500).fit(x, y)


def power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    size = len(covariance)
    ridge = REGULARISE * np.trace(covariance) / size
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(size))
    return vectors * values**exponent @ vectors.T


# --- transductive: labels on the source, none on the target --------------------------------------


def self_training(x, y, unlabelled, test, rounds: int = 5) -> np.ndarray:
    """Use the most confident predictions of each class as labels, more of them each round."""
    model, classes = head(x, y), len(np.unique(y))
    for turn in range(1, rounds + 1):
        share = len(unlabelled) * turn // (rounds * classes)
        chosen = np.argsort(-model.predict_proba(unlabelled), axis=0)[:share]
        model = head(unlabelled[chosen.T.ravel()], np.repeat(np.arange(classes), share))
    return model.predict(test)


def class_centres(x, y, unlabelled, test, rounds: int = 5) -> np.ndarray:
    """Move class centres that start from the source's predictions (Liang, Hu, Feng, 2020)."""
    believed = head(x, y).predict_proba(unlabelled)
    unlabelled, test = keras.utils.normalize(unlabelled), keras.utils.normalize(test)
    for _ in range(rounds):
        centres = keras.utils.normalize(believed.T @ unlabelled)
        believed = np.eye(len(centres))[np.argmax(unlabelled @ centres.T, axis=1)]
    return np.argmax(test @ centres.T, axis=1)


def answers(method: str, source: str, target: str, seed: int) -> np.ndarray:
    """Return predictions on the test images of the target."""
    by_network = method == "AdaBN"
    of_source, unlabelled = (features(d, "train", by_network) for d in (source, target))
    test, labels = features(target, "test", by_network), data(source, "train")[1]
    some = drawn(labels, LABELS, seed)
    x, y = standard(of_source[some], of_source), labels[some]
    if method == "as it is" or by_network:
        return head(x, y).predict(standard(test, of_source))
    own, test = standard(unlabelled, unlabelled), standard(test, unlabelled)
    if method == "CORAL":  # also matches the covariance of the target (Sun, Feng, Saenko, 2016)
        x = x @ power(np.cov(standard(of_source, of_source).T), -0.5) @ power(np.cov(own.T), 0.5)
    if method == "target labels":
        labels = data(target, "train")[1]
        some = drawn(labels, LABELS, seed)
        x, y = own[some], labels[some]
    if method == "self-training":
        return self_training(x, y, own, test)
    if method == "class centres":
        return class_centres(x, y, own, test)
    return head(x, y).predict(test)


def adapt(method: str, source: str, target: str, seed: int) -> dict[str, float]:
    found = answers(method, source, target, seed)
    return {"score": balanced_accuracy_score(data(target, "test")[1], found)}


METHODS = (
    "as it is", "AdaBN", "own statistics", "CORAL", "self-training", "class centres",
    "target labels",
)  # fmt: skip
PAIRS = (
    ("dermatoscope", "phone"),
    ("printed", "handwritten"),
    ("dermatoscope", "dermatoscope"),  # a control: no shift, and the labels are known
    ("printed", "printed"),
)


def transductive() -> None:
    for (source, target), seed, method in product(PAIRS, SEEDS, METHODS):
        key = ("transductive", source, target, method, 0, 0, seed)
        ROWS.once(key, adapt, method, source, target, seed)


# --- unsupervised: no class labels; then few of them, on the target ------------------------------


def within(x: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the scatter of features around the mean of their group, and degrees of freedom."""
    _, place, count = np.unique(group, return_inverse=True, return_counts=True)
    means = np.zeros((len(count), x.shape[1]))
    np.add.at(means, place, x)
    apart = x - (means / count[:, None])[place]
    return apart.T @ apart, int((count - 1).sum())


@cache
def views() -> tuple[np.ndarray, np.ndarray]:
    """Return features of two random views of every source image, and the image of each."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    change = keras.Sequential([
        layers.RandomFlip(), layers.RandomRotation(0.5), layers.RandomZoom(0.2),
        layers.RandomContrast(0.15), layers.RandomBrightness(0.15),
    ])  # fmt: skip
    images = data("dermatoscope", "train")[0]
    seen = [
        to_features(reader("dermatoscope"), np.array(change(images, training=True)))
        for _ in range(2)
    ]
    return np.concatenate(seen), np.tile(np.arange(len(images)), 2)


def scatters(seed: int) -> Iterator[tuple[str, int, np.ndarray | None]]:
    """Yield (method, target patients, covariance for whitening or None) for a draw."""
    rng = np.random.default_rng(seed)
    source, group = features("dermatoscope", "train"), data("dermatoscope", "train")[2]
    x, pairs = standard(source, source), within
    of_lesions, degrees = pairs(x, group)
    yield "as they are", 0, None
    yield "one lesion", 0, of_lesions / degrees
    yield "any two images", 0, np.divide(*pairs(x, rng.permutation(group)))
    yield "all images", 0, np.cov(x.T)
    changed, image = views()
    yield "one image, changed", 0, np.divide(*pairs(standard(changed, source), image))
    target, group, patient = (
        standard(features("phone", "train"), source), data("phone", "train")[2], patients("phone")
    )  # fmt: skip
    for count in PATIENTS:
        some = np.isin(patient, rng.choice(np.unique(patient), count, replace=False))
        own, own_degrees = pairs(target[some], group[some])
        yield "target alone", count, own / own_degrees
        yield "source and target", count, (of_lesions + own) / (degrees + own_degrees)


def few_labels(covariance: np.ndarray | None, per_class: int, seed: int) -> dict[str, float]:
    source, labels = features("dermatoscope", "train"), data("phone", "train")[1]
    some = drawn(labels, per_class, seed)
    white = np.eye(source.shape[1]) if covariance is None else power(covariance, -0.5)
    x = standard(features("phone", "train")[some], source) @ white
    test = standard(features("phone", "test"), source) @ white
    centre, spread = x.mean(axis=0), x.std()
    found = head((x - centre) / spread, labels[some]).predict((test - centre) / spread)
    return {"score": balanced_accuracy_score(data("phone", "test")[1], found)}


def unsupervised() -> None:
    for seed in SEEDS:
        for method, count, covariance in scatters(seed):
            for labels in FEW:
                key = ("unsupervised", "dermatoscope", "phone", method, labels, count, seed)
                ROWS.once(key, few_labels, covariance, labels, seed)


PARTS = {"transductive": transductive, "unsupervised": unsupervised}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
