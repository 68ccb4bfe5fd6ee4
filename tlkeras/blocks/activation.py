"""Find out from a model's graph whether its outputs are class scores (logits) or probabilities."""

from typing import Any

import keras

from tlkeras.blocks.internals import functional, nodes

LOGITS, SOFTMAX, SIGMOID = "logits", "softmax", "sigmoid"
FUNCTIONS = {
    "linear": LOGITS,
    "log_softmax": LOGITS,  # its softmax equals the softmax of its input
    "softmax": SOFTMAX,
    "sigmoid": SIGMOID,
}
OPERATIONS = {"Softmax": SOFTMAX, "Sigmoid": SIGMOID, "LogSoftmax": LOGITS}
# These only move, average or cast values: scores stay scores, probabilities stay probabilities.
PASSING = {
    *("Reshape", "Flatten", "Permute", "Identity", "Dropout", "SpatialDropout1D", "Squeeze"),
    *("ExpandDims", "Cast", "Transpose", "UpSampling1D", "UpSampling2D", "Cropping2D", "Resizing"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "Mean"),
    *("AveragePooling1D", "AveragePooling2D", "Average", "GetItem", "RepeatVector"),
}
# These turn scores into other scores, but probabilities into something else.
AFFINE = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Rescaling"),
    *("BatchNormalization",),
}


def output_shapes(model: keras.Model) -> list[tuple[int | None, ...]] | None:
    """Return the shape of every output; None for a model without a graph (a subclassed model)."""
    net = functional(model)
    return None if net is None else [tuple(tensor.shape) for tensor in net.outputs]


def endings(model: keras.Model) -> list[str | None] | None:
    """Return LOGITS, SOFTMAX, SIGMOID or None (not known) for every output.

    Returns None instead of a list for a model without a graph (a subclassed model).
    """
    net = functional(model)
    return None if net is None else [_ending(net, tensor) for tensor in net.outputs]


def _ending(net: keras.Model, tensor: keras.KerasTensor) -> str | None:
    for node in nodes(net):
        for position, written in enumerate(node.outputs):
            if written is tensor:
                inner = functional(node.operation)
                if inner is not None:
                    return _ending(inner, inner.outputs[position])
                return _of_call(net, node)
    return None  # an input


def _of_call(net: keras.Model, node: Any) -> str | None:
    operation = node.operation
    while isinstance(operation, keras.layers.Wrapper):  # TimeDistributed
        operation = operation.layer
    kind = type(operation).__name__
    if kind in OPERATIONS:
        last = getattr(operation, "axis", -1) in (-1, len(node.outputs[0].shape) - 1)
        return OPERATIONS[kind] if last or kind == "Sigmoid" else None
    if kind in PASSING or kind in AFFINE:
        read = {_ending(net, tensor) for tensor in node.input_tensors}
        [found, *others] = read or {None}
        if others or (found != LOGITS and kind in AFFINE):
            return None
        widths = {tensor.shape[-1] for tensor in [*node.input_tensors, *node.outputs]}
        return found if found != SOFTMAX or len(widths) == 1 else None  # no longer sums to 1
    activation = getattr(operation, "activation", None)
    if kind == "Activation" or getattr(operation, "kernel", None) is not None:
        return _named(activation)
    return None


def _named(activation: Any) -> str | None:
    """Compare with Keras's own activations, not by name: a user's function can have any name."""
    if activation is None:
        return LOGITS
    if isinstance(activation, keras.layers.Softmax):
        return SOFTMAX if activation.axis == -1 else None
    for name, ending in FUNCTIONS.items():
        if activation in (getattr(keras.activations, name), getattr(keras.ops, name, None)):
            return ending
    return None
