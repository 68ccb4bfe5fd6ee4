"""Load a run from its folder."""

import contextlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from tlkeras.freezing.flags import Learning
from tlkeras.plans.plan import Plan
from tlkeras.runs.record import FORMAT
from tlkeras.runs.run import Run, StageResult
from tlkeras.utils import paths

NEEDED = {
    *("model_sha256", "classes", "output", "image_size", "network", "data", "plan", "plan_text"),
    *("stages", "history", "seconds", "stopped", "worse", "unsaved", "versions"),
}


@dataclass(repr=False)
class SavedRun(Run):
    """A Run that `tlk.load_run` returned: its model takes pixels and outputs probabilities.

    Attributes:
        folder: the folder of the run.
        record: the contents of `run.json`.
    """

    folder: Path = field(default_factory=Path)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.record["classes"])

    @property
    def output(self) -> str:
        """The kind of the outputs: "softmax", "sigmoid", or "numbers" (not probabilities)."""
        return self.record["output"]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the training images; None for other data."""
        size = self.record["image_size"]
        return (size[0], size[1]) if size else None


def load_run(path: str | os.PathLike) -> SavedRun:
    """Load a run that `Run.save` or `tlkeras fit` wrote.

    Returns:
        The Run. Its model takes pixels 0..255 and outputs probabilities; it is not compiled. The
        attributes `classes`, `image_size` and `record` describe it. `plan` is None if a policy of
        the plan was your own function.

    Raises:
        ValueError: if there is no run, if it is damaged or from a newer tlkeras, or if its model
            contains code (a Lambda layer), which is never executed.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=2)
    >>> x, y = np.random.uniform(0, 255, (32, 32, 32, 3)), np.arange(32) % 2
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), verbose=0)
    >>> folder = run.save("runs/a", classes=["cat", "dog"])
    >>> again = tlk.load_run("runs/a")
    >>> again.classes, again.model.predict(x, verbose=0).shape
    (('cat', 'dog'), (32, 2))
    """
    folder = Path(path).expanduser()
    record = read_record(folder)
    if not (folder / "model.keras").is_file():
        raise ValueError(f"Expected model.keras next to run.json in {folder}; found none.")
    if paths.digest(folder / "model.keras") != record["model_sha256"]:
        raise ValueError(
            f"Expected the model that run.json of {folder} describes; found another model.keras: "
            "it is damaged, or was written later. Save the run again."
        )
    try:
        model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"Cannot read the model of {folder}: {reason}") from error
    try:
        plan = Plan.from_dict(record["plan"]) if record["plan"] else None  # None: it held functions
        stages = [_stage(stored) for stored in record["stages"]]
        history = {name: [_number(v) for v in column] for name, column in record["history"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected run.json as tlkeras writes it in {folder}: {error}.") from error
    said = record["unsaved"], record.get("kept", "")
    return SavedRun(model, plan, stages, history, *said, folder, record)  # type: ignore[arg-type]


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of `run.json`. Raises ValueError if tlkeras did not write it."""
    if not folder.is_dir():
        raise ValueError(f"Expected the folder of a run; found no folder {str(folder)!r}.")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"Expected the folder of a run, with its run.json; {folder} has none. `tlkeras fit` "
            "and Run.save write such folders."
        ) from None
    except ValueError:  # JSON, or the encoding
        record = None
    version = record.get("tlkeras_run") if isinstance(record, dict) else None
    if not isinstance(version, int) or (version <= FORMAT and NEEDED - set(record)):
        raise ValueError(
            f"Expected run.json of {folder} as tlkeras writes it; found one that is damaged or was "
            "not written by tlkeras. Save the run again."
        )
    if version > FORMAT:
        raise ValueError(
            f"{folder} was written by a newer tlkeras (format {version}; this one knows "
            f"{FORMAT}). Update tlkeras."
        )
    return record


def _stage(stored: dict[str, Any]) -> StageResult:
    """Return the result of a stage. A learning rate that was a schedule stays text."""
    rows = [tuple(row) for row in stored["learns"]["rows"]]
    learns = Learning(rows, [], stored["learns"]["kept"])
    metrics = {name: _number(value) for name, value in stored["metrics"].items()}
    rate = stored["learning_rate"]
    with contextlib.suppress(ValueError):
        rate = float(rate)
    return StageResult(**stored | {"learns": learns, "metrics": metrics, "learning_rate": rate})


def _number(value: Any) -> Any:
    return math.nan if value is None else value
