"""All that is known of a run, as JSON stores it."""

import math
import platform
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.blocks.activation import output_shapes
from tlkeras.blocks.find import find_blocks
from tlkeras.optimizers.rates import shown
from tlkeras.utils import paths
from tlkeras.utils.versions import versions

FORMAT = 1
KNOWN = {
    *("network", "why", "seed", "metrics", "command", "interpretation", "thresholds", "result"),
}


def record_of(
    run: Any, output: str, classes: Sequence[str] | None, task: Any, known: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run: plain values only.

    Args:
        run: a Run; of one that was read from a folder, what is known of it goes on to hold.
        output: what the model gives: "softmax", "sigmoid" or "numbers".
        classes: names in label order; None: those of the task, or numbers.
        task: what `tlk.load_task` gave, or None.
        known: more of it: see KNOWN.

    Raises ValueError for names that are not as many as the model's classes, or unknown things.
    """
    unknown = set(known) - KNOWN
    if unknown:
        raise ValueError(
            f"Expected some of {', '.join(sorted(KNOWN))}; found {', '.join(unknown)}."
        )
    judged = known.get("interpretation")
    known = {name: value for name, value in known.items() if value is not None}
    known |= {} if judged is None else {"interpretation": judged.record}
    earlier = getattr(run, "record", {})
    if classes is None and task is None and earlier:
        return earlier | plain(known | _network(run.model, known, earlier))
    found = known | _network(run.model, known, earlier) | _data(run.model, output, classes, task)
    return earlier | plain(found if earlier else found | _training(run))


def _data(
    model: keras.Model, output: str, classes: Sequence[str] | None, task: Any
) -> dict[str, Any]:
    """What it was trained on, and what its outputs stand for."""
    names = list(classes if classes is not None else getattr(task, "classes", ()))
    width = (output_shapes(model) or [(0,)])[0][-1] or 0
    wanted = 2 if output == "sigmoid" and width == 1 and len(names) != 1 else width
    names = [str(name) for name in names or range(wanted)]
    if len(names) != wanted:
        raise ValueError(f"Expected {wanted} names of classes, for so many outputs; found {names}.")
    given = model.input_shape
    size = getattr(task, "image_size", None) or (given[1:3] if isinstance(given, tuple) else ())
    return {
        "classes": names,
        "output": output,
        "image_size": size if len(size) == 2 and all(size) else None,
        "white": getattr(task, "white", None),
        "data": {
            "name": getattr(task, "name", "arrays"),
            "counts": dict(getattr(task, "counts", {})),
            "note": getattr(task, "note", ""),
            "report": list(getattr(task, "report", ())),
        },
    }


def _training(run: Any) -> dict[str, Any]:
    """What was done, and how it went."""
    return {
        "tlkeras_run": FORMAT,
        "plan": _plan(run),
        "plan_text": repr(run.plan),
        "stages": [_stage(stage) for stage in run.stages],
        "history": run.history,
        "seconds": run.seconds,
        "stopped": run.stopped,
        "worse": run.worse,
        "unsaved": run.unsaved,
        "kept": run.kept,
        "findings": [
            {key: getattr(one, key) for key in ("symptom", "evidence", "cause", "fix")}
            for one in run.diagnose()
        ],
        "versions": versions() | {"python": platform.python_version()},
    }


def _network(model: keras.Model, known: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """What it started from: as it is said, else as it was, else the preset among its layers."""
    if earlier and "network" not in known:
        return {"network": earlier["network"]}
    names = [folder.name for folder in paths.presets()]
    inside = next((layer.name for layer in model.layers if layer.name in names), model.name)
    name = known.get("network", inside)
    return {
        "network": {
            "name": name,
            "licence": licence(name),
            "parameters": model.count_params(),
            "blocks": find_blocks(model).names,
        }
    }


def licence(network: str) -> str:
    """As the card of a preset that comes with tlkeras says."""
    card = paths.data_root() / "presets" / network / "card.md"
    known = network in {folder.name for folder in paths.presets()} and card.exists()
    text = card.read_text(encoding="utf-8") if known else ""
    found = re.search(r"\*\*Licence\.?\*\*\s*(.+?)(?:\n\s*\n|\Z)", text, re.S)
    return (
        " ".join(found[1].replace("`", "").split())
        if found
        else "not known to tlkeras: see where it came from"
    )


def _plan(run: Any) -> dict | None:
    try:
        return run.plan.to_dict()
    except TypeError:  # a policy that is a function: only its text is kept
        return None


def _stage(stage: Any) -> dict[str, Any]:
    rows, kept = stage.learns.rows, stage.learns.kept
    rate = shown(stage.learning_rate)
    return vars(stage) | {"learns": {"rows": rows, "kept": kept}, "learning_rate": rate}


def plain(value: Any) -> Any:
    """The same as JSON knows it: without NumPy, None for what is no number, and what is no text in
    a file's name written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
