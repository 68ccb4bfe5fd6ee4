"""What tlkeras reads of a Keras layer or model that Keras does not promise to keep.

Everything of that kind is here, but for an optimizer's parts (`optimizers/`) and what stands in
for `fit` (`features/cached_fit.py`). tests/test_keras_contract.py has a test for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras


def functional(layer: Any) -> keras.Model | None:
    """The graph of `layer`, a functional model or a built Sequential; None for anything else."""
    net = getattr(layer, "_functional", None) or layer
    if isinstance(net, keras.Model) and hasattr(net, "_nodes_by_depth"):
        return net if type(net).call.__qualname__ == "Functional.call" else None
    return None


def nodes(net: keras.Model) -> list[Any]:
    """The calls in `net`, inputs first."""
    depths = sorted(net._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in net._nodes_by_depth[depth] if not node.is_input]


def fed(node: Any, net: keras.Model) -> list[keras.KerasTensor] | None:
    """The tensors that the call `node` of the nested `net` feeds to its inputs; None if unclear."""
    names = [tensor.name for tensor in net.inputs]
    for given in [*node.arguments.args, *node.arguments.kwargs.values()]:
        if isinstance(given, dict) and set(names) <= set(given):
            given = [given[name] for name in names]
        given = keras.tree.flatten(given)
        if len(given) == len(names) and all(isinstance(t, keras.KerasTensor) for t in given):
            return given
    return None


def children(layer: Any) -> list[keras.Layer]:
    """The layers directly in `layer`, in the order they were created."""
    return getattr(layer, "_layers", [])


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """`layer` and every layer in it, however deeply nested."""
    return list(layer._flatten_layers())


def trainable_kind(layer: keras.Layer) -> list[keras.Variable]:
    """The variables that `layer` holds itself and that are made to be trained, frozen or not."""
    return layer._trainable_variables


def fixed_kind(layer: keras.Layer) -> list[keras.Variable]:
    """The variables that `layer` holds itself and that no optimizer ever trains."""
    return layer._non_trainable_variables


def untrack(layer: keras.Layer, variable: keras.Variable) -> None:
    """Takes a variable out of those that `layer` holds."""
    layer._untrack_variable(variable)


def flag(layer: keras.Layer) -> bool:
    """Whether `layer` itself is set to learn, whatever its surroundings are."""
    return layer._trainable


def set_flag(layer: keras.Layer, value: bool) -> None:
    """Sets that flag alone: `layer.trainable = value` would reach into the layer's children."""
    layer._trainable = value


def seed_generators(layer: keras.Layer) -> Sequence[keras.random.SeedGenerator]:
    """What `layer` itself draws random numbers from."""
    return getattr(layer, "_seed_generators", ())


def forget_calls(layer: keras.Layer) -> None:
    """Its next call counts as its first: `layer.input` and `layer.output` are of that one.

    A graph that it was called in before can still be run, but no longer be traced back.
    """
    layer._inbound_nodes.clear()


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """The mask that travels with a tensor of the graph; None if it has none."""
    return getattr(tensor, "_keras_mask", None)


def is_as_keras_has_it(method: Callable | None) -> bool:
    """Whether a method is the empty or general one that Keras gives every class."""
    return getattr(method, "_is_default", False)


def compiled_with(model: keras.Model) -> dict[str, Any]:
    """What a compiled model was compiled with, the objects themselves: public calls give copies."""
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    config = model._compile_config.config if model.compiled else {}
    return {name: config.get(name) for name in names}


def settings(op: keras.Operation) -> dict[str, Any]:
    """What a call of `op` may depend on beside its arguments: all it was given and has set."""
    ours = ("name", "_inbound_nodes", "_outbound_nodes", "_auto_config", "_lock")
    return {name: value for name, value in vars(op).items() if name not in ours}


class Traces:
    """Takes back what cutting a model leaves on its layers: every call made of them since.

    As long as the layers live, they would keep each model that was ever cut out of theirs.
    """

    def __init__(self, net: keras.Model | None):
        self._lists: list[tuple[list, int]] = []
        for op in {} if net is None else _operations(net):
            for calls in (op._inbound_nodes, op._outbound_nodes):
                self._lists.append((calls, len(calls)))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        for calls, count in self._lists:
            del calls[count:]


def _operations(net: keras.Model) -> list[keras.Operation]:
    """All that is called in `net` and in the models nested in it, themselves included."""
    found = [net, *net.operations]
    for op in net.operations:
        inner = functional(op)
        if inner is not None:
            found += [op, *_operations(inner)]
    return found
