"""The data that each stage is fed, all checked before the first stage trains."""

from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.inputs import augment, intake, order
from tlkeras.plans.plan import Plan, Stage
from tlkeras.training.backup import random_state, set_random_state
from tlkeras.training.stage_monitor import values


@dataclass(frozen=True, eq=False)
class Feed:
    """The data of a stage as `intake.taken` returns them, and the batch size for arrays.

    `validation` is None if there are no validation data.
    """

    data: Any
    validation: Any
    batch_size: int

    @property
    def ids(self) -> tuple[int, int]:
        """Identifies these data."""
        return id(self.data), id(self.validation)


def feeds_of(
    model: keras.Model,
    plan: Plan,
    data: Any,
    validation: Any,
    batch_size: int | None,
    steps: tuple[int | None, int | None] = (None, None),
    split: float = 0.0,
) -> list[Feed]:
    """Return the data of each stage: its own, or else those given to `fit_stages`.

    Raises:
        ValueError: the data do not fit the model, each other or the augmentation.
    """
    stages = plan.stages
    batch_size = 32 if batch_size is None else batch_size  # as `fit` takes it
    if not intake.counts(batch_size):
        raise ValueError(f"Expected a batch_size of 1 or more; found {batch_size!r}.")
    if split:
        if any(s.data is not None or s.validation_data is not None for s in stages):
            raise ValueError(
                "Expected the same data for all stages with validation_split; found a stage with "
                "data of its own, in which may be what is split off. Pass validation_data."
            )
        data, validation = intake.divided(intake.taken(model, data), validation, split)
    trained = [data if stage.data is None else stage.data for stage in stages]
    tested = [validation if s.validation_data is None else s.validation_data for s in stages]
    if any(part is None for part in trained):
        raise ValueError(
            "Expected data for every stage; found none. Pass fit_stages(model, plan, data), or "
            "Stage(data=...)."
        )
    trained = _taken(model, plan, trained, "training data", steps[0])
    tested = _taken(model, plan, tested, "validation data", steps[1])
    feeds = [
        Feed(x, v, stage.batch_size or batch_size)
        for stage, x, v in zip(stages, trained, tested, strict=True)
    ]
    for stage, feed in zip(stages, feeds, strict=True):
        if stage.augment is not None:
            _try(model, stage, feed)
    return feeds


def _taken(model: keras.Model, plan: Plan, given: list, what: str, steps: int | None) -> list:
    """Pass the data of all stages through `intake.taken`; data given twice are checked once."""
    found: dict[int, Any] = {id(None): None}
    for one in given:
        if id(one) not in found:
            pairs = zip(plan.stages, given, strict=True)
            passes = sum(stage.epochs for stage, other in pairs if other is one)
            found[id(one)] = intake.taken(model, one, what, steps, passes)
    return [found[id(one)] for one in given]


def _try(model: keras.Model, stage: Stage, feed: Feed) -> None:
    """Try to augment the first batch, and restore the random states afterwards."""
    assert stage.augment is not None
    layer = stage.augment if isinstance(stage.augment, keras.Layer) else None
    held = layer.variables if layer else []
    before, state = values(held), random_state()
    try:
        augment.check(stage.augment, feed.data)
        seen = order.ordered(feed.data, feed.batch_size, (0,), stage.augment)
        intake.taken(model, seen, "augmented data", steps=1)
    except Exception as error:  # from a function of the user's
        raise ValueError(f"Stage {stage.name!r} cannot augment: {error}") from error
    finally:
        set_random_state(state)
        for variable, value in zip(held, before, strict=True):
            variable.assign(value)
