"""Whether a frozen part puts out the same in training, for each example by itself.

Layers that Keras documents to do so are taken at their word; anything else is tried.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.features import identity

TRIES = 3  # passes in training, for what draws numbers where nobody sees it
TOLERANCE = 1e-5  # of the largest output; in shorter number types, four of their steps

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
RATES = ("rate", "stddev", "dropout", "recurrent_dropout")
DRAWN_FROM = (np.random.Generator, np.random.RandomState, random.Random)


class NotExact(ValueError):
    """Training on cached outputs would not be the same as training without; says why."""


def problem(part: keras.Layer) -> str:
    """Why the output of a frozen part may differ from one pass in training to the next, or ""."""
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
    """The first thing called in a part that is to be tried, or ""."""
    net = internals.functional(part)
    for node in [] if net is None else internals.nodes(net):
        inner = internals.functional(node.operation)
        found = doubt(inner) if inner else _doubt(node.operation)
        if found:
            return found
    return ""


def _doubt(op: keras.Operation) -> str:
    layers = internals.all_layers(op) if isinstance(op, keras.Layer) else []
    for layer in layers:
        if not _known(layer):
            return f"{type(layer).__name__} {layer.name!r}"
    return "" if layers else f"the operation {type(op).__name__}"


def _known(layer: keras.Layer) -> bool:
    """Whether Keras says what the layer does in training: as otherwise, to each example alone."""
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
    """Tries a part on some examples.

    Args:
        model: frozen; its state, and that of random number generators, is as before afterwards.
        x: what it takes, a full chunk.
        doubtful: why it is tried, for the message.

    Raises:
        NotExact: it fails, changes a state, adds to the loss, draws numbers, puts out something
            else in training than otherwise, or something else beside other examples.
    """
    count = len(keras.tree.flatten(x)[0])
    some = keras.tree.map_structure(lambda array: array[: (count + 1) // 2], x)
    turned = keras.tree.map_structure(lambda array: array[::-1], x)
    held = [v for layer in internals.all_layers(model) for v in _states(layer)]
    try:
        with _nothing_drawn(doubtful), _nothing_changed(held, doubtful):
            expected = _outputs(model, x, False)
            trained = [_outputs(model, x, True) for _ in range(TRIES)]
            if model.losses:
                raise NotExact(f"{doubtful} adds to the loss")
            alone = _outputs(model, some, False)
            backwards = _outputs(model, turned, False)[::-1]
    except NotExact:
        raise
    except Exception as error:
        raise NotExact(f"{doubtful} cannot be tried: {error}") from error
    if not all(_equal(expected, found) for found in trained):
        raise NotExact(
            f"the frozen blocks put out something else in training than otherwise: {doubtful}"
        )
    if not (_equal(expected[: len(alone)], alone) and _equal(expected, backwards)):
        raise NotExact(f"what the frozen blocks put out depends on the batch: {doubtful}")


def _outputs(model: keras.Model, x: Any, training: bool) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(x, training=training)))


def _equal(expected: np.ndarray, found: np.ndarray) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind in "biu":
        return np.array_equal(expected, found)
    steps = 4 * float(keras.ops.finfo(expected.dtype.name).eps) if expected.itemsize < 4 else 0
    one, other = expected.astype("float64"), found.astype("float64")
    scale = np.abs(one[np.isfinite(one)]).max(initial=0)
    return np.allclose(other, one, rtol=0, atol=max(TOLERANCE, steps) * scale, equal_nan=True)


def _states(layer: keras.Layer) -> list[keras.Variable]:
    return [] if _known(layer) else [*internals.fixed_kind(layer), *internals.trainable_kind(layer)]


@contextmanager
def _nothing_changed(held: list[keras.Variable], doubtful: str) -> Iterator[None]:
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in held]
    try:
        yield
    finally:
        changed = [
            (variable, value)
            for variable, value in zip(held, before, strict=True)
            if keras.ops.convert_to_numpy(variable).tobytes() != value.tobytes()
        ]
        for variable, value in changed:
            variable.assign(value)
    if changed:
        raise NotExact(f"{doubtful} changes its own state in training")


@contextmanager
def _nothing_drawn(doubtful: str) -> Iterator[None]:
    """Sees draws however rarely they change anything, and puts the generators back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    drawn: list[tuple[keras.random.SeedGenerator, Any]] = []
    original = keras.random.SeedGenerator.next

    def watched(generator: keras.random.SeedGenerator, ordered: bool = True) -> Any:
        drawn.append((generator, keras.ops.convert_to_numpy(generator.state)))
        return original(generator, ordered)

    keras.random.SeedGenerator.next = watched
    try:
        yield
    finally:
        keras.random.SeedGenerator.next = original
        for generator, state in reversed(drawn):
            generator.state.assign(state)
        others = repr((np.random.get_state(), random.getstate()))  # noqa: NPY002
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    if drawn or others != repr((numpy_state, python_state)):
        raise NotExact(f"{doubtful} draws random numbers")
