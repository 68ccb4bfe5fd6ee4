"""Give each of several processes an equal part of every batch.

Every process is given the whole data, and all of them read the batches in the same order, so
together they train as one process does. Keras itself does not check this: if the parts differ in
size, the weights of the processes drift apart without an error, and if one process has fewer
batches, the others wait for it.
"""

from typing import Any

import keras

from tlkeras.inputs.order import Changed, Ordered
from tlkeras.inputs.reading import length, without_none
from tlkeras.utils import processes


def share(data: Any, batch_size: int) -> Changed:
    """Return this process's part of every batch of data that has passed `check`.

    If two processes share a batch of 8, the first takes rows 0 to 3 and the second rows 4 to 7.
    Arrays are read in their own order.
    """
    return Changed(Ordered(data, batch_size) if isinstance(data, tuple | list) else data, _part)


def _part(batch: tuple) -> tuple:
    rows = _rows(batch)
    _check_even(rows, "data")
    size = rows // processes.count()
    start = processes.index() * size
    return keras.tree.map_structure(
        lambda array: array[start : start + size], without_none(tuple(batch))
    )


def check(data: Any, batch_size: int, what: str = "training data") -> None:
    """Raise ValueError unless all processes can take equal parts of every batch.

    For a PyDataset only the first and the last batch are checked here; the others are checked when
    they are read.
    """
    active = keras.distribution.distribution()
    if not isinstance(active, keras.distribution.DataParallel):
        raise ValueError(
            f"Expected the {processes.count()} processes to train together, by "
            f"keras.distribution.DataParallel; found {active}. Call tlk.accelerate() before the "
            "model is built."
        )
    if isinstance(data, tuple | list):
        count = _rows(data)
        _check_even(min(batch_size, count), what)
        _check_even(count % batch_size, f"{what}, {count} examples in batches of {batch_size},")
    elif isinstance(data, keras.utils.PyDataset) and length(data):
        for number in {0, len(data) - 1}:
            _check_even(_rows(data[number]), what)
    else:
        raise ValueError(
            f"Expected {what} as arrays, or as a PyDataset that says how many batches it has, for "
            f"each of the {processes.count()} processes takes its part of every batch; found "
            f"{type(data).__name__}. Read the data into arrays, all of them in each process."
        )


def _rows(batch: Any) -> int:
    return len(keras.tree.flatten(batch)[0])


def _check_even(rows: int, what: str) -> None:
    parts = keras.distribution.distribution().device_mesh.devices.size
    if rows % parts:
        raise ValueError(
            f"Expected batches, the last one too, that {parts} devices of {processes.count()} "
            f"processes can share equally; found {what} with a batch of {rows}. Choose a batch "
            f"size that {parts} divides, and leave out or repeat examples until it divides them."
        )
