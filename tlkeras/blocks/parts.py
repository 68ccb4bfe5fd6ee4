"""The smallest parts of a model, from which blocks are assembled, in data-flow order.

They come from the model's graph. In a model without a graph, and inside composite layers, they
come from the tracked layers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from tlkeras.blocks import graph, internals


@dataclass
class Part:
    """The calls between two neighbouring narrow places of the graph, or one layer of a stack."""

    owners: list[graph.Owner]
    ops: list[keras.Operation] = field(default_factory=list)  # what it calls, to name the block
    cut: keras.KerasTensor | None = None  # the one KerasTensor that leaves it, or None
    home: str | None = None  # name of the nested model it is in
    positions: int = 1  # pixels or tokens of the last-made tensor that leaves it
    cost: float = math.inf  # values per example in the tensors that leave it
    vector: bool = True  # its output is, or could be, one vector per example
    ends: bool = False  # its layers lead to outputs that are vectors, and to no other layer
    pools: bool = False  # pools an image or a sequence to that vector, without weights
    attends: bool = False  # has attention somewhere inside
    first: int = 0  # number of its first step in the graph
    # the tensors that leave it and depend on trained layers, each with the step that makes it
    leaving: list[tuple[int, keras.KerasTensor]] = field(default_factory=list)

    @property
    def learns(self) -> bool:
        return any(graph.learns(layer) for layer, _ in self.owners)

    @property
    def kernels(self) -> int:
        """The number of layers that hold a kernel or a table, not only vectors."""
        return kernels(self.owners)


def kernels(owners: Iterable[graph.Owner]) -> int:
    return sum(any(len(weight.shape) > 1 for weight in held) for _, held in owners)


def find_parts(model: keras.Model) -> tuple[list[Part], int | None]:
    """Return the parts of `model`, and the number of the first part of its head.

    Every weight is in exactly one part. The number is None if the model has neither a nested
    backbone nor an encoder, or if nothing with weights follows it.
    """
    whole, net = len(graph.owners(model)), internals.functional(model)
    parts, head = [], None
    if net:
        flow = graph.Graph(net)
        border = _backbone_first(flow) or _encoder_first(flow)
        parts = _from_graph(flow, whole, 0, border)
        head = len(parts) or None
        parts += _from_graph(flow, whole, border, len(flow.steps))
    else:
        layers = internals.children(model)
        big = [x for x in layers if isinstance(x, keras.Model) and 2 * len(graph.owners(x)) > whole]
        for child in big:
            parts += _from_layer(child, whole)
        head = len(parts) or None  # all other layers are head, even those created earlier
        parts += [Part([owner]) for owner in graph.own(model)]
        for child in layers:
            parts += [] if child in big else _from_layer(child, whole)
    _share(model, parts)
    return parts, head if head and any(part.learns for part in parts[head:]) else None


def _backbone_first(flow: graph.Graph) -> int:
    """Move the steps of the nested backbone, and all they need, to the front; return their number.

    Returns 0 if there is no nested backbone, or if no layer after it can be trained.

    The backbone is a nested model with most of the layers or most of the parameters. A branch that
    joins later (a table next to an image) does not belong to it. Another nested model next to it is
    a second tower, not part of the head, if it takes images, sequences or tokens.
    """
    held = [{id(layer): graph.params(ws) for layer, ws in step} for step in flow.owners]
    sizes = {key: size for step in held for key, size in step.items()}
    for net, first, last in flow.spans:
        inside = {key for step in held[first : last + 1] for key in step}
        most = 2 * len(inside) > len(sizes) or 2 * sum(sizes[key] for key in inside) > sum(
            sizes.values()
        )
        if not most:
            continue
        after = flow.after(range(first, last + 1))
        base = set[int]()
        for other, a, b in flow.spans:
            tower = not after & set(range(a, b + 1)) and _is_tower(flow, a, b)
            if other is net or tower:
                base |= flow.before(range(a, b + 1))
        rest = [layer for i in sorted(after - base) for layer, _ in flow.owners[i]]
        if any(graph.learns(x) and id(x) not in inside for x in rest):
            flow.put_first(base)
            return len(base)
    return 0


def _encoder_first(flow: graph.Graph) -> int:
    """Do the same for the encoder of a flat U-Net or autoencoder.

    The encoder is everything that is needed by the step that first enlarges the image again, where
    it is smallest.
    """
    steps = range(len(flow.steps))
    ups = [i for i in steps if flow.enlarged(i) and flow.learns(flow.needs[i] - {i})]
    first = min(ups, key=flow.enlarged, default=0)
    encoder = flow.needs[first] - {first}
    given = {key for i in encoder for key in flow.steps[i].reads}
    ends = [max((flow.sizes[key] for key in keys), default=0) for keys in (given, flow.outputs)]
    if not ups or min(ends) < 2 * flow.enlarged(first) or not flow.learns({*steps} - encoder):
        return 0
    flow.put_first(encoder)
    return len(encoder)


def _is_tower(flow: graph.Graph, first: int, last: int) -> bool:
    """True if these steps take images, sequences or tokens rather than vectors of numbers."""
    layers = [layer for held in flow.owners[first : last + 1] for layer, _ in held]
    return any(
        isinstance(layer, keras.layers.Embedding)
        or graph.attends(layer)
        or any(len(weight.shape) > 2 for weight in internals.trainable_kind(layer))
        for layer in layers
    )


def _from_graph(flow: graph.Graph, whole: int, first: int, end: int) -> list[Part]:
    runs = flow.narrow(first, end - 1, 1) if first < end else ()
    return [one for run in runs for one in _opened(_part(flow, *run), whole)]


def _part(flow: graph.Graph, first: int, last: int) -> Part:
    """Return the steps `first` to `last` as one part."""
    steps, leaving = flow.steps[first : last + 1], flow.leaving(last)
    live = flow.live[last] - flow.beside or steps[-1].writes
    homes = [op.name for op, a, b in flow.spans if a <= last <= b]
    part = Part(
        owners=[owner for held in flow.owners[first : last + 1] for owner in held],
        ops=[step.op for step in steps],
        home=homes[-1] if homes else None,
        attends=any(flow.attends[first : last + 1]),
        positions=flow.sizes[max(live)],
        cost=sum(math.prod(side or 1 for side in flow.shapes[key][1:]) for key in live),
        vector=len(leaving) == 1 and len(flow.shapes[min(leaving)]) == 2,
        ends=_ends(flow, first, last),
        first=first,
        leaving=[
            (flow.made[key], flow.tensors[key])
            for key in sorted(leaving - flow.inputs)
            if flow.learns(flow.needs[flow.made[key]])
        ],
    )
    if len(leaving) == 1:
        part.cut = flow.cut(*leaving)
        rank = max(len(flow.shapes[key]) for key in steps[0].reads)
        pooling = any(type(step.op).__name__.startswith("Global") for step in steps)
        part.pools = not part.owners and (pooling or (rank > 2 and part.vector))
    return part


def _ends(flow: graph.Graph, first: int, last: int) -> bool:
    """True if no other layer with weights uses the results of these steps, as in output layers.

    Only in a model whose outputs are all vectors.
    """
    held = {i for i in range(first, last + 1) if flow.learns([i])}
    vectors = all(len(flow.shapes[key]) == 2 for key in flow.outputs)
    return vectors and held.isdisjoint(flow.learned_from)


def _from_layer(layer: keras.Layer, whole: int) -> list[Part]:
    """Return the parts of `layer`, without cuts: those of its graph or of a stack; else one."""
    net = internals.functional(layer)
    if net:
        flow = graph.Graph(net)
        parts = _from_graph(flow, whole, 0, len(flow.steps))
        for part in parts:
            part.cut, part.leaving = None, []
        return parts
    if not _is_stack(layer, whole):
        held = graph.owners(layer)
        return [Part(held, [layer], attends=graph.attends(layer))] if held else []
    parts = [Part([owner]) for owner in graph.own(layer)]
    for child in internals.children(layer):
        parts += _from_layer(child, whole)
    return parts


def _is_stack(layer: Any, whole: int) -> bool:
    """True if `layer` is a container of several layers of the network (a ViT's encoder).

    That is: it holds several layers with attention, or most of all layers with weights.
    """
    inside = [child for child in internals.children(layer) if graph.owners(child)]
    most = len(inside) > 1 and 2 * len(graph.owners(layer)) > whole
    if graph.attends(layer):
        stacked = [x for x in inside if graph.attends(x) and not graph.is_attention(x)]
        return len(stacked) > 1 or (most and bool(stacked))
    return most


def _opened(part: Part, whole: int) -> list[Part]:
    """Return `part`, or the parts of the stack inside it; the last of these keeps the cut."""
    stack = next((op for op in part.ops if internals.children(op) and _is_stack(op, whole)), None)
    if stack is None or internals.functional(stack):
        return [part]
    inside = _from_layer(stack, whole)
    for one in inside:
        one.positions, one.cost, one.home = part.positions, part.cost, part.home
        one.first = part.first
    at = part.ops.index(stack)
    inside[0].owners = [o for op in part.ops[:at] for o in graph.owners(op)] + inside[0].owners
    inside[-1].owners = inside[-1].owners + [o for op in part.ops[at:] for o in graph.owners(op)]
    inside[-1].cut, inside[-1].vector = part.cut, part.vector
    inside[-1].leaving = part.leaving
    return inside


def _share(model: keras.Model, parts: Sequence[Part]) -> None:
    """Keep every weight only in the first part that uses it; give unused ones to the last part."""
    seen: set[int] = set()

    def first_use(owners: Iterable[graph.Owner]) -> Iterator[graph.Owner]:
        for layer, held in owners:
            new = [weight for weight in held if id(weight) not in seen]
            seen.update(map(id, new))
            if new:
                yield layer, new

    for part in parts:
        part.owners = list(first_use(part.owners))
    parts[-1].owners += first_use(graph.owners(model))
