"""A Plan is a list of Stages: what to train, and in which order. It holds data only."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import keras

from tlkeras.freezing.batchnorm import MODES
from tlkeras.freezing.policies import Policy
from tlkeras.optimizers.rates import rates_from_dict, rates_to_dict, shown
from tlkeras.utils.tables import html_table, text_table

VERSION = 3  # of the stored format: 1 had no mode and min_delta, 2 had no batch_size
UNSTORED: dict[str, Any] = {"callbacks": (), "data": None, "validation_data": None}


@dataclass(frozen=True)
class Stage:
    """One `fit` call with its own choice of the blocks that learn.

    Attributes:
        name: shown in tables and plots; unique in a Plan.
        policy: which blocks learn (`tlk.policies`).
        learning_rate: the optimizer's learning rate: a number, or a schedule from
            `keras.optimizers.schedules`, which counts steps from the start of the stage.
        epochs: the maximum number of epochs.
        batchnorm: mode of the BatchNorm layers in backbone blocks that learn.
        patience: the stage stops after this many epochs without a better `monitor`. None: never.
        monitor: the metric that decides which epoch was best. The stage ends with that epoch's
            weights. Without validation data, the last epoch is kept.
        rates: multipliers of the learning rate, block by block; see `tlk.optimizers`. None: the
            same rate for every block that learns.
        augment: a Keras layer or model, called on every batch of training inputs; or a function of
            the inputs, or of inputs and labels (x, y), that returns the same. If the labels are
            masks of the same size as the images, Keras layers transform both together. MixUp and
            CutMix also mix labels given as one-hot rows; to combine them with other layers, put
            all of them in a keras.Sequential or a keras.layers.Pipeline.
        views: with `augment`, how many augmented views of each image are drawn once and cached.
            None draws new ones every epoch, which cannot be cached.
        mode: "min" or "max": whether a lower or a higher `monitor` is better. "auto": as the
            metric of that name says, or lower for a name that ends in "loss" or "error"; any other
            metric is refused.
        min_delta: smaller changes of `monitor` do not count as an improvement, as in
            `keras.callbacks.EarlyStopping`.
        callbacks: for this stage only: they begin and end with it, and count its epochs from 0.
        batch_size: batch size for arrays. None: that of `fit_stages`.
        data: what this stage trains on, in any form that `fit_stages` takes, such as larger images
            or harder examples. None: the data of `fit_stages`.
        validation_data: the same for validation. None: that of `fit_stages`, even if `data` is
            given.

    Raises:
        TypeError: `policy` is not a policy, or `callbacks` is not a list of callbacks.
        ValueError: a number is out of range, or the mode is unknown.

    >>> stage = tlk.Stage("tune", tlk.policies.last_blocks(2), learning_rate=1e-5, epochs=10)
    >>> print(stage.policy, stage.learning_rate, stage.batchnorm)
    last_blocks(2) 1e-05 frozen
    """

    name: str
    policy: Policy | Callable
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3
    epochs: int = 5
    batchnorm: str = "frozen"
    patience: int | None = None
    monitor: str = "val_loss"
    rates: Any = None
    augment: Callable | None = None
    views: int | None = None
    mode: str = "auto"
    min_delta: float = 0.0
    callbacks: Sequence[keras.callbacks.Callback] = ()
    batch_size: int | None = None
    data: Any = field(default=None, repr=False, compare=False)
    validation_data: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.policy):
            raise TypeError(
                f"Stage {self.name!r}: expected a policy, e.g. tlk.policies.head_only(); "
                f"found {self.policy!r}."
            )
        given = self.callbacks if isinstance(self.callbacks, list | tuple) else [self.callbacks]
        if not all(isinstance(one, keras.callbacks.Callback) for one in given):
            raise TypeError(
                f"Stage {self.name!r}: expected a list of keras callbacks; found {given!r}."
            )
        object.__setattr__(self, "callbacks", tuple(given))
        for what in ("epochs", "patience", "views", "batch_size"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"Stage {self.name!r}: {what} must be 1 or more, found {value}.")
        if self.views is not None and self.augment is None:
            raise ValueError(
                f"Stage {self.name!r}: views={self.views} needs augment=..., a layer to make them."
            )
        scheduled = isinstance(self.learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        if not scheduled and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(
                f"Stage {self.name!r}: learning_rate must be above 0, found {self.learning_rate}. "
                "To keep blocks as they are, freeze them with the policy."
            )
        if self.batchnorm not in MODES:
            raise ValueError(
                f"Stage {self.name!r}: batchnorm must be one of {', '.join(MODES)}; "
                f"found {self.batchnorm!r}."
            )
        if self.mode not in ("auto", "min", "max"):
            raise ValueError(
                f"Stage {self.name!r}: mode must be 'auto', 'min' or 'max'; found {self.mode!r}."
            )
        if not self.min_delta >= 0:
            raise ValueError(
                f"Stage {self.name!r}: min_delta must be 0 or more, found {self.min_delta}."
            )

    def replace(self, **changes: Any) -> "Stage":
        """Return a copy of this stage with the given attributes changed.

        >>> stage = tlk.Stage("head", tlk.policies.head_only(), epochs=5)
        >>> longer = stage.replace(epochs=20, patience=3)
        >>> longer.name, longer.epochs, stage.epochs
        ('head', 20, 5)
        """
        return replace(self, **changes)

    @property
    def rate_text(self) -> str:
        """The learning rate as tables show it."""
        return shown(self.learning_rate) + (" by block" if self.rates is not None else "")


@dataclass(frozen=True)
class Plan:
    """A list of stages, trained in order. It holds data only: print it, store it, change it.

    Attributes:
        stages: the stages, in the order in which they are trained.

    Raises:
        ValueError: there is no stage, or two stages have the same name.

    Source: section 1.6, the practical playbook.

    >>> tlk.Plan([
    ...     tlk.Stage("head", tlk.policies.head_only(), learning_rate=1e-3, epochs=5),
    ...     tlk.Stage("tune", tlk.policies.last_blocks(2), learning_rate=1e-5, patience=3),
    ... ])
    stage  what learns     learning rate  epochs  BatchNorm  patience
    -----  --------------  -------------  ------  ---------  --------
    head   head_only()             0.001       5  frozen
    tune   last_blocks(2)          1e-05       5  frozen            3
    """

    stages: Sequence[Stage]
    _columns = ("stage", "what learns", "learning rate", "epochs", "BatchNorm", "patience")

    def __post_init__(self) -> None:
        given = self.stages
        stages = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(stage, Stage) for stage in stages):
            raise TypeError(f"Expected a Plan or a list of stages; found {given!r}.")
        object.__setattr__(self, "stages", stages)
        if not self.stages:
            raise ValueError("A plan needs at least one stage; found none.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Stage names must differ, because the history is stored by name; found {names}."
            )

    def to_dict(self) -> dict:
        """Return the plan as a dictionary that JSON can store.

        Raises TypeError if a policy or an augment is a plain function, or if a stage has callbacks
        or data.

        >>> stored = tlk.recipes.head_only(epochs=3).to_dict()
        >>> stored["stages"][0]["policy"], stored["stages"][0]["epochs"]
        (['head_only', []], 3)
        """
        return {"version": VERSION, "stages": [_stage_to_dict(stage) for stage in self.stages]}

    @classmethod
    def from_dict(cls, stored: dict) -> "Plan":
        """Return the plan that `to_dict` stored with this or an older version of tlkeras.

        Raises ValueError if it names an unknown policy, or if a newer tlkeras stored it.

        >>> plan = tlk.recipes.head_only(epochs=3)
        >>> tlk.Plan.from_dict(plan.to_dict()) == plan
        True
        """
        version = stored.get("version", 1)  # version 1 did not store its number
        if version > VERSION:
            raise ValueError(
                f"Expected a plan of version {VERSION} or older; found {version}, which a newer "
                "tlkeras stored. Update tlkeras."
            )
        return cls([_stage_from_dict(stage) for stage in stored["stages"]])

    def _rows(self) -> list[tuple]:
        return [
            (s.name, s.policy, s.rate_text, s.epochs, s.batchnorm, s.patience or "")
            for s in self.stages
        ]

    def __repr__(self) -> str:
        return text_table(self._rows(), self._columns)

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self._columns)


def _stage_to_dict(stage: Stage) -> dict:
    if not isinstance(stage.policy, Policy):
        raise TypeError(
            f"Stage {stage.name!r}: only policies of tlk.policies can be stored, "
            f"found the function {stage.policy!r}."
        )
    stored = vars(stage) | {"policy": [stage.policy.kind, list(stage.policy.arguments)]}
    held = [name for name in UNSTORED if stored.pop(name) is not UNSTORED[name]]
    if not isinstance(stage.augment, keras.Layer | None) and not _is_registered(stage.augment):
        raise TypeError(
            f"Stage {stage.name!r}: only an augment of Keras layers, or a function registered by "
            f"keras.saving.register_keras_serializable, can be stored; found {stage.augment!r}."
        )
    if held:
        raise TypeError(
            f"Stage {stage.name!r}: expected what a file can hold; found {', '.join(held)}. Store "
            "the stage without, stage.replace(callbacks=(), data=None, validation_data=None), and "
            "give them again once it is read."
        )
    for name in ("learning_rate", "augment"):
        stored[name] = keras.saving.serialize_keras_object(stored[name])
    return stored | {"rates": rates_to_dict(stage.rates)}


def _is_registered(function: Any) -> bool:
    name = keras.saving.get_registered_name(function)
    return keras.saving.get_registered_object(name) is function


def _stage_from_dict(stored: dict) -> Stage:
    unknown = set(stored) - {one.name for one in fields(Stage)} | set(stored) & set(UNSTORED)
    if unknown:
        raise ValueError(
            f"Stage {stored.get('name')!r}: unknown in a stored plan: {', '.join(sorted(unknown))}."
        )
    made = stored | {"policy": Policy.of(*stored["policy"])}
    for name in ("learning_rate", "augment"):
        made[name] = keras.saving.deserialize_keras_object(stored[name])
    return Stage(**made | {"rates": rates_from_dict(stored["rates"])})
