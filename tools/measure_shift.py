"""Does a distance without labels predict which features suit a target? Two measures and a probe.

    python tools/measure_shift.py      # about five minutes of one core

Writes data/results/shift.csv, which chapter 11 reads, one row per pair and seed, as it goes. Stored
rows are not measured again. The seed draws up to 400 images of each side, and 30 labels per class.

- distance, low, high, chance: the results of `tlk.measure_shift`.
- classifier: accuracy of a linear classifier that distinguishes the two sides, on pooled outputs
  scaled to those of the source, by five-fold cross-validation; chance level is a half.
- last, lead, serves: `tlk.probe` with the labels of the target: validation accuracy of the last
  block, how far the best block is ahead of it, and 1 if the last block is as good as any, else 0.
  Empty for letters, which have too many classes.

Transformed digits (blinds, tiles, wave, rows mixed) are a synthetic shift. Letters, printed digits
and lesions are synthetic images.
"""

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from measure_depths import SHIFTS
from rows import Rows
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from trials import behind_blinds, drawn, standard

ROWS = Rows(
    "shift", ("network", "source", "target", "seed"),
    ("distance", "low", "high", "chance", "classifier", "last", "lead", "serves"),
)  # fmt: skip
SEEDS, IMAGES, LABELS = range(3), 400, 30
SIDE = {"glyph_resnet": 32, "efficientnet_lite0": 64}
CHANGED = SHIFTS | {"blinds": behind_blinds}
TASKS = {"letters": "glyphs/letters", "printed digits": "glyphs/digits"}
TARGETS = (
    *("letters", "printed digits", "digits", "blinds", "tiles", "wave", "rows mixed"),
    *("clothes", "lesions"),
)
PAIRS = (
    *(("glyph_resnet", "letters", target) for target in TARGETS),
    ("glyph_resnet", "printed digits", "digits"),
    *(("efficientnet_lite0", "dermatoscope", target) for target in ("dermatoscope", "phone")),
)


def data(name: str, split: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    if name in ("dermatoscope", "phone"):
        return tlk.load_task("lesions", domain=name, image_size=side).arrays(split)
    if name in CHANGED:
        x, y = data("digits", split, side)
        return CHANGED[name](x).astype("float32"), y
    return tlk.load_task(TASKS.get(name, name), image_size=side).arrays(split)


def measure(network: str, source: str, target: str, seed: int) -> dict:
    side, rng = SIDE[network], np.random.default_rng(seed)
    seen, _ = data(source, "train", side)
    order = rng.permutation(len(seen))
    new, labels = data(target, "train", side)
    some = order[IMAGES:] if source == target else rng.permutation(len(new))
    sides = seen[order[:IMAGES]], new[some[:IMAGES]]
    backbone = tlk.load_backbone(network, side)
    shift = tlk.measure_shift(backbone, *sides, seed=seed)
    found = {"distance": shift.distance, "low": shift.interval[0], "high": shift.interval[1]}
    found |= {"chance": shift.chance, "classifier": told_apart(backbone, *sides)}
    if target != "letters":
        few = drawn(labels, LABELS, seed)
        probe = tlk.probe(backbone, (new[few], labels[few]), data(target, "validation", side))
        last, serves = probe.accuracies[-1], int(probe.last_serves)
        found |= {"last": last, "lead": max(probe.accuracies) - last, "serves": serves}
    return found


def told_apart(backbone: keras.Model, source: np.ndarray, target: np.ndarray) -> float:
    pooled = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])
    x, z = (pooled.predict(images, batch_size=100, verbose=0) for images in (source, target))
    both, side = standard(np.concatenate([x, z]), x), np.repeat([0, 1], [len(x), len(z)])
    model = LogisticRegression(C=0.01, max_iter=1000)
    return float(np.mean(cross_val_predict(model, both, side, cv=5) == side))


def main() -> None:
    for pair in PAIRS:
        for seed in SEEDS:
            ROWS.once((*pair, seed), measure, *pair, seed)


if __name__ == "__main__":
    main()
