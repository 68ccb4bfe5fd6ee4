"""Learning from pictures without labels: two views of one thing are to lie near each other.

>>> float(tlk.flavors.contrastive.nt_xent(np.eye(2), np.eye(2), temperature=0.01)[0])
0.0
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["Pairs", "SimCLR", "nt_xent"]


def nt_xent(first: Any, second: Any, temperature: float = 0.1) -> Any:
    """Cross-entropy of finding one's partner among all others of the batch.

    Args:
        first, second: (n, d), vectors of two views of n things, of any length.
        temperature: what cosines are divided by. The smaller, the more the nearest others count.

    Returns:
        (n,), for each thing the mean over its two views, in nats. By chance: log(2n - 1). It is
        half of what `keras_cv.losses.SimCLRLoss` gives, which adds the two up.

    Source: Chen et al. 2020, arXiv:2002.05709 (SimCLR), equation 1.

    >>> vectors = np.eye(4, dtype="float32")
    >>> [round(float(x), 3) for x in tlk.flavors.contrastive.nt_xent(vectors, vectors, 1.0)]
    [1.165, 1.165, 1.165, 1.165]
    """
    n = ops.shape(first)[0]
    views = ops.normalize(ops.cast(ops.concatenate([first, second]), "float32"), axis=1)
    cosines = ops.matmul(views, ops.transpose(views)) / temperature
    cosines = cosines - 1e9 * ops.eye(2 * n)  # nobody is its own partner
    partner = ops.concatenate([ops.arange(n) + n, ops.arange(n)])
    losses = keras.losses.sparse_categorical_crossentropy(partner, cosines, from_logits=True)
    return ops.mean(ops.reshape(losses, (2, -1)), axis=0)


class SimCLR(keras.Model):
    """Teaches `encoder`, in place, by views of pictures; `compile(optimizer)` and `fit(images)`.

    Two views of each picture are made by `augment`; with `fit(Pairs(...))` one each of two pictures
    of one thing. `fit`'s history watches for collapse: "partners" is the mean cosine of two views
    of one thing, "others" that of different things. If others rise to 1, it says the same of all.

    Args:
        encoder: from pictures to features, (batch, n), or maps, (batch, height, width, n), which
            are averaged over place. It is what one keeps; what is frozen in it stays so.
        augment: a layer that changes a picture at random, seen only in training; None: nothing.
        units: width of the projection, two Dense layers that are thrown away afterwards.
        loss: of two batches of projections, (batch, units): a number, or one for each pair. None:
            `nt_xent`; `keras_cv.losses.SimCLRLoss(0.1)` does, or your own.

    Shapes: pictures (batch, height, width, channels), or two such, to (batch, 2, units).
    To save, save `encoder`. Source: Chen et al. 2020, as of `nt_xent`.

    >>> encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> model = tlk.flavors.contrastive.SimCLR(encoder, keras.layers.RandomFlip())
    >>> model.compile("adam")
    >>> history = model.fit(np.random.uniform(0, 255, (6, 8, 8, 3)), verbose=0)
    >>> sorted(history.history)
    ['loss', 'others', 'partners']
    """

    def __init__(
        self, encoder: keras.Model, augment: keras.layers.Layer | None = None, units: int = 64,
        loss: Callable | None = None, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.encoder, self.augment = encoder, augment
        self.pair_loss = loss or nt_xent
        width = encoder.output_shape[-1]
        hidden = keras.layers.Dense(width, "relu")
        self.projection = keras.Sequential([hidden, keras.layers.Dense(units)])
        self.projection.build((None, width))
        self.watched = [keras.metrics.Mean(name) for name in ("partners", "others")]

    def call(self, inputs: Any, training: bool = False) -> Any:
        first, second = inputs if isinstance(inputs, list | tuple) else (inputs, inputs)
        if self.augment is not None:
            first, second = (self.augment(x, training=training) for x in (first, second))
        features = self.encoder(ops.concatenate([first, second]), training=training)
        if len(features.shape) > 2:
            features = ops.mean(features, axis=tuple(range(1, len(features.shape) - 1)))
        first, second = ops.split(self.projection(features), 2)
        return ops.stack([first, second], axis=1)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        return sum(self.losses, ops.mean(self.pair_loss(y_pred[:, 0], y_pred[:, 1])))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        views = ops.normalize(ops.cast(y_pred, "float32"), axis=-1)
        partners = ops.sum(views[:, 0] * views[:, 1], axis=-1)
        n = ops.cast(ops.shape(views)[0], "float32")
        everybody = ops.sum(ops.mean(views, axis=(0, 1)) ** 2)  # mean of all 2n x 2n cosines
        own = (ops.mean(partners) + 1) / (2 * n)  # of them, those with itself and its partner
        self.watched[0].update_state(partners)
        self.watched[1].update_state((everybody - own) / (1 - 1 / n))
        return self.get_metrics_result()


class Pairs(keras.utils.PyDataset):
    """Batches of two pictures of one thing each, for `SimCLR`: a new order, new pairs each epoch.

    Every picture comes once an epoch as the first; its partner is another one of its group, drawn
    anew, or itself where there is no other. A last batch that is not full is left out.

    Args:
        images: (n, ...). groups: (n,), the lesion (patient, product, ...) that each shows.
        batch_size: pairs in a batch. seed: of the order and of the partners.

    Raises ValueError if there is not a group for each image, or no full batch.

    >>> ((first, second),) = tlk.flavors.contrastive.Pairs(np.arange(3), [7, 8, 7], 3)[0]
    >>> print(sorted(zip(first.tolist(), second.tolist())))
    [(0, 2), (1, 1), (2, 0)]
    """

    def __init__(self, images: np.ndarray, groups: Any, batch_size: int = 128, seed: int = 0):
        super().__init__()
        _, self.group = np.unique(np.asarray(groups), return_inverse=True)
        if self.group.shape != (len(images),) or not 0 < batch_size <= len(images):
            expected = f"a group for each of {len(images)} images, batches of at most as many"
            raise ValueError(f"Expected {expected}; found {np.shape(groups)} and {batch_size=}.")
        self.images, self.batch_size = images, batch_size
        self.rng = np.random.default_rng(seed)
        self.members = [np.flatnonzero(self.group == g) for g in range(self.group.max() + 1)]
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.images))
        self.partner = np.arange(len(self.images))
        for members in self.members:
            if len(members) > 1:  # each takes one a few places on: never itself
                steps = self.rng.integers(1, len(members), len(members))
                self.partner[members] = members[(np.arange(len(members)) + steps) % len(members)]

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray]]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return ((self.images[chosen], self.images[self.partner[chosen]]),)
