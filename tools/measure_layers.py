"""Scores of linear classifiers on each block of the ImageNet network, for three tasks.

    python tools/measure_layers.py    # about 3 minutes on 2 cores

Writes data/results/layers.csv, which chapter 05 reads, one row per task, network, block and seed,
as it goes. Stored rows are not measured again. The network is efficientnet_lite0 at 64 pixels. The
seed draws 30 labelled images per class, and the weights of the untrained network. The score is
balanced accuracy on test images (the first 1,000 of clothes) of a linear classifier on the outputs
of a block averaged over positions, with a strength chosen on at most 400 validation images. Block
"pixels" is the image reduced to 16 x 16.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

ROWS = Rows("layers", ("task", "network", "block", "seed"), ("score",))
BACKBONE, SIZE = "efficientnet_lite0", 64
TASKS = ("lesions", "clothes", "digits")
SEEDS = range(3)
LABELS, VALIDATION, TEST = 30, 400, {"clothes": 1000}
STRENGTHS = (1e-3, 1e-2, 0.1)


@cache
def splits(name: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    task = tlk.load_task(name, LABELS, seed, image_size=SIZE)
    (x, y), (new, truth) = task.arrays("validation"), task.arrays("test")
    return {
        "train": task.arrays("train"),
        "validation": (x[:VALIDATION], y[:VALIDATION]),
        "test": (new[: TEST.get(name)], truth[: TEST.get(name)]),
    }


def network(kind: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return tlk.load_backbone(BACKBONE, SIZE, "pretrained" if kind == "pretrained" else None)


@cache
def reader(kind: str, seed: int) -> tuple[list[str], keras.Model]:
    """Return the names of all blocks, and a model that outputs each, averaged over positions."""
    backbone = network(kind, seed)
    blocks = tlk.find_blocks(backbone)
    scale, inside = backbone.layers[1:]
    pool = keras.layers.GlobalAveragePooling2D()
    outputs = [pool(block.cut) for block in blocks[:-1]] + [pool(inside.output)]
    found = keras.Model(inside.input, outputs)
    return blocks.names, keras.Model(backbone.input, found(scale(backbone.input)))


@cache
def outputs(kind: str, of: int, name: str, split: str, seed: int) -> list[np.ndarray]:
    """Return outputs on a split drawn by `seed`, one array per block, pixels first.

    `of` is the seed of the network's weights.
    """
    images = splits(name, seed)[split][0]
    small = np.asarray(keras.ops.average_pool(images, SIZE // 16)).reshape(len(images), -1)
    return [small, *reader(kind, of)[1].predict(images, batch_size=128, verbose=0)]


def probe(name: str, kind: str, seed: int) -> Iterator[tuple[str, float]]:
    """Yield (block, score), with the strength of regularisation chosen on validation data."""
    of = 0 if kind == "pretrained" else seed
    data = splits(name, seed)
    names = ["pixels", *reader(kind, of)[0]]
    # Validation and test data do not depend on the seed, so each network sees them once.
    seen = {s: outputs(kind, of, name, s, seed if s == "train" else 0) for s in data}
    for place, block in enumerate(names):
        scale = StandardScaler().fit(seen["train"][place])
        scores = {}
        for strength in STRENGTHS:
            classifier = LogisticRegression(C=strength, max_iter=200)
            with threadpool_limits(1):
                classifier.fit(scale.transform(seen["train"][place]), data["train"][1])
            scores[strength] = [
                balanced_accuracy_score(
                    data[s][1], classifier.predict(scale.transform(seen[s][place]))
                )
                for s in ("validation", "test")
            ]
        yield block, max(scores.values())[1]


def main() -> None:
    for seed, name, kind in product(SEEDS, TASKS, ("pretrained", "untrained")):
        if not ROWS.where(task=name, network=kind, seed=seed):
            ROWS.add_all(
                ((name, kind, block, seed), {"score": value})
                for block, value in probe(name, kind, seed)
            )


if __name__ == "__main__":
    main()
