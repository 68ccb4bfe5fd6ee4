"""`tapped`: a model that outputs the means of tensors inside another model, in one pass."""

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
    """Build a model with the same inputs that outputs the means of tensors over all positions.

    Args:
        wanted: tensors of the graph of `model`, or of models nested in it.

    Returns:
        The model, whose outputs are a list of vectors (batch, channels) in float32; and the tensors
        these are the means of, in the same order. A tensor in a nested model appears once for
        every call of that model. Positions that a mask hides do not count.

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
    """Return the means in the graph of `net`, and their tensors.

    `made` collects the same for nested models, by their ids.
    """
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
