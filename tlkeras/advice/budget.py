"""Time budgets: parse them, and end training when the time is used up."""

import math
import re
import time
from typing import Any

import keras

from tlkeras.runs.run import Run

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def seconds_of(budget: Any) -> float:
    """Return a budget in seconds, from "90s", "5min", "2h", "1h30min" or a number of seconds.

    Raises ValueError for anything else, and for a budget that is not above 0.

    >>> from tlkeras.advice.budget import seconds_of
    >>> seconds_of("1h30min"), seconds_of(20)
    (5400.0, 20.0)
    """
    found = math.nan
    if isinstance(budget, str):
        parts = re.findall(r"([\d.]+)\s*([a-z]+)", budget)
        if parts and re.fullmatch(r"(\s*[\d.]+\s*(s|sec|min|m|h))+\s*", budget):
            found = sum(float(number) * UNITS[unit] for number, unit in parts)
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        found = float(budget)
    if not 0 < found < math.inf:
        raise ValueError(
            'Expected a budget of time above 0, as "90s", "5min", "2h" or seconds; found '
            f"{budget!r}."
        )
    return found


def said_of(budget: Any) -> str:
    """Return the budget as text."""
    return budget if isinstance(budget, str) else f"{budget:g} s"


class OutOfTime(Exception):
    """The time given for training is used up."""


class TimeBudget(keras.callbacks.Callback):
    """Ends staged training before an epoch that would exceed the time budget.

    An epoch is expected to take as long as the one before it. The first epoch always runs.

    Args:
        seconds: the time budget, counted from the beginning of training.
        said: the time budget as text.

    Raises OutOfTime from within `fit_stages`; its attribute `run` is the Run so far.
    """

    def __init__(self, seconds: float, said: str):
        super().__init__()
        self.seconds, self.said = seconds, said
        self.start, self.began, self.last = 0.0, 0.0, 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.start = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.began = time.monotonic()
        if epoch and self.began - self.start + self.last > self.seconds:
            raise OutOfTime(f"after {epoch} epochs the time of {self.said} is used up")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.last = time.monotonic() - self.began


def ended(error: OutOfTime) -> Run:
    """Return the Run so far, with its last stage marked as stopped early, not as failed."""
    run: Run = error.run  # type: ignore[attr-defined]
    run.stages[-1].failed, run.stages[-1].stopped = "", str(error)
    return run
