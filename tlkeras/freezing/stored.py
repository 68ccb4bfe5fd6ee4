"""Find out which frozen layers a saved model forgets, and which call restores them after loading.

Keras saves one flag per layer, and only for layers that it saves one by one: those in a functional
or Sequential model, and in a wrapper. Layers inside other layers and models (a transformer layer,
a KerasHub backbone) are created again when the model is loaded, and are then open.
"""

import inspect
from collections.abc import Iterator, Sequence

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.freezing.closed import closed_in, lora_bases
from tlkeras.freezing.inference import is_held
from tlkeras.freezing.policies import Policy

HANDING_ON = (keras.layers.RNN, keras.layers.Wrapper, keras.layers.Bidirectional)


def forgotten(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that would learn, or update their state, differently after saving and
    loading `model`. For layers that Keras does not save one by one, the layer around them."""
    found = _forgotten(model, _written_in(model), None)
    return list({id(layer): layer for layer in found}.values())


def remark(model: keras.Model, policy: object, learning: Sequence[str], batchnorm: str) -> str:
    """Return a remark that says how to restore forgotten layers after loading, or "".

    Args:
        policy: the policy of the last stage.
        learning: names of the blocks that learned in it.
        batchnorm: its BatchNorm mode.
    """
    layers = forgotten(model)
    if not layers:
        return ""
    blocks = find_blocks(model)
    same = isinstance(policy, Policy) and {b.name for b in policy(blocks)} == set(learning)
    call = str(policy) if same else f"named({', '.join(map(repr, learning))})"
    inside = [x for layer in layers for x in internals.all_layers(layer)]
    closed = [x.path or x.name for x in inside if closed_in(x)]
    again = f"close {_some(closed)} again, as you had, then " if closed else ""
    text = (
        f"Keras does not save all of what is frozen in {_some([x.name for x in layers])}: a model "
        f"loaded from a file would train it. After loading, {again}call tlk.freeze(model, "
        f"tlk.policies.{call}, batchnorm={batchnorm!r}), and compile."
    )
    if any(lora_bases(layer) for layer in internals.all_layers(model)):
        text += (
            " In the file the factors of LoRA are merged into their weights: a loaded layer has "
            "none, or two of zeros that never learn. tlk.flavors.lora.save keeps them."
        )
    return text


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _forgotten(
    layer: keras.Layer, written: bool, hidden_by: keras.Layer | None
) -> Iterator[keras.Layer]:
    """Yield the forgotten layers in `layer`.

    Args:
        written: whether Keras saves the layers in `layer` one by one.
        hidden_by: the layer around `layer` whose layers it does not save, or None.
    """
    made = internals.trainable_kind(layer)
    closes = bool(made) and not hidden_by and _writes_closed(layer)
    if is_held(layer) or any(v.trainable == closes for v in made):
        yield hidden_by or layer
    for child in internals.children(layer):
        yield from _forgotten(child, _written_in(child), hidden_by or (None if written else layer))


def _writes_closed(layer: keras.Layer) -> bool:
    try:
        return not layer.get_config().get("trainable", True)
    except Exception:  # from a user's class: a model with such a layer cannot be saved at all
        return not internals.flag(layer)


def _written_in(layer: keras.Layer) -> bool:
    """True if Keras saves the flags of the layers directly in `layer`, or passes its own on."""
    if isinstance(layer, HANDING_ON):
        return not type(layer).__name__.startswith("ConvLSTM")
    if internals.functional(layer) is None:
        return False
    kind = type(layer)
    given = inspect.signature(kind.__init__).parameters.values()
    free = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    plain = kind.__module__.startswith("keras.") or free <= {one.kind for one in given}
    own = {"Functional.get_config", "Sequential.get_config"}
    return kind.get_config.__qualname__ in own and plain
