"""A folder of images, read with every file looked at: what cannot be read is named.

Two layouts, classes in alphabetical order of their folders:

    photos/cat/*.jpg                  splits are made here: about 70 % train, 15 % validation,
    photos/dog/*.jpg                  15 % test, by a hash of each file's content (`splits`)

    photos/train/cat/*.jpg ...        splits as given; without `validation` (or `val`), about 15 %
    photos/test/cat/*.jpg ...         of train, by the same hash; without `test`, none

Images become 8-bit RGB: grey is repeated over the channels, what is transparent is laid over
white, 16 bits lose their low byte, palettes and CMYK are converted, an animation gives its first
frame, and a photo is turned upright as its EXIF entry says. Each of these is reported, and so are
uneven classes and images that are there more than once.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

from tlkeras.tasks import splits as splitting
from tlkeras.tasks.contents import SPLITS, Contents, refuse_large

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
OWN_SIZE_LIMIT = 224  # images that share a size up to this keep it
DEFAULT_SIZE = (128, 128)
LISTED = 10  # files named in a message
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class File:
    """An image file: its label, and what its header says."""

    path: Path
    label: int
    size: tuple[int, int] = (0, 0)  # height, width
    handling: str = ""  # how it differs from plain 8-bit RGB
    problem: str = ""
    digest: str = ""  # of its bytes


def load(folder: Path, image_size: tuple[int, int] | None = None) -> Contents:
    """Reads every image of a folder; see the top of this file for the layouts.

    Args:
        folder: where the images are.
        image_size: (height, width) to resize to, without keeping the aspect ratio. None: the
            images' own size if they share one of at most 224 pixels a side, else 128x128.

    Returns:
        Images and labels of each split; its report names images that are there more than once,
        uneven classes, and what was left out or converted.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, fewer than two classes, a class without images or with too few, an
            unreadable or truncated image (all are named), or more than fits in memory.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {str(folder)!r}.")
    layout = _layout(folder)
    classes: list[str] = []
    report: list[str] = []
    found = {}
    for split, place in layout.items():
        found[split], names = _index(place, report)
        classes = classes or names
        if names != classes:
            raise ValueError(
                f"{place} has the classes {names}, but {layout['train']} has {classes}. "
                "Every split needs the same folders."
            )
    _refuse_unreadable([file for split in found.values() for file in split])
    found = splitting.assign(found, classes, report)
    files = [file for split in found.values() for file in split]
    size = image_size or _choose_size(files)
    report += _describe(files, size)
    refuse_large(len(files), size)
    splits = _read(found, size)
    images = {split: stored["image"] for split, stored in splits.items()}
    doubts = splitting.copies(images, found, folder)
    doubts += splitting.unevenness(splits["train"]["label"], classes)
    report = doubts + report
    return Contents(splits, classes, _card(folder, splits, classes, report), report)


def _card(folder: Path, splits: dict, classes: list[str], report: list[str]) -> str:
    """A card for a folder: what was counted, and what was done to the files."""
    lines = [f"# {folder.resolve().name}", "", "Your own images.", "", "| class | "]
    lines[-1] += " | ".join(splits) + " |"
    lines.append("|---" * (len(splits) + 1) + "|")
    for label, name in enumerate(classes):
        counts = [str(int((stored["label"] == label).sum())) for stored in splits.values()]
        lines.append(f"| {name} | " + " | ".join(counts) + " |")
    return "\n".join(lines + [""] + [f"- {line}" for line in report]) + "\n"


def _layout(folder: Path) -> dict[str, Path]:
    """Which folder holds the classes of which split; {"train": folder} if none is split."""
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = [p for p in inside if p.name in SPLIT_NAMES and any(q.is_dir() for q in p.iterdir())]
    if not splits:
        return {"train": folder}
    names = [p.name for p in inside]
    given = Counter(SPLIT_NAMES[p.name] for p in splits)
    if len(splits) != len(inside) or "train" not in given or max(given.values()) > 1:
        raise ValueError(
            f"{folder} has the folders {names}: expected either one folder for each class, or "
            "train, validation and test (train at least, and nothing else) with one in each."
        )
    found = {SPLIT_NAMES[p.name]: p for p in splits}
    return {split: found[split] for split in SPLITS if split in found}


def _index(folder: Path, report: list[str]) -> tuple[list[File], list[str]]:
    """Files and class names as Keras finds them; what Keras would skip in silence is reported."""
    everything = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)]
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        loose = f" and {len(everything)} files" if everything else ""
        raise ValueError(
            f"{folder} holds {len(names)} class folders{loose}: expected two or more folders, "
            "one for each class, with its images in it."
        )
    try:
        indexed = keras.utils.image_dataset_from_directory(folder, shuffle=False, verbose=False)
        paths = sorted(Path(p) for p in indexed.file_paths)
    except ValueError:  # Keras found no image at all
        paths = []
    files = [File(p, names.index(p.relative_to(folder).parts[0])) for p in paths]
    empty = [name for label, name in enumerate(names) if label not in {f.label for f in files}]
    if empty:
        raise ValueError(
            f"No images in {_list(f'{folder / name}' for name in empty)}: expected .jpg, .jpeg, "
            ".png, .bmp or .gif files. Add some, convert them, or remove the folder."
        )
    left_out = [p.relative_to(folder).as_posix() for p in everything if p not in set(paths)]
    if left_out:
        report.append(
            f"left out {len(left_out)} files that are not .jpg, .jpeg, .png, .bmp or .gif in a "
            f"class folder: {_list(left_out)}"
        )
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_inspect, files)), names


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _inspect(file: File) -> File:
    """Reads the header: size, and how the image differs from plain 8-bit RGB."""
    try:
        with Image.open(file.path) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            handling = [_HANDLING.get(image.mode, f"mode {image.mode}: converted to RGB")]
            if image.mode in ("P", "LA", "PA", "RGBA") and image.has_transparency_data:
                handling = ["transparent: laid over white"]
            if _bits(file.path) == 16:
                handling.append("16 bits a channel: reduced to 8 by dropping the low byte")
            if getattr(image, "n_frames", 1) > 1:
                handling.append("animated: first frame taken")
            if orientation != 1:
                handling.append("turned upright as its EXIF entry says")
            if orientation >= 5:
                width, height = height, width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return File(file.path, file.label, problem=_first_line(error, file.path))
    told = "; ".join(filter(None, handling))
    digest = splitting.digest(file.path)
    return File(file.path, file.label, (height, width), told, digest=digest)


_HANDLING = {
    "RGB": "",
    "L": "grey: repeated over three channels",
    "I;16": "grey: repeated over three channels",
    "I": "grey: repeated over three channels",
    "LA": "transparent: laid over white",
    "RGBA": "transparent: laid over white",
    "P": "palette: converted to RGB",
    "1": "black and white: repeated over three channels",
    "CMYK": "CMYK: converted to RGB without a colour profile",
}


def _bits(path: Path) -> int:
    """Bits a channel, as a PNG's header says; 8 for every other kind."""
    with path.open("rb") as file:
        start = file.read(25)
    return start[24] if start.startswith(b"\x89PNG") and len(start) == 25 else 8


def _decode(file: File, size: tuple[int, int]) -> np.ndarray | File:
    """The image as uint8 RGB of the size wanted, or the file with its problem."""
    try:
        with Image.open(file.path) as opened:
            opened.draft("RGB", size[::-1])  # a large JPEG is decoded at reduced size
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
            if image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return File(file.path, file.label, problem=_first_line(error, file.path))


def _read(found: dict[str, list[File]], size: tuple[int, int]) -> dict[str, dict[str, np.ndarray]]:
    splits, broken = {}, []
    with ThreadPoolExecutor() as pool:
        for split, files in found.items():
            images = np.empty((len(files), *size, 3), "uint8")
            for place, image in enumerate(pool.map(lambda file: _decode(file, size), files)):
                if isinstance(image, File):
                    broken.append(image)
                else:
                    images[place] = image
            labels = np.array([file.label for file in files], "int32")
            splits[split] = {"image": images, "label": labels}
    _refuse_unreadable(broken)
    return splits


def _refuse_unreadable(files: list[File]) -> None:
    broken = [f"{file.path} ({file.problem})" for file in files if file.problem]
    if broken:
        raise ValueError(
            f"Cannot read {len(broken)} images: {_list(broken)}. Replace them or move them away."
        )


def _choose_size(files: list[File]) -> tuple[int, int]:
    sizes = {file.size for file in files}
    own = next(iter(sizes))
    return own if len(sizes) == 1 and max(own) <= OWN_SIZE_LIMIT else DEFAULT_SIZE


def _describe(files: list[File], size: tuple[int, int]) -> list[str]:
    """How many files were handled in which way, and resized from what."""
    ways = Counter(way for f in files if f.handling for way in f.handling.split("; "))
    lines = [f"{count} of {len(files)} images {way}" for way, count in sorted(ways.items())]
    sizes = sorted({file.size for file in files}, key=lambda s: s[0] * s[1])
    if sizes != [size]:
        low, high = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1]))
        was = f"of {len(sizes)} sizes, {low} to {high}," if len(sizes) > 1 else f"of {low}"
        lines.append(f"images {was} resized to {size[0]}x{size[1]}, aspect ratio not kept")
    return lines


def _list(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _first_line(error: Exception, path: Path) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].replace(f"'{path}'", "file")
