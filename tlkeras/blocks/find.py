"""`find_blocks`: split a network into an ordered list of blocks, from bottom to head.

Unfreezing, learning rates per block, caching and probing all share this notion of depth
(sections 1.5 and 1.6). Blocks come from the graph of the model, not from a list of architectures:

1. Nested models are unrolled, and the calls are put in the order in which data flows.
2. The network can be cut in two wherever later calls need only a single tensor.
3. Of these places, those are kept where a new stage begins: where the image or the sequence
   changes size, or where the next transformer layer begins. If a backbone without attention would
   have fewer than four blocks, it is cut more finely where possible.
4. The head is everything after the backbone (a nested model), after the encoder of a U-Net or
   from the pooling on; otherwise it is the last Dense layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, SupportsIndex, overload

import keras

from tlkeras.blocks import graph
from tlkeras.blocks.names import block_names
from tlkeras.blocks.parts import Part, find_parts
from tlkeras.utils.tables import html_table, text_table

HEADER = ("block", "role", "layers", "parameters", "output")
FEW = 4  # a backbone with fewer blocks than this is cut more finely


@dataclass(eq=False)
class Block:
    """A part of a network that is frozen, trained and cached as a whole.

    - `name`: readable, unique in the model, the same each time the model is built.
    - `role`: "bottom", "middle", "top" or "head" (section 1.5).
    - `layers`: the layers that directly hold the block's weights, in data-flow order. A composite
      layer is listed only if it holds weights itself (a class token, say).
    - `weights`: all its variables, including moving statistics. To freeze exactly this block, set
      `weight.trainable` on these: `layer.trainable` on a composite layer also reaches its
      children, which can be in other blocks. All layers and models around them must stay
      trainable.
    - `params`: the number of parameters in `weights`.
    - `cut`: the `KerasTensor` through which all data leaves the block. None if there is no such
      tensor: inside one layer, next to a second tensor that is still needed (a padding mask, the
      other tower of CLIP), or in a model without a graph. In a flat model
      `keras.Model(model.input, cut)` and `keras.Model(cut, model.output)` compose to the model, if
      the layer at the cut is called once. In a nested backbone `cut` belongs to the inner graph.
      `Blocks.split` makes the two halves in every case.
    - `outputs`: the tensors that the block computes for later blocks: its cut or, where that is
      None, one `KerasTensor` per tower (for a model that is called twice, one per call). Like
      `cut`, they can belong to an inner graph. Empty inside one layer and in a model without a
      graph.
    """

    name: str
    role: str
    layers: list[keras.Layer] = field(repr=False)
    weights: list[keras.Variable] = field(repr=False)
    params: int
    cut: keras.KerasTensor | None = field(repr=False)
    outputs: list[keras.KerasTensor] = field(default_factory=list, repr=False)


class Blocks(list[Block]):
    """The blocks of one model: a list that also takes names as keys and displays as a table."""

    def __init__(self, model: keras.Model, blocks: Iterable[Block]):
        super().__init__(blocks)
        self.model = model

    @property
    def names(self) -> list[str]:
        return [block.name for block in self]

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Block: ...

    @overload
    def __getitem__(self, key: slice) -> list[Block]: ...

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self.names:
            raise KeyError(f"Expected the name of a block, one of {self.names}; found {key!r}.")
        return super().__getitem__(self.names.index(key))

    def split(self, name: str) -> tuple[keras.Model, keras.Model]:
        """Cut the model after the block `name`; return two models that share its layers.

        `below` maps the model's input to the block's `cut`, and `above` maps the cut to the
        model's output: `above(below(x))` equals `model(x)` exactly. If the cut is inside a nested
        backbone, each half contains one part of it as a nested model. Raises KeyError for an
        unknown name, ValueError if the block has no cut.

        >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
        >>> model = tlk.add_head(backbone, classes=3)
        >>> below, above = tlk.find_blocks(model).split("stack1")
        >>> below.output_shape, above.output_shape
        ((None, 4, 4, 128), (None, 3))
        """
        block = self[name]
        if block.cut is None:
            able = [b.name for b in self if b.cut is not None]
            raise ValueError(
                f"Expected a block that one tensor leaves, one of {able}; found "
                f"{name!r}, whose cut is None. Split after another block."
            )
        return graph.split(self.model, block.cut)

    def _rows(self) -> list[tuple]:
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

    def __repr__(self) -> str:
        return text_table(self._rows(), HEADER)

    def _repr_html_(self) -> str:
        return html_table(self._rows(), HEADER)


def find_blocks(model: keras.Model) -> Blocks:
    """Return the blocks of `model`, bottom to head, as a list that renders as a table.

    Args:
        model: any built `keras.Model`: functional, Sequential, with nested backbones, a KerasHub
            or KerasCV backbone or task, or subclassed. A subclassed model is split by its tracked
            layers, in the order they were created, and its blocks have no cut.

    Every weight belongs to exactly one block: the block of the first layer that uses it. A weight
    that no call uses belongs to the last block. Layers without weights, and layers whose weights
    are never trained (`Normalization`), belong to the block of their neighbours.

    Roles: the first third of the backbone's blocks is "bottom", the next "middle" and the last
    "top". Everything after the backbone is "head"; a bare backbone has none. The backbone of a
    U-Net is its encoder, even if encoder and decoder are in one flat graph. The decoder's blocks
    and the last layer (a block named "head") have the role "head".

    Raises TypeError if `model` is not a Keras model, ValueError if it is not built or has no
    weights.

    Source: sections 1.5 (the roles) and 1.6 (what is frozen and unfrozen, block by block).

    >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    >>> blocks = tlk.find_blocks(tlk.add_head(backbone, classes=3))
    >>> blocks
    block   role    layers  parameters  output
    ------  ------  ------  ----------  -----------
    stem    bottom       1       1,728  ? x ? x 64
    stack0  middle       5      74,496  ? x ? x 64
    stack1  top          5     230,400  4 x 4 x 128
    head    head         1         387  3
    >>> [layer.name for layer in blocks["head"].layers]
    ['head']
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
    parts, head = find_parts(model)
    head = _head(parts) if head is None else head
    runs = _runs(parts[:head])
    blocks = [_block(_role(i, len(runs)), run) for i, run in enumerate(runs)]
    decoder, last = _decoder(parts, head)
    blocks += [_block("head", run) for run in [*decoder, last] if run]
    for block, name in zip(blocks, block_names(runs, decoder, bool(last)), strict=True):
        block.name = name
    return Blocks(model, blocks)


# From parts to blocks ---------------------------------------------------------------------------


def _head(parts: Sequence[Part]) -> int:
    """Return where the head of a flat model begins, as an index into `parts`.

    That is its pooling, else its last Dense layer (with several outputs, the Dense layer of each),
    else the end of the model.
    """
    learning = [i for i, part in enumerate(parts) if part.learns]
    if not learning:
        return len(parts)
    for i, part in reversed(list(enumerate(parts))):
        if part.positions > 1:
            break  # a head does not output an image or a sequence
        if part.pools and learning[0] < i < learning[-1]:
            return i
    head = len(parts)
    for i in reversed(learning):
        alone = i == learning[-1] and parts[i].vector and len(parts[i].owners) == 1
        dense = all(type(layer) is keras.layers.Dense for layer, _ in parts[i].owners)
        if not (dense and (alone or parts[i].ends)):
            break
        head = i
    while 0 < head < len(parts) and _drops(parts[head - 1]):
        head -= 1
    return head


def _decoder(parts: Sequence[Part], head: int) -> tuple[list[Sequence[Part]], Sequence[Part]]:
    """Return the decoder's blocks (they enlarge the image again), and the actual head."""
    rest = parts[head:]
    small = parts[head - 1].positions if head else 1
    last = max((i for i, part in enumerate(rest) if part.learns), default=0)
    if small < 2 or all(part.positions < 2 * small for part in rest[:last]):
        return [], rest
    return _cut(rest[:last], _joints(rest[:last], 0)), rest[last:]


def _drops(part: Part) -> bool:
    return any(type(op).__name__.endswith("Dropout") for op in part.ops) and not part.owners


def _runs(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """Group the parts of a backbone into blocks."""
    for fineness in range(3):
        runs = _cut(parts, _joints(parts, fineness))
        if len(runs) >= FEW or any(part.attends for part in parts):
            break
    return [run for run in runs if run]


def _cut(parts: Sequence[Part], joints: list[int]) -> list[Sequence[Part]]:
    return [parts[a:b] for a, b in zip(joints, [*joints[1:], len(parts)], strict=True)]


def _joints(parts: Sequence[Part], fineness: int) -> list[int]:
    """Return where blocks begin: at a change of size and at the next transformer layer.

    With fineness 1 also after the first layer (the stem), with 2 at every layer with a kernel.
    """
    joints, previous = [0], None
    for i, part in enumerate(parts):
        if not part.learns:
            continue
        if previous is not None:
            block = parts[joints[-1] : i]
            stem = len(joints) == 1
            resized = not 2 / 3 < part.positions / parts[previous].positions < 3 / 2
            layer = part.attends and (stem or any(u.attends for u in block))
            finer = part.kernels and any(u.kernels for u in block) and fineness > (not stem)
            if resized or layer or finer:
                joints.append(_joint(parts, joints[-1], previous, i, resized))
        previous = i
    return joints


def _joint(parts: Sequence[Part], start: int, previous: int, following: int, resized: bool) -> int:
    """Return the best place to cut between two parts with weights.

    That is at the smallest tensor, the last one among equals, and never after a Dropout, because
    random outputs cannot be cached.

    If the image changes size here, the cut can also come up to four calls earlier (convolution,
    normalisation, activation, padding) if the tensor there is less than half as large: the
    expansion of an inverted bottleneck then stays with the strided convolution that follows it.
    """

    def cost(end: int) -> tuple[float, int]:
        return (parts[end].cost * (1 if end >= previous else 2), -end)

    gap = takewhile(lambda end: not _drops(parts[end]), range(previous + 1, following))
    ends, calls, end = [previous, *gap], len(parts[previous].ops), previous - 1
    while resized and calls <= 4 and any(part.learns for part in parts[start : end + 1]):
        ends.append(end)
        calls, end = calls + len(parts[end].ops), end - 1
    return min(ends, key=cost) + 1


def _block(role: str, parts: Sequence[Part]) -> Block:
    held = [owner for part in parts for owner in part.owners]
    weights = [weight for _, ws in held for weight in ws]
    layers = list({id(layer): layer for layer, _ in held}.values())
    outputs = [tensor for made, tensor in parts[-1].leaving if made >= parts[0].first]
    return Block("", role, layers, weights, graph.params(weights), parts[-1].cut, outputs)


def _role(i: int, n: int) -> str:
    if n < 3:
        return ("bottom", "top")[i]
    return ("bottom", "middle", "top")[3 * i // n]
