"""Assigns the images of a folder to splits, and finds uneven classes and duplicates.

The split of an image depends only on its content: a hash of the file's bytes gives a number in
[0, 1), and test, validation and train are fixed parts of that range. So adding, renaming or moving
other files does not change the split of an image, and copies of a file are always in the same
split. The one exception is a class without an image in some part; see `_fill`.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from tlkeras.tasks.contents import SPLITS

BOUNDS = {"test": (0.0, 0.15), "validation": (0.15, 0.3), "train": (0.3, 1.0)}
UNEVEN = 3  # report a largest class with more than this many times the images of the smallest
NAMED = 5  # groups of copies named in a message


def assign(found: dict[str, list], classes: list[str], report: list[str]) -> dict[str, list]:
    """Make the missing splits of a folder from its training images.

    A folder with training and test images gets validation images, one with training images only
    gets test images too.

    Args:
        found: files (with `group` and `digest`) by split; at least "train".
        classes: names of the groups.
        report: a line is added for each class without an image in some split's part of the range.

    Raises:
        ValueError: a class has fewer different images than there are splits to fill.
    """
    made = ("test", "validation") if len(found) == 1 else ("validation",)
    if "validation" in found:
        return found
    parts = (*made, "train")
    split_of = {file.digest: _by_hash(file.digest, parts) for file in found["train"]}
    groups = defaultdict(set)
    for file in found["train"]:
        groups[file.digest].add(file.group)
    for label, name in enumerate(classes):
        mine = sorted(d for d, its in groups.items() if its == {label})
        if len(mine) < len(parts):
            raise ValueError(
                f"Class {name!r} has too few images ({len(mine)}): at least {len(parts)} are "
                f"needed, one each for train, {' and '.join(sorted(made))}. Copies, and images "
                "that are in another class too, do not count."
            )
        _fill(split_of, mine, parts, name, report)
    train = found["train"]
    out = {"train": [], **found} | {
        part: [f for f in train if split_of[f.digest] == part] for part in parts
    }
    return {split: out[split] for split in SPLITS if split in out}


def _by_hash(digest: str, parts: tuple[str, ...]) -> str:
    place = _place(digest)
    return next((p for p in parts if BOUNDS[p][0] <= place < BOUNDS[p][1]), "train")


def _place(digest: str) -> float:
    return int(digest[:13], 16) / 16**13


def _fill(split_of: dict, mine: list[str], parts: tuple, name: str, report: list[str]) -> None:
    """Fill each split that has no image of this class with the one whose hash is nearest."""
    for part in parts:
        held = Counter(split_of[one] for one in mine)
        if held[part]:
            continue
        low, high = BOUNDS[part]
        spare = [one for one in mine if held[split_of[one]] > 1]
        nearest = min(spare, key=lambda one: max(low - _place(one), _place(one) - high))
        split_of[nearest] = part
        report.append(
            f"no image of {name} falls to {part} by its hash: took the nearest one, which moves "
            "back when an image that does is added"
        )


def unevenness(labels: np.ndarray, classes: list[str]) -> list[str]:
    """Return a line if the largest class has over three times the images of the smallest."""
    counts = np.bincount(labels, minlength=len(classes))
    high, low = counts.argmax(), counts.argmin()
    if counts[high] <= UNEVEN * counts[low]:
        return []
    return [
        f"classes are uneven for training: {counts[high]} images of {classes[high]}, "
        f"{counts[low]} of {classes[low]}; consider class_weight in fit_stages "
        "(--class-weight balanced), or labels_per_class in load_task"
    ]


def copies(digests: dict[str, list[bytes]], files: dict[str, list], root: Path) -> list[str]:
    """Return lines on images that are in the folder more than once; nothing is removed.

    Args:
        digests: hash of the decoded pixels of each image, by split.
        files: the file of each image (with `path` and `label`), by split.
        root: the folder; names are shown relative to it.
    """
    everything = [(split, file) for split in digests for file in files[split]]
    places = defaultdict[bytes, list[int]](list)
    for place, digest in enumerate(digest for split in digests for digest in digests[split]):
        places[digest].append(place)
    same = [group for group in places.values() if len(group) > 1]
    across = [group for group in same if len({everything[i][0] for i in group}) > 1]
    torn = [group for group in same if len({everything[i][1].label for i in group}) > 1]
    doubtful = {group[0] for group in across + torn}
    inside = [group for group in same if group[0] not in doubtful]

    def line(what: str, groups: list[list[int]]) -> list[str]:
        names = [
            " = ".join(everything[i][1].path.relative_to(root).as_posix() for i in group[:3])
            for group in groups[:NAMED]
        ]
        more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
        return [f"{what} ({len(groups)}): {'; '.join(names)}{more}"] if groups else []

    return (
        line("images in more than one split, so that scores will be too good", across)
        + line("images in more than one class", torn)
        + line("images more than once in the same split", inside)
    )
