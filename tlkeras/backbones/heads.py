"""A new head on a backbone: pooling, dropout, and one Dense layer."""

from typing import Any

import keras
import numpy as np


def add_head(
    backbone: keras.Model,
    classes: int,
    dropout: float = 0.2,
    *,
    activation: str | None = None,
    pooling: str = "mean",
    output: str | None = None,
    name: str = "head",
) -> keras.Model:
    """Puts a classifier on a backbone, which becomes one layer of the new model.

    Args:
        backbone: from images (or whatever it takes) to a feature map (batch, height, width,
            channels), tokens (batch, tokens, channels), or vectors (batch, channels).
        classes: how many; at least 2, or 1 for a single logit.
        dropout: share of pooled features dropped in training, in [0, 1).
        activation: of the Dense layer. None gives logits, which losses take with
            `from_logits=True`; this is what `fit_stages` expects.
        pooling: "mean" averages a map over its positions, or tokens over the sequence (a class
            token among them); "token" takes the first token, for networks trained with a class
            token. Vectors are used as they are.
        output: which of several outputs to use. If None: the only one, or `pooled_output` (BERT).
        name: of the Dense layer.

    Returns:
        A functional model from the backbone's inputs to (batch, classes), float32 even under
        mixed precision.

    Raises:
        ValueError: an argument out of range, several outputs and none chosen, an output that
            cannot be pooled, a backbone that still has its own classifier, or one that does not
            know its inputs.

    Source: section 1.5: the backbone is reused, the head is always replaced.

    >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    >>> model = tlk.add_head(backbone, classes=7, dropout=0.5)
    >>> [layer.name for layer in model.layers[1:]]
    ['glyph_resnet_small', 'pool', 'dropout', 'head']
    >>> model.output_shape
    (None, 7)
    """
    if not isinstance(classes, int | np.integer) or classes < 1:
        raise ValueError(f"classes must be how many there are, at least 1, not {classes!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}.")
    _refuse_classifier(backbone)
    inputs = keras.tree.map_structure(
        lambda tensor: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name),
        _inputs(backbone),
    )
    features = _choose(backbone(inputs), output, backbone.name)
    x = _pool(features, pooling)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(int(classes), activation, dtype="float32", name=name)(x)
    return keras.Model(inputs, x, name=f"{backbone.name}_{name}")


def _inputs(backbone: keras.Model) -> Any:
    """The tensors the backbone takes, in the structure in which it takes them."""
    inputs = getattr(backbone, "inputs", None)
    if not inputs:
        raise ValueError(
            f"Expected a backbone that knows the shape of its inputs; {backbone.name} does not. "
            "Begin it with keras.Input(...), or make a functional model of it: "
            "keras.Model(x, backbone(x)) with x = keras.Input(...)."
        )
    return inputs[0] if isinstance(backbone, keras.Sequential) else backbone.input


def _choose(outputs: Any, wanted: str | None, name: str) -> keras.KerasTensor:
    """The one tensor to pool."""
    if isinstance(outputs, keras.KerasTensor):
        outputs = {"output": outputs}
    elif not isinstance(outputs, dict):
        outputs = {str(number): tensor for number, tensor in enumerate(outputs)}
    if wanted is None:
        likely = "pooled_output" if "pooled_output" in outputs else ""
        wanted = next(iter(outputs)) if len(outputs) == 1 else likely
    if wanted not in outputs:
        raise ValueError(
            f"{name} has the outputs {list(outputs)}: say which one the head shall use, "
            f"output={list(outputs)[0]!r} for instance."
        )
    return outputs[wanted]


def _pool(features: keras.KerasTensor, pooling: str) -> keras.KerasTensor:
    """Vectors (batch, channels) from a map, from tokens, or from vectors."""
    rank = len(features.shape)
    if pooling not in ("mean", "token"):
        raise ValueError(f"pooling must be 'mean' or 'token', not {pooling!r}.")
    if rank == 2:
        return features
    if rank == 3:
        if pooling == "token":
            return features[:, 0]
        return keras.layers.GlobalAveragePooling1D(name="pool")(features)
    if rank == 4 and pooling == "mean":
        return keras.layers.GlobalAveragePooling2D(name="pool")(features)
    raise ValueError(
        f"Cannot pool features of shape {features.shape} with pooling={pooling!r}: expected a map "
        "(batch, height, width, channels), tokens (batch, tokens, channels) or vectors."
    )


def _refuse_classifier(backbone: keras.Model) -> None:
    last = backbone.layers[-1]
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation is keras.activations.softmax:
        raise ValueError(
            f"{backbone.name} ends in a softmax over {backbone.output_shape[-1]} classes: build it "
            "without its classifier (include_top=False), or save it and load it with "
            "tlk.load_backbone('model.keras'), which cuts the classifier off."
        )
