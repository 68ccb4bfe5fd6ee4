"""The batches of an epoch, in an order that can be repeated: for resuming, and for the cache.

Arrays are shuffled here, by a seed, so that epoch 7 has the same order whether or not the process
was killed in epoch 5, and whether images or cached features are trained on. Data that bring
their own order keep it; what is counted is how often they were opened, because a shuffled
`tf.data.Dataset` takes a new order each time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.inputs import reading
from tlkeras.inputs.reading import as_numpy, without_none


class Shuffled(keras.utils.PyDataset):
    """Arrays as batches, in a new order each epoch.

    Args:
        arrays: (x, y) or (x, y, sample_weight); each an array or a structure of arrays.
        batch_size: examples in a batch; the last one of an epoch may be smaller.
        seed: numbers that, with the epoch, fix the order; None: the order of the arrays.
        augment: called on each batch of x, as in training.

    Whoever runs the epochs calls `begin` with the number of each.
    """

    def __init__(
        self,
        arrays: tuple | list,
        batch_size: int,
        seed: Sequence[int] | None,
        augment: Callable | None = None,
    ):
        super().__init__()
        self.arrays = keras.tree.map_structure(as_numpy, without_none(arrays))
        self.count = len(keras.tree.flatten(self.arrays)[0])
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.order = self.order_of(epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        order = np.arange(self.count)
        if self.seed is not None:
            np.random.default_rng([*self.seed, epoch]).shuffle(order)
        return order

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, number: int) -> tuple:
        return self.batch(number, self.order)

    def batch(self, number: int, order: np.ndarray) -> tuple:
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        x, *rest = keras.tree.map_structure(lambda array: array[rows], self.arrays)
        return (augmented(self.augment, x), *rest)


class Reordered(keras.utils.PyDataset):
    """The batches of a PyDataset, in a new order each epoch; otherwise like `Shuffled`.

    Those of one without end stay in their order.
    """

    def __init__(
        self,
        data: keras.utils.PyDataset,
        seed: Sequence[int],
        augment: Callable | None = None,
    ):
        forked = data.use_multiprocessing and augment is None  # what Keras computes is not forked
        super().__init__(data.workers, forked, data.max_queue_size)
        self.data, self.seed, self.augment = data, tuple(seed), augment
        self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.order = self.order_of(epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self.seed, epoch]).permutation(len(self))

    def __len__(self) -> int:
        return reading.length(self.data) or 0

    def __getitem__(self, number: int) -> tuple:
        return self.batch(number, self.order)

    def batch(self, number: int, order: np.ndarray) -> tuple:
        x, *rest = self.data[int(order[number]) if len(order) else number]
        return (augmented(self.augment, x), *rest)


class Stepped(keras.utils.PyDataset):
    """So many batches an epoch, whatever the data have: one epoch goes on where the last ended."""

    def __init__(self, data: Shuffled | Reordered, steps: int):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self.data, self.steps = data, steps
        self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.first, whole = epoch * self.steps, len(self.data)
        laps = (
            range(self.first // whole, (self.first + self.steps - 1) // whole + 1) if whole else ()
        )
        self.orders = {lap: self.data.order_of(lap) for lap in laps}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> tuple:
        number += self.first
        if not len(self.data):  # without end
            return self.data.batch(number, np.arange(0))
        lap, number = divmod(number, len(self.data))
        return self.data.batch(number, self.orders[lap])


class Prepared(keras.utils.PyDataset):
    """The batches of a PyDataset as a KerasHub task's own preprocessing makes them."""

    def __init__(self, data: keras.utils.PyDataset, prepare: Callable):
        super().__init__(data.workers, False, data.max_queue_size)
        self.data, self.prepare = data, prepare
        self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end

    def begin(self, epoch: int) -> None:
        if hasattr(self.data, "begin"):
            self.data.begin(epoch)

    @property
    def num_batches(self) -> int | None:
        return reading.length(self.data)

    def __getitem__(self, number: int) -> tuple:
        return prepared_batch(self.prepare, self.data[number])


def prepared_batch(prepare: Callable, batch: tuple) -> tuple:
    """A batch of arrays after `prepare`, as NumPy; texts are handed over as Python has them."""
    given = keras.tree.map_structure(
        lambda part: part.tolist() if part.dtype.kind in "US" else part,
        keras.tree.map_structure(as_numpy, without_none(batch)),
    )
    return keras.tree.map_structure(as_numpy, without_none(prepare(*given)))


def prepared(data: Any, batch_size: int, prepare: Callable) -> Any:
    """Data, in any order they have, as a KerasHub task's own preprocessing makes them."""
    if isinstance(data, tuple | list):
        data = Shuffled(data, batch_size, seed=None)
    if isinstance(data, keras.utils.PyDataset):
        return Prepared(data, prepare)
    if hasattr(data, "map"):
        return data.map(prepare)
    raise ValueError(
        "Expected arrays, a tf.data.Dataset or a PyDataset for a model with its own preprocessor; "
        f"found {type(data).__name__}. Preprocess them first, and set model.preprocessor = None."
    )


def ordered(
    data: Any,
    batch_size: int,
    seed: Sequence[int],
    augment: Callable | None,
    steps: int | None = None,
) -> Any:
    """Data with an order that a seed fixes, where they do not bring one, and augmentation.

    With `steps`, data without an order of their own take so many batches an epoch; others are
    left to `fit(steps_per_epoch=)`.
    """
    found: Shuffled | Reordered | None = None
    if isinstance(data, tuple | list):
        found = Shuffled(data, batch_size, seed, augment)
    elif isinstance(data, keras.utils.PyDataset):
        found = Reordered(data, seed, augment)
    if found is not None:
        return Stepped(found, steps) if steps else found
    if augment is None:
        return data
    if hasattr(data, "map"):  # tf.data: inside the pipeline
        return data.map(lambda x, *rest: (augment(x, training=True), *rest))
    raise ValueError(
        f"Stage(augment=...) needs arrays, a tf.data.Dataset or a PyDataset; found "
        f"{type(data).__name__}. Augment in the pipeline itself."
    )


def augmented(augment: Callable | None, x: Any) -> Any:
    """`x` after `augment` in training mode, as NumPy."""
    return x if augment is None else keras.tree.map_structure(as_numpy, augment(x, training=True))
