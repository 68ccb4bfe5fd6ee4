"""Decodes many images in parallel, into memory or, if they are too large for it, into a file.

Pillow in threads reads JPEGs as fast as TensorFlow does, and supports more formats. Decoding is the
expensive part, so it is done once rather than once per epoch: training then reads pixels.
"""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]
from tqdm.contrib.concurrent import thread_map  # type: ignore[import-untyped]

from tlkeras.tasks import pictures

IN_MEMORY = 2 * 2**30  # bytes of pixels
Given = TypeVar("Given")
Made = TypeVar("Made")


class OnDisk:
    """uint8 images (n, height, width, 3) in a file, indexed like an array and read on demand.

    The file has no name and disappears when the process ends, however it ends.

    Args:
        count: number of images.
        size: (height, width) of each image.
        folder: a folder with enough free space.
    """

    ndim, dtype = 4, np.dtype("uint8")

    def __init__(self, count: int, size: tuple[int, int], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._rows = np.arange(count)
        self._one = (*size, 3)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._one)

    def __len__(self) -> int:
        return len(self._rows)

    def __setitem__(self, row: int, image: np.ndarray) -> None:
        with self._lock:
            self._file.seek(int(self._rows[row]) * image.nbytes)
            if self._file.write(np.ascontiguousarray(image).data) != image.nbytes:
                raise OSError("The disk is full: choose a smaller image_size.")

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self._rows[rows]
        found = np.empty((chosen.size, *self._one), "uint8")
        for place, row in zip(found, chosen.reshape(-1), strict=True):
            with self._lock:
                self._file.seek(int(row) * place.nbytes)
                if self._file.readinto(place.reshape(-1).data) != place.nbytes:
                    raise OSError("The file of decoded images ends early: was it cut off?")
        return found.reshape(*chosen.shape, *self._one)

    def take(self, rows: Sequence[int] | np.ndarray, axis: int = 0) -> "OnDisk":
        """Return the images in these rows; they stay in the same file."""
        taken = object.__new__(OnDisk)
        vars(taken).update(vars(self) | {"_rows": self._rows[rows]})
        return taken


Images = np.ndarray | OnDisk


def read(
    paths: Sequence[Path],
    size: tuple[int, int],
    white: float,
    folder: Path | None = None,
    verbose: int = 1,
) -> tuple[Images, list[bytes], list[str]]:
    """Read image files.

    Args:
        paths: paths of the files.
        size, white: as in `pictures.decode`.
        folder: where to put a file with the pixels. None: keep them in memory.
        verbose: 0 shows no progress.

    Returns:
        The images; the hash of the pixels of each; and the problem with each, or "".

    Raises OSError if the disk is full.
    """
    images: Images = np.empty((len(paths), *size, 3), "uint8")
    if folder is not None:
        images = OnDisk(len(paths), size, folder)

    def one(place: int) -> tuple[bytes, str]:
        try:
            image = pictures.decode(paths[place], size, white)
        except ValueError as error:
            return b"", str(error)
        images[place] = image  # stored here, so that decoded images do not pile up
        return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest(), ""

    found = in_parallel(one, range(len(paths)), "decoding", verbose)
    return images, [digest for digest, _ in found], [problem for _, problem in found]


def in_parallel(
    work: Callable[[Given], Made], items: Sequence[Given], what: str, verbose: int = 1
) -> list[Made]:
    """Return `work` of each item, in order; a terminal shows a progress bar if it takes longer."""
    return thread_map(
        work, items, tqdm_class=tqdm, desc=what, unit=" images", delay=1, leave=False,
        disable=None if verbose else True,
    )  # fmt: skip
