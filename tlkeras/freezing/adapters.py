"""LoRA factors in the layers of a model: add, remove, merge and describe them.

Keras can add them (`enable_lora`), but cannot remove them or save them to a file.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.freezing.closed import closed_by_user, lora_bases
from tlkeras.freezing.policies import Policy, named

Given = tuple[keras.Layer, int, float]  # a layer, the rank and the alpha of its factors
Shapes = dict[str, tuple[int, ...]]  # by name


class Base(NamedTuple):
    """The state of a model before it was given factors."""

    layers: list[keras.Layer]  # of the backbone
    weights: list[keras.Variable]  # of the backbone
    sums: list[str]  # a digest of each of these weights
    small: dict[int, np.ndarray]  # copies of the weights that are not kernels, by their numbers
    head: list[keras.Variable]
    theirs: list[keras.Variable]  # closed by the user


def base_of(model: keras.Model) -> Base:
    """Record the current state of `model`. Raises ValueError if it already has factors."""
    if any(getattr(layer, "lora_enabled", False) for layer in internals.all_layers(model)):
        raise ValueError(
            "Expected a model without adapters; found some. Take them out first: lora.merge(model) "
            "or lora.remove(model); if enable_lora made them, build a new model."
        )
    blocks = find_blocks(model)
    backbone = [block for block in blocks if block.role != "head"]
    layers = list({id(layer): layer for block in backbone for layer in block.layers}.values())
    weights = [weight for block in backbone for weight in block.weights]
    kernels = {id(kernel(layer)) for layer in layers if internals.trainable_kind(layer)}
    small = {
        number: numbers(weight).copy()
        for number, weight in enumerate(weights)
        if len(weight.shape) < 2 or id(weight) not in kernels
    }
    head = [weight for block in blocks if block.role == "head" for weight in block.weights]
    return Base(layers, weights, list(map(_sum, weights)), small, head, closed_by_user(blocks))


def fingerprint(base: Base) -> str:
    """Return a digest of all recorded weights of the backbone."""
    return hashlib.sha256("".join(base.sums).encode()).hexdigest()


def changed(base: Base) -> list[int]:
    """Return the numbers of the weights that have changed since they were recorded.

    Raises ValueError if a kernel is among them, because there is no copy of it.
    """
    pairs = zip(base.weights, base.sums, strict=True)
    found = [number for number, (weight, was) in enumerate(pairs) if _sum(weight) != was]
    lost = [base.weights[number].path for number in found if number not in base.small]
    if lost:
        raise ValueError(
            f"Expected unchanged kernels in the backbone; {', '.join(lost[:3])} changed, so "
            "something opened what lora.add had closed. Build a new model, or keep all changes: "
            "lora.merge(model)."
        )
    return found


def restore(base: Base) -> None:
    """Set all weights that are not kernels back to their recorded values."""
    for number, value in base.small.items():
        base.weights[number].assign(value)


def chosen(
    model: keras.Model, where: str | Policy | Callable[[keras.Layer], bool] | None
) -> list[keras.Layer]:
    """Return the layers of the backbone that `lora.add` gives factors.

    Raises ValueError if there are none.
    """
    blocks = find_blocks(model)
    where = named(where) if isinstance(where, str) else where
    picked = where(blocks) if isinstance(where, Policy) else blocks
    layers = [layer for block in picked if block.role != "head" for layer in block.layers]
    fits = where if where and not isinstance(where, Policy) else _is_no_table
    found = [layer for layer in layers if able(layer) and fits(layer)]
    if not found:
        kinds = {f"{type(x).__name__}{'' if able(x) else ' (cannot)'}" for x in layers}
        raise ValueError(
            f"Expected layers that can have adapters; found none for where={where}. The backbone's "
            f"blocks are {', '.join(block.name for block in blocks if block.role != 'head')}; in "
            f"those chosen there are {', '.join(sorted(kinds)) or 'no layers'}."
        )
    return list({id(layer): layer for layer in found}.values())


def _is_no_table(layer: keras.Layer) -> bool:
    return not isinstance(layer, keras.layers.Embedding)


def able(layer: keras.Layer) -> bool:
    """True if Keras can add factors to `layer`: it has a method for it, and its kernel is neither
    constrained nor quantized."""
    bounds = ("kernel_constraint", "embeddings_constraint")
    bound = [getattr(layer, name, None) for name in bounds]
    return hasattr(layer, "lora_enabled") and not any(bound) and not layer.quantization_mode


def enable(given: Sequence[Given], seed: int | None) -> None:
    """Add factors to layers."""
    for number, (layer, rank, alpha) in enumerate(given):
        values = keras.initializers.HeUniform(None if seed is None else seed + number)
        layer.enable_lora(rank, lora_alpha=alpha, a_initializer=values)


def strip(base: Base) -> None:
    """Remove the factors."""
    for layer, _, _ in adapted(base):
        for factor in factors(layer):
            internals.untrack(layer, factor)
            setattr(layer, factor.name, None)
        layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None


def adapted(base: Base) -> list[Given]:
    """Return the layers that have factors, each with its rank and alpha."""
    held = [layer for layer in base.layers if getattr(layer, "lora_enabled", False)]
    return [(layer, layer.lora_rank, layer.lora_alpha) for layer in held]


def kernel(layer: keras.Layer) -> keras.Variable:
    """Return the weight to which Keras adds the product of the factors."""
    return (lora_bases(layer) or internals.trainable_kind(layer))[0]


def factors(layer: keras.Layer) -> list[keras.Variable]:
    """Return the factors of a layer: A and B."""
    return [v for v in internals.trainable_kind(layer) if v.name.startswith("lora_")]


def merge(layer: keras.Layer, rank: int, alpha: float) -> None:
    """Add the product of the factors to the kernel. The factors themselves stay."""
    a, b = (numbers(factor).astype("float32") for factor in factors(layer))
    base = kernel(layer)
    base.assign(numbers(base) + alpha / rank * (a @ b))


def state(base: Base, learned: Sequence[int]) -> dict[str, keras.Variable]:
    """Return what is saved, by name: factors, backbone weights that learned, and the head."""
    found = {}
    for layer, _, _ in adapted(base):
        for end, factor in zip("ab", factors(layer), strict=True):
            found[f"{base.layers.index(layer)}/{end}"] = factor
    found |= {f"base/{number}": base.weights[number] for number in learned}
    return found | {f"head/{number}": v for number, v in enumerate(base.head)}


def described(base: Base, learned: Sequence[int]) -> dict[str, Any]:
    """Describe the `state` for JSON: the base, and which of its layers have adapters."""
    rows = [(base.layers.index(x), x.path, rank, alpha) for x, rank, alpha in adapted(base)]
    return {
        "base": fingerprint(base),
        "head": [list(v.shape) for v in base.head],
        "adapters": [dict(zip(("layer", "name", "rank", "alpha"), r, strict=True)) for r in rows],
        "changed": learned,
    }


def read(base: Base, record: dict[str, Any], path: str) -> tuple[list[Given], list[int], Shapes]:
    """Read a record that `described` made.

    Returns:
        The layers to give factors, the numbers of the weights that learned, and the shapes of all
        arrays in the `state`.

    Raises:
        ValueError: the record belongs to another base or head, or is damaged.
    """
    shapes = [list(v.shape) for v in base.head]
    if record.get("base") != fingerprint(base):
        raise ValueError(
            f"Expected the backbone that {path} was trained on; found other weights. Build the "
            "model from the same pretrained network as then."
        )
    if record.get("head") != shapes:
        raise ValueError(
            f"Expected a head of {record.get('head')}, as in {path}; found {shapes}. Build the "
            "model with the same head, and as many classes, as then."
        )
    try:
        return _checked(base, record)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Put a whole copy in its place.") from error


def _checked(base: Base, record: dict[str, Any]) -> tuple[list[Given], list[int], Shapes]:
    given, shapes = [], Shapes()
    learned = [number for number in range(len(base.weights)) if number in record["changed"]]
    for row in record["adapters"]:
        layer, rank, alpha = base.layers[row["layer"]], row["rank"], row["alpha"]
        if not (able(layer) and type(rank) is int and rank > 0 and 0 < alpha < math.inf):
            raise ValueError(f"no layer can have {row}")
        sides = tuple(kernel(layer).shape)
        given.append((layer, rank, alpha))
        shapes[f"{row['layer']}/a"] = (*sides[:-1], rank)
        shapes[f"{row['layer']}/b"] = (rank, sides[-1])
    if len(shapes) != 2 * len(given) or not set(learned) <= set(base.small):
        raise ValueError("a layer is named twice, or a kernel among what learned")
    shapes |= {f"base/{number}": tuple(base.weights[number].shape) for number in learned}
    shapes |= {f"head/{number}": tuple(v.shape) for number, v in enumerate(base.head)}
    return given, learned, shapes


def numbers(weight: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight))


def _sum(weight: keras.Variable) -> str:
    value = numbers(weight)
    return hashlib.sha256(f"{value.dtype} {value.shape} ".encode() + value.tobytes()).hexdigest()
