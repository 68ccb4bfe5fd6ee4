"""Copies an optimizer's class and settings, with another learning rate."""

from collections.abc import Iterable
from typing import Any

import keras


def like(
    pattern: keras.optimizers.Optimizer,
    rate: Any,
    variables: Iterable[keras.Variable],
    by_block: bool = True,
) -> keras.optimizers.Optimizer:
    """Return a new optimizer with the class, settings and weight decay exclusions of `pattern`.

    Args:
        pattern: an optimizer of a Keras class or your own class. A LossScaleOptimizer is unwrapped,
            because `compile` wraps the new optimizer if needed.
        rate: a float or a schedule.
        variables: the trainable variables of the model.
        by_block: keep the rates by block if the pattern has any. If False, the new optimizer is
            the plain Keras one.

    Raises:
        ValueError: the pattern is a MultiOptimizer, which has no learning rate to set.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> pattern = keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    >>> pattern.exclude_from_weight_decay(var_names=["bias"])
    >>> new = tlk.optimizers.like(pattern, 1e-4, model.trainable_variables)
    >>> new = tlk.optimizers.discriminative(new, model)
    >>> [share.decays for share in new.shares]
    [True, False]
    """
    inner = getattr(pattern, "inner_optimizer", pattern)
    kind, config = type(inner), inner.get_config() | {"learning_rate": rate}
    if kind.__name__ == "MultiOptimizer":  # Keras 3.15 and newer
        raise ValueError(
            "Expected an optimizer whose learning rate a stage can set; found MultiOptimizer, "
            "which has none. Pass one optimizer, and a rate for each block: Stage(rates=...)."
        )
    if not by_block and config.pop("shares", None) is not None:
        kind = inner.base
    new = kind.from_config(config)
    if kind._use_weight_decay is not keras.optimizers.Optimizer._use_weight_decay:
        return new  # the class has its own rule, so the new optimizer has it as well
    shares = getattr(inner, "shares", ())
    undecayed = {share.path for share in shares if not share.decays}
    excluded = [v for v in variables if v.path in undecayed or not may_decay(inner, v)]
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    return new


def may_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """True if weight decay applies to a variable, by Keras's rule and the exclusions.

    From Keras 3.16 on, `_use_weight_decay` works only once an optimizer is built. Keras calls
    `_is_excluded_from_weight_decay` while it builds one.
    """
    raw = variable.value if keras.backend.backend() == "tensorflow" else variable
    excluded = getattr(optimizer, "_is_excluded_from_weight_decay", None)
    if excluded is not None:
        return not excluded(raw)
    kind = getattr(optimizer, "base", type(optimizer))  # with rates by block: Keras's class
    return kind._use_weight_decay(optimizer, raw)
