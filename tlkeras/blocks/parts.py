"""The smallest parts of a model that blocks are put together from, in data-flow order.

From its graph where there is one, else, and inside composite layers, from tracked layers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from tlkeras.blocks import graph, internals


@dataclass
class Unit:
    """What lies between two neighbouring narrow places of the graph, or one layer of a stack."""

    owners: list[graph.Owner]
    ops: list[keras.Operation] = field(default_factory=list)  # called, for naming the block
    calls: int = 1
    cut: keras.KerasTensor | None = None  # the one KerasTensor that leaves it, or None
    home: str | None = None  # name of the nested model it is in
    positions: int = 1  # of the newest tensor that leaves it: pixels or tokens
    cost: float = math.inf  # numbers per example in the tensors that leave it
    vector: bool = True  # may end in one vector per example
    pools: bool = False  # makes that vector from an image or a sequence, without weights
    attends: bool = False  # has attention somewhere inside
    end: int = -1  # its last step

    @property
    def learns(self) -> bool:
        return any(graph.learns(layer) for layer, _ in self.owners)

    @property
    def kernels(self) -> int:
        """How many layers hold a kernel or a table, not only a normalisation's vectors."""
        return kernels(self.owners)


def kernels(owners: Iterable[graph.Owner]) -> int:
    return sum(any(len(weight.shape) > 1 for weight in held) for _, held in owners)


def find_units(model: keras.Model) -> tuple[list[Unit], int | None]:
    """The units of `model`, every weight in one of them, and the number of the unit after its
    nested backbone (None where there is no such backbone or no head after it)."""
    whole, net = len(graph.owners(model)), internals.functional(model)
    units, head = [], None
    if net:
        flow = graph.Graph(net)
        end = _backbone_end(flow)
        units = _from_graph(flow, whole, end)
        head = next((i + 1 for i, unit in enumerate(units) if unit.end == end), None)
    else:
        units = [Unit([owner]) for owner in graph.own(model)]
        for child in internals.children(model):
            units += _from_layer(child, whole)
            if isinstance(child, keras.Model) and 2 * len(graph.owners(child)) > whole:
                head = len(units)
    _share(model, units)
    return units, head if head and any(unit.learns for unit in units[head:]) else None


def _backbone_end(flow: graph.Graph) -> int | None:
    """The last step of the nested backbone, None where there is none with a head after it.

    That is a nested model with most of the layers or most of the parameters, from whose tensors
    alone everything after it is computed.
    """
    held = [dict(map(_sized, step)) for step in flow.owners]
    sizes = {key: size for step in held for key, size in step.items()}
    for _, first, last in flow.spans:
        inside = {key for step in held[first : last + 1] for key in step}
        most = 2 * len(inside) > len(sizes) or 2 * sum(sizes[key] for key in inside) > sum(
            sizes.values()
        )
        alone = all(flow.made[key] >= first and key not in flow.inputs for key in flow.live[last])
        after = [layer for step in flow.owners[last + 1 :] for layer, _ in step]
        if most and alone and any(graph.learns(x) and id(x) not in inside for x in after):
            return last
    return None


def _sized(owner: graph.Owner) -> tuple[int, int]:
    return id(owner[0]), graph.params(owner[1])


def _from_graph(flow: graph.Graph, whole: int, end: int | None = None) -> list[Unit]:
    runs = flow.narrow(0, len(flow.steps) - 1, 1, forced=(end,))
    return [part for run in runs for part in _opened(_unit(flow, *run), whole)]


def _unit(flow: graph.Graph, first: int, last: int) -> Unit:
    """The steps `first` to `last` as one unit."""
    steps, leaving = flow.steps[first : last + 1], flow.leaving(last)
    live = flow.live[last] - flow.beside or flow.outputs
    homes = [op.name for op, a, b in flow.spans if a <= last <= b]
    unit = Unit(
        owners=[owner for held in flow.owners[first : last + 1] for owner in held],
        ops=[step.op for step in steps],
        calls=len(steps),
        end=last,
        home=homes[-1] if homes else None,
        attends=any(flow.attends[first : last + 1]),
        positions=graph.positions(flow.shapes[max(live)]),
        cost=sum(math.prod(side or 1 for side in flow.shapes[key][1:]) for key in live),
        vector=len(leaving) == 1 and len(flow.shapes[min(leaving)]) == 2,
    )
    if len(leaving) == 1:
        unit.cut = flow.cut(*leaving)
        rank = max(len(flow.shapes[key]) for key in steps[0].reads)
        pooling = any(type(step.op).__name__.startswith("Global") for step in steps)
        unit.pools = not unit.owners and (pooling or (rank > 2 and unit.vector))
    return unit


def _from_layer(layer: keras.Layer, whole: int) -> list[Unit]:
    """The units of `layer` by its tracked layers: one, unless it is a stack. None has a cut."""
    net = internals.functional(layer)
    if net:
        units = _from_graph(graph.Graph(net), whole)
        for unit in units:
            unit.cut = None
        return units
    if not _is_stack(layer, whole):
        held = graph.owners(layer)
        return [Unit(held, [layer], attends=graph.attends(layer))] if held else []
    units = [Unit([owner]) for owner in graph.own(layer)]
    for child in internals.children(layer):
        units += _from_layer(child, whole)
    return units


def _is_stack(layer: Any, whole: int) -> bool:
    """Whether `layer` holds several layers of the network (a ViT's encoder) and is not one itself:
    several that attend, or most of all layers with weights."""
    inside = [child for child in internals.children(layer) if graph.owners(child)]
    most = len(inside) > 1 and 2 * len(graph.owners(layer)) > whole
    if graph.attends(layer):
        stacked = [x for x in inside if graph.attends(x) and not graph.is_attention(x)]
        return len(stacked) > 1 or (most and bool(stacked))
    return most


def _opened(unit: Unit, whole: int) -> list[Unit]:
    """`unit`, or the units of the stack in it; the last of these keeps the cut."""
    stack = next((op for op in unit.ops if internals.children(op) and _is_stack(op, whole)), None)
    if stack is None or internals.functional(stack):
        return [unit]
    parts = _from_layer(stack, whole)
    for part in parts:
        part.positions, part.cost, part.home = unit.positions, unit.cost, unit.home
    at = unit.ops.index(stack)
    parts[0].owners = [o for op in unit.ops[:at] for o in graph.owners(op)] + parts[0].owners
    parts[-1].owners = parts[-1].owners + [o for op in unit.ops[at:] for o in graph.owners(op)]
    parts[-1].cut, parts[-1].vector, parts[-1].end = unit.cut, unit.vector, unit.end
    return parts


def _share(model: keras.Model, units: Sequence[Unit]) -> None:
    """Leave every weight to the first unit that uses it; give the last unit what none uses."""
    seen: set[int] = set()

    def first_use(owners: Iterable[graph.Owner]) -> Iterator[graph.Owner]:
        for layer, held in owners:
            new = [weight for weight in held if id(weight) not in seen]
            seen.update(map(id, new))
            if new:
                yield layer, new

    for unit in units:
        unit.owners = list(first_use(unit.owners))
    units[-1].owners += first_use(graph.owners(model))
