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
        self.order = np.arange(self.count)
        if self.seed is not None:
            np.random.default_rng([*self.seed, epoch]).shuffle(self.order)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, number: int) -> tuple:
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        x, *rest = keras.tree.map_structure(lambda array: array[rows], self.arrays)
        return (augmented(self.augment, x), *rest)


class Reordered(keras.utils.PyDataset):
    """The batches of a PyDataset, in a new order each epoch; otherwise like `Shuffled`."""

    def __init__(
        self,
        data: keras.utils.PyDataset,
        seed: Sequence[int],
        augment: Callable | None = None,
    ):
        super().__init__()
        self.data, self.seed, self.augment = data, tuple(seed), augment
        self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.data))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple:
        x, *rest = self.data[int(self.order[number])]
        return (augmented(self.augment, x), *rest)


def ordered(data: Any, batch_size: int, seed: Sequence[int], augment: Callable | None) -> Any:
    """Data with an order that a seed fixes, where they do not bring one, and augmentation."""
    if isinstance(data, tuple | list):
        return Shuffled(data, batch_size, seed, augment)
    if isinstance(data, keras.utils.PyDataset):
        return Reordered(data, seed, augment)
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
