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
    tensorflow = keras.backend.backend() == "tensorflow"
    excluded = [
        variable
        for variable in variables
        if not inner._use_weight_decay(variable.value if tensorflow else variable)
    ]
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    return new
