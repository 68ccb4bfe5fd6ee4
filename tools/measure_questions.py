"""What, when and how to transfer: probes at every depth, and training from pretrained weights.

    python tools/measure_questions.py        # about 20 minutes on 2 cores, continues where it ended
    python tools/measure_questions.py "lesions, grey"    # probes and training of one target only

Writes data/results/questions.csv, which chapter 02 reads. All runs have 30 labels per class; scores
are balanced accuracy on test data. A seed draws the labels, and the random weights of the letters
network. Choices (the strength of a probe's regularisation, the learning rate) are made on
validation data with a separate draw of labels.

- probe: a linear classifier on the outputs of each block of a network: "letters" (glyph_resnet, 32
  pixels), "ImageNet" (efficientnet_lite0, 64 pixels), and both untrained (ImageNet with one seed);
  on pixels; and on six numbers about colour (mean and standard deviation of red, green and blue).
  "lesions, grey" are the lesions without colour.
- training: the whole letters network is trained for 20 epochs with the same settings. Only the
  initial weights of its backbone differ. Five seeds; eight on lesions, where the two are closer.
- tint: the share of the variance of new lesions' mean colour (without brightness) that a linear
  fit on the outputs of each block explains, for all networks of the course, pretrained and random.
"""

import sys
from functools import cache
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from measure_tasks import PRESETS, pooled_blocks
from rows import Rows
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from trials import accuracy, forget

ROWS = Rows(
    "questions", ("experiment", "target", "start", "where", "seed"), ("score", "choice")
)  # fmt: skip
TARGETS = ("digits", "glyphs/styles", "lesions", "lesions, grey")
PHOTOGRAPHS = ("clothes", "lesions")
NETWORKS = {"letters": ("glyph_resnet", 32), "ImageNet": ("efficientnet_lite0", 64)}
SEEDS, MORE_SEEDS = range(5), range(8)
CHOICE_SEED, LABELS, EPOCHS, BATCH = 100, 30, 20, 32
STRENGTHS, RATES = (1e-2, 0.1, 1.0), (1e-3, 3e-3)


@cache
def arrays(target: str, split: str, seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of a split; for train, 30 of each class drawn by the seed."""
    name, _, grey = target.partition(", ")
    images, labels = tlk.load_task(name, LABELS, seed, image_size=size).arrays(split)[:2]
    if grey:
        images = np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)
    return images, labels


def reader(backbone: keras.Model) -> keras.Model:
    """Return a model from images to the outputs of each block, averaged over positions."""
    network = backbone.layers[-1]
    blocks = tlk.find_blocks(backbone)
    cuts = [*(block.cut for block in blocks[:-1]), network.output]
    pooled = {
        name: keras.layers.GlobalAveragePooling2D()(cut)
        for name, cut in zip(blocks.names, cuts, strict=True)
    }
    return keras.Model(
        backbone.input, keras.Model(network.input, pooled)(backbone.layers[-2].output)
    )


def views(start: str, seed: int):
    """Return a function from images to the inputs of linear classifiers, by name."""
    if start == "pixels":
        return lambda images: {"pixels": images.reshape(len(images), -1)}
    if start == "colour":
        return lambda images: {
            "six numbers": np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)
        }
    keras.utils.set_random_seed(seed)
    network, _, untrained = start.partition(", ")
    model = reader(tlk.load_backbone(*NETWORKS[network], None if untrained else "pretrained"))
    return lambda images: model.predict(images, 100, verbose=0)


def probe(target: str, start: str, seeds) -> None:
    """Score probes of one network, a draw of labels per seed; strengths are chosen by depth."""
    view, size = views(start, seeds[0]), NETWORKS.get(start.partition(",")[0], ("", 32))[1]
    seen = {split: view(arrays(target, split, 0, size)[0]) for split in ("validation", "test")}
    seen |= {seed: view(arrays(target, "train", seed, size)[0]) for seed in (CHOICE_SEED, *seeds)}

    def score(where, seed, split, strength):
        classifier = LogisticRegression(C=strength, max_iter=100)
        fitted = make_pipeline(StandardScaler(), classifier)
        fitted.fit(seen[seed][where], arrays(target, "train", seed)[1])
        return balanced_accuracy_score(arrays(target, split)[1], fitted.predict(seen[split][where]))

    found = []
    for where in seen["test"]:
        options = {c: score(where, CHOICE_SEED, "validation", c) for c in STRENGTHS}
        strength = max(options, key=options.get)
        for seed in seeds:
            values = {"score": score(where, seed, "test", strength), "choice": f"C={strength}"}
            found.append((("probe", target, start, where, seed), values))
    ROWS.add_all(found)


def tint(images: np.ndarray) -> np.ndarray:
    colour = images.mean(axis=(1, 2))
    return colour - colour.mean(axis=1, keepdims=True)


def tint_found(network: str, random: bool) -> None:
    """Score linear fits of the tint: fitted on three draws of images, scored on validation."""
    keras.utils.set_random_seed(0)
    options = {"tower": "image"} if network == "scene_clip" else {}
    size = 64 if network == "efficientnet_lite0" else 32
    backbone = tlk.load_backbone(network, size, None if random else "pretrained", **options)
    old = np.concatenate([arrays("lesions", "train", seed, size)[0] for seed in range(3)])
    new, found = arrays("lesions", "validation", 0, size)[0], []
    said = pooled_blocks(backbone)
    seen, unseen = (said.predict(images, verbose=0) for images in (old, new))
    for where in seen:
        fit = make_pipeline(StandardScaler(), Ridge(10.0))
        fit.fit(seen[where], tint(old))
        values = {"score": fit.score(unseen[where], tint(new)), "choice": "R2"}
        found.append((("tint", "lesions", network + random * ", random", where, 0), values))
    ROWS.add_all(found)


class Bench:
    """The network, compiled once for all runs at one learning rate."""

    def __init__(self, target: str, rate: float):
        self.target, self.classes = target, int(arrays(target, "test")[1].max()) + 1
        self.model = tlk.add_head(tlk.load_backbone("glyph_resnet", 32, None), self.classes)
        tlk.freeze(self.model, tlk.policies.all_blocks(), batchnorm="train")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.AdamW(rate), loss)

    def score(self, start: str, seed: int, split: str) -> float:
        keras.utils.set_random_seed(seed)
        weights = "pretrained" if start == "letters" else None
        new = tlk.add_head(tlk.load_backbone("glyph_resnet", 32, weights), self.classes)
        self.model.set_weights(new.get_weights())
        forget(self.model.optimizer)
        x, y = arrays(self.target, "train", seed)
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(y)) for _ in range(EPOCHS)])
        order = order[: len(order) // BATCH * BATCH]
        self.model.fit(x[order], y[order], batch_size=BATCH, shuffle=False, verbose=0)
        return accuracy(self.model, *arrays(self.target, split), batch=200)


def train(target: str, start: str, seeds: list[int]) -> None:
    """Train the whole network, at the rate that is best on validation data."""
    if known := ROWS.find("training", target, start):
        rate = float(known["choice"].partition("=")[2])
    else:
        options = {r: Bench(target, r).score(start, CHOICE_SEED, "validation") for r in RATES}
        print(target, start, options, flush=True)
        rate = max(options, key=options.get)
    bench = Bench(target, rate)
    for seed in seeds:
        found = {"score": bench.score(start, seed, "test"), "choice": f"lr={rate}"}
        ROWS.add(("training", target, start, "all", seed), found)


def missing(experiment: str, target: str, start: str, seeds) -> list[int]:
    rows = {"experiment": experiment, "target": target, "start": start}
    return [seed for seed in seeds if not ROWS.where(**rows, seed=seed)]


def main(only: str | None = None) -> None:
    for target in (only,) if only else TARGETS:
        for start in ("letters", "letters, untrained", "pixels", "colour"):
            for seeds in [[seed] for seed in SEEDS] if "untrained" in start else [[*SEEDS]]:
                if missing("probe", target, start, seeds):
                    probe(target, start, seeds)
        for start in ("letters", "letters, untrained"):
            seeds = MORE_SEEDS if target.startswith("lesions") else SEEDS
            if left := missing("training", target, start, seeds):
                train(target, start, left)
    for network, random in product(PRESETS, (False, True)):
        if missing("tint", "lesions", network + random * ", random", [0]):
            tint_found(network, random)
    for target, start in product(PHOTOGRAPHS, ("ImageNet", "ImageNet, untrained")):
        if missing("probe", target, start, SEEDS):
            probe(target, start, SEEDS)
    if missing("probe", "lesions, grey", "ImageNet", SEEDS):
        probe("lesions, grey", "ImageNet", SEEDS)


if __name__ == "__main__":
    with threadpool_limits(2):
        main(*sys.argv[1:])
