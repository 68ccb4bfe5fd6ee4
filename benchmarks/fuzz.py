"""Does training with the cache give the same result as without it, and as plain calls of `fit`?

    python benchmarks/fuzz.py --cases 10000 --processes 2    # hours; continues where it stopped
    python benchmarks/fuzz.py --case 17                      # one case, with its description

Each case of `cases.py` is trained with `cache="auto"` and `cache=False`, and, for simple cases,
with plain calls of `fit`. If the cache was not used, the two computations are the same and must
agree to the bit; otherwise up to rounding. Results go to build/fuzz-CODE.jsonl, one line per case,
where CODE depends on the source of the library and of the cases; the last line is a summary. Exits
with status 1 if a case failed.
"""

import argparse
import collections
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cases import Case, draw

import tlkeras as tlk

ROOT = Path(__file__).resolve().parents[1]
# Outputs of frozen blocks are computed in batches of another size, so they are rounded differently,
# and training propagates that. Limits relative to how far the weights moved, and to losses:
ROUNDING = 1e-4
COARSE = 5e-2  # for number types of low precision
TRACED = 100  # one in this many cases runs in traced functions, as it would for users
AT_ONCE = 100  # cases that a process trains before a new one replaces it


@dataclass
class Outcome:
    """The result of a training: weights before and after, history, stages, cache notes, error."""

    before: list[np.ndarray]
    after: list[np.ndarray]
    history: dict[str, list]
    stages: list[tuple]
    cache: list[str]
    error: str = ""


@contextmanager
def quickly() -> Iterator[None]:
    """Context manager: settings that speed up many small cases, and are undone on exit."""
    gc.collect()
    gc.freeze()  # so that `clear_session` does not search all imported objects each time
    filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        with warnings.catch_warnings(), kernels_kept():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()
        if filtered:
            keras.config.enable_traceback_filtering()


@contextmanager
def kernels_kept() -> Iterator[None]:
    """Context manager: TensorFlow keeps the kernels of its operations when a seed is set.

    Normally a new seed clears them, and finding them again takes a fifth of the time here. Only
    operations with an internal random state need that. Keras has none: its seeds are arguments.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python import pywrap_tfe

    forget = pywrap_tfe.TFE_ContextClearCaches
    pywrap_tfe.TFE_ContextClearCaches = lambda context: None
    try:
        yield
    finally:
        pywrap_tfe.TFE_ContextClearCaches = forget


@contextmanager
def untraced(wanted: bool) -> Iterator[None]:
    """Context manager: run eagerly if `wanted`, because tracing takes longer than a few steps."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(wanted)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def weights(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]


def staged(case: Case, cache: Any) -> Outcome:
    before = weights(case.model)
    try:
        run = tlk.fit_stages(
            case.model, case.plan, case.data, case.validation, cache=cache, **case.options
        )
    except Exception as error:
        return Outcome(before, before, {}, [], [], f"{type(error).__name__}: {error}"[:500])
    stages = [(s.name, s.epochs, s.best_epoch, s.stopped.split(";")[0]) for s in run.stages]
    cached = [stage.cache for stage in run.stages]
    return Outcome(before, weights(case.model), run.history, stages, cached)


# With plain calls of fit -------------------------------------------------------------------------


def by_hand(case: Case) -> Outcome:
    """Freeze, compile and fit, one stage at a time, and keep the best weights of each."""
    model, options = case.model, case.options
    before, history, stages = weights(model), collections.defaultdict(list), []
    keras.utils.set_random_seed(options["seed"])
    for number, stage in enumerate(case.plan):
        freeze(model, stage)
        kind, config = type(options["optimizer"]), options["optimizer"].get_config()
        model.compile(
            kind.from_config(config | {"learning_rate": stage.learning_rate}),
            options["loss"], metrics=options["metrics"], jit_compile=False,
        )  # fmt: skip
        best, kept, epoch = np.inf, 0, 0
        for epoch in range(stage.epochs):
            order = np.arange(len(keras.tree.flatten(case.data)[0]))
            np.random.default_rng([options["seed"], number, epoch]).shuffle(order)
            parts = keras.tree.map_structure(lambda array, order=order: array[order], case.data)
            logs = model.fit(
                *parts[:2], sample_weight=(*parts, None)[2], batch_size=4, shuffle=False,
                class_weight=options.get("class_weight"), validation_data=case.validation,
                validation_batch_size=4 if isinstance(case.validation, tuple) else None, verbose=0,
            ).history  # fmt: skip
            for name, (value,) in logs.items():
                history[name].append(value)
            judged = logs["val_loss"][0] if case.validation is not None else -epoch
            if judged < best:
                best, kept, best_weights = judged, epoch + 1, model.get_weights()
        model.set_weights(best_weights)
        stages.append((stage.name, stage.epochs, kept, ""))
    return Outcome(before, weights(model), history, stages, [])


def freeze(model: keras.Model, stage: tlk.Stage) -> None:
    blocks = tlk.find_blocks(model)
    chosen = stage.policy(blocks)
    for layer in model._flatten_layers():
        layer.trainable = False  # Keras passes a flag on only if it changes
        layer.trainable = True
    for block in blocks:
        for weight in block.weights:
            weight.trainable = weight.trainable and block in chosen
        for layer in block.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                still = stage.batchnorm == "frozen" and block.role != "head"
                layer.trainable = block in chosen and not still


# Comparing --------------------------------------------------------------------------------------


def difference(one: Outcome, other: Outcome) -> float:
    """Return the largest relative difference between two outcomes.

    Differences of weights are relative to how far the weights moved, those of numbers in the
    history to their size.
    """
    moved = max(map(largest, other.before, other.after), default=0.0)
    found = max(map(largest, one.after, other.after), default=0.0) / max(moved, 1e-3)
    for name in set(one.history) - {"stage", "epoch"}:
        values, others = (np.asarray(o.history[name], "float64") for o in (one, other))
        found = max(found, float(np.max(np.abs(values - others) / (1 + np.abs(others)))))
    return found


def largest(one: np.ndarray, other: np.ndarray) -> float:
    if one.dtype.kind in "biu":
        return float(not np.array_equal(one, other))
    return float(np.abs(one.astype("float64") - other).max(initial=0))


def unlike(what: str, one: Outcome, other: Outcome, limit: float) -> str:
    """Describe the difference between two outcomes, or return "" if it is within the limit."""
    if one.error != other.error:
        return f"{what}: {one.error or 'trained'} / {other.error or 'trained'}"
    names = [sorted(set(o.history) - {"stage", "epoch"}) for o in (one, other)]
    if names[0] != names[1] or one.stages != other.stages:
        return f"{what}: {names[0]}, {one.stages} / {names[1]}, {other.stages}"
    found = difference(one, other)
    return "" if found <= limit else f"{what}: differ by {found:.2g}, more than {limit:.2g}"


def compare(number: int) -> dict[str, Any]:
    """Run one case; return what was done, and in `failed` what went wrong, or ""."""
    begin = time.process_time()
    row: dict[str, Any] = {"case": number, "failed": "", "refused": "", "stages": 0, "cached": 0}
    row |= {"off": [], "by_hand": False, "difference": 0.0, "said": []}
    try:
        with untraced(number % TRACED != TRACED - 1):
            _compare(number, row)
    except Exception as error:  # while drawing it, or in the plain calls of `fit`
        row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return row | {"seconds": round(time.process_time() - begin, 2)}


def _compare(number: int, row: dict[str, Any]) -> None:
    case = draw(number)
    row["said"] = case.said
    if case.shared:
        cache = case.cache
        staged(draw(number, sibling=True), cache)
        case = replace(draw(number), cache=cache)
    auto, plain = staged(case, case.cache), staged(draw(number), False)
    cached = [note for note in auto.cache if note.startswith("after")]
    used = cached or any("epoch before" in note for note in auto.cache)  # used for one epoch only
    limit = (COARSE if case.coarse else ROUNDING) if used else 0.0
    failed = [unlike("cache", auto, plain, limit)]
    diverged = any("became" in why for *_, why in plain.stages)  # ends a stage, but not `fit`
    row["by_hand"] = case.plain and not (plain.error or diverged)
    if row["by_hand"]:
        failed.append(unlike("by hand", plain, by_hand(draw(number)), 0.0))
    row["failed"] = "; ".join(filter(None, failed))
    row |= {"refused": plain.error, "stages": len(auto.cache), "cached": len(cached)}
    row["off"] = [note for note in auto.cache if note not in cached]
    if not (auto.error or plain.error):
        row["difference"] = difference(auto, plain)


# Many -------------------------------------------------------------------------------------------


def several(numbers: Sequence[int]) -> list[dict]:
    with quickly():
        return [compare(number) for number in numbers]


def summary(rows: Sequence[dict]) -> dict[str, Any]:
    kinds = collections.Counter(kind(note) for row in rows for note in row["off"])
    return {
        "cases": len(rows),
        "with a cached stage": sum(row["cached"] > 0 for row in rows),
        "stages": sum(row["stages"] for row in rows),
        "cached stages": sum(row["cached"] for row in rows),
        "by hand": sum(row["by_hand"] for row in rows),
        "refused": sum(bool(row["refused"]) for row in rows),
        "failed": sorted(row["case"] for row in rows if row["failed"]),
        "largest difference of a cached one": max((r["difference"] for r in rows), default=0),
        "core seconds": round(sum(row["seconds"] for row in rows)),
        "off": dict(kinds.most_common()),
    }


def kind(note: str) -> str:
    """Return why the cache was off, without names and numbers."""
    words = note.removeprefix("off: ").replace(",", "").replace(":", "").split()
    return " ".join(word for word in words if not any(c in "'_0123456789" for c in word))


def code() -> str:
    """Return a hash of the source of the library and of the cases."""
    files = sorted((ROOT / "tlkeras").rglob("*.py")) + sorted(ROOT.glob("benchmarks/[cf]*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def finished(path: Path) -> list[dict]:
    """Return the cases stored in a file, and remove incomplete lines and summaries from it."""
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.startswith('{"case"') and line.endswith("}")]
    path.write_text("".join(f"{line}\n" for line in whole))
    return [json.loads(line) for line in whole]


def show(row: dict) -> None:
    print(f"case {row['case']}: {row['failed'] or 'equal'}", flush=True)
    for line in [*row["said"], *row["off"], f"difference {row['difference']:.2g}"]:
        print(f"    {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", type=int, help="only this one, and say all of it")
    options = parser.parse_args()
    if options.case is not None:
        with quickly():
            row = compare(options.case)
        show(row)
        sys.exit(bool(row["failed"]))
    path = ROOT / "build" / f"fuzz-{code()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = finished(path)
    wanted = set(range(options.start, options.start + options.cases))
    left = sorted(wanted - {row["case"] for row in rows})
    print(f"{path}: {len(left)} of {len(wanted)} to do", flush=True)
    spawn = multiprocessing.get_context("spawn")
    with (
        open(path, "a") as file,
        spawn.Pool(options.processes, maxtasksperchild=AT_ONCE // 10) as pool,
    ):
        parts = [left[i : i + 10] for i in range(0, len(left), 10)]
        for done in pool.imap_unordered(several, parts):
            for row in done:
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                if row["failed"]:
                    show(row)
            file.flush()
            if len(rows) % 100 < len(done):
                failures = sum(bool(row["failed"]) for row in rows)
                print(f"{len(rows)} done, {failures} failed", flush=True)
        found = summary([row for row in rows if row["case"] in wanted])
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
