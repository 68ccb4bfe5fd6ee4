"""Networks of `keras.applications`, with their `preprocess_input` as layers in front."""

import inspect
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np

from tlkeras.backbones import fetching
from tlkeras.backbones.presets import Size, image_input


def application(
    function: Callable, size: Size, weights: str | None, profile: str | None
) -> keras.Model:
    """Build a network of `keras.applications` with its `preprocess_input` as layers in front."""
    name = function.__name__
    if weights is not None:
        fetching.refuse_offline(name, profile, f"; weights=None builds {name} untrained")
    image, _ = image_input(size, (None, None))
    scaled = _as_layers(sys.modules[function.__module__].preprocess_input, image)
    with fetching.from_keras(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
        network = function(
            include_top=False,
            weights=None if weights is None else "imagenet",
            input_tensor=scaled,
            input_shape=(*size, 3) if size else None,
        )
    return keras.Model(image, network.output, name=name.lower())  # one input, not a list of one


def _as_layers(preprocess: Callable, x: keras.KerasTensor) -> keras.KerasTensor:
    """Apply `preprocess` as layers: a scale and an offset, and a flip if it turns RGB into BGR.

    They are found by calling it on black and on the pure colours, so it must be linear.
    """
    offset = preprocess(np.zeros((1, 1, 3)))[0, 0]
    colours = np.stack([preprocess(255 * colour[None, None])[0, 0] for colour in np.eye(3)])
    matrix = (colours - offset) / 255  # row: channel in; column: channel out
    flipped = bool(matrix[0, 2])
    if flipped:
        matrix, offset = matrix[:, ::-1], offset[::-1]
    scale = np.diag(matrix)
    if not np.allclose(matrix, np.diag(scale)):
        raise ValueError(f"{preprocess} mixes channels: it cannot be written as a scaling.")
    if not (np.allclose(scale, 1) and np.allclose(offset, 0)):
        x = keras.layers.Rescaling(_short(scale), _short(offset), name="scale")(x)
    return keras.ops.flip(x, axis=-1) if flipped else x


def _short(values: np.ndarray) -> float | list[float]:
    return float(values[0]) if np.ptp(values) == 0 else [float(value) for value in values]


def functions() -> dict[str, Callable]:
    functions = vars(keras.applications).items()
    return {name: function for name, function in functions if inspect.isfunction(function)}
