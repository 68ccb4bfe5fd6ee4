"""An optimizer like another one, at another learning rate."""

from collections.abc import Iterable
from typing import Any

import keras


def like(
    pattern: keras.optimizers.Optimizer,
    rate: Any,
    variables: Iterable[keras.Variable],
    by_block: bool = True,
) -> keras.optimizers.Optimizer:
    """A new one of the pattern's class and settings, with what it excludes from weight decay.

    Args:
        pattern: of a class of Keras's or of one's own; in a LossScaleOptimizer it is taken out,
            for `compile` wraps the new one where that is needed.
        rate: a float or a schedule. variables: of the model.
        by_block: keep the rates of a pattern that has some; else the new one is Keras's own.

    Raises:
        ValueError: a MultiOptimizer, which has no learning rate to set.

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
    if kind.__name__ == "MultiOptimizer":  # of Keras 3.15 and newer
        raise ValueError(
            "Expected an optimizer whose learning rate a stage can set; found MultiOptimizer, "
            "which has none. Pass one optimizer, and a rate for each block: Stage(rates=...)."
        )
    if not by_block and config.pop("shares", None) is not None:
        kind = inner.base
    new = kind.from_config(config)
    if kind._use_weight_decay is not keras.optimizers.Optimizer._use_weight_decay:
        return new  # a rule of its own, which the new one has as well
    shares = getattr(inner, "shares", ())
    undecayed = {share.path for share in shares if not share.decays}
    excluded = [v for v in variables if v.path in undecayed or not may_decay(inner, v)]
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    return new


def may_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether weight decay applies to a variable, by Keras's rule and what was excluded.

    From Keras 3.16 on only a built optimizer says so, and asks this other method when it builds.
    """
    raw = variable.value if keras.backend.backend() == "tensorflow" else variable
    excluded = getattr(optimizer, "_is_excluded_from_weight_decay", None)
    if excluded is not None:
        return not excluded(raw)
    kind = getattr(optimizer, "base", type(optimizer))  # of one with rates by block: Keras's class
    return kind._use_weight_decay(optimizer, raw)
