"""A model that gives what is inside another: the mean of every tensor asked for, in one pass."""

from collections.abc import Sequence
from typing import Any

import keras

from tlkeras.blocks.internals import fed, functional, nodes

Tensors = list[keras.KerasTensor]
POOLING = {
    3: keras.layers.GlobalAveragePooling1D,
    4: keras.layers.GlobalAveragePooling2D,
    5: keras.layers.GlobalAveragePooling3D,
}


def tapped(model: keras.Model, wanted: Sequence[keras.KerasTensor]) -> tuple[keras.Model, Tensors]:
    """A model of the same inputs that gives the means of tensors over all their positions.

    Args:
        wanted: of the graph of `model`, or of those nested in it.

    Returns:
        The model, whose outputs are a list of vectors (batch, channels) in float32, and of which
        tensor each is the mean: of one in a nested model, once for every call of that. Where a
        tensor has a mask, what it hides does not count.

    Raises ValueError if the model has no graph.
    """
    net = functional(model)
    if net is None:
        raise ValueError(f"Expected a model with a graph; found {type(model).__name__}.")
    means, found = _taps(net, wanted, {})
    return keras.Model(net.input, means), found


def _taps(
    net: keras.Model, wanted: Sequence[keras.KerasTensor], made: dict[int, Any]
) -> tuple[Tensors, Tensors]:
    """Means in the graph of `net`, and of which tensors. made: the same of nested models."""
    means, found = Tensors(), Tensors()
    for node in nodes(net):
        mine = [tensor for tensor in node.outputs if any(tensor is one for one in wanted)]
        means += map(_mean, mine)
        found += mine
        inner = functional(node.operation)
        entry = None if inner is None else fed(node, inner)
        if inner is None or entry is None:
            continue
        if id(inner) not in made:
            inside, of = _taps(inner, wanted, made)
            made[id(inner)] = (keras.Model(inner.inputs, inside) if inside else None), of
        part, of = made[id(inner)]
        if part is not None:
            mode = {k: v for k, v in node.arguments.kwargs.items() if k == "training"}
            means += keras.tree.flatten(part(entry, **mode))
            found += of
    return means, found


def _mean(tensor: keras.KerasTensor) -> keras.KerasTensor:
    options = {"dtype": "float32", "name": f"mean_{id(tensor)}"}  # a name that no layer has
    if len(tensor.shape) not in POOLING:
        return keras.layers.Flatten(**options)(tensor)
    return POOLING[len(tensor.shape)](data_format="channels_last", **options)(tensor)
