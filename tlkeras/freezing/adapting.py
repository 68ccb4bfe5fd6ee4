"""Recompute BatchNormalization statistics on other images, without labels or gradients."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tlkeras.freezing.batchnorm import batchnorm_layers


def adapt_batchnorm(model: keras.Model, images: np.ndarray, batch_size: int = 100) -> int:
    """Give every BatchNormalization of `model` the statistics of these images (AdaBN), in place.

    Each batch passes through the model normalised by its own mean and variance. Every layer then
    stores the mean and variance over all batches. Dropout is off, no other weight changes, and
    frozen layers are updated as well. To undo it, save `model.get_weights()` before.

    Args:
        images: (n, ...), as the model takes them; no labels.
        batch_size: the maximum number of images that are normalised together, in a fixed random
            order.

    Returns the number of BatchNormalization layers. Raises ValueError if the model has none, or if
    there are no images.
    Source: Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation".

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    >>> tlk.flavors.domain.adapt_batchnorm(model, np.full((20, 3), 7.0))
    1
    >>> print(keras.ops.convert_to_numpy(model.layers[0].moving_mean))
    [7. 7. 7.]
    """
    norms = batchnorm_layers(model)
    if not norms or not len(images):
        raise ValueError(
            f"Expected a model with BatchNormalization, and images; found {len(norms)} such layers "
            f"in {model.name} and {len(images)} images."
        )
    seen: dict[int, list[Any]] = {id(norm): [] for norm in norms}
    before = {id(norm): vars(norm).get("call") for norm in norms}
    for norm in norms:
        norm.call = _by_its_batch(norm, seen[id(norm)])
    try:
        order = np.random.default_rng(0).permutation(len(images))
        for part in np.array_split(order, -(-len(images) // batch_size)):
            model(images[np.sort(part)], training=False)
    finally:
        for norm in norms:
            del norm.call
            if before[id(norm)]:
                norm.call = before[id(norm)]
    for norm in norms:
        if found := seen[id(norm)]:  # skip layers that are never called
            means, variances = (ops.stack(kind) for kind in zip(*found, strict=True))
            norm.moving_mean.assign(ops.mean(means, axis=0))
            norm.moving_variance.assign(ops.mean(variances, axis=0) + ops.var(means, axis=0))
    return len(norms)


def _by_its_batch(norm: keras.layers.BatchNormalization, seen: list[Any]) -> Any:
    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        axes = [i for i in range(len(inputs.shape)) if i != norm.axis % len(inputs.shape)]
        seen.append(ops.moments(ops.cast(inputs, "float32"), axes))
        norm.moving_mean.assign(seen[-1][0])
        norm.moving_variance.assign(seen[-1][1])
        return type(norm).call(norm, inputs, training=False)

    return call
