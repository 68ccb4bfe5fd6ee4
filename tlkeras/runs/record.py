"""Everything known about a run, as plain values for JSON."""

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
    """Return the record of a run, with plain values only.

    Args:
        run: a Run. If it was loaded from a folder, its record is kept and updated.
        output: the kind of the model's outputs: "softmax", "sigmoid" or "numbers".
        classes: names in label order; None: those of the task, or numbers.
        task: what `tlk.load_task` returned, or None.
        known: further entries; the names allowed are in KNOWN.

    Raises ValueError for unknown entries, or if there are not as many names as classes.
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
    """Return what the model was trained on, and what its outputs mean."""
    names = list(classes if classes is not None else getattr(task, "classes", ()))
    width = (output_shapes(model) or [(0,)])[0][-1] or 0
    wanted = 2 if output == "sigmoid" and width == 1 and len(names) != 1 else width
    names = [str(name) for name in names or range(wanted)]
    if len(names) != wanted:
        raise ValueError(f"Expected {wanted} names of classes for this model; found {names}.")
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
    """Return what was done in training, and the results."""
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
    """Return the network the run started from.

    This is the name given, otherwise the network of the earlier record, otherwise the preset among
    the model's layers, otherwise the model's own name.
    """
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
    """Return the licence from the card of a preset that comes with tlkeras."""
    card = paths.data_root() / "presets" / network / "card.md"
    known = network in {folder.name for folder in paths.presets()} and card.exists()
    text = card.read_text(encoding="utf-8") if known else ""
    found = re.search(r"\*\*Licence\.?\*\*\s*(.+?)(?:\n\s*\n|\Z)", text, re.S)
    return (
        " ".join(found[1].replace("`", "").split())
        if found
        else "not known to tlkeras: check the source of the network"
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
    """Return the value in a form that JSON can store.

    NumPy values become plain ones, NaN and infinity become None, and undecodable bytes in file
    names are escaped.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
