"""Outputs of frozen parts, computed once for each example.

Outputs are kept by the content of the example (SHA-256), so it does not matter in which order
or how often an example comes; one that was never seen, or was augmented anew, is computed.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import graph
from tlkeras.features.frozen_part import FrozenPart, NotExact
from tlkeras.inputs import order

CHUNK = 64  # examples computed at a time
RUN = 32 * 2**20  # bytes of outputs handed over in one call, of which a few copies are made


class Features:
    """The outputs of one frozen part, kept by content of the example, in memory or in a file.

    The file has no name in the file system, so nothing is left behind by a crash.

    `computed` counts the examples that went through that part; `tell` is called with it. `run`
    is how many bytes of outputs to take out at a time.
    """

    def __init__(self, part: FrozenPart, on_disk: bool = False, run: int = RUN):
        self.part, self.computed, self.run = part, 0, run
        self.parent: Features | None = None
        self.tell: Callable[[int], None] | None = None
        self._model = part.below
        self._rows: dict[bytes, int] = {}  # content of an example -> the first of its views
        self._count, self._chunk = 0, 0
        self._array: np.ndarray | None = None
        self._file = tempfile.TemporaryFile() if on_disk else None  # noqa: SIM115

    def go_on_from(self, part: FrozenPart, parent: "Features | None") -> None:
        """Computes with this part from now on, from outputs at an earlier cut if there are any.

        The model that outputs were first computed with may have been trained since.
        """
        self.part, self.parent, self._model = part, parent, part.below
        if parent is not None:
            self._model = graph.split(part.below, parent.part.cut)[1]

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._count * self.part.bytes_per_example

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def clear(self) -> None:
        """Lets go of all outputs."""
        self._rows, self._count = {}, 0
        if self._file is not None:
            self._file.truncate(0)

    def find(self, x: Any, augment: Callable | None = None, views: int = 1) -> np.ndarray:
        """The rows of some examples, computed where they are new.

        Args:
            x: what the model takes: NumPy arrays (examples, ...).
            augment: called on x in training mode, once a view, before the model.
            views: how many augmented versions of an example are kept, in consecutive rows.

        Returns:
            (examples,) integers: the first row of each.
        """
        keys = _contents(x, (id(augment), views) if augment else ())
        new = list({key: i for i, key in enumerate(keys) if key not in self._rows}.values())
        self._chunk = self._chunk or min(CHUNK, len(new))
        for start in range(0, len(new), self._chunk or 1):
            part = new[start : start + self._chunk]
            some = keras.tree.map_structure(lambda array, part=part: array[part], x)
            seen = [self._compute(given) for given in self._inputs(some, augment, views)]
            if not self._count and self.parent is None and augment is None:
                self._check(some, seen[0])
            for number, i in enumerate(part):
                self._rows[keys[i]] = self._count + views * number
            self._append(np.stack(seen, 1).reshape(-1, *self.part.shape), views * len(new))
            self.computed += len(part)
            if self.tell is not None:
                self.tell(self.computed)
        return np.array([self._rows[key] for key in keys], "int64")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The outputs in these rows: (rows, ...)."""
        if self._array is None:
            raise ValueError("Expected rows that `find` gave; nothing has been computed yet.")
        if self._file is None:
            return self._array[rows]
        found = np.empty((len(rows), *self.part.shape), self._array.dtype)
        view = found.reshape(len(rows), -1).view("uint8")
        for place, row in zip(view, rows, strict=True):
            self._file.seek(int(row) * view.shape[1])
            self._file.readinto(place.data)
        return found

    def _inputs(self, x: Any, augment: Callable | None, views: int) -> Iterator[Any]:
        """What the model is given for each view of these examples."""
        if self.parent is not None:
            rows = self.parent.find(x, augment, views)
            yield from (self.parent.read(rows + view) for view in range(views))
        elif augment is None:
            yield x
        else:
            yield from (order.augmented(augment, x) for _ in range(views))

    def _compute(self, x: Any) -> np.ndarray:
        """The model's output for at most a chunk, always computed in batches of one size, since
        another size would be traced anew."""
        count = len(keras.tree.flatten(x)[0])
        rows = np.arange(self._chunk) % count
        padded = keras.tree.map_structure(lambda array: array[rows], x) if count < len(rows) else x
        return np.asarray(self._model.predict_on_batch(padded))[:count]

    def _check(self, x: Any, outputs: np.ndarray) -> None:
        """Raises NotExact if the part does something else in training, as layers of one's own
        may without showing it."""
        few = keras.tree.map_structure(lambda array: array[:2], x)
        trained = keras.ops.convert_to_numpy(self._model(few, training=True)).astype("float32")
        tested = outputs[:2].astype("float32")
        if not np.allclose(trained, tested, rtol=0.01, atol=0.01 * np.abs(tested).max()):
            raise NotExact("the frozen blocks put out something else in training than otherwise")

    def _append(self, outputs: np.ndarray, expected: int) -> None:
        if self._array is None:
            self._array = np.empty((0, *self.part.shape), outputs.dtype)
        start, self._count = self._count, self._count + len(outputs)
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(outputs).view("uint8").data)
            return
        if self._count > len(self._array):
            room = max(expected, len(outputs), len(self._array))
            larger = np.empty((start + room, *self.part.shape), outputs.dtype)
            larger[:start] = self._array[:start]
            self._array = larger
        self._array[start : self._count] = outputs


class FeatureCache:
    """Outputs of frozen parts, to be shared by stages, runs and evaluations.

    Give one to several calls of `fit_stages` and `evaluate` and each example goes through a
    frozen part once. Outputs are let go of with the cache.

    Args:
        limit: bytes of memory that outputs may take; what is more goes to a temporary file. None:
            a quarter of the machine's memory.
        disk: keep all in a temporary file.

    Raises:
        ValueError: a negative `limit`.

    Source: section 1.8, pretrained feature extraction.

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    ... )
    >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
    >>> cache = tlk.FeatureCache(limit=2**30)
    >>> for rate in (1e-3, 1e-2):  # the second run computes nothing anew
    ...     plan = tlk.recipes.head_only(epochs=1, head_lr=rate)
    ...     run = tlk.fit_stages(model, plan, (x, y), cache=cache, verbose=0)
    >>> run.stages[0].cache
    'after stem, 2.05 KB in memory'
    """

    def __init__(self, limit: int | None = None, disk: bool = False):
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be a number of bytes, 0 or more; found {limit}.")
        self.limit = _memory() // 4 if limit is None else limit
        self.disk = disk
        self._stores: dict[bytes, Features] = {}
        self._used = 0

    def features(self, part: FrozenPart, rows: int, parent: Features | None = None) -> Features:
        """Where the outputs of `part` are kept.

        Args:
            rows: how many are expected to come.
            parent: outputs at an earlier cut of the same model, to go on from.

        Raises:
            NotExact: they fit neither in memory nor on the disk.
        """
        if part.fingerprint not in self._stores:
            size = rows * part.bytes_per_example
            on_disk = self.disk or self._used + size > self.limit
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if on_disk and size > 0.9 * free:
                raise NotExact(
                    f"the outputs of {part.block} take {in_bytes(size)}, more than memory (limit "
                    f"{in_bytes(self.limit)}) and the disk ({in_bytes(free)} free) hold"
                )
            self._used += 0 if on_disk else size
            run = min(RUN, self.limit // 8) if on_disk else RUN
            self._stores[part.fingerprint] = Features(part, on_disk, run)
        store = self._stores[part.fingerprint]
        store.go_on_from(part, parent)
        return store

    def fits(self, part: FrozenPart, rows: int) -> bool:
        """Whether the outputs are in memory or would go there."""
        return part.fingerprint in self._stores or (
            not self.disk and self._used + rows * part.bytes_per_example <= self.limit
        )

    def keep(self, parts: Sequence[FrozenPart]) -> None:
        """Lets go of the outputs of all other parts."""
        marks = {part.fingerprint for part in parts}
        self._stores = {mark: store for mark, store in self._stores.items() if mark in marks}
        self._used = sum(s.nbytes for s in self._stores.values() if not s.on_disk)


def _memory() -> int:
    """Bytes of memory in this machine, or a guess where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def in_bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _contents(x: Any, salt: tuple) -> list[bytes]:
    """A digest of each example."""
    parts = [np.ascontiguousarray(array) for array in keras.tree.flatten(x)]
    start = hashlib.sha256(repr(salt).encode())
    digests = [start.copy() for _ in range(len(parts[0]))]
    for array in parts:
        for digest, example in zip(digests, array, strict=True):
            digest.update(example)
    return [digest.digest() for digest in digests]
