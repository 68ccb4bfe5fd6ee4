"""Reads what `fit` takes, arrays or data that come in batches, without using it up."""

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

BATCHES = 8  # looked at, of data that comes in batches; arrays are looked at whole


def first_batches(data: Any) -> list[tuple]:
    """The first batches of `data` as tuples of NumPy arrays (arrays: one batch, all of it)."""
    if hasattr(data, "__next__"):
        return []  # a generator: looking would use it up
    batches = [data] if isinstance(data, tuple | list) else _batches(data, BATCHES)
    found = [keras.tree.map_structure(np.asarray, as_parts(batch)) for batch in batches]
    if not found or (len(found[0]) and np.size(keras.tree.flatten(found[0])[0]) == 0):
        raise ValueError("Expected at least one batch of training data; found none.")
    return found


def length(data: Any) -> int | None:
    """Batches in an epoch of data that come in batches; None if they do not say."""
    try:
        return data.num_batches if isinstance(data, keras.utils.PyDataset) else len(data)
    except (TypeError, NotImplementedError):  # no length, unknown, or infinite
        return None


def look(data: Any) -> tuple[int | None, list[tuple[int, ...]], Any]:
    """How many examples an epoch has, at most, the shapes of one, and the first batch (all of
    arrays): (None, [], None) where data do not say how many. Opens what comes in batches once."""
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
    """A batch, or what has its shapes and types; None where looking would count as an opening."""
    if isinstance(data, tuple | list):
        return data
    if isinstance(data, keras.utils.PyDataset):
        return data[0] if length(data) != 0 else None
    return getattr(data, "element_spec", None)


def shape_of(leaf: Any) -> tuple[int | None, ...] | None:
    """None where not even the number of axes is known."""
    try:
        return tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
    except (TypeError, ValueError):
        return None


def opened(data: Any, count: int | None = None) -> Iterator[tuple]:
    """One pass over data that come in batches, or over `count` of them, as NumPy arrays."""
    for batch in _batches(data, count):
        yield keras.tree.map_structure(as_numpy, without_none(as_parts(batch)))


def _batches(data: Any, count: int | None = None) -> Iterator[Any]:
    """Those of a PyDataset are read ahead by as many threads as it asks for, as in `fit`."""
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
    """(x, y, ...) also where a batch is x alone."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def reopen(data: Any, times: int) -> None:
    """Brings data that shuffle themselves to where they were after that many openings."""
    if not isinstance(data, tuple | list | keras.utils.PyDataset):
        for _ in range(times):
            iter(data)


def class_weights(y: Any, weights: dict[int, float]) -> np.ndarray:
    """A weight for each example from the weight of its class, as `fit(class_weight=)` makes it."""
    y = np.asarray(y)
    labels = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array([weights.get(int(label), 1.0) for label in labels.round()], "float32")


def without_none(batch: tuple | list) -> tuple:
    return tuple(part for part in batch if part is not None)


def as_numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
