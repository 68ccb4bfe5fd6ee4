"""Augment a training batch: its inputs, and labels that have to change with them.

A mask moves with its image, and MixUp and CutMix mix labels as they mix images. Keras layers do
both if they are called on a dictionary, {"images": ..., "segmentation_masks": ...}.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tlkeras.blocks.internals import all_layers
from tlkeras.inputs.reading import as_numpy, example_of, shape_of, without_none

MIXING = {"MixUp", "CutMix"}
# Keras layers that leave every pixel in its place, and the models and pipelines that hold them.
COLOURS = set(
    """AutoContrast ContrastLimitedAdaptiveHistogramEqualization Equalization Functional
    GaussianNoise Identity InputLayer Pipeline RandomBrightness RandomColorDegeneration
    RandomColorJitter RandomContrast RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPosterization RandomSaturation RandomSharpness Rescaling Sequential
    Solarization""".split()  # noqa: SIM905
)
LOST = {"MixUp", "AugMix", "MaxNumBoundingBoxes"}  # cannot be used with masks, in Keras 3.15


def augmented(augment: Callable | None, x: Any) -> Any:
    """Return `x` after `augment` in training mode, as NumPy; `x` itself if `augment` is None."""
    return x if augment is None else keras.tree.map_structure(as_numpy, _called(augment, x))


def augmented_batch(augment: Callable, batch: tuple) -> tuple:
    """Return a batch (x, y) or (x, y, sample_weight) after `augment` in training mode."""
    x, *rest = batch
    along = goes_along(augment, batch)
    if not along:
        return (_called(augment, x), *rest)
    y, *weights = rest
    if along == "pair":
        x, y = _called(augment, x, y)
        return (x, y, *weights)
    flat = along == "segmentation_masks" and len(y.shape) == 3  # Keras wants a channel axis
    as_float = keras.layers.Rescaling(1.0, dtype="float32", name="as_float")  # in tf.data, too
    data = {"images": as_float(x), along: as_float(y[..., None] if flat else y)}
    for layer in _one_by_one(augment):
        if _takes_along(layer, along):
            data = layer(data, training=True)
        else:
            data = data | {"images": layer(data["images"], training=True)}
    moved = data[along]
    if along == "segmentation_masks" and "float" not in str(y.dtype):
        moved = moved + 0.5  # Keras 3.12 interpolates masks: round them, in a way tf.data can trace
        moved = moved - moved % 1
    return (data["images"], moved[..., 0] if flat else moved, *weights)


def goes_along(augment: Callable | None, batch: Any) -> str:
    """Say which part of a batch goes through `augment` together with the inputs.

    Returns "labels" if labels are mixed, "segmentation_masks" if masks are moved, "pair" for a
    function of (x, y), and "" if `augment` is given only the inputs. `batch` can be anything with
    the shapes of a batch.
    """
    if augment is None:
        return ""
    if not isinstance(augment, keras.Layer):
        return "pair" if len(_asked(augment)) == 2 else ""
    along = "segmentation_masks" if _has_masks(batch) else "labels"
    return along if any(_takes_along(layer, along) for layer in _one_by_one(augment)) else ""


def check(augment: Callable, data: Any) -> None:
    """Raise ValueError if augmented inputs would no longer match their labels."""
    example = example_of(data)
    batch = without_none(example) if isinstance(example, tuple | list) else ()
    if len(batch) < 2:
        return
    layers = _one_by_one(augment) if isinstance(augment, keras.Layer) else []
    kinds = _kinds(layers)
    along, shape = goes_along(augment, batch), shape_of(batch[1]) or ()
    if along == "labels" and (keras.tree.is_nested(batch[1]) or len(shape) != 2 or shape[1] == 1):
        raise ValueError(
            f"Expected one-hot labels, one row per example, for {_names(kinds & MIXING)}, which "
            f"mixes them; found labels of shape {shape}. Pass keras.utils.to_categorical(y), and a "
            "loss for such rows."
        )
    weights = len(shape_of(batch[2]) or ()) if len(batch) > 2 else 0
    if (along == "labels" and weights) or (along == "segmentation_masks" and weights > 1):
        raise ValueError(
            f"Expected data without sample_weight for {_names(kinds)}, which would have to change "
            "it with the inputs. Augment in the data instead."
        )
    unknown = set() if along == "labels" else kinds & MIXING
    if any(_is_mask(batch[0], leaf) for leaf in keras.tree.flatten(batch[1])):
        unknown = _kinds([x for x in layers if not (along and _takes_along(x, along))]) - COLOURS
    if unknown:
        raise ValueError(
            f"Expected Stage(augment=...) that changes labels with their inputs; found "
            f"{_names(unknown)}, where they would not follow. Put layers of Keras into a "
            "keras.Sequential, or give a function of (x, y)."
        )


def _called(augment: Callable, *given: Any) -> Any:
    """Call `augment`, in training mode if it has one."""
    if isinstance(augment, keras.Layer) or "training" in _parameters(augment):
        return augment(*given, training=True)
    return augment(*given)


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return {}


def _asked(function: Callable) -> list[str]:
    """Return the positional arguments that a function requires, except `training`."""
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        name
        for name, one in _parameters(function).items()
        if one.default is one.empty and one.kind in places and name != "training"
    ]


def _one_by_one(augment: keras.Layer) -> list[keras.Layer]:
    """Return the layers that are called one after the other."""
    if not isinstance(augment, keras.Sequential | keras.layers.Pipeline):
        return [augment]
    return [layer for inner in augment.layers for layer in _one_by_one(inner)]


def _takes_along(layer: keras.Layer, along: str) -> bool:
    name = type(layer).__name__
    if along == "labels":
        return name in MIXING
    return hasattr(layer, "transform_segmentation_masks") and name not in COLOURS | LOST


def _has_masks(batch: tuple) -> bool:
    """True if the labels are one mask per image, of the same size as the image."""
    if len(batch) < 2 or keras.tree.is_nested(batch[1]) or not _is_mask(*batch[:2]):
        return False
    return bool(batch[0].shape[1:3] == batch[1].shape[1:3])


def _is_mask(x: Any, y: Any) -> bool:
    if keras.tree.is_nested(x):
        return False
    x, y = shape_of(x) or (), shape_of(y) or ()
    return len(x) == 4 and (len(y) == 4 or (len(y) == 3 and y[1:3] == x[1:3]))


def _kinds(layers: list[keras.Layer]) -> set[str]:
    return {type(inner).__name__ for layer in layers for inner in all_layers(layer)}


def _names(kinds: set[str]) -> str:
    return ", ".join(sorted(kinds))
