"""How BatchNormalization behaves during training: three modes, the same in every Keras 3 release.

`backbone(x, training=False)`, the usual advice, has no effect in `fit()` on released Keras 3: the
outer model passes its own `training=True` down, and the moving statistics change. The modes here
apply whatever value of `training` a layer is called with.
"""

import math
from collections.abc import Iterable
from typing import Any

import keras

from tlkeras.blocks.internals import all_layers
from tlkeras.freezing.inference import as_always, as_in_inference

MODES = ("frozen", "affine", "train")


def batchnorm_layers(model: keras.layers.Layer) -> list[keras.layers.BatchNormalization]:
    """Return all built BatchNormalization layers of a model or layer, however deeply nested.

    A layer that a subclassed model holds but never calls is not built and has no weights.
    """
    kind = keras.layers.BatchNormalization
    return [x for x in all_layers(model) if isinstance(x, kind) and x.built]


def set_batchnorm(layers: Iterable[keras.layers.BatchNormalization], mode: str) -> None:
    """Put BatchNormalization layers into one of three modes.

    Setting `trainable` on any layer around them undoes "frozen", so call this after every
    change of trainable flags (`tlkeras.freeze` does). Compile the model afterwards.

    Args:
        layers: the layers to set.
        mode: "frozen": inputs are normalised with the stored statistics; moving mean and variance,
            gamma and beta all stay bit-identical.
            "affine": the stored statistics are used and stay as they are; gamma and beta can learn.
            "train": ordinary training with batch statistics; moving averages are updated.

    Raises:
        ValueError: the mode is none of these.

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


def to_groupnorm(model: keras.Model, groups: int = 8) -> keras.Model:
    """Copy a model with GroupNormalization in place of every BatchNormalization.

    All weights are kept except the moving statistics. Groups of channels are normalised within
    each example, so a batch can be as small as one example, and the layers do the same in training
    and in inference. The copy has to be trained again: pretrained weights expect the statistics
    that are gone, so the swap alone makes a pretrained network worse.

    Args:
        model: functional or Sequential, also with nested models. It is not changed.
        groups: the maximum number of groups. Each layer gets the greatest common divisor of this
            and its number of channels.

    Raises:
        ValueError: the model has no BatchNormalization, or has one inside a layer of another type;
            or it has no graph.

    Source: Wu & He 2018, "Group Normalization"; section 1.9.

    >>> model = tlk.to_groupnorm(tlk.load_backbone("glyph_resnet_small", image_size=32))
    >>> tlk.find_blocks(model).names
    ['stem', 'stack0', 'stack1']
    """
    if not batchnorm_layers(model):
        raise ValueError(f"Expected a model with BatchNormalization; {model.name} has none.")

    def swapped(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.layers.BatchNormalization):
            return type(layer).from_config(layer.get_config())
        divisor = math.gcd(groups, layer.moving_mean.shape[0])
        kept = {key: getattr(layer, key) for key in ("epsilon", "center", "scale", "axis", "name")}
        return keras.layers.GroupNormalization(divisor, **kept)

    def called(layer: keras.Layer, *args: Any, **options: Any) -> Any:
        alone = isinstance(layer, keras.layers.GroupNormalization)  # takes no `training`, no mask
        return layer(*args) if alone else layer(*args, **options)

    copy = keras.models.clone_model(
        model, clone_function=swapped, call_function=called, recursive=True
    )
    if left := batchnorm_layers(copy):
        raise ValueError(
            f"Expected BatchNormalization only in models; found {left[0].name} inside a layer of "
            "another kind, whose own code creates it."
        )
    for old, new in zip(all_layers(model), all_layers(copy), strict=True):
        if isinstance(old, keras.layers.BatchNormalization):
            affine = (old.gamma if old.scale else None, old.beta if old.center else None)
            new.set_weights([weight for weight in affine if weight is not None])
        elif not isinstance(old, keras.Model):
            new.set_weights(old.get_weights())
    return copy
