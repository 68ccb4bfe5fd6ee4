"""A Keras model as one list of calls, and the places where it can be cut in two.

`parts.py` and `find.py` build on this. A tensor is called live after a call if later calls still
read it; a place is narrow if few tensors are live there.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tlkeras.blocks.internals import (
    children,
    fed,
    fixed_kind,
    functional,
    is_as_keras_has_it,
    mask_of,
    nodes,
    trainable_kind,
)

IMAGE_SIDE = 256  # assumed for a height or width that the model leaves open
WIDEST = 8  # a large part is not cut where more tensors than this are live

Owner = tuple[keras.Layer, list[keras.Variable]]  # a layer, and the weights it holds directly
Shape = tuple[int | None, ...]


class Step(NamedTuple):
    """One call: the layer or operation, and the numbers of the tensors it reads and writes."""

    op: keras.Operation
    reads: list[int]
    writes: list[int]


def owners(layer: Any) -> list[Owner]:
    """Return every layer in `layer` that directly holds weights, with them, in tracked order."""
    if not isinstance(layer, keras.Layer):
        return []
    held = [*trainable_kind(layer), *fixed_kind(layer)]
    inside = [owner for child in children(layer) for owner in owners(child)]
    return [(layer, held), *inside] if held else inside


def own(layer: Any) -> list[Owner]:
    """Return the weights that `layer` directly holds, as a list of at most one owner."""
    return [owner for owner in owners(layer)[:1] if owner[0] is layer]


def params(weights: Sequence[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def learns(layer: keras.Layer) -> bool:
    """True if `layer` directly holds weights of the trainable kind, whether frozen now or not."""
    return bool(trainable_kind(layer))


def is_attention(layer: Any) -> bool:
    return "attention" in type(layer).__name__.lower()


def attends(layer: Any) -> bool:
    return is_attention(layer) or any(map(attends, children(layer)))


def positions(shape: Shape) -> int:
    """Return the pixels of an image, the tokens of a sequence, or 1 for a vector.

    Dimensions that the model leaves open do not count.
    """
    last = len(shape) == 3 or keras.config.image_data_format() == "channels_last"
    return math.prod(side for side in (shape[1:-1] if last else shape[2:]) if side)


class Graph:
    """The calls of a functional model in data-flow order, with nested models unrolled.

    Tensors are numbered. A tensor keeps its number when it enters or leaves a nested model. If it
    is the only output of that model, `tensors` holds its outermost KerasTensor. `spans` lists the
    nested models with their first and last step, outermost first.
    """

    def __init__(self, net: keras.Model):
        self.steps: list[Step] = []
        self.tensors: list[keras.KerasTensor] = []
        self.shapes: list[Shape] = []
        self.homes: list[int] = []  # per tensor: the id of the nested model it is in
        self.made: list[int] = []  # per tensor: the step that writes it
        self.spans: list[tuple[keras.Model, int, int]] = []
        self.uses: Counter[int] = Counter()  # calls of each nested model, by its id
        self.masked: set[int] = set()  # tensors that carry a mask when the model runs
        inputs = []
        for tensor in net.inputs:
            shape = tuple(tensor.shape)
            if len(shape) > 3:
                shape = (shape[0], *(side or IMAGE_SIDE for side in shape[1:]))
            inputs.append(self._add(tensor, shape, net))
        self.inputs = set(inputs)
        self.outputs = set(self._walk(net, inputs))
        self.sizes = list(map(positions, self.shapes))
        self._look()

    def _look(self) -> None:
        """Compute everything that depends on the order of the steps."""
        self.spans.sort(key=lambda span: (span[1], -span[2]))
        self.owners = [owners(step.op) for step in self.steps]
        self.attends = [attends(step.op) for step in self.steps]
        self.live = self._live()
        self.needs: list[set[int]] = []  # per step: itself and all steps whose outputs it needs
        for i, step in enumerate(self.steps):
            made = [self.needs[self.made[key]] for key in step.reads if key not in self.inputs]
            self.needs.append({i}.union(*made))
        learning = (i for i in range(len(self.steps)) if self.learns([i]))
        self.learned_from = set[int]().union(*(self.needs[i] - {i} for i in learning))
        # Tensors that do not count when live tensors are counted: inputs, masks, U-Net skips.
        masks = {id(mask_of(tensor)) for tensor in self.tensors}
        self.beside = {k for k, tensor in enumerate(self.tensors) if id(tensor) in masks}
        self.beside |= self.inputs | self._skips()

    def enlarged(self, i: int) -> int:
        """Return how many positions step `i` reads if it at least doubles them; else 0."""
        op, reads, writes = self.steps[i]
        size = sum(self.sizes[key] for key in reads)
        ranks = {len(self.shapes[key]) for key in [*reads, *writes]}
        twice = any(self.sizes[key] >= 2 * size for key in writes)
        return (
            size if size > 1 and twice and len(ranks) == 1 and "Pad" not in type(op).__name__ else 0
        )

    def _skips(self) -> set[int]:
        """Return the skip connections of a U-Net.

        These are tensors that lead to a step that enlarges the image, are larger than its input,
        and are read again by a step on which it does not depend.
        """
        skips = set[int]()
        for up in filter(self.enlarged, range(len(self.steps))):
            made = {key for i in self.needs[up] for key in self.steps[i].writes}
            others = set(range(len(self.steps))) - self.needs[up]
            read = {key for i in others for key in self.steps[i].reads}
            skips |= {key for key in made & read if self.sizes[key] > self.enlarged(up)}
        return skips

    def before(self, steps: Collection[int]) -> set[int]:
        """Return these steps and all steps whose outputs they need."""
        return set[int]().union(*(self.needs[i] for i in steps))

    def after(self, steps: Collection[int]) -> set[int]:
        """Return all steps that need the outputs of these, except these steps themselves."""
        return {i for i, needed in enumerate(self.needs) if needed.intersection(steps)} - {*steps}

    def learns(self, steps: Collection[int]) -> bool:
        """True if any of these steps holds weights of the trainable kind."""
        return any(learns(layer) for i in steps for layer, _ in self.owners[i])

    def put_first(self, chosen: set[int]) -> None:
        """Move the steps `chosen` before the others; they must include all that they need."""
        order = sorted(range(len(self.steps)), key=lambda i: i not in chosen)
        place = {old: new for new, old in enumerate(order)}
        self.steps = [self.steps[i] for i in order]
        self.made = [
            made if key in self.inputs else place[made] for key, made in enumerate(self.made)
        ]
        spans = [(net, [place[i] for i in range(a, b + 1)]) for net, a, b in self.spans]
        self.spans = [(net, min(at), max(at)) for net, at in spans if at]
        self._look()

    def _add(self, tensor: keras.KerasTensor, shape: Shape, net: keras.Model) -> int:
        self.tensors.append(tensor)
        self.shapes.append(tuple(shape))
        self.homes.append(id(net))
        self.made.append(len(self.steps))
        return len(self.tensors) - 1

    def _walk(self, net: keras.Model, inputs: Sequence[int]) -> list[int]:
        self.uses[id(net)] += 1
        keys = dict(zip(map(id, net.inputs), inputs, strict=True))
        for node in nodes(net):
            inner = functional(node.operation)
            entry = inner and fed(node, inner)
            if entry:
                first = len(self.steps)
                written = self._walk(inner, [keys[id(tensor)] for tensor in entry])
                self.spans.append((node.operation, first, len(self.steps) - 1))
                [key, *more] = written
                if not more and self.made[key] >= first and key not in inputs:
                    self.tensors[key], self.homes[key] = node.outputs[0], id(net)
            else:
                shapes = self._shapes(node, keys)
                written = [
                    self._add(tensor, shape, net)
                    for tensor, shape in zip(node.outputs, shapes, strict=True)
                ]
                reads = [keys[id(tensor)] for tensor in node.input_tensors]
                self.steps.append(Step(node.operation, reads, written))
                self.masked.update(written if self._passes_mask(node, keys) else ())
            keys.update(zip(map(id, node.outputs), written, strict=True))
        return [keys[id(tensor)] for tensor in net.outputs]

    def _passes_mask(self, node: Any, keys: dict[int, int]) -> bool:
        """True if the outputs of `node` carry a mask when the model runs.

        Keras stores a mask with the outputs of a call on masked tensors. But tensors inside a
        nested model get their masks only when the model runs, so this works them out.
        """
        if any(mask_of(tensor) is not None for tensor in node.outputs):
            return True
        given = {id(t): t for t in node.input_tensors if keys[id(t)] in self.masked}
        unseen = [t for t in given.values() if mask_of(t) is None]
        if not unseen or not getattr(node.operation, "supports_masking", False):
            return False
        x = node.arguments.args[0] if node.arguments.args else unseen[0]
        masks = keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape[:2], "bool") if id(t) in given else None, x
        )
        try:
            left = keras.tree.flatten(node.operation.compute_mask(x, masks))
        except Exception:  # from a layer of the user's own
            return True
        return any(mask is not None for mask in left)

    def _shapes(self, node: Any, keys: dict[int, int]) -> list[Shape]:
        """Return the output shapes of `node`, recomputed if an open image side was filled in."""
        read = {id(t): (t, self.shapes[keys[id(t)]]) for t in node.input_tensors}
        op, written = node.operation, [tuple(tensor.shape) for tensor in node.outputs]
        if all(tuple(tensor.shape) == shape for tensor, shape in read.values()):
            return written
        stride = getattr(op, "strides", getattr(op, "stride", None))
        traced = is_as_keras_has_it(getattr(op, "compute_output_shape", None))
        if not (traced and isinstance(stride, int)):  # else Keras runs its `call`: 0.1 s per layer
            filled = {i: keras.KerasTensor(shape, t.dtype) for i, (t, shape) in read.items()}
            args, kwargs = node.arguments.fill_in(filled)
            try:
                spec = op.compute_output_spec(*args, **kwargs)
                return [tensor.shape for tensor in keras.tree.flatten(spec)]
            except Exception:  # a layer can refuse any size; an estimate is enough for grouping
                stride = None
        [(_, shape), *_] = read.values()
        return [
            tuple(
                -(-known // (stride or 1)) if side is None and i and known else side
                for i, (side, known) in enumerate(zip(out, shape, strict=False))
            )
            if len(out) == len(shape)
            else out
            for out in written
        ]

    def _live(self) -> list[set[int]]:
        """Return, for each step, the tensors that later steps still read."""
        last = {key: i for i, step in enumerate(self.steps) for key in step.reads}
        live, after = set(self.inputs), list[set[int]]()
        for i, step in enumerate(self.steps):
            live = {key for key in live.union(step.writes) if last.get(key, -1) > i}
            after.append(live)
        return after

    def leaving(self, i: int) -> set[int]:
        """Return all tensors that carry data past step `i`: those read later, and outputs."""
        return self.live[i] | {key for key in self.outputs if self.made[key] <= i}

    def narrow(self, first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
        """Yield runs (first, last) of steps between places where at most `width` tensors are live.

        A run that is still too large for one block is cut again where one more tensor is live.
        """
        ends = [i for i in range(first, last) if len(self.live[i] - self.beside) <= width]
        start = first
        for end in [*ends, last]:
            held = sum(map(bool, self.owners[start : end + 1]))
            many = held > 8 and 2 * held > sum(map(bool, self.owners))
            if width < WIDEST and (many or sum(self.attends[start : end + 1]) > 1):
                yield from self.narrow(start, end, width + 1)
            else:
                yield start, end
            start = end + 1

    def cut(self, key: int) -> keras.KerasTensor | None:
        """Return the KerasTensor with that number, or None if it does not carry all the data.

        It does not if it has a mask, or if it stands for two tensors because it is inside a model
        that is called twice.
        """
        twice = self.uses[self.homes[key]] > 1
        return None if twice or key in self.masked else self.tensors[key]


def split(model: keras.Model, cut: keras.KerasTensor) -> tuple[keras.Model, keras.Model]:
    """Return two models that share the layers of `model`: inputs to `cut`, and `cut` to outputs.

    Raises ValueError if `cut` is not in the graph of `model`.
    """
    net = functional(model)
    found = None if net is None else halves(net, cut, net.input, net.output)
    if found is None:
        raise ValueError(f"Expected a tensor of the graph of {model.name!r}; found {cut}.")
    return found


def first_vector(model: keras.Model, cut: keras.KerasTensor) -> keras.KerasTensor | None:
    """Return the first tensor (batch, channels) at or after `cut` through which all data goes.

    None if there is no such tensor, or if a layer with weights comes between the two.
    """
    flow = Graph(functional(model) or model)
    seen = False
    for i, step in enumerate(flow.steps):
        if seen and flow.owners[i]:
            return None
        seen = seen or any(flow.tensors[key] is cut for key in step.writes)
        leaving = flow.leaving(i)
        if seen and len(leaving) == 1 and len(flow.shapes[min(leaving)]) == 2:
            return flow.cut(*leaving)
    return None


def halves(
    net: keras.Model, cut: keras.KerasTensor, inputs: Any, outputs: Any
) -> tuple[keras.Model, keras.Model] | None:
    """Return two models that share the layers of `net`: `inputs` to `cut`, `cut` to `outputs`.

    If `cut` is inside a nested model, each half contains one half of that model, so layer names
    need to be unique only where they had to be before. Returns None if `cut` is not in `net`.
    """
    calls = nodes(net)
    if any(cut is tensor for node in calls for tensor in node.outputs):
        outputs = keras.tree.map_structure(
            lambda tensor: keras.layers.Identity()(tensor) if tensor is cut else tensor, outputs
        )
        return keras.Model(inputs, cut), _from(cut, calls, outputs)
    read = {id(t) for node in calls for t in node.input_tensors} | {id(t) for t in net.outputs}
    for node in calls:
        inner = functional(node.operation)
        entry = None if inner is None else fed(node, inner)
        if inner is None or entry is None:
            continue
        used = [i for i, tensor in enumerate(node.outputs) if id(tensor) in read]
        inside = halves(inner, cut, _one(inner.inputs), _one([inner.outputs[i] for i in used]))
        if inside:
            mode = {k: v for k, v in node.arguments.kwargs.items() if k == "training"}
            given = keras.Input(batch_shape=cut.shape, dtype=cut.dtype)
            below = keras.Model(inputs, inside[0](_one(entry), **mode))
            leaving, above = _one([node.outputs[i] for i in used]), inside[1](given, **mode)
            if leaving is not outputs:
                above = keras.Model(leaving, outputs)(above)
            return below, keras.Model(given, above)
    return None


def _from(cut: keras.KerasTensor, calls: Sequence[Any], outputs: Any) -> keras.Model:
    """Return the model from `cut` to `outputs`, through `calls`.

    For `keras.Model(cut, ...)` Keras replaces the layer that makes `cut` by an input, in all its
    calls. If that layer is called more than once (a shared layer, one ReLU used everywhere), the
    calls above the cut are made again on a new input instead.
    """
    maker = next(n.operation for n in calls if any(cut is tensor for tensor in n.outputs))
    if sum(node.operation is maker for node in calls) == 1:
        return keras.Model(cut, outputs)
    given = keras.Input(batch_shape=cut.shape, dtype=cut.dtype)
    made = {id(cut): given}
    for node in calls:
        if made.keys() >= {id(t) for t in node.input_tensors} and id(node.outputs[0]) not in made:
            args, kwargs = node.arguments.fill_in(made)
            written = keras.tree.flatten(node.operation(*args, **kwargs))
            made.update(zip(map(id, node.outputs), written, strict=True))
    return keras.Model(given, keras.tree.map_structure(lambda tensor: made[id(tensor)], outputs))


def _one(tensors: Sequence[keras.KerasTensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
