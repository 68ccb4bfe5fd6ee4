"""Outputs of frozen parts, computed once for each example.

Outputs are kept by the content of the example (SHA-256), so it does not matter in which order
or how often an example comes; one that was never seen, or was augmented anew, is computed.
"""

import functools
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import graph
from tlkeras.blocks.find import Blocks
from tlkeras.features import exactness, identity
from tlkeras.features.exactness import NotExact
from tlkeras.features.frozen_part import FrozenPart
from tlkeras.features.kept import Kept
from tlkeras.inputs.augment import augmented

CHUNK = 64  # examples computed at a time
TAKEN = 4096  # examples taken at a time from what an earlier process kept
RUN = 32 * 2**20  # bytes of outputs handed over in one call, of which a few copies are made


class Features:
    """The outputs of one frozen part, kept by content of the example, in memory or in a file.

    The file has no name in the file system, so nothing is left behind by a crash.

    `computed` counts the examples that went through that part; `tell` is called with it. `run`
    is how many bytes of outputs to take out at a time.
    """

    def __init__(self, part: FrozenPart, rows: int = 0, room: Callable | None = None):
        """
        Args:
            rows: how many are expected.
            room: says how many bytes of memory the outputs may take; None: any number.
        """
        self.part: FrozenPart | None = part
        self.shape, self.row_bytes, self.call = part.shape, part.bytes_per_example, part.call
        self.computed, self.run = 0, RUN
        self.parent: Features | None = None
        self.tell: Callable[[int], None] | None = None
        self._model: keras.Model | None = part.below
        self._tried = False
        self._rows: dict[bytes, int] = {}  # content of an example -> the first of its views
        self._count, self._chunk = 0, 0
        self._expected, self._room = rows, room
        self._array: np.ndarray | None = None
        self._file: Any = None
        self.kept: Kept | None = None

    def go_on_from(self, part: FrozenPart, parent: "Features | None") -> None:
        """Computes with this part from now on, from outputs at an earlier cut if there are any.

        The model that outputs were first computed with may have been trained since.
        """
        self.part, self.parent, self._model, self._tried = part, parent, part.below, False
        if parent is not None:
            assert parent.part is not None
            self._model = graph.split(part.below, parent.part.cut)[1]

    def rest(self) -> None:
        """Keeps the outputs alone, and no model alive, until `go_on_from` is called."""
        self.part = self.parent = self._model = self.tell = None

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._count * self.row_bytes

    @property
    def held(self) -> int:
        """Bytes of memory that are taken or promised."""
        if self.on_disk:
            return 0
        rows = self._expected if self._array is None else len(self._array)
        return rows * self.row_bytes

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def for_one_epoch(self) -> "Features":
        """An empty one of the same part, in a file, for outputs that nobody wants again."""
        assert self.part is not None
        other = Features(self.part, self._expected, self._room)
        other._tried = self._tried
        other.to_disk()
        return other

    def to_disk(self) -> None:
        """Keeps outputs in a file from now on."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.run = min(RUN, self._room() // 8) if self._room else RUN
        if self._array is not None:
            self._file.write(self._array[: self._count].reshape(-1).view("uint8").data)
            self._array = self._array[:0].copy()

    def try_on(self, x: Any, augment: Callable) -> None:
        """Tries the part on augmented examples; keeps nothing, and draws no numbers.

        Raises:
            NotExact: it fails its trial.
        """
        assert self.part is not None
        with exactness.undone(augment), keras.StatelessScope():
            x = augmented(augment, x)
        exactness.check(self.part.below, x, self.part.doubt)
        store: Features | None = self
        while store is not None:
            store._tried, store = True, store.parent

    def find(
        self, x: Any, augment: Callable | None = None, views: int = 1, mark: bytes = b""
    ) -> np.ndarray:
        """The rows of some examples, computed where they are new.

        Args:
            x: what the model takes: NumPy arrays (examples, ...).
            augment: called on x in training mode, once a view, before the model.
            views: how many augmented versions of an example are kept, in consecutive rows.
            mark: tells `augment` from others (`FeatureCache.mark`).

        Returns:
            (examples,) integers: the first row of each.

        Raises:
            NotExact: examples cannot be told apart, or the part fails its trial.
        """
        try:
            keys = identity.of_examples(x, repr((mark, views)).encode() if augment else b"")
        except identity.Unknown as error:
            raise NotExact(str(error)) from None
        new = list({key: i for i, key in enumerate(keys) if key not in self._rows}.values())
        kept = self.kept if augment is None else None  # views are drawn anew in every process
        if kept:
            new = self._take(kept, keys, new)
        self._chunk = self._chunk or (CHUNK if kept else min(CHUNK, len(new)))
        for start in range(0, len(new), self._chunk or 1):
            part = new[start : start + self._chunk]
            some = keras.tree.map_structure(lambda array, part=part: array[part], x)
            given = self._inputs(some, augment, views, mark)
            seen = [self._compute(inputs) for inputs in given]
            for number, i in enumerate(part):
                self._rows[keys[i]] = self._count + views * number
            self._append(np.stack(seen, 1).reshape(-1, *self.shape))
            self.computed += len(part)
            if self.tell is not None:
                self.tell(self.computed)
        if kept and new:
            computed = [keys[i] for i in new]
            kept.add(computed, self.read(np.array([self._rows[key] for key in computed])))
        return np.array([self._rows[key] for key in keys], "int64")

    def _take(self, kept: Kept, keys: Sequence[bytes], new: list[int]) -> list[int]:
        """Takes the outputs that an earlier process kept; which examples are left to compute."""
        left = list[int]()
        for start in range(0, len(new), TAKEN):
            part = new[start : start + TAKEN]
            found, rows = kept.rows([keys[i] for i in part])
            self._rows |= {keys[part[n]]: self._count + place for place, n in enumerate(found)}
            if found:
                self._append(rows)
            left += [i for i in part if keys[i] not in self._rows]
        return left

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The outputs in these rows: (rows, ...)."""
        if self._array is None or (len(rows) and rows.max() >= self._count):
            raise ValueError(f"Expected rows that `find` gave, below {self._count}; found {rows}.")
        if self._file is None:
            return self._array[rows]
        found = np.empty((len(rows), *self.shape), self._array.dtype)
        view = found.reshape(len(rows), -1).view("uint8")
        for place, row in zip(view, rows, strict=True):
            self._file.seek(int(row) * view.shape[1])
            if self._file.readinto(place.data) != len(place):
                raise OSError("The file of cached outputs ends early: was it cut off?")
        return found

    def _inputs(self, x: Any, augment: Callable | None, views: int, mark: bytes) -> Iterator[Any]:
        """What the model is given for each view of these examples."""
        if self.parent is not None:
            rows = self.parent.find(x, augment, views, mark)
            yield from (self.parent.read(rows + view) for view in range(views))
        elif augment is None:
            yield x
        else:
            yield from (augmented(augment, x) for _ in range(views))

    def _compute(self, x: Any) -> np.ndarray:
        """The model's output for at most a chunk, always computed in batches of one size, since
        another size would be traced anew."""
        assert self.part is not None and self._model is not None
        if self.part.doubt and not self._tried:
            exactness.check(self._model, x, self.part.doubt)
        self._tried = True
        count = len(keras.tree.flatten(x)[0])
        rows = np.arange(self._chunk) % count
        padded = keras.tree.map_structure(lambda array: array[rows], x) if count < len(rows) else x
        return np.asarray(self._model.predict_on_batch(padded))[:count]

    def _append(self, outputs: np.ndarray) -> None:
        if self._array is None:
            self._array = np.empty((0, *self.shape), outputs.dtype)
        end = self._count + len(outputs)
        if self._file is None and end > len(self._array):
            self._grow(end)
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(outputs).reshape(-1).view("uint8").data)
        else:
            self._array[self._count : end] = outputs
        self._count = end

    def _grow(self, rows: int) -> None:
        """Makes room for so many rows, in memory or else in a file."""
        assert self._array is not None
        room = self._room() // self.row_bytes if self._room else math.inf
        for size in (max(rows, self._expected, 2 * len(self._array)), rows):
            if size + len(self._array) <= room:  # both are there for a moment
                larger = np.empty((size, *self.shape), self._array.dtype)
                larger[: self._count] = self._array[: self._count]
                self._array = larger
                return
        self.to_disk()


class FeatureCache:
    """Outputs of frozen parts, to be shared by stages, runs and evaluations.

    Give one to several calls of `fit_stages` and `evaluate` and each example goes through a
    frozen part once. Outputs are let go of with the cache.

    Args:
        limit: bytes of memory that outputs may take; what is more goes to a temporary file. None:
            a quarter of the machine's memory.
        disk: keep all in a temporary file.
        folder: keep outputs there for other processes, too, until `tlkeras cache --clear` or until
            4 GiB are full: those of parts made of Keras's own layers alone, without augmentation.

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

    def __init__(
        self,
        limit: int | None = None,
        disk: bool = False,
        folder: str | os.PathLike | None = None,
    ):
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be a number of bytes, 0 or more; found {limit}.")
        self.limit = _memory() // 4 if limit is None else limit
        self.disk, self.folder = disk, None if folder is None else Path(folder).expanduser()
        self._stores: dict[bytes, Features] = {}
        self._marks: list[tuple[Blocks, Callable, bytes]] = []

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
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if not self.fits(part, rows) and size > 0.9 * free:
                raise NotExact(
                    f"the outputs of {part.block} take {in_bytes(size)}, more than memory (limit "
                    f"{in_bytes(self.limit)}) and the disk ({in_bytes(free)} free) hold"
                )
            store = Features(part, rows, functools.partial(self._left, part.fingerprint))
            if not self.fits(part, rows):
                store.to_disk()
            if self.folder is not None and part.call is None and not part.doubt:
                store.kept = Kept(self.folder, part)
            self._stores[part.fingerprint] = store
        store = self._stores[part.fingerprint]
        store.go_on_from(part, parent)
        return store

    def fits(self, part: FrozenPart, rows: int) -> bool:
        """Whether the outputs are in memory or would go there."""
        return part.fingerprint in self._stores or (
            not self.disk and rows * part.bytes_per_example <= self._left(part.fingerprint)
        )

    @property
    def _used(self) -> int:
        return sum(store.held for store in self._stores.values())

    def _left(self, mark: bytes) -> int:
        """Bytes of memory that the outputs of one part may take beside those of all others."""
        own = self._stores.get(mark)
        return self.limit - self._used + (0 if own is None else own.held)

    def mark(self, augment: Callable | None, call: Blocks) -> bytes:
        """What tells the views that `augment` draws from those of others, all through one call
        of `fit_stages`."""
        if augment is None:
            return b""
        for blocks, known, mark in self._marks:
            if blocks is call and known is augment:
                return mark
        try:
            mark = identity.of_augmentation(augment)
        except Exception:  # whatever is among its settings
            mark = os.urandom(32)
        self._marks = [(b, a, m) for b, a, m in self._marks if b is call] + [(call, augment, mark)]
        return mark

    def keep(self, call: Blocks, parts: Sequence[FrozenPart] | None = None) -> None:
        """Lets go of outputs that only another call could use, and of those of all but `parts`."""
        for store in self._stores.values():
            store.rest()
        marks = None if parts is None else {part.fingerprint for part in parts}
        self._stores = {
            mark: store
            for mark, store in self._stores.items()
            if len(store)
            and (store.call is None or store.call is call)
            and (marks is None or mark in marks)
        }


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
