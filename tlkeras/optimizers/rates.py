"""Learning rate factors by block: the forms that a Stage takes, and the rate of each block.

A rate multiplies the optimizer's learning rate; see `tlkeras.optimizers`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

from tlkeras.blocks.find import Block

ROLES = ("bottom", "middle", "top", "head")
Rate: TypeAlias = float | LearningRateSchedule


@dataclass(frozen=True)
class LayerwiseDecay:
    """Rates that decrease from block to block, as data. Made by `layerwise_decay`.

    Attributes:
        factor: ratio of a block's rate to that of the block above it.

    >>> tlk.optimizers.layerwise_decay(0.5)
    LayerwiseDecay(factor=0.5)
    """

    factor: float

    def __call__(self, blocks: Sequence[Block]) -> dict[str, float]:
        """Return the rate of each block by name, given all blocks in data-flow order."""
        backbone = [block.name for block in blocks if block.role != "head"]
        rates = {block.name: 1.0 for block in blocks}
        return rates | {name: self.factor ** (i + 1) for i, name in enumerate(reversed(backbone))}


def layerwise_decay(factor: float = 0.8) -> LayerwiseDecay:
    """Rate 1 for the head, `factor` for the last backbone block, its square for the next, ...

    Raises:
        ValueError: `factor` is not above 0 and at most 1.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.2 (with
    1/2.6); Clark et al. 2020, "ELECTRA", appendix A (with 0.8).

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.optimizers.layerwise_decay(0.5)(tlk.find_blocks(model))
    {'stem': 0.125, 'stack0': 0.25, 'stack1': 0.5, 'head': 1.0}
    """
    if not 0 < factor <= 1:
        raise ValueError(f"layerwise_decay needs a factor above 0 and up to 1; found {factor}.")
    return LayerwiseDecay(factor)


def block_rates(
    rates: Any, blocks: Sequence[Block], learning: set[str] | None = None
) -> dict[str, Rate]:
    """Return the rate of each block, by name.

    Args:
        rates: None (1 everywhere); a mapping from names of blocks, patterns ("stack*") and roles
            to rates; `layerwise_decay(...)`; or a function from a Block to its rate. In a mapping,
            names take precedence over patterns, longer patterns over shorter ones, and patterns
            over roles. A rate is a number, or a `keras.optimizers.schedules` schedule over the
            optimizer's steps.
        blocks: all blocks of the model.
        learning: names of the blocks that must have a rate. Other blocks without a rate in a
            mapping are omitted from the result.

    Raises:
        ValueError: a key matches no block and is not a role; a block in `learning` has no rate;
            or a rate is negative or not finite.
        TypeError: `rates` is none of the above.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> rates = {"head": 1.0, "stack*": 0.1, "bottom": 0.01}
    >>> tlk.optimizers.block_rates(rates, tlk.find_blocks(model))
    {'stem': 0.01, 'stack0': 0.1, 'stack1': 0.1, 'head': 1.0}
    """
    names = [block.name for block in blocks]
    if rates is None:
        found: dict[str, Any] = dict.fromkeys(names, 1.0)
    elif isinstance(rates, LayerwiseDecay):
        found = rates(blocks)
    elif isinstance(rates, Mapping):
        _check_keys(rates, names)
        keys = {block.name: _key(rates, block) for block in blocks}
        found = {name: rates[key] for name, key in keys.items() if key is not None}
    elif callable(rates):
        found = {block.name: rates(block) for block in blocks}
    else:
        raise TypeError(f"Expected rates as a mapping, a function or None; found {rates!r}.")
    left_out = [name for name in names if name in (learning or ()) and name not in found]
    if left_out:
        raise ValueError(
            f"Expected a rate for every block that learns; found none for {', '.join(left_out)}. "
            f"Give each a rate, by name, pattern or role ({', '.join(ROLES)}), or freeze it."
        )
    return {name: _checked(name, rate) for name, rate in found.items()}


def _check_keys(rates: Mapping, names: Sequence[str]) -> None:
    unknown = [
        key
        for key in rates
        if key not in ROLES and not any(fnmatchcase(name, str(key)) for name in names)
    ]
    if unknown:
        raise ValueError(
            f"No block is called {', '.join(map(repr, unknown))}. This model's blocks are: "
            f"{', '.join(names)}; their roles: {', '.join(ROLES)}."
        )


def _key(rates: Mapping, block: Block) -> str | None:
    """Return the most specific key that matches a block, or None."""
    if block.name in rates:
        return block.name
    patterns = [key for key in rates if key not in ROLES and fnmatchcase(block.name, key)]
    return max(patterns, key=len, default=block.role if block.role in rates else None)


def _checked(name: str, rate: Any) -> Rate:
    if isinstance(rate, LearningRateSchedule):
        return rate
    if not (isinstance(rate, Real) and 0 <= float(rate) < math.inf):
        raise ValueError(
            f"Block {name!r}: expected a rate of 0 or more, or a schedule; found {rate!r}. "
            "A rate multiplies the learning rate."
        )
    return float(rate)


def rates_to_dict(rates: Any) -> dict | None:
    """Return `rates` in a form that JSON can store. Raises TypeError for a plain function.

    >>> tlk.optimizers.rates_to_dict({"head": 1.0, "top": 0.1})
    {'kind': 'mapping', 'rates': {'head': 1.0, 'top': 0.1}}
    """
    if isinstance(rates, LayerwiseDecay):
        return {"kind": "layerwise_decay", "factor": rates.factor}
    if isinstance(rates, Mapping):
        return {"kind": "mapping", "rates": {key: rate_to_json(r) for key, r in rates.items()}}
    if rates is not None:
        raise TypeError(
            f"Only rates that are a mapping or layerwise_decay(...) can be stored; found {rates!r}."
        )
    return None


def rates_from_dict(stored: dict | None) -> Any:
    """Return the rates that `rates_to_dict` stored.

    >>> tlk.optimizers.rates_from_dict({"kind": "layerwise_decay", "factor": 0.8})
    LayerwiseDecay(factor=0.8)
    """
    if stored is None:
        return None
    if stored["kind"] == "layerwise_decay":
        return layerwise_decay(stored["factor"])
    return {key: rate_from_json(rate) for key, rate in stored["rates"].items()}


def rate_to_json(rate: Rate) -> float | dict:
    """Return one rate in a form that JSON can store."""
    if isinstance(rate, LearningRateSchedule):
        return keras.saving.serialize_keras_object(rate)
    return float(rate)


def rate_from_json(stored: float | dict) -> Rate:
    """Return the rate that `rate_to_json` stored."""
    if isinstance(stored, dict):
        return keras.saving.deserialize_keras_object(stored)
    return stored


def shown(rate: Rate) -> str:
    """Return a short text for a rate or a learning rate."""
    return f"{rate:g}" if isinstance(rate, Real) else type(rate).__name__
