"""IDX files, the format of MNIST and of the data sets made to replace it.

A file has two zero bytes, a code for the type of the numbers, the number of axes, the length of
each axis (four bytes, big-endian), and then the numbers: http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

UINT8 = 8  # the code of the only type that images and labels come in
PARTS = {"train": "train", "test": "t10k"}  # how the file names of each split begin


def read(path: Path) -> np.ndarray:
    """Return the uint8 array in a file, which can be compressed by gzip.

    Raises ValueError if it is not an IDX file of bytes, or is truncated.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Cannot unpack {path}: {error}. Get it again.") from error
    axes = content[3] if content[:3] == bytes([0, 0, UINT8]) else 0
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if not axes or len(content) - start != math.prod(shape):
        raise ValueError(f"{path} is not an IDX file of bytes, or is truncated. Get it again.")
    return np.frombuffer(content, "uint8", offset=start).reshape(shape)


def examples(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (n, height, width, 3) with grey repeated, and labels, int32 (n,).

    Args:
        folder: folder of the files, with or without `.gz` at the end of their names.
        part: how their names begin: `part-images-idx3-ubyte` and `part-labels-idx1-ubyte`.

    Raises:
        ValueError: a file is damaged, or images and labels do not belong together.
        FileNotFoundError: a file is missing.
    """
    images, labels = (read(_path(folder, name)) for name in _names(part))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder} has {part} images of shape {images.shape} and labels of {labels.shape}: "
            "expected (n, height, width) and (n,). Get both files again."
        )
    return np.repeat(images[..., None], 3, axis=-1), labels.astype("int32")


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of what `examples` returned: grey pixels, then labels, one byte each."""
    content = images[..., 0].tobytes() + labels.astype("uint8").tobytes()
    return hashlib.sha256(content).hexdigest()


def write_examples(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write grey uint8 images (n, height, width) and labels (n,) for `examples` to read.

    With the same version of zlib, the same arrays give the same files.
    """
    for name, array in zip(_names(part), (images, labels), strict=True):
        header = bytes([0, 0, UINT8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        packed = gzip.compress(header + array.tobytes(), 9, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)


def are_in(folder: Path) -> bool:
    """True if at least one IDX file of such a data set is in the folder."""
    names = [name for part in PARTS.values() for name in _names(part)]
    return any((folder / f"{name}{end}").is_file() for name in names for end in ("", ".gz"))


def _names(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _path(folder: Path, name: str) -> Path:
    found = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has no {name} and no {name}.gz: all four are needed.")
    return found
