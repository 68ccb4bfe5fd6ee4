"""A Plan is a list of Stages: what to train, in which order. Data only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tlkeras.batchnorm import MODES
from tlkeras.policies import Policy
from tlkeras.tables import html_table, text_table


@dataclass(frozen=True)
class Stage:
    """One `fit` call with its own choice of what learns.

    Attributes:
        name: shown in tables and plots, unique in a Plan.
        policy: which blocks learn (`tlkeras.policies`).
        learning_rate: of the optimizer.
        epochs: at most.
        batchnorm: mode of the BatchNorm layers in learning backbone blocks.
        patience: epochs without a better `monitor` after which the stage ends; None: never.
        monitor: decides which epoch was the best, at whose weights the stage ends. Higher is
            better unless its name contains "loss" or "error". Without validation data the
            last epoch is kept.
    """

    name: str
    policy: Policy | Callable
    learning_rate: float = 1e-3
    epochs: int = 5
    batchnorm: str = "frozen"
    patience: int | None = None
    monitor: str = "val_loss"

    def __post_init__(self):
        if not callable(self.policy):
            raise TypeError(
                f"Stage {self.name!r}: expected a policy, e.g. tlk.policies.head_only(); "
                f"found {self.policy!r}."
            )
        for what, least in (("epochs", 1), ("patience", 1)):
            value = getattr(self, what)
            if value is not None and value < least:
                raise ValueError(
                    f"Stage {self.name!r}: {what} must be {least} or more, found {value}."
                )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(
                f"Stage {self.name!r}: learning_rate must be above 0, found {self.learning_rate}. "
                "To keep blocks as they are, freeze them with the policy."
            )
        if self.batchnorm not in MODES:
            raise ValueError(
                f"Stage {self.name!r}: batchnorm must be one of {', '.join(MODES)}; "
                f"found {self.batchnorm!r}."
            )


@dataclass(frozen=True)
class Plan:
    """What to train, in which order. Data only: print it, store it, change it."""

    stages: Sequence[Stage]
    _columns = ("stage", "what learns", "learning rate", "epochs", "BatchNorm", "patience")

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("A plan needs at least one stage; found none.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Stage names must differ, for the history goes by them; found {names}."
            )

    def to_dict(self) -> dict:
        """The plan as JSON can store it. Raises TypeError if a policy is a plain function."""
        return {"stages": [_stage_to_dict(stage) for stage in self.stages]}

    @classmethod
    def from_dict(cls, stored: dict) -> "Plan":
        """The plan that `to_dict` stored."""
        return cls(
            [Stage(**stage | {"policy": Policy.of(*stage["policy"])}) for stage in stored["stages"]]
        )

    def _rows(self) -> list[tuple]:
        return [
            (s.name, s.policy, f"{s.learning_rate:g}", s.epochs, s.batchnorm, s.patience or "")
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
    return vars(stage) | {"policy": [stage.policy.kind, list(stage.policy.arguments)]}
