"""What would go wrong in any stage is said before the first one trains."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras import optimizers
from tlkeras.blocks.find import Blocks
from tlkeras.features.store import FeatureCache
from tlkeras.freezing.closed import closed_by_user
from tlkeras.freezing.flags import may_learn
from tlkeras.inputs import intake, order, reading
from tlkeras.inputs.augment import goes_along
from tlkeras.optimizers.blockwise import supported
from tlkeras.plans.plan import Plan, Stage
from tlkeras.training.feeds import Feed
from tlkeras.training.stage_monitor import ask
from tlkeras.utils import processes

STEPS = ("test_step", "compute_metrics")


def check_keep(keep: str, plan: Plan, feeds: Sequence[Feed]) -> None:
    """Raises ValueError where stages should be compared, and cannot be."""
    if keep not in ("last_stage", "best_of_run"):
        raise ValueError(f"keep must be 'last_stage' or 'best_of_run'; found {keep!r}.")
    judged = {(stage.monitor, stage.mode) for stage in plan.stages}
    tested = {id(feed.validation): feed.validation for feed in feeds}
    if keep == "best_of_run" and (len(judged) > 1 or len(tested) > 1 or None in tested.values()):
        found = ", ".join(sorted({" ".join(pair) for pair in judged}))
        raise ValueError(
            "Expected stages that can be compared for keep='best_of_run', by one monitor, one mode "
            f"and one validation_data; found {found} on "
            f"{'no' if None in tested.values() else len(tested)} validation data."
        )


def learning_of(plan: Plan, pattern: keras.optimizers.Optimizer, blocks: Blocks) -> list[set[str]]:
    """Names of the blocks that learn in each stage: those of its policy whose rate is not 0.

    Raises ValueError where rates do not fit, or nothing would learn; TypeError for an optimizer
    that takes none.
    """
    kept, found = closed_by_user(blocks), []
    for stage in plan.stages:
        chosen = {block.name for block in stage.policy(blocks)}
        rates = rates_of(stage, pattern)
        if rates is not None:
            supported(pattern)
        rates = optimizers.block_rates(rates, blocks, chosen)
        names = {name for name in chosen if rates[name] != 0}
        if not names:
            raise ValueError(
                f"Stage {stage.name!r}: expected a block that learns; found none in "
                f"{stage.policy} with a rate above 0."
            )
        may_learn(blocks, names, kept)
        found.append(names)
    return found


def rates_of(stage: Stage, pattern: keras.optimizers.Optimizer) -> Any:
    """The rates of a stage, or else those of an optimizer that has its own."""
    if stage.rates is None and isinstance(pattern, optimizers.Discriminative):
        return {share.block: share.rate for share in pattern.shares}
    return stage.rates


def check_monitors(runner: Any) -> None:
    """Raises ValueError for a stage that monitors what is not there, where that can be known."""
    kind, plain = type(runner.model), keras.Model
    own = any(getattr(kind, name) is not getattr(plain, name) for name in STEPS)
    pairs = zip(runner.plan.stages, runner.feeds, strict=True)
    judged = [(s, f) for s, f in pairs if f.validation is not None and s.monitor != "val_loss"]
    if not judged or own or intake.learns_alone(runner.model):
        return
    feed = judged[0][1]
    for batch in reading.first_batches(feed.validation)[:1]:
        batch = keras.tree.map_structure(lambda part: part[: feed.batch_size], batch)
        if runner.prepare:
            batch = order.prepared_batch(runner.prepare, batch)
        ask([stage for stage, _ in judged], runner.model, runner.objective, batch)


def not_cacheable(runner: Any, number: int) -> str:
    """What the caller wants that a cached stage does not do, or ""."""
    augment, example = runner.plan.stages[number].augment, reading.example_of
    first, running = runner.blocks[0].name, runner.running
    wanted = {
        "augmentation changes labels with the inputs": augment is not None
        and goes_along(augment, example(runner.feeds[number].data) or ()),
        "the model preprocesses what it is given": runner.prepare is not None,
        "steps_per_epoch or validation_steps is given": any(runner.steps),
        "the model is compiled with run_eagerly": running.get("run_eagerly"),
        "the model is compiled with steps_per_execution": (
            running.get("steps_per_execution", 1) != 1
        ),
        f"the first block, {first}, learns": first in runner.learning[number],
    }
    return next((reason for reason, applies in wanted.items() if applies), "")


def check_cache(runner: Any) -> None:
    """Raises ValueError where the cache is demanded, and a stage could not use it."""
    for number, stage in enumerate(runner.plan.stages):
        reason = not_cacheable(runner, number) if runner.asked is True else ""
        if reason:
            raise ValueError(f"Stage {stage.name!r}: cache=True, but {reason}.")


def open_cache(cache: str | bool | FeatureCache) -> FeatureCache | None:
    if isinstance(cache, FeatureCache):
        return cache
    if cache not in ("auto", "disk", True, False):
        raise ValueError(
            f"cache must be 'auto', 'disk', True, False or a tlk.FeatureCache; found {cache!r}."
        )
    return FeatureCache(disk=cache == "disk") if cache else None


def draw_seed() -> int:
    """From NumPy's global generator, which `keras.utils.set_random_seed` sets."""
    if processes.count() > 1:
        raise ValueError(
            "Expected a seed, the same in every worker, for they must take the data in one order; "
            "found seed=None. Pass seed=0, say."
        )
    return int(np.random.randint(2**31))  # noqa: NPY002
