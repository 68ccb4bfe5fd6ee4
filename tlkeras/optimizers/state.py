"""Passes the state of an optimizer (momentums, averages, ...) on to the next optimizer."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tlkeras.optimizers.blockwise import Discriminative, _settings, base_of, keys

# Slots that are sums of past steps.
SUMS = {keras.optimizers.SGD: "momentums", keras.optimizers.RMSprop: "_momentums"}


@dataclass(frozen=True)
class Carried:
    """The result of `carry`.

    Attributes:
        carried: paths of the variables whose slots were copied.
        fresh: paths of the variables whose slots start from their initial values.
        reason: why nothing was carried, or "".

    >>> print(tlk.optimizers.Carried(("head/kernel", "head/bias"), ("stem/kernel",)))
    optimizer state carried for 2 of 3 variables
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
    """Copy the slots (momentums, averages, ...) of the variables that both optimizers train.

    `new` starts at iteration 0, and so do its schedules, but each carried variable keeps its own
    age: Adam's bias correction counts the updates that this variable has had. The first steps of
    a variable that joins are therefore at most as large as the learning rate; with one age for all
    variables they were up to 6 times as large.

    Variables are matched by identity or, if the optimizers share none (another model of the same
    layout), by path and ordinal. Partly accumulated gradients are not carried. A momentum that is a
    sum of past steps (SGD, RMSprop) is scaled by the ratio of the learning rates, so that it fits
    the new one.

    Args:
        old: the optimizer that trained the model so far. Either optimizer can be wrapped in a
            LossScaleOptimizer.
        new: an optimizer from `discriminative` that has not taken a step.
        variables: the model's trainable variables; needed if `new` is not built.

    Returns:
        What was carried. Nothing is carried between optimizers of different classes or with
        different slots (one with averages, one without); `reason` says so.

    Raises:
        TypeError: `new` is not from `discriminative`.
        ValueError: `new` has taken a step, cannot be built, or has a slot whose shape differs from
            that of the old one.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> head = tlk.freeze(model, tlk.policies.head_only())
    >>> old = tlk.optimizers.discriminative(keras.optimizers.Adam(1e-3), model)
    >>> gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    >>> old.apply(gradients, model.trainable_variables)
    >>> more = tlk.freeze(model, tlk.policies.last_blocks(1))
    >>> new = tlk.optimizers.discriminative(keras.optimizers.Adam(1e-4), model)
    >>> print(tlk.optimizers.carry(old, new, model.trainable_variables))
    optimizer state carried for 2 of 5 variables
    """
    old, new = (getattr(optimizer, "inner_optimizer", optimizer) for optimizer in (old, new))
    if not isinstance(new, Discriminative):
        raise TypeError(f"Expected an optimizer from discriminative(...); found {new!r}.")
    if variables is not None:
        new.build(variables)
    elif not new.built:
        raise ValueError("Expected variables= to build the new optimizer on; found None.")
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
    """Map the position in `old` of each variable that is in both to its position in `new`."""
    there = {id(variable): i for i, variable in enumerate(old)}
    same = {there[id(v)]: i for i, v in enumerate(new) if id(v) in there}
    if same:
        return same
    mine, theirs = keys(new), keys(old)
    counts, others = (Counter(path for path, _ in found) for found in (mine, theirs))
    sure = [key for key in mine if key in theirs and counts[key[0]] == others[key[0]]]
    return {theirs.index(key): mine.index(key) for key in sure}


def _slots(optimizer: keras.optimizers.Optimizer) -> dict[str, list]:
    """Return the slots of an optimizer: lists with one entry per trained variable, in order."""
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
    """Return the learning rate of one variable at the next step."""
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
    """Return the number of updates so far (fewer than steps if gradients are accumulated)."""
    return int(np.asarray(keras.ops.convert_to_numpy(optimizer.iterations)))


def averages(optimizer: keras.optimizers.Optimizer) -> list[tuple[Any, keras.Variable]]:
    """Return pairs of a variable and its moving average, for optimizers with `use_ema=True`."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return [
        (variable, average)
        for one in getattr(inner, "optimizers", [inner])
        if one.built and getattr(one, "use_ema", False)
        for variable, average in zip(
            one._trainable_variables, one._model_variables_moving_average, strict=True
        )
        if average is not None
    ]


def go_on(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
) -> keras.optimizers.Optimizer:
    """Return `new`, or an equivalent optimizer, with the state to continue training after `old`.

    The state is what `carry` copies. For optimizers that `carry` does not support, it is all state
    but the learning rate, if both are of the same class and train the same variables, and `new` has
    no schedule. If a plain Keras optimizer does the same as `new`, it is returned instead. If
    `old` scales the loss, so does the result, from the same scale.

    Args:
        old: the optimizer that trained the model so far, built or not.
        new: an optimizer that has not taken a step and is not in a LossScaleOptimizer.
        variables: the model's trainable variables.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> old, new = keras.optimizers.Adam(1e-2), keras.optimizers.Adam(1e-3)
    >>> old.apply([keras.ops.ones(v.shape) for v in model.weights], model.weights)
    >>> new = tlk.optimizers.go_on(old, tlk.optimizers.discriminative(new, model), model.weights)
    >>> type(new).__name__, int(new.iterations), round(float(new.learning_rate), 5)
    ('Adam', 1, 0.001)
    """
    if isinstance(new, Discriminative):
        carry(old, new, variables)
        new = plain(new, variables, exactly=True)
    else:
        _take_all(getattr(old, "inner_optimizer", old), new, variables)
    if isinstance(old, keras.optimizers.LossScaleOptimizer):
        scale = float(old.dynamic_scale) if old.built else old.initial_scale
        new = keras.optimizers.LossScaleOptimizer(new, scale, old.dynamic_growth_steps)
        new.build(list(variables))
        if old.built:
            _copy(old.step_counter, new.step_counter)
    return new


def _take_all(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
) -> None:
    """Copy all state but the learning rate; none if `new` has a schedule, which must start at 0."""
    new.build(list(variables))  # not while a step is traced, where this would repeat in every step
    if type(old) is not type(new) or not old.built or callable(new._learning_rate):
        return
    if list(map(id, old._trainable_variables)) == list(map(id, new._trainable_variables)):
        rate = float(keras.ops.convert_to_numpy(new.learning_rate))
        for source, target in zip(old.variables, new.variables, strict=True):
            _copy(source, target)
        new.learning_rate = rate


def plain(
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    exactly: bool = False,
) -> keras.optimizers.Optimizer:
    """Return the equivalent Keras optimizer if all rates are 1; otherwise `optimizer` itself.

    A model saved with it can be loaded without tlkeras. Settings, iterations, slots and weight
    decay exclusions are kept. If all variables have the same age, it is added to the iterations,
    unless a schedule counts these. Otherwise the ages are lost, and carried variables take smaller
    steps at first, because Adam's correction then starts at this optimizer's own iteration.

    Args:
        optimizer: any optimizer; one in a LossScaleOptimizer gets a new LossScaleOptimizer.
        variables: the model's trainable variables.
        exactly: also return `optimizer` itself if ages would be lost.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> optimizer = tlk.optimizers.discriminative(keras.optimizers.AdamW(1e-3), model)
    >>> simple = tlk.optimizers.plain(optimizer, model.trainable_variables)
    >>> type(optimizer).__name__, type(simple).__name__
    ('DiscriminativeAdamW', 'AdamW')
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(inner, Discriminative) or any(
        not isinstance(s.rate, float) or s.rate != 1 for s in inner.shares
    ):
        return optimizer
    ages = {share.age for share in inner.shares}
    age = ages.pop() if len(ages) == 1 and not callable(inner._learning_rate) else 0
    if exactly and ages - {age}:
        return optimizer
    settings = _settings(inner)
    del settings["shares"]
    simple = new = inner.base(**settings)
    pairs = zip(variables, inner.shares, strict=True)
    simple.exclude_from_weight_decay(var_list=[v for v, share in pairs if not share.decays])
    if inner is not optimizer:
        settings = optimizer.get_config() | {"inner_optimizer": simple}
        new = keras.optimizers.LossScaleOptimizer(**settings)
    if optimizer.built:
        new.build(list(variables))
        for source, target in zip(optimizer.variables, new.variables, strict=True):
            _copy(source, target)
        simple._iterations.assign_add(age * (simple.gradient_accumulation_steps or 1))
    return new
