"""The loss that fits the labels and the model's last activation."""

from typing import Any

import keras
import numpy as np

from tlkeras.inputs.reading import first_batches


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
