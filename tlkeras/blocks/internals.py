"""Access to private parts of Keras layers and models, which can change in any Keras release.

All such access is here, except to the parts of an optimizer (`optimizers/`) and in the replacement
for `fit` (`features/cached_fit.py`). tests/test_keras_contract.py has a test for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras


def functional(layer: Any) -> keras.Model | None:
    """Return the graph of a functional model or a built Sequential; None for anything else."""
    net = getattr(layer, "_functional", None) or layer
    if isinstance(net, keras.Model) and hasattr(net, "_nodes_by_depth"):
        return net if type(net).call.__qualname__ == "Functional.call" else None
    return None


def nodes(net: keras.Model) -> list[Any]:
    """Return the calls in `net`, those nearest to the inputs first."""
    depths = sorted(net._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in net._nodes_by_depth[depth] if not node.is_input]


def fed(node: Any, net: keras.Model) -> list[keras.KerasTensor] | None:
    """Return the tensors that `node`, a call of the nested `net`, feeds to its inputs.

    None if that cannot be told.
    """
    names = [tensor.name for tensor in net.inputs]
    for given in [*node.arguments.args, *node.arguments.kwargs.values()]:
        if isinstance(given, dict) and set(names) <= set(given):
            given = [given[name] for name in names]
        given = keras.tree.flatten(given)
        if len(given) == len(names) and all(isinstance(t, keras.KerasTensor) for t in given):
            return given
    return None


def children(layer: Any) -> list[keras.Layer]:
    """Return the layers directly in `layer`, in the order they were created."""
    return getattr(layer, "_layers", [])


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Return `layer` and every layer in it, however deeply nested."""
    return list(layer._flatten_layers())


def trainable_kind(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables of the trainable kind that `layer` directly holds, frozen or not."""
    return layer._trainable_variables


def fixed_kind(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that `layer` directly holds and that no optimizer ever trains."""
    return layer._non_trainable_variables


def untrack(layer: keras.Layer, variable: keras.Variable) -> None:
    """Remove a variable from those that `layer` holds."""
    layer._untrack_variable(variable)


def flag(layer: keras.Layer) -> bool:
    """Return the `trainable` flag of `layer` itself, whatever the layers around it are set to."""
    return layer._trainable


def set_flag(layer: keras.Layer, value: bool) -> None:
    """Set only that flag: `layer.trainable = value` would also set it in the layer's children."""
    layer._trainable = value


def seed_generators(layer: keras.Layer) -> Sequence[keras.random.SeedGenerator]:
    """Return the generators from which `layer` itself draws random numbers."""
    return getattr(layer, "_seed_generators", ())


def forget_calls(layer: keras.Layer) -> None:
    """Forget all calls of `layer`: `layer.input` and `layer.output` then refer to the next one.

    A graph in which it was called before can still be run, but no longer be traced back.
    """
    layer._inbound_nodes.clear()


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """Return the mask of a tensor of the graph; None if it has none."""
    return getattr(tensor, "_keras_mask", None)


def is_as_keras_has_it(method: Callable | None) -> bool:
    """True if a method is the empty or general one that Keras gives every class."""
    return getattr(method, "_is_default", False)


def compiled_with(model: keras.Model) -> dict[str, Any]:
    """Return the loss and metrics objects given to `compile`; public calls return only copies."""
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    config = model._compile_config.config if model.compiled else {}
    return {name: config.get(name) for name in names}


def settings(op: keras.Operation) -> dict[str, Any]:
    """Return the attributes of `op`: everything besides its arguments that a call can depend on."""
    ours = ("name", "_inbound_nodes", "_outbound_nodes", "_auto_config", "_lock")
    return {name: value for name, value in vars(op).items() if name not in ours}


class Traces:
    """Context manager: on exit, the layers of `net` forget the calls recorded inside it.

    Cutting a model records new calls on its layers. Without this, every part that was ever cut out
    would stay in memory as long as the layers do.
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
    """Return `net`, everything that is called in it, and the same for the models nested in it."""
    found = [net, *net.operations]
    for op in net.operations:
        inner = functional(op)
        if inner is not None:
            found += [op, *_operations(inner)]
    return found
