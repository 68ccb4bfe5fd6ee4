"""Measure how different two sets of images are in a network's features, without labels."""

from dataclasses import dataclass

import keras
import numpy as np
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.blocks.graph import split

DRAWS = 200  # random pairs of halves


@dataclass(frozen=True)
class Shift:
    """How different target images are from source images, as a network sees them.

    Attributes:
        distance: about 0 if the network's features of both are alike; at most 1.
        interval: the middle 95 % of the distances between random halves of source and target.
        chance: 95 % of the distances between two random halves of the source are below this.
        differs: True if the whole interval lies above `chance`.
    """

    distance: float
    interval: tuple[float, float]
    chance: float

    @property
    def differs(self) -> bool:
        return self.interval[0] > self.chance

    def __repr__(self) -> str:
        low, high = self.interval
        word = "different" if self.differs else "alike"
        return (
            f"{word}: {self.distance:.3f} ({low:.3f} to {high:.3f}; two halves of the source reach "
            f"{self.chance:.3f})"
        )


def measure_shift(
    model: keras.Model, source: np.ndarray, target: np.ndarray, *, seed: int = 0
) -> Shift:
    """Measure how different target images are from source images, in the last block's features.

    The distance is the energy distance between the two sets of pooled features, as a share of the
    mean distance between them. It tells whether the network sees a difference, but not whether the
    difference matters: chapter 11 measures images that are far away and for which the features
    work well, and images that are nearer and for which they work badly. To find out whether the
    features work, use `tlk.probe` with a few labels.

    Args:
        model: built; a head is ignored.
        source: (n, height, width, channels), images like those that the network was trained on,
            in the form that the model takes.
        target: (m, ...), the new images. A few hundred images in each set are enough; from more
            than 1,000, a random 1,000 are used.
        seed: seed for the random choices.

    Raises:
        ValueError: if a set has fewer than 20 images, or if the last block does not have a single
            output tensor.

    Source: Székely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".

    >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    >>> dark, bright = (np.random.uniform(low, low + 99, (40, 32, 32, 3)) for low in (0, 150))
    >>> tlk.measure_shift(backbone, dark[:20], dark[20:]).differs
    False
    >>> tlk.measure_shift(backbone, dark, bright).differs
    True
    """
    if min(len(source), len(target)) < 20:
        raise ValueError(
            f"Expected at least 20 images in each set; found {len(source)} and {len(target)}."
        )
    rng = np.random.default_rng(seed)
    seen, new = (_features(model, _some(images, rng)) for images in (source, target))
    spread = seen.std(axis=0)
    spread = np.maximum(spread, 0.1 * spread.mean() + 1e-6)  # near-constant features must not win
    both = np.concatenate([seen, new]) / spread
    n, apart = len(seen), cdist(both, both)
    size = min(n, len(new)) // 2
    halves, within = [], []
    for _ in range(DRAWS):
        mine = rng.permutation(n)
        theirs = n + rng.permutation(len(new))
        halves.append(_energy(apart, mine[:size], theirs[:size]))
        within.append(_energy(apart, mine[:size], mine[size : 2 * size]))
    low, high = np.quantile(halves, (0.025, 0.975))
    distance = _energy(apart, np.arange(n), np.arange(n, len(both)))
    return Shift(distance, (float(low), float(high)), float(np.quantile(within, 0.95)))


def _some(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return images[rng.permutation(len(images))[:1000]]


def _features(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the pooled outputs of the last block below the head, (examples, channels)."""
    blocks = [block for block in find_blocks(model) if block.role != "head"]
    if not blocks or blocks[-1].cut is None:
        raise ValueError(
            "Expected a model whose last block has a single output tensor; found none."
        )
    with internals.Traces(internals.functional(model)):
        below = split(model, blocks[-1].cut)[0]
        parts = [below.predict_on_batch(images[i : i + 100]) for i in range(0, len(images), 100)]
    found = np.concatenate([np.asarray(part, "float32") for part in parts])
    return found.reshape(len(found), -1, found.shape[-1]).mean(axis=1)


def _energy(apart: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the relative energy distance between rows a and b of a distance matrix.

    It is 0 on average for two samples of the same distribution.
    """
    between = apart[np.ix_(a, b)].mean()
    within = [apart[np.ix_(i, i)].sum() / (len(i) * (len(i) - 1)) for i in (a, b)]
    return float((2 * between - sum(within)) / (2 * between))
