"""Read the data that `fit` takes, arrays or batches, without using them up."""

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

BATCHES = 8  # how many are checked of data that come in batches; arrays are checked as a whole


def first_batches(data: Any) -> list[tuple]:
    """Return the first batches as tuples of NumPy arrays; arrays are one batch with everything.

    Returns an empty list for a generator. Raises ValueError if other data have no batch.
    """
    if hasattr(data, "__next__"):
        return []  # reading a generator would use it up
    batches = [data] if isinstance(data, tuple | list) else _batches(data, BATCHES)
    found = [keras.tree.map_structure(np.asarray, as_parts(batch)) for batch in batches]
    if not found or (len(found[0]) and np.size(keras.tree.flatten(found[0])[0]) == 0):
        raise ValueError("Expected at least one batch of data; found none.")
    return found


def length(data: Any) -> int | None:
    """Return the batches per epoch of data that come in batches; None if they do not say."""
    try:
        return data.num_batches if isinstance(data, keras.utils.PyDataset) else len(data)
    except (TypeError, NotImplementedError):  # no length, unknown, or infinite
        return None


def look(data: Any) -> tuple[int | None, list[tuple[int, ...]], Any]:
    """Return the maximum number of examples per epoch, the shapes of one, and the first inputs.

    The first inputs are those of the first batch; of arrays, all of them. Returns (None, [], None)
    if the data do not say how many batches they have. Opens data that come in batches once.
    """
    if isinstance(data, tuple | list):
        arrays = keras.tree.flatten(data[0])
        return len(arrays[0]), [tuple(np.shape(array)[1:]) for array in arrays], data[0]
    count = None if hasattr(data, "__next__") else length(data)
    if not count:
        return None, [], None
    first = next(opened(data, 1))[0]
    arrays = keras.tree.flatten(first)
    return count * len(arrays[0]), [tuple(array.shape[1:]) for array in arrays], first


def example_of(data: Any) -> Any:
    """Return a batch, or something with its shapes and types.

    None if that is only possible by opening the data, which could change their order.
    """
    if isinstance(data, tuple | list):
        return data
    if isinstance(data, keras.utils.PyDataset):
        return data[0] if length(data) != 0 else None
    return getattr(data, "element_spec", None)


def shape_of(leaf: Any) -> tuple[int | None, ...] | None:
    """Return the shape of an array or of a spec; None if not even the number of axes is known."""
    try:
        return tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
    except (TypeError, ValueError):
        return None


def opened(data: Any, count: int | None = None) -> Iterator[tuple]:
    """Yield the batches of one pass over the data, or the first `count`, as NumPy arrays."""
    for batch in _batches(data, count):
        yield keras.tree.map_structure(as_numpy, without_none(as_parts(batch)))


def _batches(data: Any, count: int | None = None) -> Iterator[Any]:
    """Return the batches; those of a PyDataset are read ahead by its workers, as in `fit`."""
    if not isinstance(data, keras.utils.PyDataset):
        return itertools.islice(iter(data), count)
    known = length(data)
    end = min(known if known is not None else count or 0, count or sys.maxsize)
    if data.workers < 2 or data.use_multiprocessing or end < 2:
        return (data[number] for number in range(end))
    return _read_ahead(data, end)


def _read_ahead(data: keras.utils.PyDataset, end: int) -> Iterator[Any]:
    numbers = iter(range(end))
    with ThreadPoolExecutor(data.workers) as pool:
        first = itertools.islice(numbers, data.workers)
        waiting = deque(pool.submit(data.__getitem__, number) for number in first)
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(data.__getitem__, n) for n in itertools.islice(numbers, 1))
            yield batch


def as_parts(batch: Any) -> tuple:
    """Return a batch as a tuple (x, y, ...), or (x,) if it is x alone."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def reopen(data: Any, times: int) -> None:
    """Open data that shuffle themselves `times` times, so that they reach the same order again."""
    if not isinstance(data, tuple | list | keras.utils.PyDataset):
        for _ in range(times):
            iter(data)


def class_weights(y: Any, weights: dict[int, float]) -> np.ndarray:
    """Return a weight per example, that of its class, as `fit(class_weight=)` does."""
    y = np.asarray(y)
    labels = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array([weights.get(int(label), 1.0) for label in labels.round()], "float32")


def without_none(batch: tuple | list) -> tuple:
    return tuple(part for part in batch if part is not None)


def as_numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
