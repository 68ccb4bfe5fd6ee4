"""Reads a folder of images. Every file is inspected, and those that cannot be read are named.

There are three layouts, with classes in alphabetical order:

    photos/cat/*.jpg                  splits are made here: about 70 % train, 15 % validation,
    photos/dog/*.jpg                  15 % test, by a hash of each file's content (`splits`)

    photos/train/cat/*.jpg ...        splits as given, by any usual name (`finding`); without
    photos/test/cat/*.jpg ...         validation about 15 % of train, by the same hash; train
                                      alone is split like a folder without splits

    photos/labels.csv                 file,label[,split] (`table`): one label per file, several, or
    photos/...                        a number

Images become 8-bit RGB (`pictures`), and every kind of conversion is reported. So are uneven
classes, images that occur more than once, and files that were skipped. More than 2 GiB of pixels
are kept in a file instead of memory.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.tasks import decoding, finding, overview, pictures, table
from tlkeras.tasks import splits as splitting
from tlkeras.tasks.contents import CLASS, LABELS, SPLITS, Contents
from tlkeras.tasks.finding import Passed, listed
from tlkeras.utils import paths

OWN_SIZE_LIMIT = 224  # images that share a size up to this keep it
DEFAULT_SIZE = (128, 128)


@dataclass(frozen=True)
class File:
    """An image file.

    Attributes:
        label: the index of its class, those of its classes, or a number to be predicted.
        group: every group gets images in every split: the class, or 0 for all images.
        digest: hash of the bytes of the file.
    """

    path: Path
    label: Any
    group: int = 0
    header: pictures.Header = pictures.Header()
    digest: str = ""


def load(
    folder: Path,
    image_size: tuple[int, int] | None,
    regression: bool,
    skip_unreadable: bool,
    white: float | None,
    cache: Path,
    verbose: int,
) -> Contents:
    """Read every image of a folder; see the top of this file for the layouts.

    Args:
        folder: the folder with the images.
        image_size: (height, width) to resize to, without keeping the aspect ratio. None: the size
            of the images if all have the same, at most 224 pixels per side, else 128x128.
        regression: True if the labels in `labels.csv` are numbers to be predicted.
        skip_unreadable: leave out files that cannot be read, or that are listed but missing.
        white: the value that becomes 255 in files of more than 8 bits per channel. None: see
            `pictures.white_of`.
        cache: folder for a file of pixels.
        verbose: 0 shows no progress.

    Returns:
        Images, labels and file names of each split. The report names images that occur more than
        once, uneven classes, and files that were left out or converted.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: there are no images, fewer than two classes, or a class without images or with
            too few; an image is unreadable or truncated (all are named); the table cannot be used;
            or the disk has too little room.
    """
    if not folder.is_dir():
        file = f"; {folder.name} is a file" if folder.exists() else ""
        raise FileNotFoundError(
            f"No folder {str(folder)!r}{file}: expected one that holds a folder of images for each "
            f"class, or a {finding.LABELS} that says what the images are."
        )
    passed, report, left_out = Passed(folder), list[str](), list[str]()
    if given := table.find(folder):
        kind, classes, found = _from_table(given, passed, regression, report, left_out)
    elif regression:
        raise ValueError(
            f"regression needs a number for each image: expected a {finding.LABELS} in {folder} "
            "with the columns file,label; found none."
        )
    else:
        kind, (classes, found) = CLASS, _from_folders(folder, passed, report)
    report += passed.report()
    found = _inspected(found, left_out, verbose)
    _refuse(left_out, skip_unreadable)
    groups = classes if kind == CLASS else [folder.resolve().name]
    found = splitting.assign(found, groups, report)
    files = [file for split in found.values() for file in split]
    size, headers = image_size or _choose_size(files), [file.header for file in files]
    white = white or pictures.white_of(headers)
    report += overview.formats([file.path for file in files])
    report += overview.describe(headers, size, white)
    place = _place(len(files), size, cache, report)
    splits: dict[str, dict[str, Any]] = {}
    digests = {}
    for split, its in found.items():
        images, hashes, problems = decoding.read([f.path for f in its], size, white, place, verbose)
        whole = np.array([not problem for problem in problems], bool)
        if not whole.all():
            left_out += [_broken(f.path, why) for f, why in zip(its, problems, strict=True) if why]
            images = images.take(np.flatnonzero(whole), 0)
        found[split] = its = [file for file, kept in zip(its, whole, strict=True) if kept]
        digests[split] = [digest for digest, kept in zip(hashes, whole, strict=True) if kept]
        names = np.array([file.path.relative_to(folder).as_posix() for file in its], "str")
        splits[split] = {"image": images, "label": _labels(kind, its, classes), "file": names}
    _refuse(left_out, skip_unreadable)
    if left_out:
        report.insert(0, f"left out {len(left_out)} unreadable images: {listed(left_out)}")
    labels = {split: stored["label"] for split, stored in splits.items()}
    doubts = splitting.copies(digests, found, folder) + overview.gaps(kind, labels, classes)
    report = doubts + report
    card = overview.card(folder, kind, labels, classes, report)
    return Contents(splits, tuple(classes), card, tuple(report), kind=kind, white=white)


def _from_folders(folder: Path, passed: Passed, report: list[str]) -> tuple[list[str], dict]:
    """Return the classes, and the files of each split."""
    layout, lines = finding.layout(folder, passed)
    report += lines
    classes: list[str] = []
    found = {}
    for split, place in layout.items():
        names = finding.class_names(place, passed)
        classes = classes or names
        if names != classes:
            raise ValueError(
                f"{place} has the classes {names}, but {layout['train']} has {classes}. "
                "Every split needs the same folders."
            )
        pairs = finding.by_class(place, names, passed)
        found[split] = [File(path, label, label) for path, label in pairs]
    return classes, found


def _from_table(
    path: Path, passed: Passed, regression: bool, report: list[str], left_out: list[str]
) -> tuple[str, list[str], dict]:
    """Return the kind of labels, their names, and the files of each split."""
    there = finding.pictures(path.parent, passed)
    passed.others.discard(path)
    read = table.read(path, there, regression)
    left_out += [f"{name} (listed in {path.name}, but not there)" for name in read.missing]
    unlisted = [p.relative_to(path.parent).as_posix() for p in there if p not in read.labels]
    if unlisted:
        report.append(
            f"left out {len(unlisted)} images that {path.name} does not name: {listed(unlisted)}"
        )
    report += [f"labels from {path.name}", *read.report]
    found: dict[str, list[File]] = {split: [] for split in SPLITS} if read.splits else {"train": []}
    for file in sorted(read.labels):
        label = read.labels[file]
        split = read.splits.get(file, "train")
        found[split].append(File(file, label, label if read.kind == CLASS else 0))
    if not found["train"]:
        raise ValueError(f"{path} names no image for training: expected some with split train.")
    return read.kind, read.classes, {split: its for split, its in found.items() if its}


def _inspected(found: dict, left_out: list[str], verbose: int) -> dict[str, list[File]]:
    """Return the files that can be opened, with their headers and digests."""

    def look(file: File) -> File:
        header = pictures.inspect(file.path)
        digest = "" if header.problem else paths.digest(file.path)
        return File(file.path, file.label, file.group, header, digest)

    everything = [(split, file) for split, files in found.items() for file in files]
    looked = decoding.in_parallel(look, [file for _, file in everything], "looking", verbose)
    sound: dict[str, list[File]] = {split: [] for split in found}
    for (split, _), file in zip(everything, looked, strict=True):
        if file.header.problem:
            left_out.append(_broken(file.path, file.header.problem))
        else:
            sound[split].append(file)
    return sound


def _broken(path: Path, problem: str) -> str:
    return f"{path} ({problem})"


def _refuse(left_out: list[str], skip: bool) -> None:
    if left_out and not skip:
        raise ValueError(
            f"Cannot read {len(left_out)} images: {listed(left_out)}. Replace them or move them "
            "away, or go on without them: skip_unreadable=True, or --skip-unreadable."
        )


def _choose_size(files: list[File]) -> tuple[int, int]:
    sizes = {file.header.size for file in files}
    own = next(iter(sizes))
    return own if len(sizes) == 1 and max(own) <= OWN_SIZE_LIMIT else DEFAULT_SIZE


def _place(count: int, size: tuple[int, int], cache: Path, report: list[str]) -> Path | None:
    """Return the folder for a file of the pixels, or None if they fit in memory.

    Raises ValueError if the disk has no room for them.
    """
    needed = count * size[0] * size[1] * 3
    if needed <= decoding.IN_MEMORY:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise ValueError(
            f"{count:,} images of {size[0]}x{size[1]} take {needed / 2**30:.1f} GiB, and {cache} "
            f"has {free / 2**30:.1f} GiB free: choose a smaller image_size, or another folder with "
            "the environment variable TLKERAS_DATA_DIR."
        )
    report.append(
        f"{needed / 2**30:.1f} GiB of pixels, more than {decoding.IN_MEMORY / 2**30:.1f} GiB: kept "
        f"in a file in {cache} while this runs, not in memory"
    )
    return cache


def _labels(kind: str, files: list[File], classes: list[str]) -> np.ndarray:
    """Return int32 class indices (n,), float32 rows of 0 and 1 (n, classes), or float32 (n,)."""
    if kind != LABELS:
        return np.array([file.label for file in files], "int32" if kind == CLASS else "float32")
    rows = np.zeros((len(files), len(classes)), "float32")
    for row, file in zip(rows, files, strict=True):
        row[list(file.label)] = 1
    return rows
