"""`tlkeras fit`: train on a task or on a folder of images, in stages, and write the results."""

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import tlkeras as tlk

if TYPE_CHECKING:  # at run time Keras is loaded only when it is needed
    from tlkeras.advice.interpret import Interpretation
    from tlkeras.runs.run import StageResult
    from tlkeras.tasks.task import Task

TEXT = "train on a task or on a folder of images, in stages"

# The arguments that `tlkeras fit` gives to each recipe.
SETTINGS: dict[str, dict[str, Any]] = {
    "two_stage": {}, "head_only": {}, "progressive": {}, "middle_only": {}, "full": {},
    # The course document's rates: small data sets need many epochs at them.
    "recipe_a": {"head_epochs": 200, "tune_epochs": 50},
    "recipe_b": {"head_epochs": 200, "tune_epochs": 50},
    "recipe_c": {"epochs": 50},
}  # fmt: skip
AUTO = "auto"  # decides by a probe and by validation; has no settings
REASONS = {
    "efficientnet_lite0": "it has learned from photographs (ImageNet)",
    "glyph_resnet": "it has learned from printed letters",
}
# The measures for each kind of label, with their names in --json; the first is printed.
MEASURES = {
    "class": {"accuracy": "accuracy"},
    "labels": {"mean average precision": "mean_average_precision", "mean f1": "f1"},
    "number": {
        "mean absolute error": "mean_absolute_error",
        "error of always saying the mean": "error_of_the_mean",
    },
}
LEAST = {"efficientnet_lite0": 96}  # pixels per side; smaller images are enlarged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        metavar="TASK-or-FOLDER",
        help="a task's name, or a folder with one folder of images for each class "
        "(or with train/, validation/ and test/ laid out that way, or with a labels.csv: "
        "file,label[,split]; several labels of a file are separated by ;)",
    )
    parser.add_argument(
        "--recipe",
        choices=[*SETTINGS, AUTO],
        default="two_stage",
        help="default: two_stage; auto runs a probe, trains the head, and unfreezes more blocks as "
        "long as validation improves by more than chance",
    )
    parser.add_argument(
        "--backbone",
        help="a name of keras.applications, a KerasHub preset, or a path; default: what the task's "
        "card names, or efficientnet_lite0, for photographs",
    )
    parser.add_argument("--labels-per-class", type=int, metavar="N", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels per side")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most, per stage")
    parser.add_argument(
        "--time-budget",
        type=float,
        metavar="MINUTES",
        help="stop before an epoch that would exceed the budget if it took as long as the last "
        "one; default: none, with auto 5",
    )
    parser.add_argument(
        "--augment",
        choices=("light", "strong"),
        help="light: mirror (so not for writing), shift and zoom images, and change their colours; "
        "strong: more of it, with RandAugment and (not with --regression) MixUp",
    )
    parser.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help="add LoRA adapters of this rank to the backbone: where the recipe unfreezes a block, "
        "only its adapters learn, at ten times the rate; they are merged into the saved model",
    )
    parser.add_argument(
        "--class-weight", choices=("balanced",), help="every class counts the same in training"
    )
    parser.add_argument(
        "--regression", action="store_true", help="predict the numbers in labels.csv"
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out files that cannot be read"
    )
    parser.add_argument("--out", type=Path, help="folder for the results; default: runs/TASK")
    parser.add_argument("--force", action="store_true", help="use --out even if it has other files")
    parser.add_argument("--quiet", action="store_true", help="print the result only")


def run(options: argparse.Namespace) -> int:
    talk: TextIO = sys.stderr if options.json else sys.stdout
    talk = io.StringIO() if options.quiet else talk
    with contextlib.redirect_stdout(sys.stderr):  # output of other libraries
        result = _train(options, talk)
    if options.json:
        print(json.dumps(result))
    else:
        print(_last_line(result))
    return 1 if result["stopped"] else 0


def _train(options: argparse.Namespace, talk: TextIO) -> dict[str, Any]:
    """Load the task, train, write the results, and return what --json prints."""
    from tlkeras.cli import fit_options
    from tlkeras.runs.folder import check_folder

    out = options.out or Path("runs") / Path(options.task).resolve().name
    _check_place(check_folder(out, options.force), Path(options.task))
    _check_numbers(options)
    task, network, why = _load(options, talk)
    if (out / "run.json").exists():
        print(f"the earlier run in {out} will be replaced; use --out to keep it", file=talk)
    if options.recipe == AUTO:
        fit_options.check_auto(options, task.kind)
    run, ended, seconds = _trained(options, task, network, talk)
    found = _interpretation(run, task)
    result = {
        "task": task.name,
        "kind": task.kind,
        "backbone": network,
        "recipe": options.recipe,
        "lora": options.lora,
        "seed": options.seed,
        "labels_per_class": options.labels_per_class,
        "image_size": task.image_size,
        "counts": task.counts,
        **_scores(task, found),
        "train_seconds": round(seconds, 2),
        "stages": [_stage(stage) for stage in run.stages],
        "stopped": run.stopped,
        "ended": ended,
        "why": getattr(run, "why", []),
        "model_path": str(out / "model.keras"),
        "classes": task.classes,
        "report": task.report,
    }
    run.save(
        out, task=task, force=options.force, network=network, why=why, seed=options.seed,
        result=result, thresholds=result.get("thresholds"), interpretation=found,
        command=options.command,
    )  # fmt: skip
    return result


def _trained(
    options: argparse.Namespace, task: "Task", network: str, talk: TextIO
) -> "tuple[tlk.Run, str, float]":
    """Train; return the Run, why the time budget ended it (or ""), and the seconds it took."""
    import keras

    from tlkeras.cli import fit_options
    from tlkeras.tasks import targets
    from tlkeras.utils import paths

    weights = targets.class_weights(task) if options.class_weight else None
    keras.utils.set_random_seed(options.seed)  # for the head's initial weights
    model = tlk.add_head(tlk.load_backbone(network, task.image_size), len(task.classes))
    feed = targets.FitInputs(task, rows=options.augment == "strong")
    start = time.perf_counter()
    given: dict[str, Any] = {
        "class_weight": weights, "seed": options.seed, "verbose": not options.quiet,
        "cache": tlk.FeatureCache(folder=paths.kept_dir()),
    }  # fmt: skip
    run: tlk.Run
    if options.recipe == AUTO:
        print(f"\n{tlk.find_blocks(model)!r}\n", file=talk, flush=True)
        minutes = options.time_budget
        limit = {"budget": 60 * minutes} if minutes else {}
        run = auto = tlk.fit_auto(model, feed.train, feed.validation, **limit, **given)
        ended = auto.ended
    else:
        run, ended = _staged(options, model, task, feed, given, talk)
    if run.stopped.startswith("interrupted") and not any(s.best_epoch for s in run.stages):
        raise KeyboardInterrupt(" before an epoch had ended: nothing was written")
    if options.lora:
        fit_options.merge_adapters(run)
    seconds = time.perf_counter() - start
    if run.worse:
        print(run.worse, file=talk)
    feed.finish(run.model)
    return run, ended, seconds


def _staged(
    options: argparse.Namespace,
    model: Any,
    task: "Task",
    feed: Any,
    given: dict[str, Any],
    talk: TextIO,
) -> "tuple[tlk.Run, str]":
    """Train by a recipe's plan; return the Run, and why the time budget ended it, or ""."""
    from tlkeras.advice import budget
    from tlkeras.cli import fit_options

    plan = getattr(tlk.recipes, options.recipe)(**SETTINGS[options.recipe])
    if options.lora:
        tlk.flavors.lora.add(model, options.lora, seed=options.seed)
        plan = fit_options.for_adapters(plan)
    plan = fit_options.changed(plan, options.epochs, options.augment, task.kind, options.seed)
    plan = fit_options.judged(plan, feed.monitor, task.kind)
    print(f"\n{tlk.find_blocks(model)!r}\n\n{plan!r}\n", file=talk, flush=True)
    minutes = options.time_budget
    limit = [budget.TimeBudget(60 * minutes, f"{minutes:g} minutes")] if minutes else []
    try:
        with warnings.catch_warnings():
            if options.lora:  # adapters cannot be saved, but they are merged afterwards
                warnings.filterwarnings("ignore", "Keras does not save all", UserWarning)
            run = tlk.fit_stages(
                model, plan, feed.train, feed.validation, loss=feed.loss, metrics=feed.metrics,
                keep="best_of_run", callbacks=limit, **given,
            )  # fmt: skip
        return run, ""
    except budget.OutOfTime as end:
        return budget.ended(end), str(end)


def _interpretation(run: "tlk.Run", task: "Task") -> "Interpretation | None":
    """Evaluate the run; None if that fails, because an error here must not lose the model."""
    for missing, examples in (("examples", 8), ("scores", 0)):
        try:
            return tlk.interpret(run, task, examples=examples)
        except Exception as error:
            print(f"tlkeras: the report has no {missing}: {error}", file=sys.stderr)
    return None


def _scores(task: "Task", found: "Interpretation | None") -> dict[str, Any]:
    """Return the scores of the model for --json, with None for what was not measured."""
    record: dict[str, Any] = found.record if found else {"split": "test", "scores": {}}
    known = {"validation": record.get("validation", {}), record["split"]: record["scores"]}
    scores = {"measure": next(iter(MEASURES[task.kind].values()))}
    for split in ("validation", "test"):
        for name, short in MEASURES[task.kind].items():
            value = known.get(split, {}).get(name)
            scores[f"{split}_{short}"] = value[0] if isinstance(value, tuple) else value
    return scores | ({"thresholds": record["thresholds"]} if record.get("thresholds") else {})


def _load(options: argparse.Namespace, talk: TextIO) -> "tuple[Task, str, str]":
    """Return the task, the name of the pretrained network, and why that one was chosen.

    Images that are too small for the network are enlarged, unless --image-size is given.
    """
    task = tlk.load_task(
        options.task, options.labels_per_class, options.seed, options.image_size,
        regression=options.regression, skip_unreadable=options.skip_unreadable,
        verbose=not options.quiet,
    )  # fmt: skip
    network = options.backbone or task.start
    least, size = LEAST.get(network, 0), ""
    if min(task.image_size) < least and options.image_size is None:
        task, size = task.resized(least), f"; images enlarged to {least}x{least} for it"
    elif min(task.image_size) < least:
        size = f"; it wants images of {least}x{least} or more"
    print(task, *task.report, sep="\n", file=talk)
    why = "as --backbone says" if options.backbone else REASONS.get(network, "its card says so")
    print(f"starts from {network}: {why}{size}", file=talk)
    return task, network, why + size


def _check_numbers(options: argparse.Namespace) -> None:
    for name in ("epochs", "time_budget", "lora"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0; found {value}.")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed must be 0 or more, and below 2**32; found {options.seed}.")


def _check_place(out: Path, task: Path) -> None:
    """Check before training that results can be written to the folder `out`."""
    if task.is_dir() and out.resolve().is_relative_to(task.resolve()):
        raise ValueError(f"--out {out} is inside the images' own folder: choose another place.")
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ValueError(f"Cannot write into {there}: {why}. Choose another --out.") from error


def _stage(stage: "StageResult") -> dict[str, Any]:
    """Return a stage for JSON; values that JSON cannot represent (NaN, infinity) become None."""
    metrics = {
        name: float(value) if math.isfinite(value) else None
        for name, value in stage.metrics.items()
    }
    return {
        "name": stage.name,
        "epochs": stage.epochs,
        "best_epoch": stage.best_epoch,
        "learning_rate": stage.learning_rate,
        "seconds": round(stage.seconds, 2),
        "validation_accuracy": metrics.get("val_accuracy"),
        "metrics": metrics,
        "trainable_parameters": stage.learns.trainable_params,
        "learns": stage.learns.blocks,
        "stopped": stage.stopped,
    }


def _last_line(result: dict) -> str:
    name = result["measure"]
    split = "validation" if result[f"test_{name}"] is None else "test"
    score = result[f"{split}_{name}"]
    line = "no score was measured"
    if score is not None:
        shown = f"{score:.4g}" if result["kind"] == "number" else f"{score:.1%}"
        line = f"{split} {name.replace('_', ' ')} {shown} on {result['counts'][split]:,} images"
    line += (
        f"; trained {result['train_seconds']:.0f} s; "
        f"report in {Path(result['model_path']).with_name('report.html')}"
    )
    early = result["stopped"] or result["ended"]
    return f"{line}\nstopped early: {early}" if early else line
