"""Check that the output of a frozen part is the same in training, and for each example by itself.

Layers for which Keras documents this are trusted; anything else is tested.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import ml_dtypes
import numpy as np

from tlkeras.blocks import internals
from tlkeras.features import identity

TRIES = 3  # passes in training mode, to detect random draws that leave no other trace
TOLERANCE = 1e-5  # times the largest output; with less than 32 bits, at least 4 x the type's eps

SIDES = """AdaptiveAveragePooling AdaptiveMaxPooling AveragePooling Conv Cropping DepthwiseConv
    GlobalAveragePooling GlobalMaxPooling MaxPooling SeparableConv SpatialDropout UpSampling
    ZeroPadding"""  # each in 1D, 2D and 3D
OTHERS = """Activation Add AdditiveAttention Attention Average BatchNormalization Bidirectional
    CategoryEncoding CenterCrop Concatenate Conv1DTranspose Conv2DTranspose Conv3DTranspose Dense
    Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise
    GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization
    LeakyReLU Masking Maximum Minimum MultiHeadAttention Multiply Normalization PReLU Permute
    RMSNormalization ReLU RepeatVector Rescaling Reshape Resizing SimpleRNN SimpleRNNCell Softmax
    Subtract TimeDistributed UnitNormalization"""
KNOWN = {f"{name}{n}D" for name in SIDES.split() for n in (1, 2, 3)} | set(OTHERS.split())
ELEMENTWISE = """Elu Gelu HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid Relu Relu6 Selu Sigmoid
    Silu Softplus Softsign Tanh""".split()  # noqa: SIM905 - operations, called on a tensor
RATES = ("rate", "stddev", "dropout", "recurrent_dropout")
DRAWN_FROM = (np.random.Generator, np.random.RandomState, random.Random)
# TensorFlow operations that draw random numbers or write to TensorFlow's variables begin like this.
UNSEEN = ("Assign", "Multinomial", "Parameterized", "Random", "Rng", "Stateful", "Truncated")


class NotExact(ValueError):
    """Raised if training on cached outputs would not be the same as without; says why."""


def problem(part: keras.Layer) -> str:
    """Say why the output of a frozen part can differ between two passes in training, or ""."""
    for layer in internals.all_layers(part):
        kind = f"the frozen {type(layer).__name__} {layer.name!r}"
        given = internals.settings(layer).values()
        drawing = internals.seed_generators(layer) and identity.is_of_keras(type(layer))
        if (drawing and not _known(layer)) or any(isinstance(v, DRAWN_FROM) for v in given):
            return f"{kind} is random in training"
        if getattr(layer, "activity_regularizer", None) is not None:
            return f"{kind} adds to the loss"
        fixed = (keras.layers.BatchNormalization, keras.layers.Normalization)
        state = [w for w in internals.fixed_kind(layer) if "float" in w.dtype]
        if (state and not isinstance(layer, fixed)) or getattr(layer, "stateful", False):
            return f"{kind} keeps a state that training may change"
    return ""


def doubt(part: keras.Model) -> str:
    """Name the layers and operations in a part that have to be tested, or ""."""
    names = list(dict.fromkeys(_doubts(part)))
    return " or ".join(names[:3] + ["others"] * (len(names) > 3))


def _doubts(part: keras.Model) -> Iterator[str]:
    net = internals.functional(part)
    for node in [] if net is None else internals.nodes(net):
        op = node.operation
        if internals.functional(op):
            yield from _doubts(op)
        elif isinstance(op, keras.Layer):
            unknown = (layer for layer in internals.all_layers(op) if not _known(layer))
            yield from (f"{type(layer).__name__} {layer.name!r}" for layer in unknown)
        elif not _known_operation(op):
            yield f"the operation {type(op).__name__}"


def _known_operation(op: keras.Operation) -> bool:
    """True for a Keras operation that works on each value alone, or pads each example alone."""
    name = type(op).__name__
    if not identity.is_of_keras(type(op)):
        return False
    return name in ELEMENTWISE or (name == "Pad" and not any(keras.tree.flatten(op.pad_width[0])))


def _known(layer: keras.Layer) -> bool:
    """True if Keras documents that the layer does the same in training, for each example alone."""
    name = type(layer).__name__
    if name not in KNOWN or type(layer) is not getattr(keras.layers, name):
        return False
    if isinstance(layer, keras.layers.BatchNormalization) and internals.flag(layer):
        return False
    given = internals.settings(layer)
    if any(given.get(rate) for rate in RATES) or "call" in given:
        return False
    axes = keras.tree.flatten([given.get("axis"), given.get("axes")])
    return 0 not in axes and not any(map(identity.is_foreign, given.values()))


def check(model: keras.Model, x: Any, doubtful: str) -> None:
    """Test a part on some examples.

    Args:
        model: the frozen part. Its state and that of random number generators are restored.
        x: its inputs, a full chunk.
        doubtful: the layers because of which it is tested, for the message.

    Raises:
        NotExact: the part fails, changes a state, adds to the loss or draws random numbers; or its
            output differs in training, or depends on the other examples in the batch.
    """
    count = len(keras.tree.flatten(x)[0])
    some = keras.tree.map_structure(lambda array: array[: (count + 1) // 2], x)
    turned = keras.tree.map_structure(lambda array: array[::-1], x)
    try:
        with undone(model) as done:
            _look_for_unseen(model, x, doubtful)
            expected = _outputs(model, x, False, doubtful)
            trained = [_outputs(model, x, True, doubtful) for _ in range(TRIES)]
            alone = _outputs(model, some, False, doubtful)
            backwards = _outputs(model, turned, False, doubtful)[::-1]
    except NotExact:
        raise
    except Exception as error:
        raise NotExact(f"{doubtful} cannot be tested: {error}") from error
    if done:
        raise NotExact(f"{doubtful} {done[0]}")
    if not all(_equal(expected, output) for output in trained):
        raise NotExact(f"the output of the frozen blocks is different in training: {doubtful}")
    if not (_equal(expected[: len(alone)], alone) and _equal(expected, backwards)):
        raise NotExact(f"the output of the frozen blocks depends on the batch: {doubtful}")


def _look_for_unseen(model: keras.Model, x: Any, doubtful: str) -> None:
    """Raise NotExact if TensorFlow would draw random numbers or change a state unseen by Keras.

    A draw can be too rare to show in a few passes, so this searches the graph of operations, which
    only TensorFlow has.
    """
    kinds = list[str]()

    def call(x: Any) -> Any:
        output = model(x, training=True)
        graph = getattr(output, "graph", None)
        if graph is not None:
            written = graph.as_graph_def()
            inside = [node for function in written.library.function for node in function.node_def]
            kinds.extend(node.op for node in [*written.node, *inside])
        return output

    looked = keras.layers.Lambda(call)
    looked.compute_output_spec(keras.tree.map_structure(_symbol, x))
    if any(kind.startswith(UNSEEN) for kind in kinds):
        raise NotExact(f"{doubtful} draws random numbers, or changes a state, in training")


def _symbol(array: np.ndarray) -> keras.KerasTensor:
    kind = "string" if array.dtype.kind in "OSU" else str(array.dtype)
    return keras.KerasTensor(array.shape, kind)


def _attributes(part: Any) -> list[tuple[keras.Layer, dict[str, Any]]]:
    """Return the plain attributes (numbers, strings) of layers that are not from Keras."""
    layers = internals.all_layers(part) if isinstance(part, keras.Layer) else []
    foreign = [layer for layer in layers if not identity.is_of_keras(type(layer))]
    settings = [(layer, internals.settings(layer).items()) for layer in foreign]
    return [(x, {k: v for k, v in own if isinstance(v, identity.PLAIN)}) for x, own in settings]


@contextmanager
def undone(part: Any = None) -> Iterator[list[str]]:
    """Context manager: restore the random generators and the plain attributes of layers on exit.

    These are the generators of NumPy and Python, and attributes such as a count of calls in layers
    of `part` that are not from Keras. On exit, the list it yields says which of them had changed.
    """
    done = list[str]()
    before, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    held = _attributes(part)
    try:
        yield done
    finally:
        drawn = repr(np.random.get_state()) != repr(before)  # noqa: NPY002
        if drawn or random.getstate() != python:
            done.append("draws random numbers")
        if _attributes(part) != held:
            done.append("counts its calls")
        random.setstate(python)
        np.random.set_state(before)  # noqa: NPY002
        for layer, values in held:
            vars(layer).update(values)


def _outputs(model: keras.Model, x: Any, training: bool, doubtful: str) -> np.ndarray:
    """Return the outputs of `model`; raise NotExact if it also draws numbers or changes a state.

    A draw from a Keras generator changes its state, so it is noticed even if no output changes.
    """
    with keras.StatelessScope(collect_losses=True) as scope:  # variables stay unchanged
        given = model(x, training=training)
    if internals.mask_of(given) is not None:
        raise NotExact(f"a mask leaves the frozen blocks together with their output: {doubtful}")
    outputs = np.asarray(keras.ops.convert_to_numpy(given))
    held = {id(variable): variable for variable in model.variables}
    for key, value in scope.state_mapping.items():
        if key not in held or not np.array_equal(
            keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(held[key])
        ):
            raise NotExact(f"{doubtful} draws random numbers, or changes a state, in training")
    if scope.losses:
        raise NotExact(f"{doubtful} adds to the loss")
    return outputs


def _equal(expected: np.ndarray, found: np.ndarray) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind in "biu":
        return np.array_equal(expected, found)
    steps = 4 * float(ml_dtypes.finfo(expected.dtype).eps) if expected.itemsize < 4 else 0
    one, other = expected.astype("float64"), found.astype("float64")
    scale = np.abs(one[np.isfinite(one)]).max(initial=0)
    return np.allclose(other, one, rtol=0, atol=max(TOLERANCE, steps) * scale, equal_nan=True)
