"""Several tasks in one network, compared with one network per task (section 1.8, no. 7).

    python tools/measure_multitask.py   # about 15 minutes of one core

Writes data/results/multitask.csv, which chapter 08_07 reads, one row per run, as it goes. Stored
rows are not measured again. `lesions` (synthetic), 64 pixels: type, malignant or benign, mask of
the lesion. 30 (or 5) training images of each type have all three labels, and all 3,600 have the
other two. Scores on test data: balanced accuracy of the type, AUC of malignant, mean Dice and IoU
of the masks over images. Maps of the frozen `efficientnet_lite0` at three depths are computed once
and kept in the folder for temporary files.

- heads: a shared convolution on the maps and a head for each of `tasks`, with losses weighted
  1:1:1 or 1:1:100 (in the order of TASKS), or with learned weights (Kendall, Gal and Cipolla 2018).
  The half batches with types do not depend on the other tasks.
- equal cost: one network with about the training time of the three single ones.
- block: block4-5 of the network learns too, from the first step or from the middle of training on,
  at the rate of the heads.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from keras import layers
from rows import Rows
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from trials import drawn

ROWS = Rows(
    "multitask", ("part", "labels", "tasks", "weighting", "seed"),
    ("type", "malignant", "dice", "iou", "seconds", "parameters"),
)  # fmt: skip
TASKS = ("type", "malignant", "mask")
CUTS = ("block2", "block3", "block4-5")  # 16x16x24, 8x8x40, 4x4x112 numbers per image
SIDE, CLASSES, LABELS, FEW = 64, 7, 30, 5
STEPS, LONGER, BLOCK_STEPS, HALF, RATE = 150, 220, 60, 32, 2e-3
SPEED = 10  # factor for the learned loss weights, which hardly move at the common rate
SEEDS = range(10, 15)  # 0 to 2 were used to choose rate and steps, on validation data


@cache
def data(split: str) -> dict[str, np.ndarray]:
    names = ("image", "label", "malignant", "mask")
    task = tlk.load_task("lesions", image_size=SIDE)
    found = dict(zip(names, task.arrays(split, *names), strict=True))
    found["mask"] = found["mask"][..., 0].astype("float32")
    return found


@cache
def maps(split: str) -> tuple[np.ndarray, ...]:
    """Return the frozen network's maps at three depths; they are stored for later runs."""
    store = Path(tempfile.gettempdir()) / f"multitask_{split}.npz"
    if not store.exists():
        backbone = tlk.load_backbone("efficientnet_lite0", SIDE)
        _, scale, network = backbone.layers
        cuts = [tlk.find_blocks(backbone)[name].cut for name in CUTS]
        reader = keras.Model(backbone.input, keras.Model(network.input, cuts)(scale.output))
        found = reader.predict(data(split)["image"], batch_size=100, verbose=0)
        np.savez(store, *found)
    return tuple(np.load(store).values())


class Batches(keras.utils.PyDataset):
    """Batches: one half has all labels (all types equally often), the other those of `rest`.

    Args:
        labelled: indices of the images with all labels.
        rest: tasks whose labels all images have. If empty, the second half is also drawn from the
            labelled images.
    """

    def __init__(self, tasks, labelled, rest, steps, seed):
        super().__init__()
        rng, types = np.random.default_rng(seed), data("train")["label"]
        members = [labelled[types[labelled] == c] for c in range(CLASSES)]
        kinds = rng.integers(0, CLASSES, (steps, HALF))
        first = [[rng.choice(members[c]) for c in row] for row in kinds]
        pool = np.arange(len(types)) if rest else labelled
        second = rng.choice(pool, (steps, HALF))
        self.in_rest = {task: task in rest or (not rest and task != "type") for task in tasks}
        self.places = np.concatenate([first, second], axis=1)
        if not any(self.in_rest.values()):
            self.places = self.places[:, :HALF]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, step):
        here = self.places[step]
        truth, weights = {}, {}
        for task, there in self.in_rest.items():
            column = data("train")["label" if task == "type" else task]
            truth[task] = column[here][:, None] if task == "malignant" else column[here]
            weights[task] = np.ones(len(here), "float32")
            if not there:
                weights[task][HALF:] = 0
                weights[task] *= len(here) / HALF
            if task == "mask":  # its loss has a value per row of pixels, weights one per image
                weights[task] = weights[task][:, None]
        return tuple(part[here] for part in maps("train")), truth, weights


class LogVariances(layers.Layer):
    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.values = self.add_weight(shape=(count,), initializer="zeros", name="values")

    def call(self, inputs):
        return inputs

    def weigh(self, place: int, loss):
        def weighed(truth, answers):
            s = SPEED * self.values[place]
            return keras.ops.exp(-s) * loss(truth, answers) + s

        return weighed


def heads(shallow, middle, deep, tasks):
    """Return the outputs of one head per task, all on one shared map."""
    x = layers.UpSampling2D(2)(layers.Conv2D(32, 1)(deep))
    x = layers.Concatenate()([x, middle])
    shared = layers.Conv2D(48, 3, padding="same", activation="relu", name="shared")(x)
    pooled = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(shared))
    outputs = {}
    if "type" in tasks:
        outputs["type"] = layers.Dense(CLASSES, name="type")(pooled)
    if "malignant" in tasks:
        outputs["malignant"] = layers.Dense(1, name="malignant")(pooled)
    if "mask" in tasks:
        x = layers.UpSampling2D(2)(layers.Conv2D(16, 1)(shared))
        x = layers.Concatenate()([x, shallow])
        x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        x = layers.UpSampling2D(4, interpolation="bilinear")(layers.Conv2D(1, 1)(x))
        outputs["mask"] = layers.Reshape((SIDE, SIDE), name="mask")(x)
    return outputs


@cache
def statistics():
    return [(m.mean(axis=(0, 1, 2)), m.var(axis=(0, 1, 2))) for m in maps("train")]


@cache
def upper_block() -> tuple[keras.Model, list[np.ndarray]]:
    """Return block4-5, from the map of block3 to its own, with frozen BatchNorm; its weights."""
    backbone = tlk.load_backbone("efficientnet_lite0", SIDE)
    blocks = tlk.find_blocks(backbone)
    block = keras.Model(blocks["block3"].cut, blocks["block4-5"].cut)
    for layer in block.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    return block, block.get_weights()


def build(tasks, weighting, opened=False):
    """Return a model from the three maps to a dictionary of logits, and its compile options.

    With `opened`, block4-5 is part of the model and computes the third map from the second.
    """
    inputs = [keras.Input(part.shape[1:]) for part in maps("train")]
    read = [*inputs[:2], upper_block()[0](inputs[1])] if opened else inputs
    scaled = [
        layers.Normalization(mean=mean, variance=variance)(x)
        for x, (mean, variance) in zip(read, statistics(), strict=True)
    ]
    outputs = heads(*scaled, tasks)
    fixed = {
        "type": keras.losses.SparseCategoricalCrossentropy,
        "malignant": keras.losses.BinaryCrossentropy,
        "mask": keras.losses.BinaryCrossentropy,
    }
    if weighting == "uncertainty":
        learned = LogVariances(len(tasks))
        outputs, weights = learned(outputs), None
        of_each = {task: fixed[task](from_logits=True, reduction=None) for task in tasks}
        losses = {task: learned.weigh(i, of_each[task]) for i, task in enumerate(tasks)}
    else:
        losses = {task: fixed[task](from_logits=True) for task in tasks}
        weights = dict(zip(TASKS, map(float, weighting.split(":")), strict=True))
        weights = {task: weights[task] for task in tasks}
    model = keras.Model(inputs, outputs)
    options = {"loss": losses, "loss_weights": weights, "jit_compile": False}
    return model, options


def score(model, split) -> dict[str, float]:
    answers = model.predict(maps(split), batch_size=200, verbose=0)
    truth, found = data(split), {}
    if "type" in answers:
        found["type"] = balanced_accuracy_score(truth["label"], answers["type"].argmax(axis=1))
    if "malignant" in answers:
        found["malignant"] = roc_auc_score(truth["malignant"], answers["malignant"][:, 0])
    if "mask" in answers:
        inside, mask = answers["mask"] > 0, truth["mask"] > 0
        both, sizes = (inside & mask).sum(axis=(1, 2)), inside.sum((1, 2)) + mask.sum((1, 2))
        found["dice"] = float(np.mean(2 * both / sizes))
        found["iou"] = float(np.mean(both / (sizes - both)))
    return found


def learn(tasks, labels, seed, weighting="1:1:1", steps=STEPS, scarce=False) -> dict:
    """Train and score heads on frozen maps. With `scarce`, only images with a type are used."""
    rest = [] if scarce else [task for task in tasks if task != "type"]
    keras.utils.set_random_seed(seed)
    model, options = build(tasks, weighting)
    model.compile(keras.optimizers.Adam(RATE), **options)
    known = drawn(data("train")["label"], labels, seed)
    batches = Batches(tasks, known, rest, steps, seed)
    clock = time.process_time()
    model.fit(batches, shuffle=False, verbose=0)
    seconds = time.process_time() - clock
    return score(model, "test") | {"seconds": seconds, "parameters": count(model)}


def count(model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def open_block(tasks, seed, heads_first) -> dict:
    """Train and score with block4-5 learning too, from the first step or after half of them."""
    keras.utils.set_random_seed(seed)
    block, start = upper_block()
    block.set_weights(start)
    model, options = build(tasks, "1:1:1", opened=True)
    rest = [task for task in tasks if task != "type"]
    known = drawn(data("train")["label"], LABELS, seed)
    clock = time.process_time()
    for stage in range(2):
        block.trainable = stage == 1 or not heads_first
        for layer in block.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        if stage == 0 or heads_first:
            model.compile(keras.optimizers.Adam(RATE), **options)
        batches = Batches(tasks, known, rest, BLOCK_STEPS // 2, 100 * stage + seed)
        model.fit(batches, shuffle=False, verbose=0)
    seconds = time.process_time() - clock
    return score(model, "test") | {"seconds": seconds, "parameters": count(model)}


# --- runs ----------------------------------------------------------------------------------------


def runs() -> Iterator[tuple]:
    """Yield the key of each row, and the function and arguments that measure it."""
    pairs = [("type",), ("malignant",), ("mask",), ("type", "malignant"), ("type", "mask"), TASKS]
    for seed in SEEDS:
        for tasks in pairs:
            yield ("heads", LABELS, tasks, "1:1:1", seed), learn, tasks, LABELS, seed
        for tasks in (("type",), ("type", "malignant"), ("type", "mask")):
            yield ("heads", FEW, tasks, "1:1:1", seed), learn, tasks, FEW, seed
        for weighting in ("uncertainty", "1:1:100"):
            key = ("heads", LABELS, TASKS, weighting, seed)
            yield key, learn, TASKS, LABELS, seed, weighting
    for seed in SEEDS[:3]:
        key = ("equal cost", LABELS, TASKS, "1:1:1", seed)
        yield key, learn, TASKS, LABELS, seed, "1:1:1", LONGER
    for seed in SEEDS[:3]:
        for name, first in (("all at once", False), ("heads first", True)):
            yield (f"block: {name}", LABELS, TASKS, "1:1:1", seed), open_block, TASKS, seed, first


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for (part, labels, tasks, *rest), *measured in runs():
        ROWS.once((part, labels, "+".join(tasks), *rest), *measured)


if __name__ == "__main__":
    main()
