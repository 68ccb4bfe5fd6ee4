"""Rules that find symptoms in a run's curves of loss and metrics, one rule per symptom."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlkeras.freezing import policies
from tlkeras.plans.plan import Plan, Stage

Change = Callable[[Plan], Plan]


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong with a run.

    Attributes:
        symptom: what was observed.
        evidence: the numbers that show it.
        cause: the probable cause.
        fix: what to do.
        stage: the stage in which it was observed, or "".
        change: a function from a plan to the fixed plan; None if the plan is not the problem.
    """

    symptom: str
    evidence: str
    cause: str
    fix: str
    stage: str = ""
    change: Change | None = None

    def apply(self, plan: Plan) -> Plan:
        """Return the plan with the fix. Raises ValueError if changing the plan does not help."""
        if self.change is None:
            raise ValueError(f"{self.symptom}: not the plan's fault. {self.fix}.")
        return self.change(plan)


@dataclass(frozen=True)
class Curves:
    """One stage's curves, one value per epoch.

    `metric` is the first accuracy or AUC that training and validation both have, in [0, 1]. A
    curve that the history does not have is empty.
    """

    stage: Stage
    result: Any
    loss: np.ndarray
    val_loss: np.ndarray
    metric: np.ndarray
    val_metric: np.ndarray

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def epochs(self) -> int:
        return len(self.loss)


def curves(run: Any) -> list[Curves]:
    """Return the curves of every stage with at least one epoch.

    Raises ValueError if the run has no plan.
    """
    if run.plan is None:
        raise ValueError(
            "Expected a run with its plan; a policy of this plan is a function, which a folder "
            "cannot store. The run's report has the findings from when it was saved."
        )
    history = run.history
    name = _metric(history)
    found = []
    for stage, result in zip(run.plan.stages, run.stages, strict=False):

        def column(key: str, stage: Stage = stage) -> np.ndarray:
            pairs = zip(history["stage"], history.get(key, ()), strict=key in history)
            return np.array([value for one, value in pairs if one == stage.name], float)

        if stage.name in history.get("stage", ()):
            named = [column(key) for key in ("loss", "val_loss", name, f"val_{name}")]
            found.append(Curves(stage, result, *named))
    return found


def _metric(history: dict[str, list]) -> str:
    """Return the first accuracy or AUC that training and validation both have, or ""."""
    names = [n for n in history if f"val_{n}" in history and np.ndim(history[n]) == 1]
    right = [n for n in names if "acc" in n or "auc" in n.lower()]
    return right[0] if right else ""


# Rules: each checks one stage, and knows the stages before it -------------------------------------


def diverged(now: Curves, before: Sequence[Curves]) -> Finding | None:
    if "became" not in now.result.failed:
        return None
    return Finding(
        "the loss is no longer a number",
        now.result.failed,
        "steps so large that the weights or the loss overflowed",
        "lower the learning rate ten times",
        now.name,
        _slower(now.name, 10),
    )


def fell_after_unfreezing(now: Curves, before: Sequence[Curves]) -> Finding | None:
    """Find a drop of validation accuracy after unfreezing (course section 1.9, symptoms 2 and 3).

    A drop of a few points may be chance, unless the validation loss rises as well.
    """
    earlier = [c for c in before if len(c.val_metric)]
    if not earlier or not len(now.val_metric) or now.stage.policy == policies.head_only():
        return None
    reached = max(float(np.nanmax(c.val_metric)) for c in earlier)
    worst = float(np.nanmin(now.val_metric[:2]))
    losses = np.concatenate([c.val_loss for c in earlier])
    known = np.isfinite(losses).any() and len(now.val_loss)
    shaken = known and now.val_loss[0] > 1.5 * np.nanmin(losses)
    if reached - worst < (0.05 if shaken else 0.1):
        return None
    evidence = f"validation fell from {reached:.3f} to {worst:.3f} as {now.name!r} began"
    if now.stage.batchnorm == "train":
        return Finding(
            "accuracy dropped when BatchNorm learned again",
            evidence,
            "BatchNorm normalises with a few images at a time, and forgets its statistics",
            'batchnorm="frozen"; or larger batches; or GroupNorm (tlk.to_groupnorm)',
            now.name,
            lambda plan: _changed(plan, now.name, lambda s: s.replace(batchnorm="frozen")),
        )
    return Finding(
        "accuracy dropped when layers were unfrozen",
        evidence,
        f"the rate {now.stage.rate_text} is too high for pretrained layers",
        "lower it ten times for those layers; the head's may stay higher",
        now.name,
        _slower(now.name, 10),
    )


def overfitted(now: Curves, before: Sequence[Curves]) -> Finding | None:
    """Find overfitting: training loss still falls, validation gets worse.

    Course section 1.9, symptom 1.
    """
    if now.epochs < 5 or not len(now.val_loss) or not np.isfinite(now.val_loss).any():
        return None
    best = int(np.nanargmin(now.val_loss))
    after = now.epochs - 1 - best
    ends, least = float(np.mean(now.val_loss[-2:])), float(now.val_loss[best])
    if after < 2 or now.loss[-1] > 0.7 * now.loss[best] or ends < 1.1 * least:
        return None
    gap = float(now.metric[-1] - now.val_metric[-1]) if len(now.metric) else math.nan
    if gap < 0.05:  # the loss can also grow on examples that are still predicted correctly
        return None
    apart = f"; accuracy {now.metric[-1]:.2f} and {now.val_metric[-1]:.2f}" if gap == gap else ""
    return Finding(
        "training improves, validation does not",
        f"from epoch {best + 1} of {now.name!r} on, the training loss went from "
        f"{now.loss[best]:.3f} to {now.loss[-1]:.3f}, validation's from {least:.3f} to {ends:.3f}"
        + apart,
        "the network learns the training images by heart",
        "stop earlier, let fewer blocks learn, or augment; more dropout in the head",
        now.name,
        _shallower(now.name),
    )


def still_improving(now: Curves, before: Sequence[Curves]) -> Finding | None:
    """Find training that ended too early, or too low a learning rate for so few epochs.

    The loss falls in the last third of the epochs at least half as much as in the first.
    """
    third = now.epochs // 3
    good = len(now.metric) and now.metric[-1] > 0.95
    if third < 1 or now.result.stopped or now.result.failed or good:
        return None
    first, last = now.loss[0] - now.loss[third], now.loss[-1 - third] - now.loss[-1]
    small = abs(now.loss[0]) * 0.005 * third
    if last < max(small, 0.5 * first) or not 0.2 < now.loss[-1] / now.loss[0] < 0.99:
        return None
    done = f"{now.loss[0]:.3f} to {now.loss[third]:.3f} in the first third of {now.name!r}"
    return Finding(
        "the end came while the loss was still falling",
        f"{done}, {now.loss[-1 - third]:.3f} to {now.loss[-1]:.3f} in the last",
        f"too few steps at the rate {now.stage.rate_text}",
        "train three times as long; or at three times the rate",
        now.name,
        lambda plan: _changed(plan, now.name, lambda s: s.replace(epochs=3 * s.epochs)),
    )


def head_at_its_limit(now: Curves, before: Sequence[Curves]) -> Finding | None:
    """Find a head at its limit: only the head was trained, and validation no longer improves.

    Course section 1.9, symptom 5.
    """
    third = now.epochs // 3
    only = all(c.stage.policy == policies.head_only() for c in [*before, now])
    if not only or third < 1 or not len(now.metric) or now.result.failed:
        return None
    gained = float(np.mean(now.val_metric[-third:]) - np.mean(now.val_metric[-2 * third : -third]))
    reached, valid = float(np.mean(now.metric[-third:])), float(np.mean(now.val_metric[-third:]))
    if valid > 0.85 or gained > 0.05 or still_improving(now, before):
        return None
    return Finding(
        "the head alone has stopped improving",
        f"{valid:.2f} of the validation images are classified correctly, and {reached:.2f} in "
        f"training; {gained:+.3f} in the last third of {now.name!r}",
        "the features of the frozen network do not fit these data",
        "unfreeze the last block, at a thirtieth of the head's rate",
        now.name,
        _opened,
    )


RULES = (diverged, fell_after_unfreezing, overfitted, still_improving)


# Changes ------------------------------------------------------------------------------------------


def _changed(plan: Plan, name: str, change: Callable[[Stage], Stage]) -> Plan:
    return Plan([change(stage) if stage.name == name else stage for stage in plan.stages])


def _slower(name: str, times: float) -> Change:
    def slower(stage: Stage) -> Stage:
        if not isinstance(stage.learning_rate, int | float):
            raise ValueError(f"Stage {name!r} has a schedule: divide its rates by {times:g}.")
        return stage.replace(learning_rate=stage.learning_rate / times)

    return lambda plan: _changed(plan, name, slower)


def _shallower(name: str) -> Change:
    def shallower(stage: Stage) -> Stage:
        policy = stage.policy
        if isinstance(policy, policies.Policy) and policy.kind in ("all_blocks", "last_blocks"):
            open_now = policy.arguments[0] if policy.arguments else 2
            fewer = max(open_now - 1, 1)
            return stage.replace(policy=policies.last_blocks(fewer), patience=stage.patience or 3)
        return stage.replace(patience=2)

    return lambda plan: _changed(plan, name, shallower)


def _opened(plan: Plan) -> Plan:
    head = plan.stages[-1]
    slow = head.learning_rate / 30 if isinstance(head.learning_rate, int | float) else 1e-4
    tune = head.replace(name="tune", policy=policies.last_blocks(1), learning_rate=slow)
    return Plan([*plan.stages, tune])
