"""Reads a `labels.csv` next to the images: `file,label`, and optionally `split`.

A file has one label; or several, separated by `;` or `|` or in separate rows (a file can then also
have none); or a number, if that is requested. The meaning of a column of numbers is never guessed:
unless requested otherwise, they are names of classes.
"""

import csv
import io
import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkeras.tasks.contents import CLASS, LABELS, NUMBER
from tlkeras.tasks.finding import LABELS as NAME
from tlkeras.tasks.finding import listed, split_named

COLUMNS = {
    "file": ("file", "filename", "file_name", "image", "path"),
    "label": ("label", "labels", "class", "target"),
    "split": ("split", "subset", "set"),
}
EXPECTED = "expected a first line file,label or file,label,split, and a line for each image"


@dataclass(frozen=True)
class Table:
    """The content of a `labels.csv`.

    Attributes:
        kind: "class", "labels" or "number".
        classes: names of the classes in alphabetical order; for numbers, the name of the column.
        labels: for each file the index of its class, those of its classes, or the number itself.
        splits: for each file "train", "validation" or "test"; empty without such a column.
        missing: files that are listed but do not exist.
        report: lines that a reader should know.
    """

    kind: str
    classes: list[str]
    labels: Mapping[Path, Any]
    splits: dict[Path, str]
    missing: list[str]
    report: list[str]


def find(folder: Path) -> Path | None:
    """Return the folder's `labels.csv` (upper or lower case), or None."""
    return next((p for p in sorted(folder.iterdir()) if p.name.casefold() == NAME), None)


def read(path: Path, pictures: list[Path], regression: bool = False) -> Table:
    """Read a table.

    Args:
        path: path of the table.
        pictures: the image files below its folder. A cell refers to one of them by its path from
            that folder or, if that is unambiguous, by its name, with or without the extension.
        regression: True if the labels are numbers to be predicted.

    Raises:
        ValueError: the file is not such a table, or contradicts itself about a file.
    """
    header, rows = _rows(path)
    known, missing = _names(pictures, path.parent), []
    cells, splits = defaultdict[Path, list[str]](list), dict[Path, str]()
    for line, row in rows:
        found = known.get(_plain(row["file"]), [])
        if len(found) > 1:
            raise ValueError(
                f"{path}, line {line}: {row['file']} is the name of {len(found)} files: give the "
                "path from the folder."
            )
        if not found:
            missing.append(row["file"])
            continue
        cells[found[0]].append(row["label"])
        if "split" in header:
            split = split_named(row["split"])
            if split is None or splits.setdefault(found[0], split) != split:
                raise ValueError(
                    f"{path}, line {line}: the split of {row['file']} is {row['split']!r}: "
                    "expected train, validation or test, the same in every line of a file."
                )
    if not cells:
        raise ValueError(f"{path} names no image that is there: {listed(missing) or EXPECTED}.")
    if regression:
        return Table(NUMBER, [header["label"]], _numbers(path, cells), splits, missing, [])
    return _labels(path, cells, splits, missing, ";" not in header["delimiter"])


def _rows(path: Path) -> tuple[dict[str, str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns used, and for each row its line number and its cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8.") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    places: dict[str, int] = {}
    for column, usual in COLUMNS.items():
        at = [i for i, name in enumerate(names) if name.casefold() in usual]
        if len(at) > 1 or (not at and column != "split"):
            raise ValueError(f"{path}: {EXPECTED}; found the columns {', '.join(names)}.")
        if at:
            places[column] = at[0]
    rows = []
    for cells in reader:
        if len(cells) == len(names):
            row = {column: cells[i].strip() for column, i in places.items()}
            rows.append((reader.line_num, row))
        elif any(cell.strip() for cell in cells):
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(names)} cells, as the first line "
                f"has; found {len(cells)}. Put cells with a {delimiter!r} between quotes."
            )
    return {column: names[i] for column, i in places.items()} | {"delimiter": delimiter}, rows


def _names(pictures: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Map each usable name to files: paths win over names, names over those without extension."""
    paths = {_plain(path.relative_to(folder).as_posix()): [path] for path in pictures}
    names, stems = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
    for path in pictures:
        names[_plain(path.name)].append(path)
        short = path.relative_to(folder).with_suffix("").as_posix()
        for stem in {_plain(path.stem), _plain(short)}:
            stems[stem].append(path)
    return {**stems, **names, **paths}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _numbers(path: Path, cells: dict[Path, list[str]]) -> dict[Path, float]:
    numbers = {}
    for file, found in cells.items():
        try:
            values = {float(cell) for cell in found}
        except ValueError:
            values = set()
        if len(values) != 1 or not math.isfinite(min(values)):
            raise ValueError(
                f"{path}: expected one finite number for {file.name}, such as 3.5; found "
                f"{' and '.join(map(repr, found))}."
            )
        numbers[file] = values.pop()
    return numbers


def _labels(
    path: Path,
    cells: dict[Path, list[str]],
    splits: dict[Path, str],
    missing: list[str],
    semicolons: bool,
) -> Table:
    separated = {
        file: {
            part.strip()
            for cell in found
            for part in (cell.replace(";", "|") if semicolons else cell).split("|")
        }
        - {""}
        for file, found in cells.items()
    }
    several = [file.name for file, found in separated.items() if len(found) > 1]
    classes = sorted(set().union(*separated.values()))
    if len(classes) < 2:
        raise ValueError(f"{path} has the labels {classes}: expected two or more.")
    numbers = {name: number for number, name in enumerate(classes)}
    if several:
        rows = {f: tuple(sorted(numbers[n] for n in found)) for f, found in separated.items()}
        line = f"several labels a file ({len(several)} of {len(rows)} files have more than one)"
        if len(several) < len(rows) / 10:  # perhaps a mistake: two lines that contradict
            line += f"; if each should have one, mend {listed(several)}"
        return Table(LABELS, classes, rows, splits, missing, [line])
    empty = [file.name for file, found in separated.items() if not found]
    if empty:
        raise ValueError(
            f"{path} has no label for {listed(empty)}: expected one for each file, or, for "
            "several labels a file, at least one file with more than one."
        )
    labels = {file: numbers[found.pop()] for file, found in separated.items()}
    return Table(CLASS, classes, labels, splits, missing, _doubts(path, classes, len(labels)))


def _doubts(path: Path, classes: list[str], count: int) -> list[str]:
    """Return a line if all class names are numbers.

    Raises ValueError if they hardly ever repeat, as numbers to be predicted would.
    """
    try:
        [float(name) for name in classes]
    except ValueError:
        return []
    advice = "to predict a number ask for it (regression=True, or --regression)"
    if len(classes) > count / 3:
        raise ValueError(
            f"{path} has {len(classes)} different numbers as the classes of {count} images: "
            f"expected three images or more of each; {advice}."
        )
    return [f"the {len(classes)} numbers in {path.name} are taken as names of classes; {advice}"]
