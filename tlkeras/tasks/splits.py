"""Which image of a folder goes to which split, and what is wrong with them taken together.

An image's split follows from its content alone: a hash of the file's bytes is a number in [0, 1),
and test, validation and train are fixed parts of that range. So other files can be added, renamed
or moved without moving an image, and copies of a file are always in the same split.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from tlkeras.tasks.contents import SPLITS

BOUNDS = {"test": (0.0, 0.15), "validation": (0.15, 0.3), "train": (0.3, 1.0)}
UNEVEN = 3  # times as many images in the largest class as in the smallest
NAMED = 5  # groups of copies in a message


def assign(found: dict[str, list], classes: list[str], report: list[str]) -> dict[str, list]:
    """Makes the splits that a folder does not have, out of its training images.

    Args:
        found: files (with `group` and `digest`) by split; "train" at least.
        classes: names of the groups.
        report: gets a line where a class has nothing in the part of the range that is a split's.

    Raises:
        ValueError: a class with fewer different images than there are splits.
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
    """Gives a split that is empty for this class the image whose hash is nearest to its part."""
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
    """A line if the largest class has more than three times the images of the smallest."""
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
    """Lines on images that are in the folder more than once; nothing is removed.

    Args:
        digests: of the pixels of each image, by split, as they were read.
        files: the file of each (with `path` and `label`), by split.
        root: the folder, for the names.
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
