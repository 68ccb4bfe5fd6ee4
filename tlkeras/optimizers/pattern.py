"""An optimizer like another one, at another learning rate."""

from collections.abc import Iterable
from typing import Any

import keras


def like(
    pattern: keras.optimizers.Optimizer, rate: Any, variables: Iterable[keras.Variable]
) -> keras.optimizers.Optimizer:
    """A new one of the pattern's class and settings, with what it excludes from weight decay.

    Args:
        pattern: of a class of Keras's or of one's own; in a LossScaleOptimizer it is taken out,
            for `compile` wraps the new one where that is needed.
        rate: a float or a schedule. variables: of the model.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> pattern = keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    >>> pattern.exclude_from_weight_decay(var_names=["bias"])
    >>> new = tlk.optimizers.like(pattern, 1e-4, model.trainable_variables)
    >>> new = tlk.optimizers.discriminative(new, model)
    >>> [share.decays for share in new.shares]
    [True, False]
    """
    inner = getattr(pattern, "inner_optimizer", pattern)
    new = type(inner).from_config(inner.get_config() | {"learning_rate": rate})
    if type(inner)._use_weight_decay is not keras.optimizers.Optimizer._use_weight_decay:
        return new  # a rule of its own, which the new one has as well
    excluded = [variable for variable in variables if not may_decay(inner, variable)]
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
