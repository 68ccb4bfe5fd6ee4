"""Add a new head to a backbone (pooling, dropout, one Dense layer), or replace a head by another.

>>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
>>> tlk.heads.swap_head(model, keras.layers.Dense(7)).output_shape
(None, 7)
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import graph
from tlkeras.blocks.find import Block, find_blocks


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
    """Add a classifier to a backbone, which becomes one layer of the new model.

    Args:
        backbone: a model from images (or other inputs) to a feature map (batch, height, width,
            channels), tokens (batch, tokens, channels), or vectors (batch, channels).
        classes: number of classes: at least 2, or 1 for a single logit.
        dropout: fraction of the pooled features dropped in training, in [0, 1).
        activation: activation of the Dense layer. None gives logits, which losses take with
            `from_logits=True`; this is what `fit_stages` expects.
        pooling: "mean" averages a map over its positions, or tokens over the sequence, including
            a class token; "token" takes the first token, for networks trained with a class token.
            Vectors are used unchanged.
        output: which of several outputs to use. None: the only one, or `pooled_output` (BERT).
        name: name of the Dense layer.

    Returns:
        A functional model from the backbone's inputs to (batch, classes), float32 even under
        mixed precision.

    Raises:
        ValueError: an argument is out of range; the backbone has several outputs and none is
            chosen, an output that cannot be pooled, its own classifier, or no defined inputs.

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
    inputs = _like(_inputs(backbone))
    features = _choose(backbone(inputs), output, backbone.name)
    x = _pool(features, pooling)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(int(classes), activation, dtype="float32", name=name)(x)
    return keras.Model(inputs, x, name=f"{backbone.name}_{name}")


def swap_head(
    model: keras.Model,
    new_head: keras.Layer | Callable[[keras.KerasTensor], keras.KerasTensor],
    at: str | None = None,
) -> keras.Model:
    """Replace the head of a model by another one.

    The backbone's layers are reused, with their weights and their frozen state; the old model still
    works and shares them. The head is the block that `tlk.find_blocks` marks as such. Its pooling
    is kept, its dropout is dropped. Compile the new model before `fit`.

    Args:
        model: a functional or Sequential model with one output: from `tlk.add_head`, a KerasHub
            classifier, or your own. Its backbone can be nested or in one graph with the head.
        new_head: a layer, a model, or a function from one tensor of the graph to another.
        at: the input of the new head. "vector": the pooled features (batch, channels) of the old
            head or, if it has none, the mean of the map over its positions. "map": the last
            feature map (batch, height, width, channels), or the tokens (batch, tokens, channels).
            None: "map" if `new_head` is a layer or a model that declares an input of more than two
            axes, else "vector".

    Returns:
        A functional model from the same inputs to the output of the new head, with the old
        model's name.

    Raises:
        TypeError: `new_head` is not callable.
        ValueError: the model has no head or no backbone; it has several outputs; more than one
            tensor enters the head; there is no map; or the new head does not accept its input.

    Source: section 1.8, head swapping.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> def by_rows(features):  # (batch, 4, 4, 128)
    ...     rows = keras.layers.Reshape((4, 4 * 128))(features)
    ...     return keras.layers.Dense(7)(keras.layers.GRU(32)(rows))
    >>> swapped = tlk.heads.swap_head(model, by_rows, at="map")
    >>> swapped.output_shape, swapped.layers[1] is model.layers[1]
    ((None, 7), True)
    """
    if not callable(new_head):
        raise TypeError(f"Expected a layer, a model or a function; found {new_head!r}.")
    if at not in (None, "vector", "map"):
        raise ValueError(f"at must be 'vector', 'map' or None, not {at!r}.")
    wanted = at or ("map" if _axes(new_head) > 2 else "vector")
    below = _without_head(model, wanted)
    if wanted == "map" and len(below.output_shape) < 3:
        raise ValueError(
            f"Expected a map or tokens before the head of {model.name}; found vectors of shape "
            f"{below.output_shape}. Build its backbone without pooling, or swap at='vector'."
        )
    swapped = _joined(below.input, below.output, new_head, wanted, model.name)
    if {id(w) for block in _body(swapped) for w in block.weights} != {*map(id, below.weights)}:
        # In one graph with the backbone, part of the new head would be taken for backbone blocks,
        # so the backbone is nested.
        below.name, inputs = "backbone", _like(below.input)
        swapped = _joined(inputs, below(inputs), new_head, wanted, model.name)
    return swapped


def _joined(
    inputs: Any, features: keras.KerasTensor, new_head: Callable, wanted: str, name: str
) -> keras.Model:
    """Return the model from `inputs` through `features` to the output of the new head."""
    x = _pool(features, "mean") if wanted == "vector" else features
    other = "map" if wanted == "vector" else "vector"
    given = f"the {wanted} of shape {x.shape}; at={other!r} gives it the {other}"
    try:
        outputs = keras.tree.flatten(new_head(x))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected a head that takes {given}. Found: {error}") from error
    if len(outputs) != 1 or not isinstance(outputs[0], keras.KerasTensor):
        raise ValueError(f"Expected one tensor from the new head, given {given}; found {outputs}.")
    return keras.Model(inputs, outputs[0], name=name)


def _body(model: keras.Model) -> list[Block]:
    return [block for block in find_blocks(model) if block.role != "head"]


def _without_head(model: keras.Model, wanted: str) -> keras.Model:
    """Return the model up to its last map or, if vectors are wanted, through its own pooling."""
    blocks, body = find_blocks(model), _body(model)
    if not body or len(body) == len(blocks):
        raise ValueError(
            f"Expected a model with a backbone and a head; found {' and '.join(blocks.names)} in "
            f"{model.name}. On a bare backbone tlk.add_head puts a head."
        )
    if len(keras.tree.flatten(getattr(model, "output", None))) > 1:
        raise ValueError(
            f"Expected a model with one output; {model.name} has {len(model.outputs)}. Make a "
            "model of one of them first: keras.Model(model.input, model.outputs[0])."
        )
    cut = body[-1].cut
    if cut is None:
        raise ValueError(
            f"Expected one tensor that leads from {body[-1].name} to the head of {model.name}; "
            "there are several (a mask, skip connections, a second tower), or the model has no "
            "graph. Put a new head on its backbone with tlk.add_head, or by hand."
        )
    vector = graph.first_vector(model, cut) if wanted == "vector" else None
    return graph.split(model, cut if vector is None else vector)[0]


def _axes(new_head: Any) -> int:
    """Return the number of input axes that a head declares, including the batch; else 2."""
    inputs = getattr(new_head, "inputs", None)
    if inputs:
        return len(inputs[0].shape)
    spec = [one for one in keras.tree.flatten(getattr(new_head, "input_spec", None)) if one]
    return (spec[0].ndim or spec[0].min_ndim or 2) if spec else 2


def _like(inputs: Any) -> Any:
    """Return new inputs of the same shapes, types and names, in the same structure."""
    return keras.tree.map_structure(
        lambda tensor: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name), inputs
    )


def _inputs(backbone: keras.Model) -> Any:
    """Return the backbone's input tensors, in the structure in which it takes them."""
    inputs = getattr(backbone, "inputs", None)
    if not inputs:
        raise ValueError(
            f"Expected a backbone that knows the shape of its inputs; {backbone.name} does not. "
            "Begin it with keras.Input(...), or make a functional model of it: "
            "keras.Model(x, backbone(x)) with x = keras.Input(...)."
        )
    return inputs[0] if isinstance(backbone, keras.Sequential) else backbone.input


def _choose(outputs: Any, wanted: str | None, name: str) -> keras.KerasTensor:
    """Return the output to pool, chosen by name if there are several."""
    if isinstance(outputs, keras.KerasTensor):
        outputs = {"output": outputs}
    elif not isinstance(outputs, dict):
        outputs = {str(number): tensor for number, tensor in enumerate(outputs)}
    if wanted is None:
        likely = "pooled_output" if "pooled_output" in outputs else ""
        wanted = next(iter(outputs)) if len(outputs) == 1 else likely
    if wanted not in outputs:
        raise ValueError(
            f"{name} has the outputs {list(outputs)}: choose the one for the head, "
            f"output={list(outputs)[0]!r} for instance."
        )
    return outputs[wanted]


def _pool(features: keras.KerasTensor, pooling: str) -> keras.KerasTensor:
    """Return vectors (batch, channels) from a map, from tokens, or from vectors."""
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
