"""A network as an ordered list of blocks, bottom to head (floor 0).

The one notion of depth that unfreezing, learning rates per block, caching and probing share
(sections 1.5 and 1.6). Blocks come from the graph of the model, not from a list of architectures:

1. Nested models are unrolled, and the calls are laid out in the order data flows.
2. Wherever a single tensor is live, the network could be cut in two: these are the joints.
3. Joints are kept where a new stage begins: where the image or the sequence changes size, or
   where the next transformer layer begins.
4. The head is what follows the backbone (a nested model), or its pooling, or is the last Dense.
"""

from dataclasses import dataclass, field
from itertools import takewhile

import keras

from tlkeras.blocks import graph, internals
from tlkeras.blocks.names import block_names
from tlkeras.blocks.parts import find_units
from tlkeras.utils.tables import html_table, text_table

HEADER = ("block", "role", "layers", "parameters", "output")
FEW = 4  # a backbone with fewer blocks than this is cut more finely


@dataclass(eq=False)
class Block:
    """A part of a network that is frozen, trained and cached as one.

    - `name`: readable, unique in the model, the same each time the model is built.
    - `role`: "bottom", "middle", "top" or "head" (section 1.5).
    - `layers`: the layers that hold the block's weights themselves, in the order data flows. A
      composite layer is listed only for what it holds directly (a class token, say).
    - `weights`: all its variables, moving statistics included. To freeze exactly a block, set
      `weight.trainable` on these: `layer.trainable` on a composite layer reaches into its
      children, which may be in other blocks. Containers must stay trainable, up to the model.
    - `params`: how many numbers these are.
    - `cut`: the `KerasTensor` through which all data leaves the block, or None where there is no
      such tensor: inside one layer, beside a second live tensor (a padding mask, the other tower
      of CLIP), or in a model without a graph. In a flat model `keras.Model(model.input, cut)` and
      `keras.Model(cut, model.output)` compose to the model. In a nested backbone `cut` belongs
      to the inner graph; `Blocks.split` makes the two halves in either case.
    """

    name: str
    role: str
    layers: list = field(repr=False)
    weights: list = field(repr=False)
    params: int
    cut: object = field(repr=False)


class Blocks(list):
    """The blocks of one model: a list that can also be asked by name, and shown as a table."""

    def __init__(self, model, blocks):
        super().__init__(blocks)
        self.model = model

    @property
    def names(self):
        return [block.name for block in self]

    def __getitem__(self, key):
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self.names:
            raise KeyError(f"Expected the name of a block, one of {self.names}; found {key!r}.")
        return super().__getitem__(self.names.index(key))

    def split(self, name):
        """Cut the model after the block `name`; return two models that share its layers.

        `below` maps the model's input to the block's `cut`, `above` maps that to the model's
        output: `above(below(x))` equals `model(x)` exactly. A nested backbone becomes one nested
        part in each. Raises KeyError for an unknown name, ValueError if the block has no cut.
        """
        block = self[name]
        if block.cut is None:
            able = [b.name for b in self if b.cut is not None]
            raise ValueError(
                f"Expected a block that one tensor leaves, one of {able}; found "
                f"{name!r}, whose cut is None. Split after another block."
            )
        net = internals.functional(self.model)
        return graph.split(net, block.cut, net.input, net.output)

    def _rows(self):
        return [
            (
                b.name,
                b.role,
                len(b.layers),
                f"{b.params:,}",
                "-" if b.cut is None else " x ".join(str(n or "?") for n in b.cut.shape[1:]),
            )
            for b in self
        ]

    def __repr__(self):
        return text_table(self._rows(), HEADER)

    def _repr_html_(self):
        return html_table(self._rows(), HEADER)


def find_blocks(model):
    """Return the blocks of `model`, bottom to head, as a list that renders as a table.

    Args:
        model: any built `keras.Model`: functional, Sequential, with nested backbones, a KerasHub
            or KerasCV backbone or task, or subclassed (then by its tracked layers, in the order
            they were created, and no block has a cut).

    Every weight belongs to exactly one block: that of the first layer to use it. A weight that
    no call reaches belongs to the last block. Layers without weights, and layers whose weights
    never learn (`Normalization`), go with their neighbours.

    Roles: the first third of the backbone's blocks is "bottom", the next "middle", the last
    "top"; what follows the backbone is "head", absent when the model is a bare backbone.

    Raises TypeError if `model` is no Keras model, ValueError if it is not built or has no weights.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected a keras.Model; found {type(model).__name__}. "
            "Wrap layers in keras.Sequential or keras.Model first."
        )
    if not model.built:
        raise ValueError(
            f"Expected a built model; {model.name!r} has no weights yet. "
            "Give it an Input, or call it once on a batch."
        )
    if not model.weights:
        raise ValueError(
            f"Expected a model with weights; {model.name!r} has none, so there is "
            "nothing to freeze or to train. Pass the network, not the preprocessing."
        )
    units, head = find_units(model)
    head = _head(units) if head is None else head
    runs = _runs(units[:head])
    blocks = [_block(_role(i, len(runs)), run) for i, run in enumerate(runs)]
    if head < len(units):
        blocks.append(_block("head", units[head:]))
    for block, name in zip(blocks, block_names(runs, len(blocks)), strict=True):
        block.name = name
    return Blocks(model, blocks)


# From units to blocks ---------------------------------------------------------------------------


def _head(units):
    """Where the head of a flat model begins: its pooling, or its last Dense, or its end."""
    learning = [i for i, unit in enumerate(units) if unit.learns]
    if not learning:
        return len(units)
    for i, unit in reversed(list(enumerate(units))):
        if unit.positions > 1:
            break  # what is still an image or a sequence is no head
        if unit.pools and learning[0] < i < learning[-1]:
            return i
    last = units[learning[-1]]
    if not (last.vector and [type(layer) for layer, _ in last.owners] == [keras.layers.Dense]):
        return len(units)
    head = learning[-1]
    while head and _drops(units[head - 1]):
        head -= 1
    return head


def _drops(unit):
    return any(type(op).__name__.endswith("Dropout") for op in unit.ops) and not unit.owners


def _runs(units):
    """Group the units of a backbone into blocks."""
    for fineness in range(3):
        joints = _joints(units, fineness)
        runs = [units[a:b] for a, b in zip(joints, [*joints[1:], len(units)], strict=True)]
        if len(runs) >= FEW or any(unit.attends for unit in units):
            break
    return [run for run in runs if run]


def _joints(units, fineness):
    """Where blocks begin: at a change of size and at the next transformer layer. With fineness 1
    also after the first layer (the stem), with 2 at every layer with a kernel."""
    joints, previous = [0], None
    for i, unit in enumerate(units):
        if not unit.learns:
            continue
        if previous is not None:
            block = units[joints[-1] : i]
            stem = len(joints) == 1
            resized = not 2 / 3 < unit.positions / units[previous].positions < 3 / 2
            layer = unit.attends and (stem or any(u.attends for u in block))
            finer = unit.kernels and any(u.kernels for u in block) and fineness > (not stem)
            if resized or layer or finer:
                joints.append(_joint(units, joints[-1], previous, i, resized))
        previous = i
    return joints


def _joint(units, start, previous, following, resized):
    """The best place to cut between two units with weights: the smallest tensor, the later one
    among equals, never behind a Dropout, because what is random cannot be cached.

    The expansion of an inverted bottleneck goes with the stride that it feeds: up to four calls
    (convolution, normalisation, activation, padding) before it, if that halves the tensor.
    """

    def cost(end):
        return (units[end].cost * (1 if end >= previous else 2), -end)

    gap = takewhile(lambda end: not _drops(units[end]), range(previous + 1, following))
    ends, calls, end = [previous, *gap], units[previous].calls, previous - 1
    while resized and calls <= 4 and any(unit.learns for unit in units[start : end + 1]):
        ends.append(end)
        calls, end = calls + units[end].calls, end - 1
    return min(ends, key=cost) + 1


def _block(role, units):
    held = [owner for unit in units for owner in unit.owners]
    weights = [weight for _, ws in held for weight in ws]
    layers = list({id(layer): layer for layer, _ in held}.values())
    return Block("", role, layers, weights, graph.params(weights), units[-1].cut)


def _role(i, n):
    if n < 3:
        return ("bottom", "top")[i]
    return ("bottom", "middle", "top")[3 * i // n]
