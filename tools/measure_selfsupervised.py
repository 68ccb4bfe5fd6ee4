"""What a small network learns from images without labels: SimCLR by views or lesions, and masks.

    python tools/measure_selfsupervised.py            # about a quarter of an hour of one core
    python tools/measure_selfsupervised.py probe      # or a part (see PARTS)

Writes data/results/selfsupervised.csv, which chapter 08_08 reads, as it goes. Stored rows are not
measured again. Task `lesions` (synthetic), images reduced to 32 pixels, 3,600 without labels.

The network has three convolutions (32, 64, 128 filters, stride 2, BatchNorm, ReLU), 128 features.
It is trained three times (`pretraining` 0, 1, 2: different initial weights, order, views, pairs),
for about the same time: five epochs of SimCLR in batches of 64 (temperature 0.1), or nine epochs of
filling in three of four squares of 4 x 4 pixels. SimCLR's views are crops of 24 pixels, rotated and
flipped, with other brightness and contrast. "lesion pairs": views of two images of one lesion, if
it has several; "random pairs": the same with shuffled lesion numbers; "colour views": views that
also change colours strongly; "untrained": initial weights. "sizes": lesion pairs from the first
patients only, with fewer images but about as many steps.

Then all BatchNorm layers get the statistics of the 3,600 whole images (they were trained on parts
of them, or with masks). The frozen features are scaled to mean 0 and spread 1 over the 3,600
images, and a logistic regression learns from few labels. Its strength is chosen on validation data,
for each network and number of labels, by three draws of labels that are not used again (100 to
102). Test data are used with five others (the draws 0 to 4 of `tlk.load_task`). `seed` is
5 x pretraining + draw.

"ImageNet, 32 pixels": efficientnet_lite0 after block4-5, on the same images enlarged to 96.
"from scratch": the network and a last layer, trained together on views of the labelled images
only; "tuned": the same from pretrained weights. 200 steps of 32, AdamW, the better of two rates
(1e-3, 3e-3) on validation data.

Columns: `score`, balanced accuracy on 1,600 images; `validation`, that of the search on 800;
`unlabelled`, the number of images used; `seconds`, CPU time of the pretraining (or training).
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import ROOT, Rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from trials import accuracy, cosine, drawn, forget

from tlkeras.flavors import contrastive, domain

ROWS = Rows(
    "selfsupervised",
    ("part", "method", "unlabelled", "labels_per_class", "pretraining", "seed"),
    ("validation", "score", "seconds"),
)
KEPT = ROOT / "build" / "selfsupervised"  # weights, to continue a killed run
LABELS, SEARCH, DRAWS = (5, 10, 30), (100, 101, 102), range(5)
STRENGTHS = (1e-3, 1e-2, 1e-1)
SIDE, BATCH, EPOCHS, MASK_EPOCHS, RATE = 32, 64, 5, 9, 2e-3
CLASSES = 7
STEPS, TUNING_RATES = 200, (1e-3, 3e-3)
SIZES = (100, 600)
layers = keras.layers


def new_encoder() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 127.5, -1)(inputs)
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def new_views(colours: bool = False) -> keras.Model:
    views = [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.5, fill_mode="reflect"),
        layers.RandomCrop(24, 24),
        layers.RandomBrightness(0.2),
        layers.RandomContrast(0.3),
    ]
    if colours:
        jitter = {"saturation_factor": (0.2, 0.8), "hue_factor": 0.2}
        views += [layers.RandomColorJitter((0, 255), **jitter), layers.RandomGrayscale(0.2)]
    return keras.Sequential(views)


@cache
def data(split: str) -> tuple[np.ndarray, ...]:
    """Return images, labels, lesions and patients of a split."""
    task = tlk.load_task("lesions", image_size=SIDE)
    return task.arrays(split, "image", "label", "lesion", "patient")


@cache
def labelled(labels: int, draw: int) -> np.ndarray:
    """Return indices of the labelled images: those of `tlk.load_task("lesions", labels, draw)`."""
    return np.sort(drawn(data("train")[1], labels, draw))


def adamw(rate: float, steps: int) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(rate, steps))


# --- without labels ------------------------------------------------------------------------------


def by_views(
    encoder: keras.Model, images: np.ndarray, groups: np.ndarray, seed: int, colours: bool
) -> None:
    """Train with SimCLR, for about the same number of steps with any number of images."""
    model = contrastive.SimCLR(encoder, new_views(colours))
    pairs = contrastive.Pairs(images, groups, BATCH, seed)
    steps = EPOCHS * (3600 // BATCH)
    model.compile(adamw(RATE, steps), jit_compile=False)
    model.fit(pairs, epochs=-(-steps // len(pairs)), verbose=0)


def by_masks(encoder: keras.Model, images: np.ndarray, seed: int) -> None:
    painted = layers.Conv2DTranspose(3, 8, strides=8)(encoder.layers[-2].output)
    model = keras.Model(encoder.input, painted)
    model.compile(adamw(RATE, MASK_EPOCHS * (len(images) // BATCH + 1)), "mse", jit_compile=False)
    rng = np.random.default_rng(seed)
    for _ in range(MASK_EPOCHS):
        squares = rng.random((len(images), 8, 8)) < 0.75
        hidden = np.repeat(np.repeat(squares, 4, axis=1), 4, axis=2)
        seen = np.where(hidden[..., None], np.float32(127.5), images)
        model.fit(seen, images / 127.5 - 1, BATCH, sample_weight=hidden, verbose=0)


def learned(method: str, unlabelled: int, seed: int) -> tuple[keras.Model, float]:
    """Return a pretrained encoder, and the CPU seconds of its pretraining."""
    images, _, lesions, patients = data("train")
    if unlabelled:  # the images of the first patients
        chosen = np.argsort(patients, kind="stable")[:unlabelled]
        images, lesions = images[chosen], lesions[chosen]
    groups = {
        "lesion pairs": lesions,
        "random pairs": np.random.default_rng(seed).permutation(lesions),
    }.get(method, np.arange(len(images)))
    keras.utils.set_random_seed(seed)
    encoder = new_encoder()
    file = KEPT / f"{method.replace(' ', '_')}_{unlabelled}_{seed}.weights.h5"
    if method == "untrained":
        return encoder, 0.0
    if file.exists():
        encoder.load_weights(file)
        return encoder, float(file.with_suffix(".txt").read_text())
    clock = time.process_time()
    if method == "masks":
        by_masks(encoder, images, seed)
    else:
        by_views(encoder, images, groups, seed, method == "colour views")
    seconds = time.process_time() - clock
    KEPT.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".txt").write_text(f"{seconds:.1f}")
    encoder.save_weights(file)
    return encoder, seconds


@cache
def imagenet() -> keras.Model:
    backbone = tlk.load_backbone("efficientnet_lite0", image_size=96)
    below, _ = tlk.find_blocks(backbone).split("block4-5")
    enlarge = layers.Resizing(96, 96)
    return keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), enlarge, below, layers.GlobalAveragePooling2D()]
    )


# --- few labels ----------------------------------------------------------------------------------


def probe(encoder: keras.Model) -> Iterator[tuple[int, int, float, float]]:
    """Yield labels per class, draw, validation score of the search, and test score."""

    def features(split: str) -> np.ndarray:
        images = data(split)[0]
        parts = np.split(images, range(200, len(images), 200))
        return np.concatenate([encoder(part, training=False) for part in parts])

    everything = features("train")
    mean, spread = everything.mean(axis=0), everything.std(axis=0) + 1e-6
    x = {name: (features(name) - mean) / spread for name in ("train", "validation", "test")}

    def score(labels: int, draw: int, strength: float, split: str) -> float:
        chosen = labelled(labels, draw)
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(x["train"][chosen], data("train")[1][chosen])
        return balanced_accuracy_score(data(split)[1], model.predict(x[split]))

    for labels in LABELS:
        found = {
            strength: np.mean([score(labels, draw, strength, "validation") for draw in SEARCH])
            for strength in STRENGTHS
        }
        best = max(found, key=found.__getitem__)
        for draw in DRAWS:
            yield labels, draw, float(found[best]), score(labels, draw, best, "test")


@cache
def learner() -> tuple[keras.Model, keras.Model, keras.Model]:
    """Return the encoder, the model with views and a last layer, and that without views."""
    encoder = new_encoder()
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), new_views(), encoder, layers.Dense(CLASSES)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=False)
    model.train_on_batch(np.zeros((32, SIDE, SIDE, 3)), np.zeros(32))
    return encoder, model, keras.Sequential([encoder, model.layers[-1]])


def train(labels: int, draw: int, rate: float, start: list[np.ndarray], split: str) -> float:
    encoder, model, whole = learner()
    images, y = (part[labelled(labels, draw)] for part in data("train")[:2])
    keras.utils.set_random_seed(draw)
    encoder.set_weights(start)
    head = model.layers[-1]
    head.kernel.assign(np.random.default_rng(draw).normal(0, 0.05, head.kernel.shape))
    head.bias.assign(np.zeros(head.bias.shape))
    forget(model.optimizer)
    order = np.random.default_rng(draw)
    for step in range(STEPS):
        model.optimizer.learning_rate.assign(cosine(rate, step, STEPS))
        batch = order.choice(len(y), 32, replace=len(y) < 32)
        model.train_on_batch(images[batch], y[batch])
    return accuracy(whole, *data(split)[:2], batch=400)


# --- runs ----------------------------------------------------------------------------------------


def probes(part: str) -> None:
    if part == "probe":
        methods = ("untrained", "views", "lesion pairs", "masks")
        runs = [(method, 0, seed) for seed in range(3) for method in methods]
    elif part == "sizes":
        runs = [("lesion pairs", size, seed) for seed in range(3) for size in SIZES]
    else:
        method = "random pairs" if part == "control" else "colour views"
        runs = [(method, 0, seed) for seed in range(3)]
    for method, size, seed in runs:
        key = (part, method, size or 3600)
        if not ROWS.find(*key, LABELS[-1], seed, 5 * seed + DRAWS[-1]):
            encoder, seconds = learned(method, size, seed)
            domain.adapt_batchnorm(encoder, data("train")[0])
            add_probes(key, encoder, seed, seconds)
    if part == "probe" and not ROWS.find(part, "ImageNet, 32 pixels"):
        add_probes((part, "ImageNet, 32 pixels", 0), imagenet(), 0, 0.0)


def add_probes(key: tuple, encoder: keras.Model, seed: int, seconds: float) -> None:
    ROWS.add_all(
        ((*key, labels, seed, 5 * seed + draw), row(validation, score, seconds))
        for labels, draw, validation, score in probe(encoder)
    )


def row(validation: float, score: float, seconds: float) -> dict[str, object]:
    return {"validation": validation, "score": score, "seconds": f"{seconds:.1f}"}


def trainings(part: str) -> None:
    methods = ("from scratch",) if part == "scratch" else ("lesion pairs", "views")
    for method, labels in itertools.product(methods, LABELS):
        keys = {
            draw: (part, method, 0 if part == "scratch" else 3600, labels, draw % 3, draw)
            for draw in DRAWS
        }
        missing = [draw for draw, key in keys.items() if not ROWS.find(*key)]
        if not missing:
            continue
        starts = [
            learned("untrained" if part == "scratch" else method, 0, seed)[0].get_weights()
            for seed in range(3)
        ]
        found = {
            rate: np.mean([train(labels, d, rate, starts[d % 3], "validation") for d in SEARCH[:2]])
            for rate in TUNING_RATES
        }
        best = max(found, key=found.__getitem__)
        for draw in missing:
            clock = time.process_time()
            score = train(labels, draw, best, starts[draw % 3], "test")
            ROWS.add(keys[draw], row(float(found[best]), score, time.process_time() - clock))


PARTS: dict[str, Callable] = {
    "probe": probes, "scratch": trainings, "sizes": probes, "control": probes,
    "colours": probes, "tuned": trainings,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    for part in parser.parse_args().parts:
        PARTS[part](part)


if __name__ == "__main__":
    main()
