"""The frozen part of a model: the part whose outputs can be computed once and stored.

While a stage trains, the blocks below the lowest block that learns are a fixed function of the
example, as long as nothing in them is random and their BatchNorm is frozen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tlkeras.blocks import graph, internals
from tlkeras.blocks.find import Blocks
from tlkeras.features import exactness, identity
from tlkeras.features.exactness import NotExact

STEPS = ("fit", "evaluate", "train_step", "test_step", "compute_loss", "compute_metrics")


@dataclass
class FrozenPart:
    """The frozen part of a model up to a single tensor, and the rest of the model.

    Attributes:
        below: the model from the inputs to the cut. It shares the layers of the whole model.
        above: the model from the cut to the outputs. It shares them, too.
        block: name of the last block in `below`.
        cut: the tensor between the two.
        shape: the shape of one example at the cut.
        fingerprint: a digest that changes with the weights, the graph and the cut.
        doubt: the layers in `below` that have to be tested before their outputs are cached, or "".
        call: if `below` cannot be described completely, the blocks that identify the one call of
            `fit_stages` that can use the outputs; else None.
    """

    below: keras.Model
    above: keras.Model
    block: str
    cut: keras.KerasTensor
    shape: tuple[int, ...]
    fingerprint: bytes
    doubt: str
    call: Blocks | None

    @property
    def bytes_per_example(self) -> int:
        name = keras.backend.standardize_dtype(self.cut.dtype)
        return math.prod(self.shape) * max(8, int("0" + "".join(filter(str.isdigit, name)))) // 8


def find_frozen_part(
    model: keras.Model, blocks: Blocks, lowest: int, shapes: Sequence[tuple] = ()
) -> FrozenPart:
    """Find the longest frozen part of a model whose outputs can be cached.

    Args:
        model: the blocks below `lowest` must be frozen, including their BatchNorm.
        blocks: the blocks of the model, in order.
        lowest: the number of the first block that learns.
        shapes: the input shapes of one example; needed if the model leaves the image size open.

    Raises:
        NotExact: there is none; says why.
    """
    own = [name for name in STEPS if getattr(type(model), name) is not getattr(_PLAIN, name)]
    if own:
        raise NotExact(f"{type(model).__name__} has its own {', '.join(own)}")
    net = internals.functional(model)
    if net is None:
        raise NotExact(f"{type(model).__name__} has no graph of layers to cut")
    if lowest == 0:
        raise NotExact(f"the first block, {blocks[0].name}, learns")
    reason = ""
    for block in reversed(blocks[:lowest]):
        cut = None if block.cut is None else _past_pooling(net, block.cut)
        halves = None if cut is None else graph.halves(net, cut, net.input, net.output)
        if not halves:
            reason = reason or f"more than one tensor leaves the frozen block {block.name}"
            continue
        below, above = halves
        shape = _shape(below, shapes)
        problem = exactness.problem(below)
        if shape is None:
            problem = f"the image size is open after the frozen block {block.name}"
        elif not problem:
            above.output_names = getattr(model, "output_names", above.output_names)
            mark, call = _fingerprint(below, cut, blocks)
            mark += repr(shape).encode()  # a part can be given images of several sizes
            doubt = exactness.doubt(below)
            return FrozenPart(below, above, block.name, cut, shape, mark, doubt, call)
        reason = reason or problem
    raise NotExact(reason)


_PLAIN = type(keras.Sequential())  # to compare with: a model class that overrides nothing


def _past_pooling(net: keras.Model, cut: keras.KerasTensor) -> keras.KerasTensor:
    """Return the smallest tensor reached from `cut` without weights: pooled features, if any."""
    calls, tensor, best = internals.nodes(net), cut, cut
    while not any(tensor is output for output in net.outputs):
        readers = [node for node in calls if any(t is tensor for t in node.input_tensors)]
        if len(readers) != 1 or len(readers[0].input_tensors) != 1 or len(readers[0].outputs) != 1:
            break
        op = readers[0].operation
        if isinstance(op, keras.Layer) and (op.variables or exactness.problem(op)):
            break
        tensor = readers[0].outputs[0]
        if None in tensor.shape[1:] or internals.mask_of(tensor) is not None:
            break
        if None in best.shape[1:] or np.prod(tensor.shape[1:]) < np.prod(best.shape[1:]):
            best = tensor
    return best


def _shape(below: keras.Model, shapes: Sequence[tuple]) -> tuple[int, ...] | None:
    """Return the output shape for one example; None if it stays open.

    It is computed from the shapes of the inputs, because the cut can be inside a nested model that
    takes any size.
    """
    inputs = keras.tree.flatten(below.input)
    if len(shapes) != len(inputs):
        shapes = [tensor.shape[1:] for tensor in inputs]
    given = [
        keras.KerasTensor((1, *shape), tensor.dtype)
        for shape, tensor in zip(shapes, inputs, strict=True)
    ]
    given = keras.tree.pack_sequence_as(below.input, given)
    shape = tuple(below.compute_output_spec(given).shape[1:])
    return None if None in shape else shape


def _fingerprint(
    below: keras.Model, cut: keras.KerasTensor, blocks: Blocks
) -> tuple[bytes, Blocks | None]:
    """Return a digest that identifies the outputs at the cut, and the `call` of a FrozenPart."""
    try:
        return identity.of_part(below, cut), None
    except Exception:  # its settings can be anything
        return identity.of_weights(below, (id(blocks), id(cut))), blocks
