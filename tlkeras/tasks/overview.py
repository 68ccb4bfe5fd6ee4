"""The report on a folder of images: how its files were handled, what is missing, and its card."""

from collections import Counter
from pathlib import Path

import numpy as np

from tlkeras.display import markdown as md
from tlkeras.tasks import splits as splitting
from tlkeras.tasks.contents import CLASS, LABELS, NUMBER
from tlkeras.tasks.finding import listed
from tlkeras.tasks.pictures import Header, scaling


def gaps(kind: str, labels: dict[str, np.ndarray], classes: list[str]) -> list[str]:
    """Return lines on uneven classes and on labels that are missing from a split.

    Raises ValueError if a label is missing from the training data, or if any split is empty.
    """
    if empty := [split for split, its in labels.items() if not len(its)]:
        raise ValueError(f"No readable image is left for {empty[0]}: add some.")
    if kind == NUMBER:
        return []
    lines = splitting.unevenness(labels["train"], classes) if kind == CLASS else []
    for split, its in labels.items():
        gone = [name for number, name in enumerate(classes) if not _of(kind, its, number).any()]
        if gone and split == "train":
            raise ValueError(f"No readable image of {listed(gone)} is left for training: add some.")
        if gone:
            lines.append(f"no image of {listed(gone)} for {split}")
    return lines


def describe(headers: list[Header], size: tuple[int, int], white: float) -> list[str]:
    """Return lines on how many files were converted in which way, and resized from what size."""
    ways = Counter(way for header in headers for way in header.handling)
    scaled = scaling(white)
    lines = [
        f"{count} of {len(headers)} images {way.format(scaled=scaled)}"
        for way, count in sorted(ways.items())
    ]
    sizes = sorted({header.size for header in headers}, key=lambda s: s[0] * s[1])
    if sizes != [size]:
        low, high = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1]))
        was = f"of {len(sizes)} sizes, {low} to {high}," if len(sizes) > 1 else f"of {low}"
        lines.append(f"images {was} resized to {size[0]}x{size[1]}, aspect ratio not kept")
    return lines


def formats(files: list[Path]) -> list[str]:
    """Return a line if there are several file formats, since a format can give away the class."""
    counts = Counter(file.suffix.lower() for file in files)
    found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return [f"files of several formats: {found}"] if len(counts) > 1 else []


def card(
    folder: Path, kind: str, labels: dict[str, np.ndarray], classes: list[str], report: list[str]
) -> str:
    """Return a card for a folder: the counts, and what was done to the files (Markdown)."""
    if kind == NUMBER:
        spans = [f"{its.min():g} to {its.max():g}, mean {its.mean():g}" for its in labels.values()]
        rows = [[*classes, *spans]]
    else:
        rows = [
            [name, *(str(_of(kind, its, number).sum()) for its in labels.values())]
            for number, name in enumerate(classes)
        ]
    counted = md.table(["class" if kind == CLASS else "label", *labels], rows)
    title = md.text(folder.resolve().name)
    return f"# {title}\n\nYour own images.\n\n{counted}\n\n{md.bullets(report)}\n"


def _of(kind: str, labels: np.ndarray, number: int) -> np.ndarray:
    """Return a mask of the images that have the class or label of that index."""
    return labels[:, number] == 1 if kind == LABELS else labels == number
