"""How BatchNormalization behaves while a model trains: three modes, the same on every Keras 3.

`backbone(x, training=False)`, the usual advice, does not survive `fit()` on released Keras 3:
the outer model hands its own `training=True` down and the moving statistics move. The modes
here hold whatever `training` a layer is called with.
"""

from collections.abc import Iterable

import keras

from tlkeras.blocks.internals import all_layers
from tlkeras.freezing.inference import as_always, as_in_inference

MODES = ("frozen", "affine", "train")


def batchnorm_layers(model: keras.layers.Layer) -> list[keras.layers.BatchNormalization]:
    """All BatchNormalization layers of a model or layer, however deeply nested, that are built:
    one that a subclassed model holds and never calls has no weights."""
    kind = keras.layers.BatchNormalization
    return [x for x in all_layers(model) if isinstance(x, kind) and x.built]


def set_batchnorm(layers: Iterable[keras.layers.BatchNormalization], mode: str) -> None:
    """Puts BatchNormalization layers into one of three modes.

    Setting `trainable` on any layer around them undoes "frozen", so call this after every
    change of trainable flags (`tlkeras.freeze` does). Compile the model afterwards.

    Args:
        layers: the layers to set.
        mode: "frozen": moving mean and variance, gamma and beta stay bit-identical, inputs are
            normalised with the stored statistics.
            "affine": the same statistics are used and stay, gamma and beta may learn.
            "train": ordinary training: batch statistics, moving averages updated.

    Raises:
        ValueError: for any other mode.

    Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithms 1 (batch statistics) and 2
    (stored statistics).
    """
    if mode not in MODES:
        raise ValueError(f"batchnorm must be one of {', '.join(MODES)}; found {mode!r}.")
    for layer in layers:
        as_always(layer)
        if mode == "affine":
            as_in_inference(layer)
        if mode == "frozen":
            layer.trainable = False
