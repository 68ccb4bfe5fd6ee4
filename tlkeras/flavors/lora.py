"""Adapters (LoRA): the network stays frozen; two small factors added to each kernel learn.

Keras adds the factors (`enable_lora`) to Dense, EinsumDense, Embedding and the convolutions, but
not to DepthwiseConv2D, and loses them when it saves. This module chooses layers by block, stores
adapters in a file of their own, exchanges them, merges them into their kernels and removes them.
After `add`, `load`, `merge` or `remove`, call `model.compile` or `tlk.fit_stages`: until then,
`fit` trains the same weights as before.

Source: sections 1.8 and 1.10; Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

>>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
>>> table = tlk.flavors.lora.add(model, rank=4)
>>> x, y = np.random.uniform(0, 255, (24, 32, 32, 3)), np.arange(24) % 3
>>> model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
>>> history = model.fit(x, y, verbose=0)
>>> path = tlk.flavors.lora.save(model, "mine.npz")
>>> tlk.flavors.lora.remove(model)  # the backbone is again what it was
"""

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from weakref import WeakKeyDictionary

import keras

from tlkeras.blocks import internals
from tlkeras.freezing import adapters
from tlkeras.freezing.closed import remember
from tlkeras.freezing.flags import Learning, freeze, set_trainable
from tlkeras.freezing.policies import Policy, all_blocks
from tlkeras.utils import arrays

KIND = "tlkeras adapters 1"

_BASES: WeakKeyDictionary[keras.Model, adapters.Base] = WeakKeyDictionary()


def add(
    model: keras.Model,
    rank: int = 8,
    alpha: float | None = None,
    where: str | Policy | Callable[[keras.Layer], bool] | None = None,
    *,
    seed: int | None = None,
) -> Learning:
    """Add adapters to layers of the backbone; only the adapters and the head learn.

    A kernel W then acts as W + alpha / rank * A B. B starts at 0, so the outputs do not change at
    first. All weights of the backbone, including biases and BatchNorm, stay bit-identical under
    every policy; adapters learn in the blocks that a policy unfreezes.

    Args:
        model: a built model without adapters.
        rank: number of columns of A and rows of B.
        alpha: scale of the adapters. None: equal to `rank`, which gives a factor of 1.
        where: the layers that get adapters: the name of a block (with the wildcards `*` and `?`),
            a policy, or a function from a layer to bool. None: every layer of the backbone that
            can have one, except embeddings.
        seed: seed of the initial values of A. None: that of `keras.utils.set_random_seed`.

    Returns:
        A table of what learns.

    Raises:
        ValueError: no layer matches, or the model already has adapters.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.flavors.lora.add(model, rank=4, where="stack*")
    >>> table.trainable_params, table.params
    (14211, 320835)
    """
    if rank < 1 or (alpha is not None and not 0 < alpha < math.inf):
        raise ValueError(f"Expected rank and alpha above 0; found rank={rank}, alpha={alpha}.")
    base, factor = adapters.base_of(model), rank if alpha is None else alpha
    chosen = adapters.chosen(model, where)
    adapters.enable([(layer, rank, factor) for layer in chosen], seed)
    _forget_calls(model)
    return _opened(model, base)


def save(model: keras.Model, path: str | os.PathLike) -> Path:
    """Write adapters, head, and any changed biases or BatchNorm weights, as arrays and JSON only.

    Returns:
        The path of the file, which `np.load` can also read.

    Raises:
        ValueError: the model has no adapters from `add` or `load`, or the kernels under them have
            changed.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.flavors.lora.add(model, rank=4)
    >>> tlk.flavors.lora.save(model, "mine.npz").stat().st_size < 70_000
    True
    """
    base = _base(model)
    learned = adapters.changed(base)
    record = {"kind": KIND} | adapters.described(base, learned)
    state = adapters.state(base, learned)
    return arrays.write(path, record, {name: adapters.numbers(v) for name, v in state.items()})


def load(model: keras.Model, path: str | os.PathLike) -> Learning:
    """Load adapters and head from a file, replacing those of the model if it has any.

    The outputs are then those of the saved model, and the same weights are trainable.

    Raises:
        ValueError: the base or the head differs, or the file is damaged or of another kind. The
            model is not changed then.

    >>> def new():
    ...     return tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> model = new()
    >>> table = tlk.flavors.lora.add(model, rank=4)
    >>> path = tlk.flavors.lora.save(model, "mine.npz")
    >>> tlk.flavors.lora.load(new(), path).trainable_params == table.trainable_params
    True
    """
    base = _BASES[model] if model in _BASES else adapters.base_of(model)
    given, learned, shapes = adapters.read(base, arrays.read_record(path, KIND), str(path))
    found = arrays.read(path, KIND, shapes)
    adapters.restore(base)
    if given != adapters.adapted(base):
        adapters.strip(base)
        adapters.enable(given, None)
        _forget_calls(model)
    for name, variable in adapters.state(base, learned).items():
        variable.assign(found[name])
    return _opened(model, base, learned)


def merge(model: keras.Model) -> None:
    """Add the adapters to their kernels: the same outputs, up to rounding, from plain layers.

    The backbone is left frozen. `model.save` then writes an ordinary model.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.flavors.lora.add(model, rank=4)
    >>> tlk.flavors.lora.merge(model)
    >>> model.count_params()
    307011
    """
    base = _base(model)
    for layer, rank, alpha in adapters.adapted(base):
        adapters.merge(layer, rank, alpha)
    _let_go(model, base)


def remove(model: keras.Model) -> None:
    """Remove the adapters: the backbone is bit-identical to the original, and left frozen.

    The head is not changed. Raises ValueError if the kernels under the adapters have changed.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.flavors.lora.add(model, rank=4)
    >>> tlk.flavors.lora.remove(model)
    >>> model.count_params()
    307011
    """
    base = _base(model)
    adapters.changed(base)
    adapters.restore(base)
    _let_go(model, base)


def _base(model: keras.Model) -> adapters.Base:
    if model not in _BASES:
        raise ValueError("Expected a model with adapters from lora.add or lora.load; found none.")
    return _BASES[model]


def _opened(model: keras.Model, base: adapters.Base, learned: Collection[int] = ()) -> Learning:
    """Set what learns; the rest is frozen as if by hand, so that no policy unfreezes it."""
    open_ = {id(base.weights[number]) for number in learned}
    closed = {id(v) for v in [*base.weights, *base.theirs]} - open_
    for layer in internals.all_layers(model):
        for variable in internals.trainable_kind(layer):
            variable.trainable = id(variable) not in closed
            variable.closed_by = ""
    remember(model, [*base.weights, *base.theirs])
    _BASES[model] = base
    return freeze(model, all_blocks())


def _let_go(model: keras.Model, base: adapters.Base) -> None:
    """Return to plain layers with a frozen backbone, which the next plan can unfreeze."""
    adapters.strip(base)
    theirs = {id(variable) for variable in base.theirs}
    set_trainable(model, {id(weight) for weight in base.head} - theirs)
    remember(model, base.theirs)
    _forget_calls(model)
    del _BASES[model]


def _forget_calls(model: keras.Model) -> None:
    """Drop the compiled `fit`, `evaluate` and `predict` functions, which use the old layers."""
    model.train_function = model.test_function = model.predict_function = None
