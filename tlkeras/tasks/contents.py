"""The contents of a task: every loader returns them, and `load_task` turns them into a Task."""

from dataclasses import dataclass
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")
MEMORY_LIMIT = 4 * 2**30  # bytes
PHOTOGRAPHS = "efficientnet_lite0"  # the network to start from if the images are photographs
CLASS, LABELS, NUMBER = "class", "labels", "number"


@dataclass(frozen=True)
class Contents:
    """The contents of a task.

    Attributes:
        splits: the features of each split, arrays of equal length: "image", uint8 (n, height,
            width, 3); "label", int32 (n,) if `kind` is "class"; and any other feature of the
            builder. Images can be `decoding.OnDisk`.
        classes, card, report, note, domain, group, kind, white, start: as in `Task`.
    """

    splits: dict[str, dict[str, Any]]
    classes: tuple[str, ...]
    card: str
    report: tuple[str, ...] = ()
    note: str = ""
    domain: str | None = None
    group: str | None = None
    kind: str = CLASS
    white: float = 65535.0
    start: str = PHOTOGRAPHS


def keep(found: Contents, count: int, seed: int) -> None:
    """Keep only `count` training examples of each class, drawn by `seed`, in their old order.

    Raises ValueError if a class has fewer, or if the labels are not one class per image.
    """
    if found.kind != CLASS:
        raise ValueError(
            "labels_per_class draws images of each class, and these have "
            f"{'several labels' if found.kind == LABELS else 'a number'} each: leave it out."
        )
    if count < 1:
        raise ValueError(f"labels_per_class must be at least 1, not {count}.")
    rng = np.random.default_rng(seed)
    labels, classes = found.splits["train"]["label"], found.classes
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    fewest = min(range(len(classes)), key=lambda label: len(members[label]))
    if len(members[fewest]) < count:
        raise ValueError(
            f"labels_per_class={count}, but class {classes[fewest]!r} has "
            f"{len(members[fewest])} training images: ask for at most that many."
        )
    kept = np.sort(np.concatenate([rng.choice(m, count, replace=False) for m in members]))
    found.splits["train"] = {
        name: each.take(kept, 0) for name, each in found.splits["train"].items()
    }


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) for a pair or for one number, the pixels per side.

    Raises ValueError for anything else, or for a size that is not positive.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(
            f"image_size must be pixels per side or (height, width), not {image_size!r}."
        )
    return pair


def refuse_large(count: int, size: tuple[int, int]) -> None:
    """Raise ValueError if `count` images of this (height, width) need too much memory."""
    if count * size[0] * size[1] * 3 > MEMORY_LIMIT:
        raise ValueError(
            f"{count:,} images of {size[0]}x{size[1]} take more than "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB of memory: choose a smaller image_size."
        )
