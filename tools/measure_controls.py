"""Is it what a backbone learned that helps, or its shape? Frozen features, trained and untrained.

    python tools/measure_controls.py      # about 4 minutes on 2 cores; goes on where it stopped

Writes data/results/controls.csv, which chapter 01 reads: one row a (task, features, labels per
class, seed). `glyph_resnet` is read after its stem and as a whole, pretrained and with random
weights, beside pixels, by logistic regression; scores are balanced accuracy on test. A seed draws
the labels, as in measure_tasks.py, and the random weights. The strength of the regression is
chosen on validation with draws of their own.
"""

import csv
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "controls.csv"
HEADER = ("task", "features", "labels_per_class", "seed", "score", "strength")
SIZES = {"digits": 32, "lesions": 64}
LABELS, SEEDS, CHOICE_SEED = (5, 10, 30), range(10), 100
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)


def two_depths(size: int, weights: str | None, seed: int) -> keras.Model:
    """From images to what the stem says and what the whole says, pooled by mean and maximum."""
    keras.utils.set_random_seed(seed)
    backbone = tlk.load_backbone("glyph_resnet", size, weights)
    stem, rest = tlk.find_blocks(backbone).split("stem")
    image = keras.Input(backbone.input_shape[1:])
    low = stem(image)
    pooled = [
        keras.ops.concatenate([keras.ops.mean(x, (1, 2)), keras.ops.max(x, (1, 2))], axis=-1)
        for x in (low, rest(low))
    ]
    return keras.Model(image, pooled)


def seen(task: str, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What each classifier sees of the images."""
    size = SIZES[task]
    by = size // 32
    pixels = images.reshape(len(images), 32, by, 32, by, 3).mean(axis=(2, 4))
    found = {"pixels": pixels.reshape(len(images), -1)}
    for ending, weights in (("", "pretrained"), (", untrained", None)):
        outputs = two_depths(size, weights, seed).predict(images, batch_size=256, verbose=0)
        found |= {f"{name}{ending}": x for name, x in zip(("stem", "whole"), outputs, strict=True)}
    return found


def scores(task: str, seed: int, split: str, strengths: dict | None = None) -> list[tuple]:
    """(features, labels per class, strength, balanced accuracy) with one draw of labels."""
    loaded = tlk.load_task(task, image_size=SIZES[task])
    (images, labels), (held, truth) = loaded.arrays("train"), loaded.arrays(split)
    draws = {}
    for n in LABELS:
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(labels == c) for c in range(len(loaded.classes))]
        draws[n] = np.concatenate([rng.choice(m, n, replace=False) for m in members])
    drawn = np.unique(np.concatenate(list(draws.values())))
    rows = []
    for name, x in seen(task, np.concatenate([images[drawn], held]), seed).items():
        for n, chosen in draws.items():
            train = x[: len(drawn)][np.searchsorted(drawn, chosen)]
            scale = StandardScaler().fit(train)
            for strength in [strengths[name, n]] if strengths else STRENGTHS:
                probe = LogisticRegression(C=strength, max_iter=300, class_weight="balanced")
                probe.fit(scale.transform(train), labels[chosen])
                guess = probe.predict(scale.transform(x[len(drawn) :]))
                rows.append((name, n, strength, balanced_accuracy_score(truth, guess)))
    return rows


def chosen_strengths(task: str) -> dict[tuple[str, int], float]:
    """The strength that does best on validation, for each of the features and numbers of labels."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for name, n, strength, score in scores(task, CHOICE_SEED, "validation"):
        found[name, n] = max(found.get((name, n), (0, 0)), (score, strength))
    return {key: strength for key, (_, strength) in found.items()}


def main() -> None:
    if not STORE.exists():
        STORE.write_text(",".join(HEADER) + "\n")
    with STORE.open() as file:
        known = {(row["task"], int(row["seed"])) for row in csv.DictReader(file)}
    for task in SIZES:
        missing = [seed for seed in SEEDS if (task, seed) not in known]
        strengths = chosen_strengths(task) if missing else {}
        for seed in missing:
            rows = [
                (task, name, n, seed, f"{score:.4f}", strength)
                for name, n, strength, score in scores(task, seed, "test", strengths)
            ]
            with STORE.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            print(*rows[-2:], sep="\n", flush=True)


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):  # many threads on little data only wait for each other
        main()
