"""Check before training that the first batches fit the model and the loss.

The mistakes caught here raise no error during training; they only show as a bad result.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tlkeras.blocks.activation import SIGMOID, SOFTMAX, endings, output_shapes
from tlkeras.blocks.internals import all_layers
from tlkeras.freezing.batchnorm import batchnorm_layers
from tlkeras.inputs.intake import fits, preprocesses
from tlkeras.inputs.objective import by_output, cross_entropy
from tlkeras.inputs.reading import first_batches

ROUNDED = 0.05  # rows of rounded probabilities sum to 1 only this closely
MEASURING = ("meansquarederror", "meanabsoluteerror", "huber", "logcosh")


def check(model: keras.Model, data: Any, loss: Any, validation: Any = None) -> None:
    """Raise ValueError if the first batches do not fit the model.

    Checks for NaN or infinite inputs, labels whose shape or values do not fit the loss and the
    model's output, pixels in 0..1 for a model that divides by 255 itself, and pixels far from the
    scale the model was pretrained on. Validation data are checked in the same way, and must have
    pixels on the scale of the training data. Only data with a single input are checked, and labels
    only of a model with a single output.
    """
    spread = other = _check(model, data, loss)
    if validation is not None:
        try:
            other = _check(model, validation, loss)
        except ValueError as error:
            raise ValueError(f"Of the validation data: {error}") from None
    if spread and other and not 1 / 30 < other / spread < 30:
        raise ValueError(
            "Expected validation data on the scale of the training data; found pixels that vary "
            f"{other / spread:.3g} times as much (standard deviation {other:.3g} against "
            f"{spread:.3g}). Prepare both in the same way."
        )


def _check(model: keras.Model, data: Any, loss: Any) -> float:
    """Check training or validation data; return the standard deviation of their pixels.

    Returns 0 if there are no pixels to compare: other inputs than images, or images that the
    model preprocesses itself.
    """
    batches = first_batches(data)
    if not batches or not isinstance(batches[0][0], np.ndarray):
        return 0.0
    inputs = [batch[0] for batch in batches]
    _check_finite(inputs)
    labels = [batch[1] for batch in batches if len(batch) > 1]
    shapes = output_shapes(model) or []
    if labels and isinstance(labels[0], np.ndarray) and len(shapes) == 1:
        [ending] = endings(model) or [None]
        shape, weighted = shapes[0], len(batches[0]) > 2
        if preprocesses(model):  # it can resize masks
            shape = (*(None for _ in shape[1:]), shape[-1])
        _check_targets(by_output(model, loss).get(0), ending, labels, shape, weighted)
    if inputs[0].ndim != 4 or preprocesses(model):
        return 0.0
    _check_pixels(model, inputs[0][:32].astype("float32"))
    return float(inputs[0][:256].std(dtype="float64"))


def _check_finite(inputs: list[np.ndarray]) -> None:
    floats = [x.reshape(len(x), -1) for x in inputs if np.issubdtype(x.dtype, np.floating)]
    bad = sum(int((~np.isfinite(x)).any(axis=1).sum()) for x in floats)
    if bad:
        raise ValueError(
            f"Expected finite inputs; found NaN or infinity in {bad} of the "
            f"{sum(map(len, inputs))} examples checked. A single such value turns every weight "
            "into NaN: clean the data."
        )


def _check_targets(
    loss: Any,
    ending: str | None,
    labels: list[np.ndarray],
    shape: tuple[int | None, ...],
    weighted: bool,
) -> None:
    """Check the labels of an output, if its loss is one of Keras's own.

    Args:
        ending: the last activation of the output; None if it is not known.
        shape: the shape of the output.
        weighted: whether there is a sample_weight, which can leave out labels without a meaning.
    """
    known = cross_entropy(loss)
    name = known.name if known else _measuring(loss)
    if not name:
        return
    sparse = known is not None and known.family == "sparse"
    expected = shape[:-1] if sparse else shape
    if not fits(labels[0].shape, expected):
        advice = (
            " One-hot rows go with CategoricalCrossentropy, class numbers with "
            "SparseCategoricalCrossentropy."
        )
        raise ValueError(
            f"Expected labels of shape {expected} for {name}, as the model's output has shape "
            f"{shape}; found {labels[0].shape}." + advice * bool(known)
        )
    found = np.concatenate([y.reshape(-1) for y in labels])
    if known is not None and sparse:
        if shape[-1] is not None:
            _check_labels(found[found != known.ignore], shape[-1])
        return
    if ending == SOFTMAX and shape[-1] == 1:
        raise ValueError(
            "Expected two outputs or more for a softmax; found one, whose softmax is always 1. "
            "Give the head a sigmoid, or no activation."
        )
    ends = f"a model that ends in a {ending}" if ending in (SOFTMAX, SIGMOID) else ""
    if weighted or not (known or ends):
        return
    if ((found < -1e-3) | (found > 1 + 1e-3)).any():  # NaN ends the stage, as in `fit`
        raise ValueError(
            f"Expected labels from 0 to 1 for {ends or name}; found {found.min():.4g} to "
            f"{found.max():.4g}. Use 0 and 1 for two classes; for measured values, give the head "
            "no activation and pass loss='mse'."
        )
    if known and ending == SOFTMAX and any(abs(y.sum(-1) - 1).max() > ROUNDED for y in labels):
        raise ValueError(
            f"Expected labels that sum to 1 for {ends}, as its outputs do; found rows with other "
            "sums. For several labels per example, give the head a sigmoid, or no activation."
        )


def _measuring(loss: Any) -> str:
    """Return the name of `loss` if it is a Keras loss for measured values, like "mse"; else ""."""
    try:
        found = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:  # not the name of a loss: `compile` reports that
        return ""
    name = getattr(found, "__name__", type(found).__name__)
    own = getattr(keras.losses, name, None) in (found, type(found))
    return name if own and name.lower().replace("_", "") in MEASURING else ""


def _check_labels(labels: np.ndarray, classes: int) -> None:
    outside = np.unique(labels[(labels < 0) | (labels >= classes) | (labels != np.floor(labels))])
    if len(outside):
        raise ValueError(
            f"Expected class labels from 0 to {classes - 1}, as the model has {classes} outputs; "
            f"found {', '.join(map(str, outside[:5]))}. Renumber the labels, or give the head "
            "as many classes as there are: tlk.add_head(backbone, classes=...)."
        )


def _check_pixels(model: keras.Model, images: np.ndarray) -> None:
    largest = float(np.abs(images).max())
    small = largest <= 1.5  # no batch of images in 0..255 is as dark as this
    found = f"found values from {images.min():.3g} to {images.max():.3g}"
    rescaling = next((x for x in all_layers(model) if isinstance(x, keras.layers.Rescaling)), None)
    if small and rescaling is not None and 0 < np.max(rescaling.scale) <= 1 / 100:
        raise ValueError(
            f"Expected pixels in 0..255, as this model divides them itself (layer "
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
    """Return how much more these images vary than the pretraining images; 1 if it is not known.

    Compares the standard deviations at the input of the first BatchNormalization layer with those
    stored in it.
    """
    layers = batchnorm_layers(model)
    seen: list[tuple[keras.layers.Layer, np.ndarray]] = []

    def watched(
        layer: keras.layers.Layer, call: Callable, inputs: Any, *args: Any, **how: Any
    ) -> Any:
        if not seen:
            seen.append((layer, keras.ops.convert_to_numpy(inputs)))
        return call(inputs, *args, **how)

    held = [vars(layer).get("call") for layer in layers]
    try:
        for layer in layers:
            layer.call = functools.partial(watched, layer, layer.call)
        model(images, training=False)
    finally:
        for layer, call in zip(layers, held, strict=True):
            del layer.call
            if call is not None:
                layer.call = call
    if not seen:
        return 1.0
    layer, entering = seen[0]
    stored = keras.ops.convert_to_numpy(layer.moving_variance)
    if np.all(stored == 1) or layer.axis not in (-1, entering.ndim - 1):
        return 1.0  # never trained, or channels first
    now = entering.reshape(-1, entering.shape[-1]).astype("float64").var(axis=0)
    return math.sqrt(float(np.median(now / (stored + layer.epsilon))))
