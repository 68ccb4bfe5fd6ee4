"""Find out before the first stage trains what would go wrong in any stage."""

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
    """Raise ValueError if `keep` is unknown, or needs to compare stages that cannot be compared."""
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
    """Return the names of the blocks that learn in each stage.

    These are the blocks that its policy chooses and whose rate is not 0.

    Raises ValueError if rates do not fit or nothing would learn, TypeError if the optimizer does
    not support rates per block.
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
    """Return the rates of a stage, or else those of the optimizer if it has rates per block."""
    if stage.rates is None and isinstance(pattern, optimizers.Discriminative):
        return {share.block: share.rate for share in pattern.shares}
    return stage.rates


def check_monitors(runner: Any) -> None:
    """Raise ValueError if a stage monitors a metric that does not exist, where this is known."""
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
    """Return the reason why the options of a stage rule out the cache, or ""."""
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
    """Raise ValueError if the cache is required (`cache=True`) but a stage cannot use it."""
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
    """Draw a seed from NumPy's global generator, which `keras.utils.set_random_seed` sets."""
    if processes.count() > 1:
        raise ValueError(
            "Expected a seed, the same in every worker, for they must take the data in one order; "
            "found seed=None. Pass seed=0, say."
        )
    return int(np.random.randint(2**31))  # noqa: NPY002
