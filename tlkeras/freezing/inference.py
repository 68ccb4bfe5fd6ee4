"""Make layers run as in inference even during training: they use their state but do not update it.

The new `call` is set on the instance instead of in a subclass, so a saved model needs only Keras.
"""

import inspect
from typing import Any

import keras

from tlkeras.blocks import internals

KNOWN = (keras.layers.BatchNormalization, keras.layers.Normalization)  # not handled here


def hold_state(model: keras.Model, learning: set[int]) -> list[keras.Variable]:
    """Make layers whose state training could change run as in inference if nothing in them learns.

    Those in which something learns run normally again.

    Args:
        learning: ids of the weights of the blocks that learn, except those that the user closed.

    Returns:
        The weights of the layers that now run as in inference.
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
    """Give `layer` a `call` that always runs as in inference.

    If the layer's `call` has no `training` argument, its state is restored after each call.
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
    """Remove that `call` again."""
    if is_held(layer):
        del layer.call


def is_held(layer: keras.Layer) -> bool:
    """True if `layer` has been made to run as in inference."""
    return hasattr(vars(layer).get("call"), "holds")
