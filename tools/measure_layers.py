"""What can be read off each block of the ImageNet network, for three tasks.

    python tools/measure_layers.py    # about 3 minutes on 2 cores

Writes data/results/layers.csv, which chapter 05 reads: a row a task, network, block and seed, as it
goes; what is there is not measured again. The network is efficientnet_lite0 at 64 pixels; the seed
draws 30 labelled images a class, and the weights of the untrained network. Scores are balanced
accuracy on test images (of clothes on the first 1,000) of a linear classifier on the outputs of a
block averaged over place, its strength chosen on (at most 400) validation images. Block "pixels":
the image shrunk to 16 x 16.
"""

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "layers.csv"
HEADER = ("task", "network", "block", "seed", "score")
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
    """The names of all blocks, and a model that gives the outputs of each, averaged over place."""
    backbone = network(kind, seed)
    blocks = tlk.find_blocks(backbone)
    scale, inside = backbone.layers[1:]
    pool = keras.layers.GlobalAveragePooling2D()
    outputs = [pool(block.cut) for block in blocks[:-1]] + [pool(inside.output)]
    found = keras.Model(inside.input, outputs)
    return blocks.names, keras.Model(backbone.input, found(scale(backbone.input)))


@cache
def outputs(kind: str, of: int, name: str, split: str, seed: int) -> list[np.ndarray]:
    """Of the network `of`, on a split as `seed` draws it, a block each; pixels first."""
    images = splits(name, seed)[split][0]
    small = np.asarray(keras.ops.average_pool(images, SIZE // 16)).reshape(len(images), -1)
    return [small, *reader(kind, of)[1].predict(images, batch_size=128, verbose=0)]


def probe(name: str, kind: str, seed: int) -> Iterator[tuple[str, float]]:
    """(block, score), the strength of regularisation chosen on validation."""
    of = 0 if kind == "pretrained" else seed
    data = splits(name, seed)
    names = ["pixels", *reader(kind, of)[0]]
    # Validation and test are the same whatever the seed: seen once by each network.
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


# --- all of it -----------------------------------------------------------------------------------


def measured() -> Iterator[tuple]:
    """(task, network, block, seed, score) of whatever is not stored yet."""
    known = {(row["task"], row["network"], row["seed"]) for row in stored()}
    for seed in SEEDS:
        for name in TASKS:
            for kind in ("pretrained", "untrained"):
                if (name, kind, str(seed)) not in known:
                    for block, value in list(probe(name, kind, seed)):
                        yield name, kind, block, seed, value


def stored() -> list[dict]:
    if not STORE.exists():
        return []
    with STORE.open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    for row in measured():
        new = not STORE.exists()
        with STORE.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(HEADER)
            writer.writerow((*row[:-1], f"{row[-1]:.4f}"))
        print(*row[:-1], f"{row[-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
