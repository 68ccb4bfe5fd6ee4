"""The frozen part of a model: the part whose outputs can be computed once and kept.

While a stage trains, the blocks below the lowest learning one are a fixed function of the
example, as long as nothing in them is random and their BatchNorm is frozen.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tlkeras.blocks import graph, internals
from tlkeras.blocks.find import Blocks

STEPS = ("fit", "evaluate", "train_step", "test_step", "compute_loss", "compute_metrics")


class NotExact(ValueError):
    """Training on cached outputs would not be the same as training without; says why."""


@dataclass
class FrozenPart:
    """The frozen part of a model up to a single tensor, and the rest of the model.

    Attributes:
        below: from the model's inputs to the cut; above: from the cut to the outputs. Both share
            the layers of the model.
        block: name of the last block in `below`.
        shape: of one example's output at the cut.
        cut: the tensor between them; shape: of one example there.
        fingerprint: changes with the weights, the layers and the cut.
    """

    below: keras.Model
    above: keras.Model
    block: str
    cut: keras.KerasTensor
    shape: tuple[int, ...]
    fingerprint: bytes

    @property
    def bytes_per_example(self) -> int:
        bits = int("".join(filter(str.isdigit, keras.backend.standardize_dtype(self.cut.dtype))))
        return math.prod(self.shape) * bits // 8


def find_frozen_part(
    model: keras.Model, blocks: Blocks, lowest: int, shapes: Sequence[tuple] = ()
) -> FrozenPart:
    """The longest frozen part of a model whose outputs can stand in for it.

    Args:
        model: with the blocks below `lowest` frozen, their BatchNorm too.
        blocks: of the model, in order.
        lowest: number of the first block that learns.
        shapes: of one example's inputs; needed where the model leaves the image size open.

    Raises:
        NotExact: there is none, with the reason.
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
        problem = _problem(below)
        if shape is None:
            problem = f"the image size is open after the frozen block {block.name}"
        elif not problem:
            above.output_names = getattr(model, "output_names", above.output_names)
            return FrozenPart(below, above, block.name, cut, shape, _fingerprint(below, cut))
        reason = reason or problem
    raise NotExact(reason)


_PLAIN = type(keras.Sequential())  # what a model that overrides nothing looks like


def _past_pooling(net: keras.Model, cut: keras.KerasTensor) -> keras.KerasTensor:
    """A later, smaller tensor reached from `cut` by fixed operations alone: pooled features."""
    calls, tensor, best = internals.nodes(net), cut, cut
    while not any(tensor is output for output in net.outputs):
        readers = [node for node in calls if any(t is tensor for t in node.input_tensors)]
        if len(readers) != 1 or len(readers[0].input_tensors) != 1 or len(readers[0].outputs) != 1:
            break
        op = readers[0].operation
        if isinstance(op, keras.Layer) and (op.variables or _problem(op)):
            break
        tensor = readers[0].outputs[0]
        if None in tensor.shape[1:] or internals.mask_of(tensor) is not None:
            break
        if None in best.shape[1:] or np.prod(tensor.shape[1:]) < np.prod(best.shape[1:]):
            best = tensor
    return best


def _shape(below: keras.Model, shapes: Sequence[tuple]) -> tuple[int, ...] | None:
    """Of the output for one example, worked out from the inputs, since the cut may be inside a
    nested model that takes any size; None where it stays open."""
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


def _problem(part: keras.Layer) -> str:
    """Why the output of a frozen part may differ from one pass in training to the next, or ""."""
    for layer in internals.all_layers(part):
        kind = f"the frozen {type(layer).__name__} {layer.name!r}"
        if internals.seed_generators(layer):
            return f"{kind} is random in training"
        if getattr(layer, "activity_regularizer", None) is not None:
            return f"{kind} adds to the loss"
        fixed = (keras.layers.BatchNormalization, keras.layers.Normalization)
        state = [w for w in internals.fixed_kind(layer) if "float" in w.dtype]
        if state and not isinstance(layer, fixed):
            return f"{kind} keeps a state that training may change"
    return ""


def _fingerprint(below: keras.Model, cut: keras.KerasTensor) -> bytes:
    digest = hashlib.sha256(repr((cut.shape, cut.dtype)).encode())
    for layer in internals.all_layers(below):
        config = layer.get_config() if not isinstance(layer, keras.Model) else {}
        config.pop("name", None)
        digest.update(repr((type(layer), config)).encode())
    for weight in below.weights:
        digest.update(keras.ops.convert_to_numpy(weight).tobytes())
    return digest.digest()
