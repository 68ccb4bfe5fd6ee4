"""Self-supervised pretraining on unlabelled target images, starting from ImageNet (section 1.10).

    python tools/measure_pretraining.py           # about a quarter of an hour of one core
    python tools/measure_pretraining.py probe     # or a part: pretrain, probe, tune

Writes data/results/pretraining.csv, which chapter 10_3 reads, one row per run, as it goes. Stored
rows are not measured again. Task `lesions` (synthetic) at 64 pixels. For the 3,600 training images
it is known which of them show the same lesion, but not its class.

`efficientnet_lite0` up to block4-5 is frozen, and its outputs are stored, for each image and for
three views of it (rotated, flipped, zoomed by up to 40 %, other brightness and contrast). The
blocks above learn; BatchNorm keeps its statistics. They are pretrained by SimCLR (temperature 0.1)
with 60 steps of 48 pairs, AdamW and cosine decay. `method` says what the pairs are:

- views: two views of one image; lesion pairs: views of two images of one lesion if it has several,
  else of one image; random pairs: views of two random images, the control.
- ImageNet: no pretraining. whitened: no pretraining either, but the probe's features are divided by
  the square root of their scatter within lesions (closed form); whitened, random pairs: the same
  with randomly assigned lesions.

Part "pretrain": `seconds`, and the mean cosine of partners and of others at the end. The rate (1e-4
or 1e-3) is chosen on validation data for lesion pairs and used for all.
Part "probe": logistic regression on the outputs of `depth`, averaged over positions. Its strength
is chosen on validation data by three draws that are not used again, for each method, depth and
number of labels.
Part "tune": the same blocks and a new head learn from the labels, with 40 steps of 32 views (AdamW,
cosine decay). The rate (3e-4 or 1e-3) is chosen on validation data for "ImageNet" at ten labels and
used for all. "ImageNet, longer" has 180 more steps, so that as many images go through the network
as in pretraining and tuning together; "lesion pairs, longer" has as many steps after pretraining.

Three seeds, each with its own pretraining and draw of labels. `score` is balanced accuracy on 1,600
test images, `validation` on 800 validation images; `seconds` is CPU time.
"""

import argparse
import itertools
import time
from functools import cache, lru_cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import ROOT, Rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from trials import accuracy, drawn, forget, in_passes

from tlkeras.flavors import contrastive

ROWS = Rows(
    "pretraining", ("part", "method", "depth", "labels_per_class", "rate", "seed"),
    ("validation", "score", "partners", "others", "seconds"),
)  # fmt: skip
KEPT = ROOT / "build" / "pretraining"  # weights and stored outputs, to continue a killed run
SPLITS = ("train", "validation", "test")
PRETRAINED = ("views", "lesion pairs", "random pairs")
CLOSED = ("whitened", "whitened, random pairs")
LABELS, SEARCH, SEEDS = (5, 10, 30), (100, 101, 102), (10, 11, 12)
STRENGTHS = (1e-2, 1e-1)
SIDE, CLASSES, VIEWS = 64, 7, 3
STEPS, PAIRS, RATES = 60, 48, (1e-4, 1e-3)
TUNING, BATCH, TUNING_RATES, TUNED = 40, 32, (3e-4, 1e-3), (5, 30)
LONGER = 2 * STEPS * PAIRS // BATCH
DEPTHS = ("block4-5", "last block")
layers = keras.layers


# --- data ----------------------------------------------------------------------------------------


@cache
def named(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the lesions of a split."""
    labels, lesions = tlk.load_task("lesions").arrays(split, "label", "lesion")
    return labels, np.unique(lesions, return_inverse=True)[1]


@cache
def network() -> tuple[keras.Model, keras.Model]:
    """Return the frozen part and the part that learns."""
    blocks = tlk.find_blocks(tlk.load_backbone("efficientnet_lite0", SIDE))
    below, above = blocks.split("block4-5")
    for layer in above.layers[-1].layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    return below, above


@cache
def maps() -> dict[str, np.ndarray]:
    """Return outputs of the frozen blocks, for each split and for views of the training images."""
    path = KEPT / "maps.npz"
    if path.exists():
        return dict(np.load(path))
    keras.utils.set_random_seed(0)
    change = keras.Sequential([
        layers.RandomFlip(), layers.RandomRotation(0.5, "reflect"),
        layers.RandomZoom((-0.4, 0.0), fill_mode="reflect"),
        layers.RandomBrightness(0.15), layers.RandomContrast(0.3),
    ])  # fmt: skip
    below, task, found = network()[0], tlk.load_task("lesions", image_size=SIDE), {}
    for split in SPLITS:
        images = task.arrays(split)[0]
        found[split] = below.predict(images, 100, verbose=0).astype("float16")
        if split == "train":
            views = [
                [below.predict_on_batch(change(images[i : i + 100], training=True))
                 for i in range(0, len(images), 100)] for _ in range(VIEWS)
            ]  # fmt: skip
            views = [np.concatenate(parts) for parts in views]
            found["views"] = np.stack(views, axis=1).astype("float16")
    np.savez(path, **found)
    return found


class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine decay from `rate` to zero; rate and steps can be changed without retracing."""

    def __init__(self) -> None:
        self.rate, self.steps = keras.Variable(1e-3), keras.Variable(1.0)

    def __call__(self, step):
        share = keras.ops.minimum(keras.ops.cast(step, "float32") / self.steps, 1.0)
        return self.rate * (1 + keras.ops.cos(np.pi * share)) / 2


@cache
def imagenet() -> list[np.ndarray]:
    return network()[1].get_weights()


def renew(model: keras.Model, rate: float, steps: int) -> None:
    forget(model.optimizer)
    model.schedule.rate.assign(rate)
    model.schedule.steps.assign(steps)


# --- pretraining ---------------------------------------------------------------------------------


@cache
def learner() -> contrastive.SimCLR:
    model = contrastive.SimCLR(network()[1])
    model.schedule = Cosine()
    model.compile(keras.optimizers.AdamW(model.schedule), jit_compile=False)
    return model


def pairs(method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second view of each pair, of one image or of two."""
    rng, (_, lesions), views = np.random.default_rng(seed), named("train"), maps()["views"]
    first = in_passes(len(views), STEPS * PAIRS, rng)
    second, one = first.copy(), rng.integers(VIEWS, size=len(first))
    other = (one + rng.integers(1, VIEWS, size=len(first))) % VIEWS
    if method == "random pairs":
        second = rng.integers(len(views), size=len(first))
    if method == "lesion pairs":
        members = [np.flatnonzero(lesions == lesion) for lesion in range(lesions.max() + 1)]
        for i, picture in enumerate(first):
            others = members[lesions[picture]]
            others = others[others != picture]
            second[i] = rng.choice(others) if len(others) else picture
    return views[first, one].astype("float32"), views[second, other].astype("float32")


def pretrain(method: str, rate: float, seed: int) -> dict[str, float]:
    path, above, model = KEPT / f"{method}-{rate:g}-{seed}.npz", network()[1], learner()
    above.set_weights(imagenet())
    keras.utils.set_random_seed(seed)
    first, second = pairs(method, seed)
    model((first[:2], second[:2]))
    fresh = contrastive.SimCLR(above).projection
    model.projection.set_weights(fresh.get_weights())
    model.optimizer.build(model.trainable_variables)
    renew(model, rate, STEPS)
    clock, history = time.process_time(), {}
    for start in range(0, len(first), STEPS * PAIRS // 4):
        part = slice(start, start + STEPS * PAIRS // 4)
        history = model.fit((first[part], second[part]), batch_size=PAIRS, verbose=0).history
    seconds = time.process_time() - clock
    np.savez(path, *above.get_weights())
    found = {key: history[key][-1] for key in ("partners", "others")}
    return found | {"seconds": seconds}


def load(method: str, rate: float, seed: int) -> None:
    """Load the weights of a pretraining into the blocks that learn."""
    if method not in PRETRAINED:
        return network()[1].set_weights(imagenet())
    with np.load(KEPT / f"{method}-{rate:g}-{seed}.npz") as kept:
        network()[1].set_weights([kept[name] for name in kept.files])


# --- probe ---------------------------------------------------------------------------------------


@cache
def reader() -> keras.Model:
    above, pool = network()[1], layers.GlobalAveragePooling2D()
    return keras.Model(above.input, [pool(above.input), pool(above.output)])


@lru_cache(maxsize=len(SEEDS))
def features(method: str, rate: float, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Return features by depth and split, with mean 0 and spread 1 over the training images."""
    load(method, rate, seed)
    found = {}
    for split in SPLITS:
        read = reader().predict(maps()[split].astype("float32"), batch_size=100, verbose=0)
        found |= {(depth, split): x for depth, x in zip(DEPTHS, read, strict=True)}
    for depth in DEPTHS:
        x = found[depth, "train"]
        mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
        turn = np.eye(x.shape[1])
        if method in CLOSED:
            turn = whitening((x - mean) / spread, method, seed)
        for split in SPLITS:
            found[depth, split] = (found[depth, split] - mean) / spread @ turn
        new = found[depth, "train"].std()
        found |= {(depth, split): (found[depth, split] / new).astype("float32") for split in SPLITS}
    return found


def whitening(x: np.ndarray, method: str, seed: int) -> np.ndarray:
    lesions = named("train")[1]
    if method != "whitened":
        lesions = np.random.default_rng(seed).permutation(lesions)
    count = np.bincount(lesions)
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, lesions, x)
    apart = x - (sums / count[:, None])[lesions]
    scatter = apart.T @ apart / (len(x) - len(count))
    values, vectors = np.linalg.eigh(scatter + 0.1 * np.trace(scatter) / len(scatter)
                                     * np.eye(len(scatter)))  # fmt: skip
    return vectors / np.sqrt(values) @ vectors.T


def probe(network: tuple, depth: str, count: int, strength: float, seed: int) -> dict[str, float]:
    """Fit and score a probe; `network` is method, rate and seed of the pretraining."""
    read = features(*network)
    some = drawn(named("train")[0], count, seed)
    clock = time.process_time()
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(read[depth, "train"][some], named("train")[0][some])
    seconds = time.process_time() - clock
    scores = {
        column: balanced_accuracy_score(named(split)[0], model.predict(read[depth, split]))
        for column, split in (("validation", "validation"), ("score", "test"))
    }
    return scores | {"seconds": seconds}


# --- tuning --------------------------------------------------------------------------------------


@cache
def classifier() -> keras.Model:
    above = network()[1]
    x = layers.GlobalAveragePooling2D()(above.output)
    x = layers.Dense(CLASSES, name="answer")(layers.Dropout(0.2)(x))
    model = keras.Model(above.input, x)
    model.schedule = Cosine()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(model.schedule), loss, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def tune(method: str, rate: float, own: float, count: int, seed: int) -> dict[str, float]:
    """Tune and score a network; `rate` is that of tuning, `own` that of the pretraining."""
    load(method.removesuffix(", longer"), own, seed if seed in SEEDS else SEEDS[0])
    model, labels, views = classifier(), named("train")[0], maps()["views"]
    steps = TUNING + (LONGER if method.endswith("longer") else 0)
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    kernel, bias = model.get_layer("answer").weights
    kernel.assign(rng.normal(0, 0.02, kernel.shape))
    bias.assign(np.zeros(bias.shape))
    renew(model, rate, steps)
    order = rng.choice(drawn(labels, count, seed), steps * BATCH)  # all classes equally frequent
    view = rng.integers(VIEWS, size=len(order))
    clock = time.process_time()
    model.fit(views[order, view].astype("float32"), labels[order], BATCH, shuffle=False, verbose=0)
    seconds = time.process_time() - clock
    scores = {
        column: accuracy(model, maps()[split].astype("float32"), named(split)[0])
        for column, split in (("validation", "validation"), ("score", "test"))
        if column == "validation" or seed in SEEDS
    }
    return scores | {"seconds": seconds}


# --- runs ----------------------------------------------------------------------------------------


def all_pretrained() -> float:
    """Run all pretrainings; return their rate."""
    method = "lesion pairs"
    for rate in RATES:
        args = (method, rate, SEEDS[0])
        ROWS.once(("pretrain", method, "", 0, rate, SEEDS[0]), pretrain, *args)
        for seed in SEARCH:
            key = ("search rate", method, DEPTHS[1], 10, rate, seed)
            ROWS.once(key, probe, args, DEPTHS[1], 10, 1e-2, seed)
    rate = float(ROWS.best("rate", part="search rate"))
    for seed, method in itertools.product(SEEDS, PRETRAINED):
        ROWS.once(("pretrain", method, "", 0, rate, seed), pretrain, method, rate, seed)
    return rate


def all_probed(own: float) -> None:
    for method, depth, count in itertools.product(
        ("ImageNet", *PRETRAINED, *CLOSED), DEPTHS, LABELS
    ):
        if method in PRETRAINED and depth == "block4-5":
            continue  # frozen
        what = (method, depth, count)
        for strength, seed in itertools.product(STRENGTHS, SEARCH):
            args = ((method, own, SEEDS[0]), depth, count, strength, seed)
            ROWS.once(("search probe", *what, strength, seed), probe, *args)
        rows = {"method": method, "depth": depth, "labels_per_class": count}
        best = float(ROWS.best("rate", part="search probe", **rows))
        for seed in SEEDS:
            args = ((method, own, seed), depth, count, best, seed)
            ROWS.once(("probe", *what, best, seed), probe, *args)


def all_tuned(own: float) -> None:
    for rate in TUNING_RATES:
        key = ("search tune", "ImageNet", "", 10, rate, SEARCH[0])
        ROWS.once(key, tune, "ImageNet", rate, own, 10, SEARCH[0])
    rate = float(ROWS.best("rate", part="search tune"))
    for seed, count in itertools.product(SEEDS, TUNED):
        for method in ("ImageNet", *PRETRAINED, "ImageNet, longer", "lesion pairs, longer"):
            key = ("tune", method, "", count, rate, seed)
            ROWS.once(key, tune, method, rate, own, count, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["pretrain", "probe", "tune"])
    parts = parser.parse_args().parts
    KEPT.mkdir(parents=True, exist_ok=True)
    imagenet()  # before anything is trained
    rate = all_pretrained()
    if "probe" in parts:
        all_probed(rate)
    if "tune" in parts:
        all_tuned(rate)


if __name__ == "__main__":
    main()
