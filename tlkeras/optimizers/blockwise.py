"""Keras optimizers that update every variable at its own rate: one class per supported optimizer.

They are created by `discriminative`, and need not be created directly.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, Blocks, find_blocks
from tlkeras.freezing.batchnorm import set_batchnorm
from tlkeras.freezing.closed import closed_by_user, remember
from tlkeras.freezing.inference import hold_state
from tlkeras.optimizers.pattern import may_decay
from tlkeras.optimizers.rates import Rate, block_rates, rate_from_json, rate_to_json, shown


@dataclass(frozen=True)
class Share:
    """The settings of one variable in a Discriminative optimizer.

    - `path`, `ordinal`: identify the variable. Equal paths (nested backbones) are counted from 0,
      in the order of the trainable variables.
    - `block`: the name of its block.
    - `rate`: the factor of the learning rate.
    - `decays`: whether weight decay applies to it.
    - `age`: the number of updates it had before this optimizer's first update.
    """

    path: str
    ordinal: int
    block: str
    rate: Rate
    decays: bool = True
    age: int = 0


if TYPE_CHECKING:  # Discriminative is always mixed into an Optimizer
    from keras.optimizers import Optimizer as Mixed
else:
    Mixed = object


class Discriminative(Mixed):
    """Mixin that the optimizers made by `discriminative` add to a Keras optimizer.

    While a variable is updated, the learning rate is multiplied by the variable's rate, and its age
    is added to `iterations`, which Adam uses for bias correction. A rate of 1 and an age of 0 add
    no operation.

    Attributes:
        base: the Keras optimizer class.
        shares: one Share per variable, in the order in which the optimizer was built.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> optimizer = tlk.optimizers.discriminative(keras.optimizers.AdamW(), model)
    >>> isinstance(optimizer, tlk.optimizers.Discriminative), optimizer.base.__name__
    (True, 'AdamW')
    >>> optimizer.shares[-1].block, optimizer.shares[-1].rate
    ('head', 1.0)
    """

    base: type[keras.optimizers.Optimizer]
    _factor: Any = 1.0  # factor of the learning rate while weight decay is applied
    _age = 0  # added to the iterations while a variable is updated

    def __init__(self, *args: Any, shares: Sequence[Share] = (), **options: Any):
        super().__init__(*args, **options)
        self.shares = tuple(shares)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        self.shares = tuple(self._aligned(variables))
        super().build(variables)

    def _aligned(self, variables: Iterable[keras.Variable]) -> list[Share]:
        """Return the Share of each variable, by position if all match, else by path and ordinal."""
        wanted, known = keys(variables), {(s.path, s.ordinal): s for s in self.shares}
        pairs = list(zip(wanted, known, strict=False))
        if len(wanted) == len(known) and all(_alike(a, b) for (a, _), (b, _) in pairs):
            return list(self.shares)
        found, expected = Counter(path for path, _ in wanted), Counter(path for path, _ in known)
        missing = [
            key[0] for key in wanted if key not in known or found[key[0]] != expected[key[0]]
        ]
        if missing:
            raise ValueError(
                f"Expected variables that this optimizer has a rate for; found none for "
                f"{', '.join(missing)}. Call tlk.optimizers.discriminative again after changing "
                "what is trainable."
            )
        return [known[key] for key in wanted]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        share = self._share(variable)
        self._age = share.age
        try:
            super().update_step(gradient, variable, _times(learning_rate, self._now(share.rate)))
        finally:
            self._age = 0

    @property
    def iterations(self) -> Any:
        return super().iterations + self._age if self._age else super().iterations

    def _share(self, variable: Any) -> Share:
        return self.shares[self._get_variable_index(variable)]

    def _now(self, rate: Rate) -> Any:
        return rate(self._iterations) if isinstance(rate, LearningRateSchedule) else rate

    def _get_current_learning_rate(self) -> Any:
        return _times(super()._get_current_learning_rate(), self._factor)

    def _apply_weight_decay(self, variables: Iterable[Any]) -> None:
        groups: dict[Any, list] = {}  # by rate: backends can decay many variables in one operation
        for variable in variables if self.weight_decay is not None else ():
            groups.setdefault(self._share(variable).rate, []).append(variable)
        for rate, group in groups.items():
            self._factor = self._now(rate)
            try:
                super()._apply_weight_decay(group)
            finally:
                self._factor = 1.0

    def _use_weight_decay(self, variable: Any) -> bool:
        return self._share(variable).decays and super()._use_weight_decay(variable)

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        averages = self._model_variables_moving_average
        for variable, average, share in zip(
            trainable_variables, averages, self.shares, strict=True
        ):
            if average is not None:  # Keras's own restarts at step 0, losing a carried average
                begun = keras.ops.not_equal(self.iterations + share.age, 0)
                keep = keras.ops.cast(begun, variable.dtype) * self.ema_momentum
                average.assign(keep * average + (1 - keep) * variable)

    def get_config(self) -> dict[str, Any]:
        shares = [asdict(share) | {"rate": rate_to_json(share.rate)} for share in self.shares]
        return super().get_config() | {"shares": shares}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> keras.optimizers.Optimizer:
        stored = config.get("shares", ())
        shares = [Share(**share | {"rate": rate_from_json(share["rate"])}) for share in stored]
        return super().from_config(config | {"shares": shares}, custom_objects)

    def __repr__(self) -> str:
        rates = {share.block: shown(share.rate) for share in self.shares}
        rate = self._learning_rate
        rate = rate if callable(rate) else float(keras.ops.convert_to_numpy(rate))
        of_blocks = ", ".join(f"{block} x {rate}" for block, rate in rates.items())
        return f"<discriminative {self.base.__name__}, learning rate {shown(rate)}: {of_blocks}>"


def _times(learning_rate: Any, factor: Any) -> Any:
    if isinstance(factor, float) and factor == 1:
        return learning_rate
    return keras.ops.multiply(learning_rate, factor)


# Nadam (one product of betas for all variables), Muon, Ftrl and ScheduleFreeAdamW are unsupported:
# they have state besides the slots of each variable, or state that depends on the learning rate.
SUPPORTED = (
    keras.optimizers.SGD,
    keras.optimizers.RMSprop,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Lion,
    keras.optimizers.Lamb,
    keras.optimizers.Adafactor,
)


def _subclass(base: type[keras.optimizers.Optimizer]) -> type[Discriminative]:
    members = {"base": base, "__module__": __name__, "__doc__": Discriminative.__doc__}
    subclass = type(f"Discriminative{base.__name__}", (Discriminative, base), members)
    return keras.saving.register_keras_serializable(package="tlkeras")(subclass)


SUBCLASSES = {base: _subclass(base) for base in SUPPORTED}
globals().update({subclass.__name__: subclass for subclass in SUBCLASSES.values()})


def renamed(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[Any]
) -> keras.optimizers.Optimizer:
    """An unbuilt optimizer of just these variables, with the names that they have now: a layer
    that is made once more in one process has another number in its name."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    now = keys(variables)
    if isinstance(inner, Discriminative) and len(inner.shares) == len(now):
        pairs = zip(inner.shares, now, strict=True)
        inner.shares = tuple(replace(s, path=path, ordinal=count) for s, (path, count) in pairs)
    return optimizer


def _alike(one: str, other: str) -> bool:
    """True if two paths end in the same layer and variable.

    The scopes before these can differ in a loaded model: the name of a Sequential is part of its
    variables' paths, but not after loading.
    """
    return one.split("/")[-2:] == other.split("/")[-2:]


def base_of(optimizer: Any) -> type[keras.optimizers.Optimizer] | None:
    """Return the supported Keras class of an optimizer, or None."""
    if isinstance(optimizer, Discriminative):
        return optimizer.base
    kind = type(optimizer)  # on torch, a subclass of the same name
    if not kind.__module__.startswith("keras."):
        return None
    return next((b for b in kind.__mro__ if b in SUPPORTED and b.__name__ == kind.__name__), None)


def supported(optimizer: Any) -> type[keras.optimizers.Optimizer]:
    """Return the Keras class of an optimizer that can have rates by block.

    Raises TypeError for other optimizers.
    """
    base = base_of(optimizer)
    if base is None:
        raise TypeError(
            f"Expected an optimizer of {', '.join(b.__name__ for b in SUPPORTED)}; found "
            f"{type(optimizer).__name__}. Pass one of these; compile wraps it for mixed precision."
        )
    return base


def keys(variables: Iterable[Any]) -> list[tuple[str, int]]:
    """Return path and ordinal of every variable; equal paths are counted from 0."""
    seen: Counter = Counter()
    found = []
    for variable in variables:
        path = getattr(variable, "path", variable.name)
        found.append((path, seen[path]))
        seen[path] += 1
    return found


def discriminative(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, rates: Any = None
) -> keras.optimizers.Optimizer:
    """Return a new optimizer like `optimizer` that trains each block of `model` at its own rate.

    The learning rate of a block is the optimizer's `learning_rate` (set by a number, a schedule or
    a callback) times the block's rate. Weight decay is scaled in the same way.

    Args:
        optimizer: an instance of a class in `SUPPORTED`. Its settings are kept, but not its state;
            see `carry`.
        model: a built model. The weights that are trainable at this moment are trained. A block
            with a rate of 0 is frozen, including its BatchNorm, with a UserWarning; compile the
            model afterwards.
        rates: as in `block_rates`.

    Raises:
        TypeError: the optimizer is not supported.
        ValueError: the rates do not match the model, or leave nothing to train.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.2; sections 1.6
    (playbook C) and 1.10.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> rates = {"head": 1.0, "top": 0.1, "middle": 0.01, "bottom": 0.01}
    >>> tlk.optimizers.discriminative(keras.optimizers.AdamW(1e-3), model, rates)
    <discriminative AdamW, learning rate 0.001:
    stem x 0.01, stack0 x 0.01, stack1 x 0.1, head x 1>
    """
    base = supported(optimizer)
    blocks = find_blocks(model)
    before = {id(weight) for weight in model.trainable_variables}
    learning = {b.name for b in blocks if any(id(w) in before for w in b.weights)}
    of_block = block_rates(rates, blocks, learning)
    held = [b for b in blocks if b.name in learning and of_block[b.name] == 0]
    if len(held) == len(learning):
        raise ValueError("Expected a block that learns; found none with a rate above 0.")
    _hold(held, blocks, learning)
    for block in held:
        warnings.warn(f"Block {block.name!r} is frozen by its rate of 0.", stacklevel=2)
    home = {id(weight): block.name for block in blocks for weight in block.weights}
    undecayed = {share.path for share in getattr(optimizer, "shares", ()) if not share.decays}
    shares, variables = [], model.trainable_variables
    for variable, (path, ordinal) in zip(variables, keys(variables), strict=True):
        decays = may_decay(optimizer, variable) and path not in undecayed
        name = home[id(variable)]
        shares.append(Share(path, ordinal, name, of_block[name], decays))
    return SUBCLASSES[base](**_settings(optimizer) | {"shares": shares})


def _hold(held: Sequence[Block], blocks: Blocks, learning: set[str]) -> None:
    """Freeze only these blocks: their weights, and their layers, whose flags alone are saved."""
    if not held:
        return
    kept = closed_by_user(blocks)
    for block in held:
        for weight in block.weights:
            weight.trainable = False
        for layer in block.layers:
            if not internals.children(layer):
                layer.trainable = False
        normalising = keras.layers.BatchNormalization
        set_batchnorm([x for x in block.layers if isinstance(x, normalising)], "frozen")
    left = [b for b in blocks if b.name in learning and b not in held]
    hold_state(
        blocks.model, {id(w) for block in left for w in block.weights} - {id(v) for v in kept}
    )
    remember(blocks.model, kept)


def _settings(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the arguments for an optimizer like this one; a schedule is passed on unchanged."""
    rate = optimizer._learning_rate
    rate = rate if callable(rate) else float(keras.ops.convert_to_numpy(rate))
    return optimizer.get_config() | {"learning_rate": rate}
