"""Learning rates block by block: one Keras optimizer that steps every block at its own rate.

`discriminative` gives an optimizer of the kind it is given, whose learning rate is multiplied in
every block by the block's rate. It is one optimizer, not several: callbacks set its
`learning_rate`, gradients are clipped by their norm over all blocks, and it is saved with the
model. `carry` hands what an optimizer has learned about the gradients on to the next stage's.

Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.2.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tlkeras.batchnorm import set_batchnorm
from tlkeras.blocks import Block, find_blocks
from tlkeras.blockwise import SUBCLASSES, SUPPORTED, Discriminative, Share, base_of, keys
from tlkeras.rates import (
    LayerwiseDecay,
    block_rates,
    layerwise_decay,
    rates_from_dict,
    rates_to_dict,
)

__all__ = [
    "SUPPORTED",
    "Carried",
    "Discriminative",
    "LayerwiseDecay",
    "block_rates",
    "carry",
    "discriminative",
    "layerwise_decay",
    "plain",
    "rates_from_dict",
    "rates_to_dict",
]

SUMS = {keras.optimizers.SGD: "momentums", keras.optimizers.RMSprop: "_momentums"}  # of steps


def discriminative(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, rates: Any = None
) -> keras.optimizers.Optimizer:
    """A new optimizer like `optimizer` that trains every block of `model` at its own rate.

    A block's learning rate is the optimizer's `learning_rate`, whatever sets it (a number, a
    schedule, a callback), times the block's rate; weight decay follows it.

    Args:
        optimizer: of a class in `SUPPORTED`. Its settings are kept, its state is not: see `carry`.
        model: built. What is trainable counts as it is now. A block with a rate of 0 is frozen,
            its BatchNorm too, with a UserWarning; compile the model afterwards.
        rates: as in `block_rates`.

    Raises:
        TypeError: an optimizer that is not supported. ValueError: rates that do not fit the
            model, or leave nothing to learn.
    """
    base = base_of(optimizer)
    if base is None:
        raise TypeError(
            f"Expected an optimizer of {', '.join(b.__name__ for b in SUPPORTED)}; found "
            f"{type(optimizer).__name__}. Pass one of these; compile wraps it for mixed precision."
        )
    blocks = find_blocks(model)
    before = {id(weight) for weight in model.trainable_variables}
    learning = {b.name for b in blocks if any(id(w) in before for w in b.weights)}
    of_block = block_rates(rates, blocks, learning)
    held = [b for b in blocks if b.name in learning and of_block[b.name] == 0]
    if len(held) == len(learning):
        raise ValueError("Expected a block that learns; found none with a rate above 0.")
    for block in held:
        _hold(block)
        warnings.warn(f"Block {block.name!r} is frozen by its rate of 0.", stacklevel=2)
    home = {id(weight): block.name for block in blocks for weight in block.weights}
    undecayed = {share.path for share in getattr(optimizer, "shares", ()) if not share.decays}
    shares, variables = [], model.trainable_variables
    for variable, (path, ordinal) in zip(variables, keys(variables), strict=True):
        raw = variable.value if keras.backend.backend() == "tensorflow" else variable
        decays = base._use_weight_decay(optimizer, raw) and path not in undecayed
        name = home[id(variable)]
        shares.append(Share(path, ordinal, name, of_block[name], decays))
    return SUBCLASSES[base](**_settings(optimizer) | {"shares": shares})


def _hold(block: Block) -> None:
    """Freezes one block and touches no other; a layer is closed too, for only that is saved."""
    for weight in block.weights:
        weight.trainable = False
    for layer in block.layers:
        if not layer._layers:
            layer.trainable = False
    normalising = keras.layers.BatchNormalization
    set_batchnorm([x for x in block.layers if isinstance(x, normalising)], "frozen")


def _settings(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The arguments that make an optimizer like this one; a schedule is handed on as it is."""
    rate = optimizer._learning_rate
    rate = rate if callable(rate) else float(keras.ops.convert_to_numpy(rate))
    return optimizer.get_config() | {"learning_rate": rate}


@dataclass(frozen=True)
class Carried:
    """What `carry` did.

    Attributes:
        carried: paths of the variables whose slots were copied. fresh: of those that start anew.
        reason: why nothing was carried, or "".
    """

    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        total = len(self.carried) + len(self.fresh)
        why = f": {self.reason}" if self.reason else ""
        return f"optimizer state carried for {len(self.carried)} of {total} variables{why}"


def carry(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable] | None = None,
) -> Carried:
    """Copies the slots (momentums, averages, ...) of the variables that both optimizers train.

    `new` starts at iteration 0, and so do its schedules, but a variable that stays goes on at its
    own age: Adam's bias correction counts the updates that this variable had. So one that joins
    takes first steps of at most the learning rate, where one optimizer for all took up to 6 times
    that.

    Variables are the same if they are one object; where the two optimizers share none (another
    model of the same layout), if path and ordinal are equal. Half-accumulated gradients are not
    carried. A momentum that is a sum of past steps (SGD, RMSprop) shrinks or grows with the
    learning rate, lest steps of the old one be taken.

    Args:
        old: whatever trained the model so far. Either may be in a LossScaleOptimizer.
        new: from `discriminative`, not yet stepped.
        variables: the model's trainable variables; needed if `new` is not built.

    Returns:
        What was carried. Nothing is, for a reason given, between optimizers of different classes
        or with different slots (one with averages, one without).

    Raises:
        TypeError: `new` is not from `discriminative`. ValueError: it has stepped, cannot be built,
            or has a slot of another shape than the old one.
    """
    old, new = (getattr(optimizer, "inner_optimizer", optimizer) for optimizer in (old, new))
    if not isinstance(new, Discriminative):
        raise TypeError(f"Expected an optimizer from discriminative(...); found {new!r}.")
    if not new.built and variables is None:
        raise ValueError("Expected variables= to build the new optimizer on; found None.")
    new.build(variables)
    if _count(new):
        raise ValueError(f"Expected an optimizer before its first step; found {_count(new)} steps.")
    pairs, shares, mine, reason = {}, list(new.shares), _slots(new), ""
    if base_of(old) is not new.base:
        reason = f"the old one is {type(old).__name__}, the new one {new.base.__name__}"
    elif not old.built:
        reason = "the old one has not trained"
    elif set(theirs := _slots(old)) != set(mine):
        reason = f"the old one keeps {', '.join(theirs)}, the new one {', '.join(mine)}"
    else:
        pairs = _pairs(old._trainable_variables, new._trainable_variables)
    for there, here in pairs.items():
        for name, slot in mine.items():
            factor = 1.0
            if SUMS.get(new.base) == name:
                factor = _rate(new, here) / (_rate(old, there) or math.inf)
            _copy(theirs[name][there], slot[here], factor)
        age = old.shares[there].age if isinstance(old, Discriminative) else 0
        shares[here] = replace(shares[here], age=age + _count(old))
    new.shares = tuple(shares)
    stayed = set(pairs.values())
    paths = [share.path for share in shares]
    carried = tuple(path for i, path in enumerate(paths) if i in stayed)
    return Carried(carried, tuple(p for i, p in enumerate(paths) if i not in stayed), reason)


def _pairs(old: Sequence[Any], new: Sequence[Any]) -> dict[int, int]:
    """Positions of the variables that are in both: where in `old`, where in `new`."""
    there = {id(variable): i for i, variable in enumerate(old)}
    same = {there[id(v)]: i for i, v in enumerate(new) if id(v) in there}
    if same:
        return same
    mine, theirs = keys(new), keys(old)
    counts, others = (Counter(path for path, _ in found) for found in (mine, theirs))
    sure = [key for key in mine if key in theirs and counts[key[0]] == others[key[0]]]
    return {theirs.index(key): mine.index(key) for key in sure}


def _slots(optimizer: keras.optimizers.Optimizer) -> dict[str, list]:
    """What an optimizer keeps for every variable it trains: lists in the order of these."""
    count = len(optimizer._trainable_variables)
    others = ("_variables", "_trainable_variables", "_accumulated_gradients")
    found = {
        name: list(slot)
        for name, slot in vars(optimizer).items()
        if name not in others
        and isinstance(slot, list)
        and len(slot) == count > 0
        and all(isinstance(x, keras.Variable | None) for x in slot)
    }
    return found


def _rate(optimizer: keras.optimizers.Optimizer, position: int) -> float:
    """The learning rate of one variable at the next step."""
    rate: Any = 1.0
    if isinstance(optimizer, Discriminative):
        rate = optimizer._now(optimizer.shares[position].rate)
    return float(keras.ops.convert_to_numpy(optimizer._get_current_learning_rate() * rate))


def _copy(
    source: keras.Variable | None, target: keras.Variable | None, factor: float = 1.0
) -> None:
    if source is None or target is None:
        return
    if tuple(source.shape) != tuple(target.shape):
        raise ValueError(
            f"Expected slots of one shape; found {source.path} {tuple(source.shape)} for "
            f"{target.path} {tuple(target.shape)}. The two models are not of one layout."
        )
    value = keras.ops.convert_to_numpy(source)
    target.assign(value if factor == 1 else value * factor)


def _count(optimizer: keras.optimizers.Optimizer) -> int:
    """Updates so far (with accumulated gradients fewer than steps)."""
    return int(np.asarray(keras.ops.convert_to_numpy(optimizer.iterations)))


def plain(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    """The Keras optimizer that does the same, if all rates are 1; otherwise `optimizer` itself.

    With it a saved model loads where tlkeras is not installed. Settings, iterations and slots are
    kept; ages are not, so if it trains on, variables that were carried take smaller steps at
    first (Adam's correction starts at this optimizer's own iteration).

    Args:
        optimizer: any; one in a LossScaleOptimizer is replaced in a new LossScaleOptimizer.
        variables: the model's trainable variables.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(inner, Discriminative) or any(
        not isinstance(s.rate, float) or s.rate != 1 for s in inner.shares
    ):
        return optimizer
    settings = _settings(inner)
    del settings["shares"]
    simple = new = inner.base(**settings)
    if inner is not optimizer:
        settings = optimizer.get_config() | {"inner_optimizer": simple}
        new = keras.optimizers.LossScaleOptimizer(**settings)
    if optimizer.built:
        new.build(list(variables))
        for source, target in zip(optimizer.variables, new.variables, strict=True):
            _copy(source, target)
    return new
