"""Store the outputs of frozen parts, computed once for each example.

Outputs are stored by the content of the example (SHA-256), so it does not matter in which order or
how often an example comes. Examples that are new, or newly augmented, are computed.
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
from tlkeras.features.kept import FeatureFile
from tlkeras.inputs.augment import augmented

CHUNK = 64  # examples computed at a time
TAKEN = 4096  # examples read at a time from what an earlier process kept
RUN = 32 * 2**20  # bytes of outputs trained on in one call, of which a few copies are made


class Features:
    """The outputs of one frozen part, by content of the example, in memory or in a file.

    The file has no name in the file system, so a crash leaves nothing behind.

    `computed` counts the examples that went through the part; `tell` is called with this count.
    `run` is how many bytes of outputs should be read at a time.
    """

    def __init__(self, part: FrozenPart, rows: int = 0, room: Callable | None = None):
        """
        Args:
            part: the part whose outputs are stored.
            rows: the expected number of outputs.
            room: returns how many bytes of memory the outputs can take. None: no limit.
        """
        self.part: FrozenPart | None = part
        self.shape, self.row_bytes, self.call = part.shape, part.bytes_per_example, part.call
        self.computed, self.run = 0, RUN
        self.parent: Features | None = None
        self.tell: Callable[[int], None] | None = None
        self._model: keras.Model | None = part.below
        self._tried = False
        self._rows: dict[bytes, int] = {}  # digest of an example -> the row of its first view
        self._count, self._chunk = 0, 0
        self._expected, self._room = rows, room
        self._array: np.ndarray | None = None
        self._file: Any = None
        self.kept: FeatureFile | None = None

    def go_on_from(self, part: FrozenPart, parent: "Features | None") -> None:
        """Use this part to compute outputs from now on, starting from those of `parent` if given.

        The model that computed the first outputs can have been trained further since.
        """
        self.part, self.parent, self._model, self._tried = part, parent, part.below, False
        if parent is not None:
            assert parent.part is not None
            self._model = graph.split(part.below, parent.part.cut)[1]

    def rest(self) -> None:
        """Keep only the outputs, and no reference to a model, until `go_on_from` is called."""
        self.part = self.parent = self._model = self.tell = None

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._count * self.row_bytes

    @property
    def held(self) -> int:
        """Bytes of memory that the outputs take or are expected to take."""
        if self.on_disk:
            return 0
        rows = self._expected if self._array is None else len(self._array)
        return rows * self.row_bytes

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def for_one_epoch(self) -> "Features":
        """Return empty Features of the same part, in a file, for outputs used in one epoch only."""
        assert self.part is not None
        other = Features(self.part, self._expected, self._room)
        other._tried = self._tried
        other.to_disk()
        return other

    def to_disk(self) -> None:
        """Move the outputs to a file, and store new ones there."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.run = min(RUN, self._room() // 8) if self._room else RUN
        if self._array is not None:
            self._file.write(self._array[: self._count].reshape(-1).view("uint8").data)
            self._array = self._array[:0].copy()

    def try_on(self, x: Any, augment: Callable) -> None:
        """Test the part on augmented examples, without storing outputs or using up random numbers.

        Raises:
            NotExact: the part fails the test.
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
        """Return the rows of some examples; outputs of new examples are computed and stored.

        Args:
            x: inputs of the model: NumPy arrays (examples, ...).
            augment: called on x in training mode, once per view, before the model.
            views: how many augmented versions of an example are stored, in consecutive rows.
            mark: identifies `augment` (`FeatureCache.mark`).

        Returns:
            (examples,) integers: the first row of each example.

        Raises:
            NotExact: examples cannot be told apart, or the part fails its test.
        """
        try:
            keys = identity.of_examples(x, repr((mark, views)).encode() if augment else b"")
        except identity.Unknown as error:
            raise NotExact(str(error)) from None
        new = list({key: i for i, key in enumerate(keys) if key not in self._rows}.values())
        kept = self.kept if augment is None else None  # every process draws its own views
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

    def _take(self, kept: FeatureFile, keys: Sequence[bytes], new: list[int]) -> list[int]:
        """Read outputs that an earlier process kept; return the examples left to compute."""
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
        """Return the outputs in these rows: (rows, ...)."""
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
        """Yield the inputs of the model for each view of these examples."""
        if self.parent is not None:
            rows = self.parent.find(x, augment, views, mark)
            yield from (self.parent.read(rows + view) for view in range(views))
        elif augment is None:
            yield x
        else:
            yield from (augmented(augment, x) for _ in range(views))

    def _compute(self, x: Any) -> np.ndarray:
        """Return the model's output for at most one chunk.

        Inputs are always padded to the chunk size, because a new batch size would be retraced.
        """
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
        """Make room for this many rows in memory, or else move to a file."""
        assert self._array is not None
        room = self._room() // self.row_bytes if self._room else math.inf
        for size in (max(rows, self._expected, 2 * len(self._array)), rows):
            if size + len(self._array) <= room:  # old and new array exist at the same time
                larger = np.empty((size, *self.shape), self._array.dtype)
                larger[: self._count] = self._array[: self._count]
                self._array = larger
                return
        self.to_disk()


class FeatureCache:
    """A cache of the outputs of frozen parts, shared by stages, runs and evaluations.

    Pass the same cache to several calls of `fit_stages` and `evaluate`, and each example goes
    through a frozen part only once. The outputs are freed together with the cache.

    Args:
        limit: the maximum bytes of memory for outputs; further outputs go to temporary files.
            None: a quarter of the machine's memory.
        disk: store everything in temporary files.
        folder: also store outputs in this folder for other processes. Only outputs of parts that
            consist of Keras's own layers, without augmentation, are stored. The folder holds up to
            4 GiB, and a tenth of the free disk space at most: when it is full, the files that
            have been unused for longest are removed. `tlkeras cache --clear` empties the default
            folder.

    Raises:
        ValueError: `limit` is negative.

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
        """Return the Features that store the outputs of `part`.

        Args:
            part: the frozen part.
            rows: the expected number of outputs.
            parent: outputs at an earlier cut of the same model, from which to compute them.

        Raises:
            NotExact: the outputs fit neither in memory nor on the disk.
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
                store.kept = FeatureFile(self.folder, part)
            self._stores[part.fingerprint] = store
        store = self._stores[part.fingerprint]
        store.go_on_from(part, parent)
        return store

    def fits(self, part: FrozenPart, rows: int) -> bool:
        """True if the cache already has outputs of `part`, or would store them in memory."""
        return part.fingerprint in self._stores or (
            not self.disk and rows * part.bytes_per_example <= self._left(part.fingerprint)
        )

    @property
    def _used(self) -> int:
        return sum(store.held for store in self._stores.values())

    def _left(self, mark: bytes) -> int:
        """Return the bytes of memory left for the outputs of one part, besides those of others."""
        own = self._stores.get(mark)
        return self.limit - self._used + (0 if own is None else own.held)

    def mark(self, augment: Callable | None, call: Blocks) -> bytes:
        """Return a digest that identifies the views that `augment` draws.

        It stays the same throughout one call of `fit_stages`.
        """
        if augment is None:
            return b""
        for blocks, known, mark in self._marks:
            if blocks is call and known is augment:
                return mark
        try:
            mark = identity.of_augmentation(augment)
        except Exception:  # its settings can be anything
            mark = os.urandom(32)
        self._marks = [(b, a, m) for b, a, m in self._marks if b is call] + [(call, augment, mark)]
        return mark

    def keep(self, call: Blocks, parts: Sequence[FrozenPart] | None = None) -> None:
        """Discard outputs that only another call of `fit_stages` can use.

        If `parts` is given, also discard the outputs of all other parts.
        """
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
    """Return the machine's memory in bytes, or 8 GiB if the system does not say."""
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
