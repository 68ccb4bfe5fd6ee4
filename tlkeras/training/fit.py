"""`fit_stages`: run a Plan, one `fit` per stage, and check that frozen weights did not change."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import keras

from tlkeras.blocks.find import find_blocks
from tlkeras.blocks.internals import compiled_with
from tlkeras.features.store import FeatureCache
from tlkeras.freezing.stored import remark
from tlkeras.inputs import checks, intake
from tlkeras.inputs.objective import check_loss, counted, default_objective
from tlkeras.optimizers import Discriminative, like
from tlkeras.plans.plan import Plan, Stage
from tlkeras.runs.run import Run
from tlkeras.training import one_run, together
from tlkeras.training.backup import Backup, identity
from tlkeras.training.beforehand import check_keep
from tlkeras.training.feeds import feeds_of
from tlkeras.training.runner import Runner
from tlkeras.utils import processes


def fit_stages(
    model: keras.Model,
    plan: Plan | Sequence[Stage],
    data: Any = None,
    validation_data: Any = None,
    *,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    loss: Any = None,
    metrics: Sequence[Any] | None = None,
    batch_size: int | None = 32,
    validation_split: float = 0.0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    class_weight: dict[int, float] | None = None,
    keep: str = "last_stage",
    cache: str | bool | FeatureCache = "auto",
    backup_dir: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    seed: int | None = None,
    jit_compile: bool | str = "auto",
    verbose: int = 1,
) -> Run:
    """Run a plan: freeze, compile and fit for each stage, and check that frozen weights stayed.

    At the end of a stage the weights of its best epoch are restored, and the next stage continues
    from them. The model ends with the weights of the last stage. If an earlier stage was better,
    the Run says so, and a RuntimeWarning as well unless `verbose` is 0. If the loss becomes NaN, or
    after Ctrl-C, the run ends with the best weights so far and a RuntimeWarning.

    Args:
        model: a built model with weights and, for most plans, a head.
        plan: a Plan or a list of stages.
        data: (x, y) or (x, y, sample_weight) arrays, a PyDataset or a tf.data.Dataset. With several
            processes (`tlk.accelerate`) no tf.data.Dataset: each process is given the whole data,
            and takes its part of every batch. For a KerasHub task with a preprocessor, pass what
            its own `fit` takes. None: every stage has data of its own (`Stage(data=...)`).
        validation_data: data of the same kinds; they decide which epoch is best.
        optimizer: a name or an object. Every stage gets an optimizer of this class with these
            settings, at the stage's learning rate. For a model in mixed_float16 the loss is scaled
            if needed. None: the optimizer of a compiled model, without rates per block and with
            its state (moments), as `fit` would continue with it; otherwise AdamW. The state of
            each block is carried over to the next stage.
        loss, metrics: as for `compile`. None: those the model was compiled with. If it was not
            compiled: cross-entropy and accuracy, for labels that are class numbers, one-hot rows,
            several labels (rows of 0 and 1) or 0 and 1; other labels need a loss. The accuracy of
            a single score (no sigmoid) uses the threshold 0.
        batch_size: for arrays; None: 32.
        validation_split, steps_per_epoch, validation_steps: as for `fit`; the last two switch
            the cache off. Every stage starts from the beginning of the data.
        class_weight: as for `fit`.
        keep: "last_stage", or "best_of_run": the model ends with the weights of the stage that has
            the best `monitor`. For this all stages need the same monitor and validation data.
        cache: whether to compute the outputs of frozen blocks once and train on them. "auto": in
            stages where that gives the same weights; the Run says where, or why not. True: raise
            an error if a stage cannot use it. "disk": as "auto", but always in a temporary file.
            False: never. A FeatureCache shares outputs between calls.
        backup_dir: a folder for this training alone. After every epoch the state is written there.
            Calling this again with the same arguments continues from it, even if the process was
            killed. The plan can be extended by then: by more epochs in its last stage, and by
            further stages. Data must come in the same order each time they are created, as arrays
            and datasets shuffled with a seed do.
        callbacks: they see a single `fit`: epochs are counted across stages, and training begins
            and ends once. EarlyStopping and ReduceLROnPlateau start again with every stage, and
            EarlyStopping ends only the stage. If a callback raises an error, the model has the best
            weights so far, and the error's attribute `run` is the Run so far.
        seed: for `keras.utils.set_random_seed`, before the first stage, and for the order of
            arrays. None: the random state is left as it is and the order is drawn from it; not
            allowed with several processes.
        jit_compile: as for `compile`, for stages without the cache. "auto": as the model was
            compiled. Its `run_eagerly` and `steps_per_execution` are always kept.
        verbose: 0 shows no progress.

    Returns:
        The Run. `model` itself is trained in place.

    Raises:
        ValueError: the plan, the data or a policy does not fit the model, or the backup belongs to
            another training.
        RuntimeError: a frozen weight changed during a stage, or another process was lost.

    Source: section 1.6, the practical playbook.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> y = np.arange(48) % 3  # brighter images in the higher classes
    >>> x = 80 * y[:, None, None, None] + np.random.uniform(0, 80, (48, 32, 32, 3))
    >>> plan = tlk.recipes.two_stage(head_epochs=2, tune_epochs=1)
    >>> run = tlk.fit_stages(model, plan, (x, y), verbose=0, seed=0)
    >>> run.history["stage"]
    ['head', 'head', 'tune']
    >>> [stage.cache for stage in run.stages]
    ['after stack1, 24.6 KB in memory', 'after stack0, 786 KB in memory']
    """
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    steps = (steps_per_epoch, validation_steps)
    feeds = feeds_of(model, plan, data, validation_data, batch_size, steps, validation_split)
    check_keep(keep, plan, feeds)
    several = processes.count() > 1
    for feed in feeds:
        if backup_dir is not None and steps_per_epoch and not intake.indexed(feed.data):
            raise ValueError(
                "Expected data whose batches can be asked for by number, for a backup in the "
                f"middle of them (steps_per_epoch); found {type(feed.data).__name__}. Pass arrays "
                "or a PyDataset, or leave out steps_per_epoch or backup_dir."
            )
        intake.check_class_weight(feed.data, class_weight)
        if several:
            together.check(feed.data, feed.validation, feed.batch_size)
    if not model.weights:
        find_blocks(model)  # says what is missing
    objective = _objective(model, loss, metrics, feeds[0].data)
    for feed in {feed.ids: feed for feed in feeds}.values():
        checks.check(model, feed.data, objective["loss"], feed.validation)
    if seed is not None:
        keras.utils.set_random_seed(seed)
    runner = Runner(
        model, plan, feeds, objective, *_optimizers(model, optimizer),
        _running(model, jit_compile), steps, class_weight, keep, cache, one_run.flat(callbacks),
        seed, verbose,
    )  # fmt: skip
    known = identity(runner) if several or backup_dir is not None else {}
    run = Run(model, plan)
    with closing(runner), together.explained(), together.placed(model):
        if backup_dir is not None:
            runner.open(Backup(backup_dir, known))
        if several:
            together.agree(runner, known)
        runner.resume()
        for number, stage in enumerate(plan.stages):
            runner.train(number, run)
            if run.stopped:
                warnings.warn(f"Stage {stage.name!r}: {run.stopped}", RuntimeWarning, stacklevel=2)
                break
        runner.finish()
        run.unsaved = _unsaved(run)
        runner.end()
    if run.worse and verbose and keep == "last_stage":
        warnings.warn(f"Of the run, {run.worse}.", RuntimeWarning, stacklevel=2)
    return run


def _unsaved(run: Run) -> str:
    """Say what a file of the model would not contain; warn if frozen layers would then learn."""
    stage, learned = run.plan.stages[len(run.stages) - 1], run.stages[-1].learns.blocks
    text = remark(run.model, stage.policy, learned, stage.batchnorm)
    if text:
        warnings.warn(text, UserWarning, stacklevel=3)
    inner = getattr(run.model.optimizer, "inner_optimizer", run.model.optimizer)
    if isinstance(inner, Discriminative):
        text += " " * bool(text) + (
            "Its optimizer has a rate for every block: where tlkeras is not imported, load it with "
            "compile=False."
        )
    return text


def _optimizers(
    model: keras.Model, given: keras.optimizers.Optimizer | str | None
) -> tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer]:
    """Return the pattern for the stages' optimizers, and the optimizer the first continues from."""
    compiled = getattr(model, "optimizer", None) if model.compiled else None
    found = keras.optimizers.get(given or compiled or keras.optimizers.AdamW())
    alone = given is None and compiled is not None  # its rates were those of other stages
    pattern = like(found, 1e-3, model.variables, by_block=not alone)  # a stage has its own rate
    start = compiled if alone else pattern
    if not alone and isinstance(found, keras.optimizers.LossScaleOptimizer):
        start = type(found)(pattern, found.initial_scale, found.dynamic_growth_steps)
    return pattern, start


def _running(model: keras.Model, jit_compile: bool | str) -> dict[str, Any]:
    """Return the options of `compile` that determine how steps are run."""
    if not model.compiled:
        return {"jit_compile": jit_compile}
    return {
        "jit_compile": model.jit_compile if jit_compile == "auto" else jit_compile,
        "run_eagerly": model.run_eagerly,
        "steps_per_execution": model.steps_per_execution,
    }


def _objective(model: keras.Model, loss: Any, metrics: Any, data: Any) -> dict[str, Any]:
    """Return what every stage is compiled with, besides the optimizer."""
    found = {"loss": loss, "metrics": metrics}
    if loss is None and model.compiled:
        found = compiled_with(model) | ({"metrics": metrics} if metrics else {})
    if found["loss"] is None:
        try:
            loss, fitting = default_objective(model, data)
            found |= {"loss": loss, "metrics": fitting if metrics is None else metrics}
        except ValueError:
            if not intake.learns_alone(model):
                raise
    check_loss(model, found["loss"])
    return found | {"metrics": counted(model, found["loss"], found["metrics"])}
