"""The batches of an epoch in a repeatable order, for resuming and for the cache.

Arrays are shuffled here, with a seed. Epoch 7 has the same order whether or not the process was
killed in epoch 5, and whether it trains on images or on cached features. Data with an order of
their own keep it. To resume these, it is enough to count how often they were opened, because a
shuffled `tf.data.Dataset` takes a new order each time.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.inputs import reading
from tlkeras.inputs.augment import augmented_batch
from tlkeras.inputs.reading import as_numpy, without_none


class Ordered(keras.utils.PyDataset):
    """Arrays, or the batches of a PyDataset, in a new order each epoch.

    The code that runs the epochs must call `begin` with the number of each epoch.

    Args:
        data: (x, y) or (x, y, sample_weight), each an array or a structure of arrays; or a
            PyDataset. The batches of a PyDataset without end stay in their own order.
        batch_size: for arrays; the last batch of a pass over the data can be smaller.
        seed: numbers that fix the order together with the number of the pass. None: the order of
            the data.
        augment: called on each batch in training mode.
        steps: batches per epoch, however many the data have; each epoch continues where the last
            one ended. None: one pass over the data.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: Sequence[int] | None = None,
        augment: Callable | None = None,
        steps: int | None = None,
    ):
        self.arrays: tuple | None = None
        if isinstance(data, keras.utils.PyDataset):
            forked = data.use_multiprocessing and augment is None  # Keras cannot run in a fork
            super().__init__(_workers(data), forked, data.max_queue_size)
            self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end
            self.count = self.whole = reading.length(data) or 0
        else:
            super().__init__()
            arrays = keras.tree.map_structure(as_numpy, without_none(data))
            self.arrays = keras.tree.lists_to_tuples(arrays)  # as fit does: tf.data takes no lists
            self.count = len(keras.tree.flatten(self.arrays)[0])
            self.whole = -(-self.count // batch_size)
        self.data, self.batch_size, self.seed, self.augment = data, batch_size, seed, augment
        self.steps = steps or self.whole
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.first, last = epoch * self.steps, (epoch + 1) * self.steps - 1
        laps = range(self.first // self.whole, last // self.whole + 1) if self.whole else ()
        self.orders = {lap: self._order_of(lap) for lap in laps}

    @property
    def order(self) -> np.ndarray:
        """The order of the examples of arrays, or of the batches of a PyDataset."""
        return self.orders[min(self.orders)]

    def _order_of(self, lap: int) -> np.ndarray:
        order = np.arange(self.count)
        if self.seed is not None:
            np.random.default_rng([*self.seed, lap]).shuffle(order)
        return order

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> tuple:
        number += self.first
        if self.whole:
            lap, number = divmod(number, self.whole)
            order = self.orders[lap]
        if self.arrays is None:
            batch = tuple(self.data[int(order[number]) if self.whole else number])
        else:
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            batch = keras.tree.map_structure(lambda array: array[rows], self.arrays)
        if self.augment is None:
            return batch
        return keras.tree.map_structure(
            as_numpy, augmented_batch(self.augment, without_none(batch))
        )


class Changed(keras.utils.PyDataset):
    """The batches of a PyDataset, each after `change`."""

    def __init__(self, data: keras.utils.PyDataset, change: Callable[[tuple], tuple]):
        super().__init__(_workers(data), False, data.max_queue_size)
        self.data, self.change = data, change
        self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end

    def begin(self, epoch: int) -> None:
        if hasattr(self.data, "begin"):
            self.data.begin(epoch)

    @property
    def num_batches(self) -> int | None:
        return reading.length(self.data)

    def __len__(self) -> int:  # Keras 3.12 asks for it
        return len(self.data)

    def __getitem__(self, number: int) -> tuple:
        return self.change(self.data[number])


def _workers(data: keras.utils.PyDataset) -> int:
    """Return how many workers of a PyDataset can be used: one on backends other than TensorFlow.

    There, `fit` takes a batch from the workers' queue to build the model, and then trains from the
    second one on.
    """
    if data.workers > 1 and keras.backend.backend() != "tensorflow":
        warnings.warn(
            f"{type(data).__name__} is read by one worker instead of {data.workers}: on "
            f"{keras.backend.backend()}, Keras's fit shifts the batches of several.",
            RuntimeWarning,
            stacklevel=4,
        )
        return 1
    return int(data.workers)


def prepared_batch(prepare: Callable, batch: tuple) -> tuple:
    """Return a batch of arrays after `prepare`, as NumPy; it is given texts as Python lists."""
    given = keras.tree.map_structure(
        lambda part: part.tolist() if part.dtype.kind in "US" else part,
        keras.tree.map_structure(as_numpy, without_none(batch)),
    )
    return keras.tree.map_structure(as_numpy, without_none(prepare(*given)))


def prepared(data: Any, batch_size: int, prepare: Callable) -> Any:
    """Return data preprocessed by `prepare`, as a KerasHub task does, in the order they have."""
    if isinstance(data, tuple | list):
        data = Ordered(data, batch_size)
    if isinstance(data, keras.utils.PyDataset):
        return Changed(data, functools.partial(prepared_batch, prepare))
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
    """Return data with augmentation and, for arrays and PyDatasets, in an order fixed by a seed.

    Other data keep their own order. `steps` is the number of batches per epoch for arrays and
    PyDatasets; for other data, pass it to `fit(steps_per_epoch=)`.
    """
    if isinstance(data, tuple | list | keras.utils.PyDataset):
        return Ordered(data, batch_size, seed, augment, steps)
    if augment is None:
        return data
    if hasattr(data, "map"):  # tf.data: inside the pipeline
        return data.map(lambda *batch: augmented_batch(augment, batch))
    raise ValueError(
        f"Stage(augment=...) needs arrays, a tf.data.Dataset or a PyDataset; found "
        f"{type(data).__name__}. Augment in the pipeline itself."
    )
