"""Finds the images in a folder, and the class and the split of each.

    photos/cat/*.jpg                  a folder for each class, with any folders below it
    photos/Training/cat/*.jpg ...     the same in each split, by any usual name, in any case
    photos/testing/cat/*.jpg ...

Links are followed, but not in circles. Files that systems and programs leave behind (`.DS_Store`,
`Thumbs.db`, `__MACOSX`, ...) are skipped and counted.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tlkeras.tasks.contents import SPLITS
from tlkeras.tasks.pictures import SUFFIXES
from tlkeras.utils.tables import printable

LISTED = 10  # files named in a message
LABELS = "labels.csv"
SYSTEM = {
    *("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found"),
    *("system volume information", "desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r"),
}
_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "validate", "dev", "development", "eval"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_FILLED = re.compile(r"([a-z]+?)(?:set|data|dataset|images|imgs|split)?")
KINDS = ", ".join(sorted(SUFFIXES))
CLASSES = "expected two or more folders, one for each class, with its images in it"


@dataclass
class Passed:
    """The files and folders below `root` that were skipped."""

    root: Path
    system: set[Path] = field(default_factory=set)
    loops: set[Path] = field(default_factory=set)
    others: set[Path] = field(default_factory=set)
    unused: set[Path] = field(default_factory=set)

    def report(self) -> list[str]:
        """Return one line for each reason, with names."""
        lines = {
            f"left out {len(self.others)} files that are no images ({KINDS}) or are outside the "
            "class folders": self.others,
            f"left out {len(self.loops)} links to folders that are read anyway": self.loops,
            f"took {len(self.unused)} folders inside classes for no splits, though they have such "
            "names (put train, validation and test at the top)": self.unused,
            f"passed over {len(self.system)} hidden or system files and folders": self.system,
        }
        return [
            f"{text}: {listed(path.relative_to(self.root).as_posix() for path in sorted(paths))}"
            for text, paths in lines.items()
            if paths
        ]


def split_named(name: str) -> str | None:
    """Return the split that this name of a folder or cell stands for, or None.

    >>> [split_named(name) for name in ("Training", "VAL", "test_set", "train2017", "trains")]
    ['train', 'validation', 'test', 'train', None]
    """
    letters = re.sub(r"[\W_\d]+", "", name.casefold())
    found = _FILLED.fullmatch(letters)
    return _SPLIT_OF.get(letters) or (_SPLIT_OF.get(found[1]) if found else None)


def layout(folder: Path, passed: Passed) -> tuple[dict[str, Path], list[str]]:
    """Return the folder with the classes of each split, and lines on folders without labels.

    The result is {"train": folder} if there are no splits.

    Raises ValueError if it is not clear what the folders are.
    """
    inside, loose = scan(folder, passed)
    named = {place: split for place in inside if (split := split_named(place.name))}
    divided = [place for place in named if scan(place, passed)[0]]
    if not named or (not divided and _is_class(named, inside)):
        return {"train": folder}, []
    names = [place.name for place in inside]
    given = Counter(named[place] for place in divided)
    if not divided:
        raise ValueError(
            f"{folder} has the folders {names}, which are splits by their names, but hold no "
            f"folders: expected one for each class in each, or a {LABELS} that says what the "
            "images are."
        )
    if len(named) != len(inside) or "train" not in given or max(given.values()) > 1:
        raise ValueError(
            f"{folder} has the folders {names}: expected either one folder for each class, or "
            "train, validation and test (train at least, and nothing else) with one in each."
        )
    passed.others |= set(loose)
    found = {named[place]: place for place in divided}
    lines = [
        f"{place.name} has no class folders, so what is in it has no labels and is left out"
        for place in named
        if place not in divided
    ]
    return {split: found[split] for split in SPLITS if split in found}, lines


def _is_class(named: dict[Path, str], inside: list[Path]) -> bool:
    """True if a folder `train` of images among others is a class (the vehicle), not a split."""
    return len(inside) > 1 and [place.name.casefold() for place in named] == ["train"]


def class_names(place: Path, passed: Passed) -> list[str]:
    """Return the names of the classes in alphabetical order, with accents normalised (NFC).

    Raises ValueError if there are fewer than two.
    """
    inside, loose = scan(place, passed)
    if len(inside) >= 2:
        return sorted({_name(inner) for inner in inside})
    beside = f" and {len(loose)} files" if loose else ""
    deeper = inside and len(scan(inside[0], passed)[0]) > 1
    hint = f" Or did you mean {inside[0]}?" if deeper else ""
    raise ValueError(
        f"{place} holds {len(inside)} class folders{beside}: {CLASSES}, or a {LABELS} that says "
        f"what the images are.{hint}"
    )


def by_class(place: Path, names: list[str], passed: Passed) -> list[tuple[Path, int]]:
    """Return every image below a folder with one folder per class, and the index of its class.

    Raises ValueError if a class has no images.
    """
    inside, loose = scan(place, passed)
    passed.others |= set(loose)
    passed.unused |= {q for p in inside for q in scan(p, passed)[0] if split_named(q.name)}
    found = [(path, names.index(_name(p))) for p in inside for path in pictures(p, passed)]
    held = {label for _, label in found}
    empty = [str(place / name) for label, name in enumerate(names) if label not in held]
    if empty:
        raise ValueError(
            f"No images in {listed(empty)}: expected {KINDS} files. Add some, convert them, or "
            "remove the folder."
        )
    return found


def pictures(folder: Path, passed: Passed) -> list[Path]:
    """Return every image below a folder, sorted; folders linked from several places count once."""
    found: list[Path] = []
    known = {_identity(place) for place in folder.absolute().parents}
    waiting, links = [folder], list[Path]()
    while waiting or links:  # real folders before linked ones
        place = waiting.pop() if waiting else links.pop(0)
        if _identity(place) in known:
            passed.loops.add(place)
            continue
        known.add(_identity(place))
        inside, files = scan(place, passed)
        for inner in inside:
            (links if inner.is_symlink() else waiting).append(inner)
        found += [path for path in files if is_picture(path)]
        passed.others |= {path for path in files if not is_picture(path)}
    return sorted(found)


def scan(place: Path, passed: Passed) -> tuple[list[Path], list[Path]]:
    """Return the folders and files directly in a folder, without system files and upward links."""
    folders, files, real = list[Path](), list[Path](), place.resolve()
    with os.scandir(place) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name.casefold() in SYSTEM:
                passed.system.add(path)
            elif entry.is_file() or not path.exists():  # a broken link counts as an unreadable file
                files.append(path)
            elif not entry.is_dir():  # for example a pipe that nobody writes to
                passed.system.add(path)
            elif entry.is_symlink() and real.is_relative_to(path.resolve()):
                passed.loops.add(path)
            else:
                folders.append(path)
    return sorted(folders), sorted(files)


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def listed(items: Iterable[str]) -> str:
    items = [printable(item) for item in items]
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _name(place: Path) -> str:
    return printable(unicodedata.normalize("NFC", place.name))


def _identity(place: Path) -> tuple[int, int]:
    found = place.stat()
    return found.st_dev, found.st_ino
