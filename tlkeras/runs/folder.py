"""Save a run to a folder: the model, ready for use, everything known about it, and a model card.

model.keras   takes pixels, outputs probabilities, scales inside; needs only Keras (and KerasHub)
run.json      classes, image size, plan, history, results, seed, versions, data counts
README.md     the model card
history.csv, history.png   the training history as a table and as a plot
report.html   the report
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.activation import LOGITS, SIGMOID, SOFTMAX, endings
from tlkeras.display import report
from tlkeras.display.model_card import model_card
from tlkeras.inputs import intake
from tlkeras.inputs.objective import cross_entropy
from tlkeras.runs.record import record_of
from tlkeras.utils import paths

EXPORTED = ("model.onnx", "model.tflite", "saved_model")  # written later, by `tlk.export`
WRITTEN = ("model.keras", "run.json", "README.md", "history.csv", "history.png", "report.html")


def save(
    run: Any,
    path: str | os.PathLike,
    classes: Sequence[str] | None = None,
    task: Any = None,
    force: bool = False,
    **known: Any,
) -> Path:
    """Implements `Run.save`; see there."""
    folder = check_folder(path, force)
    build, record = described(run, classes, task, known)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with internals.Traces(internals.functional(run.model)):
            build().save(made / "model.keras")
        record["model_sha256"] = paths.digest(made / "model.keras")
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (made / "run.json").write_text(text + "\n", encoding="utf-8")
        (made / "README.md").write_text(model_card(record), encoding="utf-8")
        _write_history(run, made)
        examples = getattr(known.get("interpretation"), "examples", {})
        report.write(made / "report.html", record, run.plan, run.model, examples)
        _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def save_report(
    run: Any,
    path: str | os.PathLike,
    classes: Sequence[str] | None,
    task: Any,
    known: dict[str, Any],
) -> Path:
    """Implements `Run.save_report`; see there."""
    _, record = described(run, classes, task, known)
    examples = getattr(known.get("interpretation"), "examples", {})
    return report.write(Path(path).expanduser(), record, run.plan, run.model, examples)


def described(
    run: Any, classes: Sequence[str] | None, task: Any, known: dict[str, Any]
) -> tuple[Callable[[], keras.Model], dict[str, Any]]:
    """Return a function that builds the model to store, and the record of the run."""
    earlier = getattr(run, "record", {})
    build, output = (lambda: run.model, earlier["output"]) if earlier else usable(run.model)
    return build, record_of(run, output, classes, task, known)


def check_folder(path: str | os.PathLike, force: bool = False) -> Path:
    """Return the path, if it is a new or empty folder, or holds an earlier run and nothing else.

    Raises:
        ValueError: if the path is a file, or if the folder holds other files and `force` is False.
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected a folder for the run; {folder} is a file. Choose a folder.")
    found = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    known = (*WRITTEN, *EXPORTED) if "run.json" in found else ()
    foreign = [name for name in found if name not in known and not name.startswith(".")]
    if foreign and not force:
        raise ValueError(
            f"Expected a new folder, or an earlier run's; {folder} holds other files "
            f"({', '.join(foreign[:3])}). Choose another folder, or write next to them with "
            "force=True (--force)."
        )
    return folder


def _move(made: Path, folder: Path) -> None:
    """Move everything at once, or replace an earlier run file by file.

    `run.json` comes last, because it holds the checksum of the model it belongs to.
    """
    if not folder.exists():
        made.chmod(0o755)
        os.replace(made, folder)
        return
    for earlier in (folder / name for name in EXPORTED):
        shutil.rmtree(earlier) if earlier.is_dir() else earlier.unlink(missing_ok=True)
    for name in sorted(os.listdir(made), key=lambda name: name == "run.json"):
        os.replace(made / name, folder / name)


def _write_history(run: Any, folder: Path) -> None:
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(run.history)
        rows.writerows(zip(*run.history.values(), strict=True))
    run.plot().savefig(folder / "history.png", dpi=120)


# The model --------------------------------------------------------------------------------------


def usable(model: keras.Model) -> tuple[Callable[[], keras.Model], str]:
    """Return a function that builds the model to store, and the kind of its outputs.

    The kind is "softmax", "sigmoid" or "numbers". If the loss applied the softmax or sigmoid
    (`from_logits`), it becomes the last layer of the stored model. The stored model is not
    compiled, so no optimizer is stored with it.

    Raises:
        ValueError: if it is not known what the model's outputs mean, if the model has no graph, or
            if a preprocessor outside the model scales its inputs.
    """
    net = internals.functional(model)
    if intake.preprocesses(model):
        raise ValueError(
            "Expected a model that takes its inputs unchanged; found a KerasHub task whose "
            "preprocessor scales them first. Put that into the model, or use its save_to_preset."
        )
    if net is None:
        raise ValueError(
            f"Expected a model with a graph; found {type(model).__name__}, which is subclassed. "
            "Wrap it in a functional model: keras.Model(x, model(x)), where x is a keras.Input."
        )
    loss = cross_entropy(internals.compiled_with(model)["loss"])
    found = endings(model) or []
    kind = found[0] if len(found) == 1 else None
    if kind is None and loss is not None and len(found) == 1:
        kind = SIGMOID if loss.family == "binary" else SOFTMAX
        kind = LOGITS if loss.from_logits else kind
    if kind == LOGITS and not model.compiled:
        raise ValueError(
            "Expected a model that was trained, or ends in a softmax or sigmoid; found one that "
            "outputs scores and is not compiled, so it is not known what they mean."
        )
    if kind != LOGITS or loss is None:
        output = kind if kind in (SOFTMAX, SIGMOID) else "numbers"
        return (lambda: keras.Model(net.input, net.output, name=net.name)), output
    kind = SIGMOID if loss.family == "binary" else SOFTMAX
    return (lambda: _ended(net, kind)), kind


def _ended(net: keras.Model, kind: str) -> keras.Model:
    name = "probabilities"
    while name in {operation.name for operation in net.operations}:
        name += "_"
    last = keras.layers.Activation(kind, dtype="float32", name=name)
    return keras.Model(net.input, last(net.output), name=net.name)
