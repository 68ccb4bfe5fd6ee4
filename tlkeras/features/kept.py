"""Outputs of frozen parts that are kept for later processes: one file per part, in one folder.

A file is a sequence of records, each with the digest of an example, a checksum, and its outputs.
Records are only ever added, under a lock, so reading needs no lock. If a killed process left a
record half written, the next process that writes cuts it off.
"""

import contextlib
import hashlib
import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tlkeras.features.frozen_part import FrozenPart
from tlkeras.utils.lock import lock
from tlkeras.utils.versions import versions

LIMIT = 4 * 2**30  # bytes of all files in a folder; also at most a tenth of the free disk space
ENDING = ".features"


class FeatureFile:
    """The outputs of one frozen part that this process and others have kept.

    Args:
        folder: created when there is something to keep.
        part: must consist only of Keras's own layers, because the code of a user's layer can
            change.
        limit: the maximum bytes of all files in the folder. To make room, the files that have been
            unused for longest are removed first.
    """

    def __init__(self, folder: Path, part: FrozenPart, limit: int = LIMIT):
        dtype = keras.backend.standardize_dtype(part.cut.dtype)
        which = hashlib.sha256(part.fingerprint + repr((versions(), dtype, part.shape)).encode())
        self.path, self.limit = folder / f"{which.hexdigest()[:32]}{ENDING}", limit
        self.shape, self.dtype = part.shape, np.dtype(dtype)
        self._record = np.dtype(
            [("key", "V32"), ("sum", "<u4"), ("row", f"V{part.bytes_per_example}")]
        )
        self._records = np.empty(0, self._record)
        self._places: dict[bytes, int] = {}
        self._file = -1
        with contextlib.suppress(OSError):
            os.utime(self.path)  # used now
            self._look()

    def rows(self, keys: Sequence[bytes]) -> tuple[list[int], np.ndarray]:
        """Return which of these examples are kept, as positions in `keys`, and their outputs."""
        known = [number for number, key in enumerate(keys) if key in self._places]
        found = self._records[[self._places[keys[number]] for number in known]]
        whole = [zlib.crc32(record["row"].tobytes()) == record["sum"] for record in found]
        for number, right in zip(known, whole, strict=True):
            if not right:
                self._places.pop(keys[number], None)  # so that `add` stores it again
        rows = np.frombuffer(found["row"][whole].tobytes(), self.dtype).reshape(-1, *self.shape)
        return [number for number, right in zip(known, whole, strict=True) if right], rows

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Store outputs of examples. If that fails, warn once and do without."""
        if not (len(keys) and self.limit) or rows.dtype != self.dtype:
            return
        try:
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            with lock(self.path.parent / ".lock"):
                self._look()
                new = [number for number, key in enumerate(keys) if key not in self._places]
                self._write([keys[number] for number in new], rows[new])
        except OSError as error:
            warnings.warn(
                f"Outputs of frozen blocks cannot be kept in {self.path.parent} for later runs: "
                f"{error}.",
                RuntimeWarning,
                stacklevel=2,
            )
            self.limit = 0

    def _write(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        records = np.empty(len(keys), self._record)
        for record, key, row in zip(records, keys, rows, strict=True):
            content = row.tobytes()
            record["key"], record["row"] = np.void(key), np.void(content)
            record["sum"] = zlib.crc32(content)
        if not make_room(self.path, records.nbytes, self.limit):
            return
        with open(self.path, "ab") as file:
            file.truncate(len(self._records) * self._record.itemsize)
            file.write(records.data)
        self._look()

    def _look(self) -> None:
        """Read which outputs the file now holds; it can have been replaced by another file."""
        if not self.path.exists():
            return
        state = self.path.stat()
        count = state.st_size // self._record.itemsize
        if state.st_ino != self._file:
            self._file, self._records, self._places = state.st_ino, self._records[:0], {}
        known = len(self._records)
        if count > known:
            self._records = np.memmap(self.path, self._record, "r", shape=(count,))
        keys = self._records["key"][known:].tobytes()
        for start in range(0, len(keys), 32):
            self._places[keys[start : start + 32]] = known + start // 32


def make_room(path: Path, more: int, limit: int) -> bool:
    """Remove the files longest unused until a file can grow by `more` bytes.

    Returns False, and removes nothing, if it could not grow even then.
    """
    limit = min(limit, shutil.disk_usage(path.parent).free // 10)
    sizes = {file: file.stat().st_size for file in path.parent.glob(f"*{ENDING}")}
    left = limit - more - sizes.pop(path, 0)
    if left < 0:
        return False
    for file in sorted(sizes, key=lambda file: file.stat().st_mtime):
        if sum(sizes.values()) > left:
            file.unlink()
            del sizes[file]
    return True
