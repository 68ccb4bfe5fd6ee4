"""Looks at the first batches before training starts: do they fit the model and the loss?

The mistakes caught here train without an error and only show as a bad result.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tlkeras.batchnorm import batchnorm_layers

BATCHES = 8  # looked at, of data that comes in batches; arrays are looked at whole


def fit_arguments(data: Any, batch_size: int) -> dict[str, Any]:
    """`data` as keyword arguments of `fit`.

    Args:
        data: a tuple of arrays (x, y) or (x, y, sample_weight), or anything iterable in batches
            that `fit` takes: a tf.data.Dataset, a PyDataset, a torch DataLoader.
        batch_size: for arrays.
    """
    if isinstance(data, tuple | list):
        if len(data) not in (2, 3):
            raise ValueError(
                f"Expected (x, y) or (x, y, sample_weight); found {len(data)} item(s)."
            )
        names = ("x", "y", "sample_weight")
        return dict(zip(names, data, strict=False)) | {"batch_size": batch_size}
    if isinstance(data, keras.utils.PyDataset):
        return {"x": data}
    return {"x": data, "shuffle": False}  # brings its own order; Keras warns if asked to shuffle


def first_batches(data: Any) -> list[tuple]:
    """The first batches of `data` as tuples of NumPy arrays (arrays: one batch, all of it)."""
    if isinstance(data, tuple | list):
        batches: Iterator = iter([data])
    elif isinstance(data, keras.utils.PyDataset):
        batches = (data[i] for i in range(min(len(data), BATCHES)))
    elif hasattr(data, "__next__"):
        return []  # a generator: looking would use it up
    else:
        batches = itertools.islice(iter(data), BATCHES)
    found = [keras.tree.map_structure(np.asarray, tuple(batch)) for batch in batches]
    if not found or (len(found[0]) and np.size(keras.tree.flatten(found[0])[0]) == 0):
        raise ValueError("Expected at least one batch of training data; found none.")
    return found


def check(model: keras.Model, data: Any, loss: Any) -> None:
    """Raises ValueError if the first batches cannot be what the model should be trained on.

    Looked for: NaN or infinite inputs; class labels outside the model's outputs; pixels in
    0..1 for a model that divides by 255 itself, and pixels far from the scale that the model
    was pretrained on. Only models with one input and one output are looked into.
    """
    batches = first_batches(data)
    if not batches or not isinstance(batches[0][0], np.ndarray):
        return
    inputs = [batch[0] for batch in batches]
    _check_finite(inputs)
    labels = [batch[1] for batch in batches if len(batch) > 1]
    if labels and isinstance(labels[0], np.ndarray) and _is_sparse(loss):
        _check_labels(np.concatenate([y.reshape(-1) for y in labels]), model.output_shape[-1])
    if inputs[0].ndim == 4:
        _check_pixels(model, inputs[0][:32].astype("float32"))


def default_loss(model: keras.Model, data: Any) -> keras.losses.Loss:
    """The cross-entropy that fits the labels of the first batch and the model's last activation.

    Raises:
        ValueError: more than one output, or labels that fit none.
    """
    labels = [batch[1] for batch in first_batches(data)[:1] if len(batch) > 1]
    outputs = model.output_shape
    if not labels or not isinstance(labels[0], np.ndarray) or not isinstance(outputs[-1], int):
        raise ValueError(
            "A loss can be chosen only for one output and one array of labels a batch; found "
            f"outputs {outputs}. Pass loss=..., or compile the model first."
        )
    shape, classes = labels[0].shape, outputs[-1]
    last = model.layers[-1]
    logits = getattr(last, "activation", None) not in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )
    if classes == 1:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    if len(shape) == 1 or shape[-1] == 1:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    if shape[-1] == classes:
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    raise ValueError(
        f"Expected integer labels, or one-hot labels of {classes} classes as the model has "
        f"outputs; found labels of shape {shape}. Give the head as many classes as there are."
    )


def _check_finite(inputs: list[np.ndarray]) -> None:
    bad = sum(
        int((~np.isfinite(x.reshape(len(x), -1))).any(axis=1).sum())
        for x in inputs
        if np.issubdtype(x.dtype, np.floating)
    )
    if bad:
        total = sum(len(x) for x in inputs)
        raise ValueError(
            f"Expected finite inputs; found NaN or infinity in {bad} of the {total} examples "
            "looked at. Clean the data: one such pixel turns every weight into NaN."
        )


def _is_sparse(loss: Any) -> bool:
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    return "sparse_categorical" in (name or "")


def _check_labels(labels: np.ndarray, classes: int) -> None:
    outside = np.unique(labels[(labels < 0) | (labels >= classes)])
    if len(outside):
        raise ValueError(
            f"Expected class labels from 0 to {classes - 1}, for the model has {classes} outputs; "
            f"found {', '.join(map(str, outside[:5]))}. Renumber the labels, or give the head "
            "as many classes as there are: tlk.add_head(backbone, classes=...)."
        )


def _check_pixels(model: keras.Model, images: np.ndarray) -> None:
    largest = float(np.abs(images).max())
    small = largest <= 1.5  # nothing in 0..255 is this dark all over a batch
    found = f"found values from {images.min():.3g} to {images.max():.3g}"
    rescaling = next(
        (x for x in model._flatten_layers() if isinstance(x, keras.layers.Rescaling)), None
    )
    if small and rescaling is not None and 0 < np.max(rescaling.scale) <= 1 / 100:
        raise ValueError(
            f"Expected pixels in 0..255, for this model divides them itself (layer "
            f"{rescaling.name!r}); {found}. Feed the pixels as they are."
        )
    ratio = _scale_against_pretraining(model, images)
    if ratio > 30 and not small:
        raise ValueError(
            f"Expected pixels on a scale about {ratio:.0f} times smaller, by the statistics in the "
            f"model's first BatchNormalization layer (0..1 or -1..1); {found}. Rescale them first, "
            "e.g. keras.layers.Rescaling(1 / 255)."
        )
    if ratio < 1 / 30 and small:
        raise ValueError(
            f"Expected pixels on a scale about {1 / ratio:.0f} times larger, by the statistics in "
            f"the model's first BatchNormalization layer (0..255); {found}. Feed the pixels as "
            "they are, without dividing by 255."
        )


def _scale_against_pretraining(model: keras.Model, images: np.ndarray) -> float:
    """How much more these images vary than those of the pretraining did; 1 if it cannot be told.

    Compares standard deviations before the first BatchNormalization layer that has learned any.
    """
    layers = batchnorm_layers(model)
    seen: list[tuple[keras.layers.Layer, np.ndarray]] = []

    def watch(layer):
        call = layer.call

        def watched(inputs, *args, **kwargs):
            if not seen:
                seen.append((layer, keras.ops.convert_to_numpy(inputs)))
            return call(inputs, *args, **kwargs)

        return watched

    held = [vars(layer).get("call") for layer in layers]
    try:
        for layer in layers:
            layer.call = watch(layer)
        model(images, training=False)
    finally:
        for layer, call in zip(layers, held, strict=True):
            if call is None:
                del layer.call
            else:
                layer.call = call
    if not seen:
        return 1.0
    layer, entering = seen[0]
    stored = keras.ops.convert_to_numpy(layer.moving_variance)
    if np.all(stored == 1) or layer.axis not in (-1, entering.ndim - 1):
        return 1.0  # never trained, or channels first
    now = entering.reshape(-1, entering.shape[-1]).astype("float64").var(axis=0)
    return math.sqrt(float(np.median(now / (stored + layer.epsilon))))
