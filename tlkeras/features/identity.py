"""Digests of frozen parts, examples and augmentations, over everything that an output depends on.

If something cannot be described completely, Unknown is raised, and its outputs are not shared: a
function or layer of the user's can contain any code, and a Keras layer that looks words up does
not keep them in its weights.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range)


class Unknown(ValueError):
    """Raised if something cannot be described completely; says what."""


def of_part(below: keras.Model, cut: keras.KerasTensor) -> bytes:
    """Return a digest of the part of a model up to a cut: its calls, arguments and weights.

    Raises Unknown if something in it cannot be described.
    """
    net = internals.functional(below)
    assert net is not None  # it was cut out of a graph
    return _digest((keras.config.backend(), cut.shape, cut.dtype, _graph(net)))


def of_weights(model: keras.Model, salt: tuple) -> bytes:
    """Return a digest of the weights of a model and of `salt`."""
    return _digest((salt, _value(model.weights)))


def of_augmentation(augment: Callable | None) -> bytes:
    """Return a digest of an augmentation: its class, its settings and its random state.

    Raises Unknown if something in it cannot be described.
    """
    if augment is None:
        return b""
    if not isinstance(augment, keras.Layer):
        raise Unknown(f"{augment!r} is not a layer of Keras")
    net = internals.functional(augment)
    return _digest(_graph(net) if net else _operation(augment))


def of_examples(x: Any, salt: bytes = b"") -> list[bytes]:
    """Return a digest of each example: the type, shape and content of each of its parts.

    Raises Unknown for objects that are neither strings nor numbers.
    """
    parts = [np.ascontiguousarray(array) for array in keras.tree.flatten(x)]
    kinds = [("text" if array.dtype.kind in "OSU" else str(array.dtype)) for array in parts]
    shapes = [array.shape[1:] for array in parts]
    start = hashlib.sha256(repr((salt, kinds, shapes)).encode())
    digests = [start.copy() for _ in range(len(parts[0]))]
    for array, kind in zip(parts, kinds, strict=True):
        for digest, example in zip(digests, array, strict=True):
            digest.update(_text(example) if kind == "text" else example.tobytes())
    return [digest.digest() for digest in digests]


def _text(example: Any) -> bytes:
    found = np.asarray(example, object).ravel().tolist()
    for item in found:
        if not isinstance(item, PLAIN):
            raise Unknown(f"an example has a {type(item).__name__} in it, not text or numbers")
    return repr(found).encode()


def _digest(described: Any) -> bytes:
    return hashlib.sha256(repr(described).encode()).digest()


def _graph(net: keras.Model) -> tuple:
    """Describe the calls of a functional model: what is called, with which arguments."""
    numbers = {id(tensor): number for number, tensor in enumerate(net.inputs)}
    calls = []
    for node in internals.nodes(net):
        inner = internals.functional(node.operation)
        what = _graph(inner) if inner else _operation(node.operation)
        given = _value((list(node.arguments.args), node.arguments.kwargs), numbers)
        written = [(tensor.shape, str(tensor.dtype)) for tensor in node.outputs]
        calls.append((what, given, written))
        numbers.update((id(t), len(numbers) + i) for i, t in enumerate(node.outputs))
    inputs = [(tensor.shape, str(tensor.dtype)) for tensor in net.inputs]
    return inputs, calls, [numbers[id(tensor)] for tensor in net.outputs]


def _operation(op: keras.Operation) -> tuple:
    """Describe a Keras layer or an operation of `keras.ops`: its class, settings and state."""
    if not isinstance(op, keras.Layer):
        _check_home(type(op))
        return type(op).__name__, _value(internals.settings(op))
    described = []
    for layer in internals.all_layers(op):
        _check_home(type(layer))
        if hasattr(layer, "save_assets") or isinstance(layer, keras.layers.Discretization):
            raise Unknown(f"what {type(layer).__name__} {layer.name!r} looks up is not a weight")
        for name, value in internals.settings(layer).items():
            if is_foreign(value):
                raise Unknown(f"{name} of {layer.name!r} is not a part of Keras")
        held = [*internals.trainable_kind(layer), *internals.fixed_kind(layer)]
        held += [generator.state for generator in internals.seed_generators(layer)]
        described.append((type(layer).__name__, layer.dtype_policy.name, _value(held)))
    try:
        config = op.get_config()
    except Exception as error:
        raise Unknown(f"{type(op).__name__} {op.name!r} has no get_config") from error
    return _value(config), described


def _check_home(kind: type) -> None:
    if not is_of_keras(kind) or kind is keras.layers.Lambda:
        raise Unknown(f"{kind.__qualname__} is not a part of Keras")


def is_of_keras(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in ("keras", "tlkeras")


def is_foreign(value: Any) -> bool:
    """True if a setting of a layer, such as an activation, is code that is not from Keras."""
    if not callable(value) or isinstance(value, keras.Layer | type):
        return False
    return not is_of_keras(value if hasattr(value, "__qualname__") else type(value))


def _value(value: Any, numbers: dict[int, int] | None = None) -> Any:
    """Return `value` as plain objects whose `repr` is complete; graph tensors by their numbers."""
    if isinstance(value, PLAIN):
        return type(value).__name__, value
    if isinstance(value, slice):
        return "slice", _value([value.start, value.stop, value.step], numbers)
    if isinstance(value, list | tuple):
        return type(value).__name__, [_value(item, numbers) for item in value]
    if isinstance(value, dict):  # without layer names, which change from one model to the next
        left = {k: v for k, v in value.items() if k != "name" or "trainable" not in value}
        return "dict", [(k, _value(v, numbers)) for k, v in left.items()]
    if isinstance(value, keras.KerasTensor):
        return "tensor", (numbers or {}).get(id(value)), value.shape, str(value.dtype)
    if isinstance(value, np.dtype | type | keras.DTypePolicy):
        return type(value).__name__, getattr(value, "name", str(value))
    if isinstance(value, keras.Operation):
        return _operation(value)
    if isinstance(value, keras.Variable | np.ndarray | np.generic) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.dtype != object:
            return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    raise Unknown(f"a {type(value).__name__} among the arguments cannot be described")
