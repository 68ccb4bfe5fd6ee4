"""The work of one call of `fit_stages`: train stage after stage, and save the state."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tlkeras import optimizers
from tlkeras.blocks.find import find_blocks
from tlkeras.display.progress import Progress
from tlkeras.features import cached_fit, eligibility
from tlkeras.features.exactness import NotExact
from tlkeras.features.store import FeatureCache
from tlkeras.freezing.flags import Learning, freeze
from tlkeras.inputs import intake, order, reading, shares
from tlkeras.optimizers.blockwise import base_of, renamed
from tlkeras.optimizers.state import averages
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.training import backup, beforehand, one_run
from tlkeras.training.feeds import Feed
from tlkeras.training.stage_monitor import StageMonitor, values
from tlkeras.utils import processes


@dataclass
class Runner:
    """Trains the stages of a plan, given the checked arguments of `fit_stages`.

    Attributes:
        feeds: the data of each stage.
        pattern: the optimizer whose class and settings those of the stages take.
        optimizer: the optimizer of the stage before, from which the next one continues.
        running: options of `compile` that determine how steps are run.
        steps: steps per epoch, and validation steps; None if not given.
    """

    model: keras.Model
    plan: Plan
    feeds: list[Feed]
    objective: dict[str, Any]
    pattern: keras.optimizers.Optimizer
    optimizer: keras.optimizers.Optimizer
    running: dict[str, Any]
    steps: tuple[int | None, int | None]
    class_weight: dict[int, float] | None
    keep: str
    asked: str | bool | FeatureCache
    given_callbacks: list[keras.callbacks.Callback]
    asked_seed: int | None
    verbose: int

    def __post_init__(self) -> None:
        self._refuse(backup=False)
        self.callbacks = [one_run.OneRun(callback) for callback in self.given_callbacks]
        self.prepare = self.model.preprocess_samples if intake.preprocesses(self.model) else None
        given = {id(p): p for f in self.feeds for p in (f.data, f.validation) if p is not None}
        self.looked = {key: reading.look(part) for key, part in given.items()}
        self.cache = beforehand.open_cache(self.asked)
        self.seed = beforehand.draw_seed() if self.asked_seed is None else self.asked_seed
        self.blocks = find_blocks(self.model)
        self.learning = beforehand.learning_of(self.plan, self.pattern, self.blocks)
        beforehand.check_cache(self)
        beforehand.check_monitors(self)
        names = [block.name for block in self.blocks]
        self.learned = sorted(map(names.index, set().union(*self.learning)))
        self.finished: list[dict] = []  # the monitor states of finished stages
        self.best, self.kept = math.inf, list[np.ndarray]()  # with keep="best_of_run"
        self.backup: backup.Backup | None = None
        self.saved: tuple[dict, dict] | None = None

    def _refuse(self, backup: bool) -> None:
        own = [callback for stage in self.plan.stages for callback in stage.callbacks]
        one_run.refuse([*self.given_callbacks, *own], backup)

    def train(self, number: int, run: Run) -> None:
        """Train a stage, or the rest that an earlier process left of it, and add it to the run."""
        stage, names = self.plan.stages[number], self.learning[number]
        chosen = lambda found: [b for b in found if b.name in names]  # noqa: E731
        learns = freeze(self.model, chosen, stage.batchnorm)
        held = {id(weight) for weight in learns.held}
        changing = [weight for weight in self.model.weights if id(weight) not in held]
        monitor = StageMonitor(stage, changing, self.feeds[number].validation is not None)
        own = [one_run.OneRun(callback) for callback in stage.callbacks]
        monitor.swapped = any(one_run.swaps(one.callback) for one in [*self.callbacks, *own])
        for one in self.callbacks:
            one.before = sum(len(past["logs"]) for past in self.finished)
        monitor.begin()
        if number < len(self.finished):  # by an earlier process
            monitor.restore(self.finished[number], [])
        else:
            self._compile(stage)
            if self.saved:
                self._restore(monitor, *self.saved, [*self.callbacks, *own])
            still = [*learns.held, *backup.generators(self.model)]
            before = values(still)
            try:
                self._fit(number, monitor, own)
            except (Exception, KeyboardInterrupt) as error:
                if processes.count() > 1:
                    raise  # the others wait for this one, so it cannot put weights back
                asked = isinstance(error, KeyboardInterrupt)
                monitor.interrupt("interrupted" if asked else type(error).__name__)
                self._put_back(stage, monitor, still, before)
                if not asked:
                    self._end_stage(monitor, learns, run)
                    self.finish()
                    error.run = run  # type: ignore[union-attr]
                    error.add_note(
                        f"Stage {stage.name!r}: {monitor.failed}. This error's attribute `run` is "
                        "the Run so far."
                    )
                    raise
            _check_held(stage, learns.held, before)
            self.finished.append(monitor.state())
            for one in own:
                one.end()
        self._end_stage(monitor, learns, run)

    def _put_back(
        self, stage: Stage, monitor: StageMonitor, still: list, before: list[np.ndarray]
    ) -> None:
        """Restore the best weights, and a fresh optimizer, after a stop in the middle of a step."""
        monitor.finish()
        for variable, value in zip(still, before, strict=True):
            variable.assign(value)  # during a step JAX holds the state outside the variables
        self.optimizer = self.pattern
        self._compile(stage)

    def _end_stage(self, monitor: StageMonitor, learns: Learning, run: Run) -> None:
        """Add a stage to the run, and keep its weights if they are the best so far."""
        run._add(monitor.result(learns), monitor.logs)
        if self.keep == "best_of_run" and monitor.best_epoch and monitor.best <= self.best:
            self.best, run.kept = monitor.best, monitor.stage.name
            if monitor.weights:  # not if an earlier process trained it: the backup has them
                self.kept = values(self._weights(self.learned))

    def end(self) -> None:
        """Tell the callbacks that the run is over."""
        for one in self.callbacks:
            one.end()

    def finish(self) -> None:
        """Give the model the weights to keep and, if possible, an optimizer of plain Keras.

        A plain Keras optimizer can be loaded without tlkeras.
        """
        if self.kept:
            for weight, value in zip(self._weights(self.learned), self.kept, strict=True):
                weight.assign(value)
        trained = self.model.optimizer
        plain = optimizers.plain(trained, self.model.trainable_variables)
        if plain is not trained:
            self._compile_with(plain)

    def _compile(self, stage: Stage) -> None:
        """Compile with an optimizer that takes over the state of the last stage's optimizer."""
        optimizer = optimizers.like(self.pattern, stage.learning_rate, self.model.variables)
        rates = beforehand.rates_of(stage, self.pattern)
        if rates is not None or base_of(optimizer):
            optimizer = optimizers.discriminative(optimizer, self.model, rates)
        variables = self.model.trainable_variables
        self._compile_with(optimizers.go_on(self.optimizer, optimizer, variables))

    def _compile_with(self, optimizer: keras.optimizers.Optimizer) -> None:
        # a compiled model with its own `compile` keeps what else that was given
        kind = keras.Model if self.model.compiled else type(self.model)
        kind.compile(self.model, optimizer, **self.objective, **self.running)
        self.optimizer = self.model.optimizer  # wrapped in a LossScaleOptimizer if needed

    def _fit(self, number: int, monitor: StageMonitor, own: list[one_run.OneRun]) -> None:
        title = f"stage {number + 1}/{len(self.plan.stages)} {monitor.stage.name}"
        progress = [Progress(title)] if self.verbose and processes.index() == 0 else []
        users = [*self.callbacks, *own]
        saver = [_Saver(self, monitor, self.backup, users)] if self.backup else []
        try:
            if not monitor.done:
                self._epochs(number, monitor, [*users, monitor, *saver, *progress])
            monitor.finish()
        finally:
            for line in progress:
                last = monitor.logs[-1] if monitor.logs else {}
                line.finish(monitor.epochs, last, monitor.stopped)

    def _epochs(self, number: int, monitor: StageMonitor, callbacks: list) -> None:
        """Run the epochs of a stage on cached outputs, or else on the data."""
        stage, feed, seed = monitor.stage, self.feeds[number], (self.seed, number)
        data = order.ordered(feed.data, feed.batch_size, seed, stage.augment, self.steps[0])
        if hasattr(data, "begin"):
            data.begin(monitor.epochs)
            monitor.ordered = data
        users = [c for c in callbacks if isinstance(c, one_run.OneRun)]
        tell = next((c.computing for c in callbacks if isinstance(c, Progress)), None)
        try:
            reason = beforehand.not_cacheable(self, number)
            if self.cache is None or reason:
                raise NotExact(reason or "not asked for")
            same = itertools.takewhile(lambda later: later.ids == feed.ids, self.feeds[number:])
            together = slice(number, number + len(list(same)))
            looked = [self.looked[id(p)] for p in (feed.data, feed.validation) if p is not None]
            ready = eligibility.make_ready(
                self.model, self.blocks, self.learning[together], self.plan.stages[together],
                feed.data, feed.validation, looked, self.cache,
                own=self.cache is not self.asked, epoch=monitor.epochs, tell=tell, order=data,
                batch_size=feed.batch_size, augment=stage.augment, views=stage.views,
                class_weight=self.class_weight, seed=seed, strict=self.asked is True,
            )  # fmt: skip
        except NotExact as error:
            if self.asked is True:
                raise ValueError(f"Stage {stage.name!r}: cache=True, but {error}.") from None
            monitor.cache = f"off: {error}"
            self._plainly(feed, data, monitor, callbacks)
            return
        monitor.cache, monitor.ordered = ready.note, ready.source
        cached_fit.fit(
            self.model, ready.above, ready.source, ready.validation, self.objective,
            stage.epochs, monitor.epochs, callbacks,
            each_batch=any(map(cached_fit.sees_batches, users)),
        )  # fmt: skip
        monitor.cache = ready.note  # the cache can have been switched off during training

    def _plainly(self, feed: Feed, data: Any, monitor: StageMonitor, callbacks: list) -> None:
        """Call `fit` on the data, in their order."""
        validation, kind = feed.validation, type(self.model)
        if self.prepare:
            data = order.prepared(data, feed.batch_size, self.prepare)
            if validation is not None:
                validation = order.prepared(validation, feed.batch_size, self.prepare)
            kind = keras.Model  # its `fit` and `evaluate` do not preprocess data a second time
            self.model.evaluate = functools.partial(kind.evaluate, self.model)
        if processes.count() > 1:
            data = monitor.ordered = shares.share(data, feed.batch_size)
            if validation is not None:
                validation = shares.share(validation, feed.batch_size)
        try:
            kind.fit(
                self.model, data, validation_data=validation, class_weight=self.class_weight,
                validation_batch_size=feed.batch_size if isinstance(validation, tuple) else None,
                steps_per_epoch=None if monitor.ordered is not None else self.steps[0],
                validation_steps=self.steps[1], epochs=monitor.stage.epochs,
                initial_epoch=monitor.epochs, callbacks=callbacks, shuffle=False, verbose=0,
            )  # fmt: skip
        finally:
            if self.prepare:
                del self.model.evaluate

    # Backup -------------------------------------------------------------------------------------

    def open(self, where: backup.Backup) -> None:
        """Save to this backup from now on, and load what it contains."""
        self._refuse(backup=True)
        self.backup = where
        self.saved = where.load()

    def close(self) -> None:
        """Release the backup."""
        if self.backup:
            self.backup.close()

    def resume(self) -> None:
        """Continue from the loaded backup, if there is one."""
        if self.saved:
            state, arrays = self.saved
            self.finished, self.seed = state["finished"], state["seed"]
            stages = len(state["identity"]["plan"]["stages"])  # the plan can have more now
            backup.assign(self._saved_weights(state["learned"], stages), arrays, "weight")
            kept = [v for name, v in arrays.items() if name.startswith("kept ")]
            if kept:  # blocks that learn only in new stages still have their old weights
                learned = self._weights(state["learned"])
                then = dict(zip(map(id, learned), kept, strict=True))
                now = self._weights(self.learned)
                self.kept = [then.get(id(w), v) for w, v in zip(now, values(now), strict=True)]
            for past, feed in zip([*self.finished, state["monitor"]], self.feeds, strict=False):
                reading.reopen(feed.data, 2 * len(past["logs"]))  # `fit` opens them twice per epoch

    def save(
        self, monitor: StageMonitor, where: backup.Backup, users: list[one_run.OneRun]
    ) -> None:
        """Write the state after an epoch."""
        saved = self._saved_weights(self.learned, len(self.plan.stages))
        arrays = backup.named("weight", values(saved)) | backup.named("kept", self.kept)
        arrays |= backup.named("optimizer", values(self.model.optimizer.variables))
        if monitor.best_epoch != monitor.epochs or averages(self.model.optimizer):
            arrays |= backup.named("best", monitor.weights)
        state = {
            "finished": self.finished, "learned": self.learned, "monitor": monitor.state(),
            "seed": self.seed, "random": backup.random_state(),
            "callbacks": [[type(one.callback).__name__, one.state()] for one in users],
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
        }  # fmt: skip
        where.save(state, arrays)

    def _restore(
        self, monitor: StageMonitor, state: dict, arrays: dict[str, np.ndarray],
        users: list[one_run.OneRun],
    ) -> None:  # fmt: skip
        """Restore the stage during which the state was saved: its optimizer and best weights."""
        self.saved = None
        stored = keras.saving.deserialize_keras_object(state["optimizer"])
        self._compile_with(renamed(stored, self.model.trainable_variables))
        self.model.optimizer.build(self.model.trainable_variables)
        backup.assign(self.model.optimizer.variables, arrays, "optimizer")
        best = [v for name, v in arrays.items() if name.startswith("best")]
        monitor.restore(state["monitor"], best or values(monitor.changing))
        backup.set_random_state(state["random"])
        for one, (kind, counted) in zip(users, state["callbacks"], strict=False):
            if type(one.callback).__name__ == kind:
                one.saved = counted

    def _weights(self, numbers: list[int]) -> list[keras.Variable]:
        """Return the weights of the blocks with these numbers."""
        return [weight for number in numbers for weight in self.blocks[number].weights]

    def _saved_weights(self, learned: list[int], stages: int) -> list:
        """Return all variables that a plan changes, including states of random generators.

        Those of its augmentation are included, too.

        Args:
            learned: numbers of the blocks that learn in that plan.
            stages: how many of our stages that plan has.
        """
        others = [number for number in range(len(self.blocks)) if number not in learned]
        never = set(map(id, self._weights(others)))
        augments = [stage.augment for stage in self.plan.stages[:stages]]
        drawn = backup.generators(self.model)
        drawn += [v for a in augments if isinstance(a, keras.Layer) for v in a.variables]
        return [w for w in self.model.weights if id(w) not in never] + drawn


class _Saver(keras.callbacks.Callback):
    """Saves a backup after every epoch."""

    async_safe = True

    def __init__(self, runner: Runner, *what: Any):
        super().__init__()
        self.runner, self.what = runner, what

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.runner.save(*self.what)


def _check_held(stage: Stage, weights: list[keras.Variable], before: list[np.ndarray]) -> None:
    pairs = zip(weights, before, values(weights), strict=False)  # `before` ends with generators
    changed = [weight.path for weight, old, new in pairs if new.tobytes() != old.tobytes()]
    if changed:
        raise RuntimeError(
            f"Stage {stage.name!r} changed {len(changed)} frozen weight(s): "
            f"{', '.join(changed[:5])}. Something wrote to them during fit: a callback, a layer "
            "that updates its own state, or flags changed by hand."
        )
