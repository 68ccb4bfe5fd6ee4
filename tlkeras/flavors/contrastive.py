"""Learn from images without labels: two views of the same thing should be close to each other.

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
    """Cross-entropy of finding the other view of the same thing among all views in the batch.

    Args:
        first, second: (n, d), vectors of two views of n things, of any length.
        temperature: cosines are divided by it. The smaller it is, the more the nearest other
            vectors count.

    Returns:
        (n,), for each thing the mean over its two views, in nats. Chance level is log(2n - 1).
        `keras_cv.losses.SimCLRLoss` returns twice this value, the sum over the two views.

    Source: Chen et al. 2020, arXiv:2002.05709 (SimCLR), equation 1.

    >>> vectors = np.eye(4, dtype="float32")
    >>> [round(float(x), 3) for x in tlk.flavors.contrastive.nt_xent(vectors, vectors, 1.0)]
    [1.165, 1.165, 1.165, 1.165]
    """
    n = ops.shape(first)[0]
    views = ops.normalize(ops.cast(ops.concatenate([first, second]), "float32"), axis=1)
    cosines = ops.matmul(views, ops.transpose(views)) / temperature
    cosines = cosines - 1e9 * ops.eye(2 * n)  # no view is its own partner
    partner = ops.concatenate([ops.arange(n) + n, ops.arange(n)])
    losses = keras.losses.sparse_categorical_crossentropy(partner, cosines, from_logits=True)
    return ops.mean(ops.reshape(losses, (2, -1)), axis=0)


class SimCLR(keras.Model):
    """Train `encoder`, in place, on views of images; call `compile(optimizer)` and `fit(images)`.

    With `fit(images)`, `augment` makes two views of each image. With `fit(Pairs(...))`, it makes
    one view of each of two images of the same thing. The history shows a collapse: "partners" is
    the mean cosine of two views of the same thing, "others" that of different things. If "others"
    rises to 1, the encoder gives all images the same features.

    Args:
        encoder: a model from images to features (batch, n), or to maps (batch, height, width, n),
            which are averaged over positions. Keep it after training; frozen layers stay frozen.
        augment: a layer that changes images at random, in training only. None: no change.
        units: width of the projection, two Dense layers that are discarded after training.
        loss: a function of two batches of projections (batch, units) that returns one number, or
            one per pair, such as `keras_cv.losses.SimCLRLoss(0.1)` or your own. None: `nt_xent`.

    Shapes: images (batch, height, width, channels), or two such batches, to (batch, 2, units).
    To save, save `encoder`. Source: Chen et al. 2020, as for `nt_xent`.

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
        own = (ops.mean(partners) + 1) / (2 * n)  # share of cosines with itself and the partner
        self.watched[0].update_state(partners)
        self.watched[1].update_state((everybody - own) / (1 - 1 / n))
        return self.get_metrics_result()


class Pairs(keras.utils.PyDataset):
    """Batches of pairs of images of the same thing, for `SimCLR`; reordered and redrawn each epoch.

    Every epoch, each image is the first of a pair once (except in a last batch that is not full,
    which is left out). Its partner is another image of its group, drawn at random, or the image
    itself if there is no other.

    Args:
        images: (n, ...).
        groups: (n,), the lesion (or patient, product, ...) that each image shows.
        batch_size: pairs per batch.
        seed: seed of the order and of the partners.

    Raises ValueError if there is not one group for each image, or if there is no full batch.

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
            if len(members) > 1:  # each takes the one a few places ahead: never itself
                steps = self.rng.integers(1, len(members), len(members))
                self.partner[members] = members[(np.arange(len(members)) + steps) % len(members)]

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray]]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return ((self.images[chosen], self.images[self.partner[chosen]]),)
