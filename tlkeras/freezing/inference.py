"""Layers that run as in inference whatever they are told: they use their state and leave it.

The call is put on the instance rather than in a subclass, so that a saved model needs only Keras.
"""

import inspect
from typing import Any

import keras

from tlkeras.blocks import internals

KNOWN = (keras.layers.BatchNormalization, keras.layers.Normalization)  # they need no help


def hold_state(model: keras.Model, learning: set[int]) -> list[keras.Variable]:
    """Holds the layers of which nothing learns and that could update a state in training.

    Args:
        learning: ids of the weights of the blocks that learn, but for what the user closed.

    Returns:
        The weights of these layers.
    """
    held = []
    for layer in internals.all_layers(model):
        if isinstance(layer, KNOWN) or not internals.fixed_kind(layer):
            continue
        made = [v for x in internals.all_layers(layer) for v in internals.trainable_kind(x)]
        mine = {id(weight) for weight in layer.weights}
        as_always(layer)
        if not mine & learning or (made and not any(id(v) in learning for v in made)):
            as_in_inference(layer)
            held += layer.weights
    return held


def as_in_inference(layer: keras.Layer) -> None:
    """Gives `layer` a `call` that is not training whatever it is told.

    A layer whose call does not ask whether it is training has its state put back after the call.
    """
    signature = inspect.signature(type(layer).call)
    asks = "training" in signature.parameters

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(layer, *args, **kwargs)
        if asks:
            given.arguments["training"] = False
            return type(layer).call(*given.args, **given.kwargs)
        state = internals.fixed_kind(layer)
        before = [keras.ops.copy(variable.value) for variable in state]
        output = type(layer).call(*given.args, **given.kwargs)
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        return output

    call.holds = True  # type: ignore[attr-defined]
    layer.call = call


def as_always(layer: keras.Layer) -> None:
    """Takes that `call` away again."""
    if is_held(layer):
        del layer.call


def is_held(layer: keras.Layer) -> bool:
    """Whether `layer` runs as in inference whatever it is told."""
    return hasattr(vars(layer).get("call"), "holds")
