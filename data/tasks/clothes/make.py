"""Draws the images of `clothes` from Fashion-MNIST and writes them to the folder of this file.

    apt-get install dataset-fashion-mnist      # Debian, Ubuntu
    python data/tasks/clothes/make.py          # or add the folder with the four IDX files

The seed is fixed, so every run draws the same images.
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np

from tlkeras.tasks import idx

HERE = Path(__file__).resolve().parent
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
COUNTS = {"train": {"train": 300, "validation": 100}, "test": {"test": 200}}  # images per class
SEED = 0


def draw(labels: np.ndarray, counts: dict[str, int], rng: np.random.Generator) -> dict:
    """Return, for each split, the sorted indices of `counts[split]` examples of each class."""
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    places, start = {}, 0
    for split, count in counts.items():
        places[split] = np.sort(np.concatenate([m[start : start + count] for m in members]))
        start += count
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEBIAN)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    table = tomllib.loads((HERE.parent / "online.toml").read_text(encoding="utf-8"))
    for part, counts in COUNTS.items():
        images, labels = idx.examples(options.folder, idx.PARTS[part])
        if idx.digest(images, labels) != table["fashion_mnist"]["idx"][part]:
            raise SystemExit(f"{options.folder} has not the {part} images of Fashion-MNIST.")
        for split, places in draw(labels, counts, rng).items():
            grey, classes = images[places, ..., 0], labels[places].astype("uint8")
            idx.write_examples(options.out, split, grey, classes)


if __name__ == "__main__":
    main()
