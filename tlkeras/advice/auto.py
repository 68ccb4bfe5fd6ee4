"""`fit_auto`: training in steps that are chosen by a probe and by the validation data."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.advice.budget import OutOfTime, TimeBudget, ended, said_of, seconds_of
from tlkeras.advice.probing import SURE, Probe, chunks, class_numbers, probe
from tlkeras.advice.trained_model import TrainedModel
from tlkeras.backbones.heads import add_head
from tlkeras.blocks.activation import LOGITS, SIGMOID, endings
from tlkeras.blocks.find import find_blocks
from tlkeras.features.store import FeatureCache
from tlkeras.freezing import policies
from tlkeras.inputs import intake, reading
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.training.fit import fit_stages

IMAGES, RAISED = 10_000, 10.0  # images that the rates assume; the largest factor for fewer
HEAD_LR, TUNE_LR = 1e-3, 3e-5
HEAD_EPOCHS, TUNE_EPOCHS, PATIENCE = 30, 20, 6
FEW = 100  # with fewer validation examples, the loss chooses the best epoch
LEAST = 1e-3  # a lower probability of the true class counts as this in the log loss
NOTHING_LEFT = "Nothing is left to gain: every validation example is right."
LAST, ALL = "last block", "all blocks"

# For every validation example: whether it is right, and the log likelihood of its true class.
Judged = tuple[np.ndarray, np.ndarray]


@dataclass(repr=False)
class AutoRun(Run):
    """The Run that `fit_auto` returns.

    Attributes:
        why: one sentence per decision: why a step was taken, and why the last one was the last.
            Saved with the run and shown in its report.
        probe: the result of `tlk.probe` before training.
        ended: how the time budget ended the training, or "" if it did not.
    """

    why: list[str] = field(default_factory=list)
    probe: Probe | None = None
    ended: str = ""

    def save(
        self, path: str | os.PathLike, classes: Sequence[str] | None = None, **known: Any
    ) -> Path:
        return super().save(path, classes, **self._with_why(known))

    def save_report(
        self, path: str | os.PathLike, classes: Sequence[str] | None = None, **known: Any
    ) -> Path:
        return super().save_report(path, classes, **self._with_why(known))

    def _with_why(self, known: dict[str, Any]) -> dict[str, Any]:
        said = ([f"{known['why']}."] if known.get("why") else []) + self.why
        return known | {"why": " ".join(said)}

    def _said(self) -> list[str]:
        return [*self.why, *super()._said()]


def fit_auto(
    model: keras.Model,
    data: Any,
    validation_data: Any,
    *,
    budget: str | float = "5min",
    seed: int | None = None,
    verbose: int = 1,
    **options: Any,
) -> AutoRun:
    """Probe the model, train its head, and unfreeze more blocks as long as validation improves.

    Experimental: compared with the fixed recipes on a few settings only (data/results/auto.csv).

    There are at most three steps:

    1. Train the head. It sits on the last block, unless the probe finds that an earlier block is
       significantly better; then the blocks above that one are removed, if the model can be cut.
    2. Unfreeze the last block, at a learning rate about 30 times smaller.
    3. Unfreeze all blocks, at the same rate.

    Step 2 is tried unless every validation example is already right. Step 3 follows only if step 2
    significantly improved the validation accuracy or log loss (95 % interval, compared example by
    example). Each also needs enough time left for one epoch. The model ends with the weights of
    the best step. The learning rates are those of `tlk.recommend`: they assume 10,000 examples and
    are raised for fewer, at most tenfold, because an epoch then has fewer steps. Test data are not
    used.

    Args:
        model: built, with a head that outputs one score or probability per class.
        data, validation_data: as for `fit_stages`; one class label per example.
        budget: "90s", "5min", "2h" or seconds. The probe and one epoch of the head run in any
            case.
        seed: as for `fit_stages`.
        verbose: 0 shows nothing.
        options: options of `fit_stages`: optimizer, loss, metrics, batch_size, class_weight,
            cache, callbacks, jit_compile.

    Returns:
        A Run. Its `why` holds a sentence for each decision. Its `model` is the given model, or the
        shortened one if the probe favoured an earlier block.

    Raises:
        ValueError: if the budget is invalid, if an option is one that fit_auto decides itself, or
            for anything that `tlk.probe` or `fit_stages` rejects.

    Source: course section 1.7, rule 3: probe before you commit.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> y = np.arange(48) % 3  # brighter images in the higher classes
    >>> x = 80 * y[:, None, None, None] + np.random.uniform(0, 80, (48, 32, 32, 3))
    >>> run = tlk.fit_auto(model, (x, y), (x, y), budget="1min", seed=0, verbose=0)
    >>> run.stages[0].name, run.why[0][:15]
    ('head', 'The probe reads')
    """
    end = time.monotonic() + seconds_of(budget)
    own = {"plan", "keep", "backup_dir", "validation_split", "steps_per_epoch", "validation_steps"}
    if unknown := own & set(options):
        raise ValueError(
            f"fit_auto decides itself, or does not support, {sorted(unknown)}: leave it out."
        )
    for part in (data, validation_data):
        intake.taken(model, part, passes=2)
    _check_output(model)
    found = probe(model, data, validation_data)
    options = {"cache": FeatureCache(), "seed": seed, "verbose": verbose} | options
    model, said = _commit(model, found)
    auto = _Auto(model, data, validation_data, found, end, said_of(budget), options)
    auto.say(said)
    auto.train()
    return auto.run


def _check_output(model: keras.Model) -> None:
    found = endings(model) or []
    several = found == [SIGMOID] and model.output_shape[-1] > 1
    if len(found) != 1 or several or intake.preprocesses(model):
        raise ValueError(
            "Expected a functional model that outputs scores or probabilities of one class per "
            f"example; found {type(model).__name__} {model.name!r}, which "
            + ("gives a probability for each of several labels." if several else "does not.")
        )


def _commit(model: keras.Model, found: Probe) -> tuple[keras.Model, str]:
    """Return the model to train, and a sentence that says why."""
    names, scores = found.blocks, found.accuracies
    best = int(np.argmax(scores))
    if found.last_serves:
        return model, (
            f"The probe reads {scores[-1]:.3f} of the validation examples correctly from the last "
            f"block, {names[-1]}, and no block is better beyond chance: the head is trained there."
        )
    read = (
        f"The probe reads {names[best]} better than the last block beyond chance "
        f"({scores[best]:.3f} against {scores[-1]:.3f})"
    )
    blocks = find_blocks(model)
    if blocks[names[best]].cut is None or model.compiled or endings(model) != [LOGITS]:
        return model, f"{read}, but the model cannot be cut there: the head stays at its end."
    below, _ = blocks.split(names[best])
    shorter = add_head(below, model.output_shape[-1])
    return shorter, f"{read}: what lies above it is left out, and the head is trained there."


class _Auto:
    """Runs the steps, one after another."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        validation: Any,
        found: Probe,
        end: float,
        budget: str,
        options: dict[str, Any],
    ):
        self.model, self.data, self.validation = model, data, validation
        self.found, self.end, self.budget, self.options = found, end, budget, options
        self.truth, again = (
            np.concatenate([class_numbers(y) for _, y, *_ in chunks(validation)]) for _ in "ab"
        )
        if not np.array_equal(self.truth, again):
            raise ValueError(
                "Expected validation data in the same order every time, because the steps are "
                "compared example by example; found another order. Leave out shuffle()."
            )
        custom = model.compiled or "metrics" in options or "loss" in options
        few = len(self.truth) < FEW or custom
        self.monitor = "val_loss" if few else "val_accuracy"
        self.run = AutoRun(model, Plan([self._head()]), probe=found)

    def say(self, sentence: str) -> None:
        self.run.why.append(sentence)
        if self.options["verbose"]:
            print(sentence, flush=True)

    def train(self) -> None:
        """Run the steps, then restore the weights of the best one."""
        head, *further = self._ladder()
        stopped = self._step(head)
        with TrainedModel(self.model) as trained:
            before = self._judge(trained)
            best, kept, self.run.kept = _score(before), self.model.get_weights(), head.name
            goes_on = not stopped and self._begins(before)
            while goes_on and further and self._time_for(further[0]):
                stage = further.pop(0)
                stopped, now = self._step(stage), self._judge(trained)
                if _score(now) > best:
                    best, kept, self.run.kept = _score(now), self.model.get_weights(), stage.name
                goes_on = self._goes_on(stage, before, now) and not stopped
                before = now
        self.model.set_weights(kept)

    def _ladder(self) -> list[Stage]:
        """Return every step that could be taken."""
        count = sum(block.role != "head" for block in find_blocks(self.model))
        rate = TUNE_LR * self._raised()
        opened = {LAST: policies.last_blocks(1), ALL: policies.all_blocks()}
        return [self._head()] + [
            Stage(name, policy, rate, TUNE_EPOCHS, patience=PATIENCE, monitor=self.monitor)
            for name, policy in opened.items()
            if count > 1 or name == ALL
        ]

    def _head(self) -> Stage:
        rate = HEAD_LR * self._raised()
        return Stage("head", policies.head_only(), rate, HEAD_EPOCHS, monitor=self.monitor)

    def _raised(self) -> float:
        images = reading.look(self.data)[0] or IMAGES
        return float(f"{min(max(IMAGES / images, 1.0), RAISED):.2g}")

    def _time_for(self, stage: Stage) -> bool:
        epoch = self.found.epoch_seconds(last=stage.name == LAST)
        left = self.end - time.monotonic()
        if epoch > left:
            self.run.ended = (
                f"an epoch of {stage.name} takes about {epoch:.1f} s, and only "
                f"{max(left, 0):.1f} s of {self.budget} are left"
            )
            self.say(f"No more blocks are unfrozen: {self.run.ended}.")
        return epoch <= left

    def _step(self, stage: Stage) -> str:
        """Train one stage and add it to the run.

        Returns why training ended before the planned epochs, or "".
        """
        budget = TimeBudget(self.end - time.monotonic(), self.budget)
        callbacks = [*(self.options.get("callbacks") or ()), budget]
        stopped = ""
        try:
            run = fit_stages(
                self.model, [stage], self.data, self.validation,
                **self.options | {"callbacks": callbacks},
            )  # fmt: skip
            stopped = run.stopped
        except OutOfTime as error:
            run, stopped = ended(error), str(error)
            self.run.ended = stopped
        [result] = run.stages
        columns = [name for name in run.history if name not in ("stage", "epoch")]
        logs = [{name: run.history[name][i] for name in columns} for i in range(result.epochs)]
        self.run._add(result, logs)
        self.run.plan = Plan([*self.run.plan.stages, stage][-len(self.run.stages) :])
        self.run.unsaved = run.unsaved
        if stopped:
            self.say(f"{stage.name} ended early: {stopped}.")
        return stopped

    def _judge(self, trained: TrainedModel) -> Judged:
        given = np.concatenate([trained.probabilities(x) for x, *_ in chunks(self.validation)])
        likely = given[np.arange(len(given)), self.truth.astype(int)]
        return given.argmax(-1) == self.truth, np.log(np.maximum(likely, LEAST))

    def _begins(self, now: Judged) -> bool:
        """Return whether to unfreeze any block after the head."""
        if now[0].all():
            self.say(NOTHING_LEFT)
        else:
            self.say(
                f"The head gets {now[0].mean():.3f} right: next, blocks are unfrozen at a small "
                "learning rate, to see whether that helps."
            )
        return not now[0].all()

    def _goes_on(self, stage: Stage, before: Judged, now: Judged) -> bool:
        """Return whether to unfreeze more blocks after this step."""
        pairs = zip(("accuracy", "log loss"), before, now, strict=True)
        gained = [name for name, old, new in pairs if beyond_chance(new.astype(float) - old)]
        change = (
            f"{stage.name.capitalize()} unfrozen: accuracy from {before[0].mean():.3f} to "
            f"{now[0].mean():.3f}"
        )
        better = f"better in {' and '.join(gained)} beyond chance"
        stays = "no gain beyond chance: no more blocks are unfrozen"
        self.say(f"{change}, {better if gained else stays}.")
        if gained and now[0].all():
            self.say(NOTHING_LEFT)
        return bool(gained) and not now[0].all()


def _score(judged: Judged) -> tuple[float, float]:
    return float(judged[0].mean()), float(judged[1].mean())


def beyond_chance(gained: np.ndarray) -> bool:
    """Return whether the 95 % interval of the mean gain lies above 0; one gain per example."""
    return bool(gained.mean() > SURE * gained.std() / np.sqrt(len(gained)))
