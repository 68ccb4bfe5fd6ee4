"""All that is known of a run, as JSON stores it."""

import math
import platform
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.blocks.find import find_blocks
from tlkeras.optimizers.rates import shown
from tlkeras.utils import paths
from tlkeras.utils.versions import versions

FORMAT = 1
KNOWN = ("network", "seed", "metrics", "command", "interpretation", "thresholds")


def record_of(
    run: Any, output: str, classes: Sequence[str] | None, task: Any, known: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run: plain values only.

    Args:
        run: a Run. output: what the model gives: "softmax", "sigmoid" or "numbers".
        classes: names in label order; None: those of the task, or numbers.
        task: what `tlk.load_task` gave, or None.
        known: more of it: see KNOWN.
    """
    unknown = set(known) - set(KNOWN)
    if unknown:
        raise ValueError(f"Expected some of {', '.join(KNOWN)}; found {', '.join(unknown)}.")
    model, width = run.model, run.model.output_shape[-1]
    names = list(classes if classes is not None else getattr(task, "classes", ()))
    wanted = 2 if output == "sigmoid" and width == 1 and len(names) != 1 else width
    names = [str(name) for name in names or range(wanted)]
    if len(names) != wanted:
        raise ValueError(f"Expected {wanted} names of classes, for so many outputs; found {names}.")
    size = getattr(task, "image_size", None) or model.input_shape[1:3]
    network = known.get("network") or _network(model)
    return known | {
        "tlkeras_run": FORMAT,
        "classes": names,
        "output": output,
        "image_size": list(size) if len(size) == 2 and all(size) else None,
        "white": getattr(task, "white", None),
        "network": {
            "name": network,
            "licence": licence(network),
            "parameters": model.count_params(),
            "blocks": find_blocks(model).names,
        },
        "data": {
            "name": getattr(task, "name", "arrays"),
            "counts": dict(getattr(task, "counts", {})),
            "note": getattr(task, "note", ""),
            "report": list(getattr(task, "report", ())),
        },
        "plan": _plan(run),
        "plan_text": repr(run.plan),
        "stages": [_stage(stage) for stage in run.stages],
        "history": run.history,
        "seconds": run.seconds,
        "stopped": run.stopped,
        "worse": run.worse,
        "unsaved": run.unsaved,
        "versions": versions() | {"python": platform.python_version()},
    }


def _network(model: keras.Model) -> str:
    """The preset in it, by the names of its layers, or its own name."""
    names = {layer.name for layer in model.layers}
    return next((p.name for p in paths.presets() if p.name in names), model.name)


def licence(network: str) -> str:
    """As the card of a preset that comes with tlkeras says."""
    card = paths.data_root() / "presets" / network / "card.md"
    known = network in {folder.name for folder in paths.presets()} and card.exists()
    text = card.read_text(encoding="utf-8") if known else ""
    found = re.search(r"\*\*Licence\.?\*\*\s*(.+?)(?:\n\s*\n|\Z)", text, re.S)
    return " ".join(found[1].split()) if found else "not known to tlkeras: see where it came from"


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
    """The same as JSON knows it: without NumPy, and None for what is no number."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
