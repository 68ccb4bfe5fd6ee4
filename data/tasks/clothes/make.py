"""Draws the images of `clothes` out of Fashion-MNIST and writes them beside this file.

    apt-get install dataset-fashion-mnist      # Debian, Ubuntu
    python data/tasks/clothes/make.py          # or, after it, the folder with the four IDX files

The same draw gives the same images.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from tlkeras.tasks import idx

HERE = Path(__file__).resolve().parent
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {  # of the pixels and of the labels in Fashion-MNIST's files, a byte each
    "train": (
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    ),
    "test": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}
COUNTS = {"train": {"train": 300, "validation": 100}, "test": {"test": 200}}  # images a class
SEED = 0


def draw(labels: np.ndarray, counts: dict[str, int], rng: np.random.Generator) -> dict:
    """For each split, places of so many examples of each class, in the order they had."""
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
    for part, counts in COUNTS.items():
        images, labels = idx.examples(options.folder, idx.PARTS[part])
        images, labels = images[..., 0], labels.astype("uint8")
        found = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in (images, labels))
        if found != SHA256[part]:
            raise SystemExit(f"{options.folder}: not Fashion-MNIST's {part} images ({found}).")
        for split, places in draw(labels, counts, rng).items():
            idx.write_examples(options.out, split, images[places], labels[places])


if __name__ == "__main__":
    main()
