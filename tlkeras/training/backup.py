"""The state of a staged training in one file, so that a killed process can go on.

The file is written under another name and then renamed: whenever the process dies, the file is
whole. It holds numbers and JSON, no pickle.
"""

import hashlib
import itertools
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.inputs import reading
from tlkeras.training.stage_monitor import values
from tlkeras.utils import processes

FILE = "backup.npz"


class Backup:
    """Reads and writes the backup in a folder.

    Args:
        folder: made if missing.
        identity: what must be the same for training to go on: JSON, a name for each part.

    Raises:
        ValueError: the backup there is of other work; says what differs.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any]):
        self.path = Path(folder) / FILE
        self.identity = json.loads(json.dumps(identity))

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The state as it was saved: (JSON, arrays by name); None if there is none."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            state = json.loads(str(arrays.pop("state")))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self.path} is no backup that can be read ({error}). Remove it to start anew."
            ) from error
        different = difference(state["identity"], self.identity)
        if different:
            raise ValueError(
                f"The backup in {self.path.parent} is of another training: {different}. Go back "
                "to what it was, or give another backup_dir to start anew."
            )
        return state, arrays

    def save(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Replaces the backup, all at once. Of several workers the first alone writes."""
        if processes.index():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = json.dumps(state | {"identity": self.identity})
        unfinished = self.path.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            stored: dict[str, Any] = {name: _native(array) for name, array in arrays.items()}
            np.savez(file, state=np.array(whole), **stored)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.path)


def _native(array: np.ndarray) -> np.ndarray:
    """bfloat16 is unknown to NumPy's files, and exact in float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def unnumbered(value: Any) -> Any:
    """JSON without the numbers that Keras puts behind names: a layer that is `dense_7` in one
    process is `dense_2` in another."""
    if isinstance(value, dict):
        return {key: unnumbered(part) for key, part in value.items()}
    if isinstance(value, list):
        return [unnumbered(part) for part in value]
    return re.sub(r"_\d+(?=/|$)", "", value) if isinstance(value, str) else value


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two pieces of JSON differ, in words; "" if they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            found = difference(old.get(key), new.get(key), f"{where}, {key}" if where else key)
            if found:
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True), start=1):
            found = difference(*pair, f"{where} {number}")
            if found:
                return found
        return ""
    return "" if old == new else f"{where} was {_short(old)} and is now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(data: Any) -> dict[str, Any] | None:
    """What must stay the same about data for training to go on.

    Of arrays everything; of data that come in batches how many, their shapes, and the labels,
    since inputs may be augmented on the way.
    """
    if data is None:
        return None
    digest, total, count = hashlib.sha256(), 0, 0
    if isinstance(data, tuple | list):
        parts = keras.tree.flatten(keras.tree.map_structure(reading.as_numpy, tuple(data)))
        parts = [part for part in parts if part is not None]
        for row in itertools.chain.from_iterable(parts):
            digest.update(row.tobytes())
        return {"examples": len(parts[0]), "shapes": _shapes(parts), "content": digest.hexdigest()}
    if hasattr(data, "__next__") or reading.length(data) is None:
        return {"batches": None}
    for _, *labels in reading.opened(data):
        for example in zip(*keras.tree.flatten(labels), strict=True):
            one = b"".join(np.ascontiguousarray(part).tobytes() for part in example)
            total, count = total + int.from_bytes(hashlib.sha256(one).digest()[:8]), count + 1
        shapes = _shapes(keras.tree.flatten(labels))
    return {"examples": count, "shapes": shapes, "labels": f"{total % 2**64:016x}"}


def _shapes(arrays: list[np.ndarray]) -> list:
    return [[str(array.dtype), *array.shape[1:]] for array in arrays]


def digest(weights: list[np.ndarray]) -> str:
    """A fingerprint of weights."""
    found = hashlib.sha256()
    for weight in weights:
        found.update(weight.tobytes())
    return found.hexdigest()[:16]


def random_state() -> list:
    """Python's and NumPy's random number generators, as JSON."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = state
    return [[version, list(numbers), gauss], [name, keys.tolist(), *rest]]


def set_random_state(state: list) -> None:
    (version, numbers, gauss), (name, keys, *rest) = state
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((name, np.array(keys, "uint32"), *rest))  # noqa: NPY002


def named(name: str, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name} {number:05}": array for number, array in enumerate(arrays)}


def assign(variables: list, arrays: dict[str, np.ndarray], name: str) -> None:
    stored = [array for key, array in arrays.items() if key.startswith(f"{name} ")]
    for variable, array in zip(variables, stored, strict=True):
        variable.assign(array)


def state_of(model: keras.Model) -> list:
    """All weights of a model, and the states of its random number generators."""
    generators = {
        id(generator): generator.state
        for layer in internals.all_layers(model)
        for generator in internals.seed_generators(layer)
    }
    return [*model.weights, *generators.values()]


def identity(runner: Any) -> dict[str, Any]:
    """What must be the same for a training to go on from a"""
    loss = runner.objective["loss"]
    plan = runner.plan.to_dict()
    for stage in plan["stages"]:
        stage["augment"] = unnumbered(stage["augment"])
    return {
        "plan": plan,
        "model": unnumbered([[w.path, w.dtype, *w.shape] for w in runner.model.weights]),
        "weights that the plan leaves alone": digest(values(runner.never_learning())),
        "data": describe(runner.data),
        "validation data": describe(runner.validation),
        "batch size": runner.batch_size,
        "seed": runner.seed if runner.asked_seed else None,
        "class weight": {str(k): v for k, v in (runner.class_weight or {}).items()},
        "optimizer": unnumbered(keras.saving.serialize_keras_object(runner.pattern)),
        "loss": loss if isinstance(loss, str) else getattr(loss, "name", str(type(loss))),
    }
