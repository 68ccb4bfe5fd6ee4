"""The state of a staged training in one file, from which a killed training can continue.

The file is written under another name and then renamed, so it is complete whenever the process
dies. It contains arrays and JSON, no pickle.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import random
import re
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.inputs import reading
from tlkeras.plans.plan import UNSTORED, Plan
from tlkeras.training.stage_monitor import values
from tlkeras.utils import processes
from tlkeras.utils.lock import lock
from tlkeras.utils.versions import versions

FILE = "backup.npz"
ALONE = "weights that the plan leaves alone"


class Backup:
    """Reads and writes the backup in a folder.

    The first call of `load` or `save` locks the folder for other processes, until `close`.

    Args:
        folder: created if missing.
        identity: what must be the same for training to continue: a dictionary of JSON values.

    `load` and `save` raise ValueError if another process uses the folder. `load` also raises it if
    the backup there is damaged or belongs to another training; the message says what differs.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any]):
        self.path = Path(folder) / FILE
        self.identity = json.loads(json.dumps(identity))
        self._held = contextlib.ExitStack()
        self._holds = self._warned = False

    def close(self) -> None:
        """Release the folder for other processes."""
        self._held.close()
        self._holds = False

    def _hold(self) -> None:
        """Lock the folder for other processes. Of several workers, only the first does."""
        if self._holds or processes.index():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(lock(self.path.with_suffix(".lock"), wait=False))
        except BlockingIOError as error:
            raise ValueError(
                f"Another training is writing its backup to {self.path.parent} now. Wait for it "
                "to end or stop it, or give another backup_dir."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            warnings.warn(
                f"{self.path.parent} is on a file system without locks: make sure that no other "
                "training uses the same backup_dir.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._holds = True

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return the saved state: (JSON, arrays by name); None if there is no backup."""
        self._hold()
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            state = json.loads(str(arrays.pop("state")))
            old = state["identity"]
        except Exception as error:  # NumPy, zipfile, zlib and JSON raise many kinds of errors
            raise ValueError(
                f"{self.path} is no backup that can be read ({error}): it is damaged, cut short "
                "or another file. Remove it to start from the beginning, or replace it by a "
                "complete copy."
            ) from error
        learned = state.get("learned", [])
        different = difference(
            _comparable(old, old, learned), _comparable(self.identity, old, learned)
        )
        if different:
            raise ValueError(
                f"The backup in {self.path.parent} is of another training: {different}. Change it "
                "back to continue, or pass another backup_dir to start from the beginning."
            )
        return state, arrays

    def save(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Replace the backup in a single step. Of several workers, only the first writes.

        The old backup stays until the new one is on the disk. If the disk is full, this warns once
        and keeps the old one.
        """
        if processes.index():
            return
        self._hold()
        unfinished = self.path.with_suffix(".tmp")
        try:
            self._write(unfinished, json.dumps(state | {"identity": self.identity}), arrays)
            os.replace(unfinished, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"No room for a backup in {self.path.parent} ({error}). Training continues. "
                    "Until there is room, it would continue from the last complete backup after "
                    "a crash.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    @staticmethod
    def _write(path: Path, state: str, arrays: dict[str, np.ndarray]) -> None:
        with open(path, "wb") as file:
            stored: dict[str, Any] = {name: _native(array) for name, array in arrays.items()}
            np.savez(file, state=np.array(state), **stored)
            file.flush()
            os.fsync(file.fileno())


def _comparable(known: dict[str, Any], old: dict[str, Any], learned: list[int]) -> dict[str, Any]:
    """Return the parts of an identity that must equal those of the identity `old` of a backup.

    Weights count only in blocks that its plan left alone, which are all but those numbered in
    `learned`. The plan can have been extended since, by more stages or by more epochs in the last
    stage it had; these do not count.
    """
    if ALONE not in old or ALONE not in known:
        return known
    alone = [d for number, d in enumerate(known[ALONE]) if number not in learned]
    stages, before = known["plan"]["stages"], old["plan"]["stages"]
    stages = stages[: len(before)]
    if len(stages) == len(before) and stages[-1]["epochs"] >= before[-1]["epochs"]:
        stages = [*stages[:-1], stages[-1] | {"epochs": before[-1]["epochs"]}]
    plan = known["plan"] | {"stages": stages}
    return known | {"plan": plan, ALONE: digest([a.encode() for a in alone])}


def _native(array: np.ndarray) -> np.ndarray:
    """Convert bfloat16 to float32, which is exact: NumPy's files cannot store bfloat16."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def unnumbered(value: Any) -> Any:
    """Return JSON without the numbers that Keras appends to names.

    A layer that is called `dense_7` in one process can be `dense_2` in another.
    """
    if isinstance(value, dict):
        return {key: unnumbered(part) for key, part in value.items()}
    if isinstance(value, list):
        return [unnumbered(part) for part in value]
    return re.sub(r"_\d+(?=/|$)", "", value) if isinstance(value, str) else value


def difference(old: Any, new: Any, where: str = "") -> str:
    """Describe the first place where two JSON values differ; "" if they are equal."""
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
    """Describe what must stay the same about the data for training to continue.

    For arrays that is everything. For data that come in batches it is the number of examples and
    the labels, in any order; not the inputs, which can be augmented on the way. For a generator
    and for data of unknown length it is nothing.
    """
    if data is None:
        return None
    total, count = 0, 0
    if isinstance(data, tuple | list):
        parts = keras.tree.flatten(keras.tree.map_structure(reading.as_numpy, tuple(data)))
        parts = [part for part in parts if part is not None]
        content = digest(itertools.chain.from_iterable(parts))  # row by row: no copy of them all
        return {"examples": len(parts[0]), "shapes": _shapes(parts), "content": content}
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


def digest(parts: Iterable[np.ndarray | bytes]) -> str:
    """Return a short digest of arrays or bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.tobytes())
    return found.hexdigest()[:16]


def random_state() -> list:
    """Return the states of Python's and NumPy's random number generators, as JSON."""
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


def generators(model: keras.Model) -> list:
    """Return the states of a model's random number generators."""
    layers = internals.all_layers(model)
    found = {id(g): g.state for layer in layers for g in internals.seed_generators(layer)}
    return list(found.values())


def identity(runner: Any) -> dict[str, Any]:
    """Return what must be the same for a training to continue from a backup."""
    stages = runner.plan.stages
    bare = [stage.replace(**UNSTORED, augment=None, views=None) for stage in stages]
    plan, first = Plan(bare).to_dict(), runner.feeds[0]
    parts = {id(part): part for feed in runner.feeds for part in (feed.data, feed.validation)}
    described = {key: describe(part) for key, part in parts.items()}  # each is opened once
    for stage, own, feed in zip(plan["stages"], stages, runner.feeds, strict=True):
        stage["augment"], stage["views"] = _augmentation(own.augment), own.views
        stage["batch_size"] = feed.batch_size if feed.batch_size != first.batch_size else None
        if feed.ids != first.ids:
            stage["data"] = [described[key] for key in feed.ids]
    objective = {name: known(part) for name, part in runner.objective.items()}
    return {
        "plan": plan,
        "model": unnumbered([[w.path, w.dtype, *w.shape] for w in runner.model.weights]),
        "graph": _graph(runner.model),
        ALONE: [digest(values(block.weights)) for block in runner.blocks],
        "data": described[first.ids[0]],
        "validation data": described[first.ids[1]],
        "batch size": first.batch_size,
        "steps": list(runner.steps) if any(runner.steps) else None,
        "seed": runner.seed if runner.asked_seed is not None else None,
        "class weight": {str(k): v for k, v in (runner.class_weight or {}).items()},
        "optimizer": unnumbered(keras.saving.serialize_keras_object(runner.pattern)),
        **objective,
        **({} if runner.keep == "last_stage" else {"keep": runner.keep}),
        "versions": versions(),
    }


def _graph(model: keras.Model) -> str | None:
    """Return a digest of a model's layers, their settings and their calls; None if it has none.

    It leaves out what `freeze` changes, and the code of functions, because that contains the place
    where they were written.
    """
    try:
        config = json.loads(json.dumps(model.get_config(), default=_told, skipkeys=True))
    except Exception:  # from a user's class
        return None
    return digest([json.dumps(_lasting(unnumbered(config)), sort_keys=True).encode()])


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        passing = ("trainable", "code")
        return {key: _lasting(part) for key, part in value.items() if key not in passing}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def _augmentation(augment: Any) -> Any:
    if isinstance(augment, keras.Layer):
        return unnumbered(keras.saving.serialize_keras_object(augment))
    return known(augment)


def known(thing: Any) -> Any:
    """Describe a loss or metrics as JSON: their code and settings, not only their names."""
    with contextlib.suppress(ValueError):  # parts that contain each other: only the name
        return unnumbered(json.loads(json.dumps(thing, default=_told, skipkeys=True)))
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _told(thing: Any) -> Any:
    """Describe something that JSON cannot represent, by parts that it can."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    if isinstance(thing, np.ndarray | np.generic):
        return [str(thing.dtype), thing.shape, digest([thing.tobytes()])]
    if isinstance(thing, functools.partial):
        return ["partial", thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType):
        return [name, thing.__self__]
    if isinstance(thing, types.FunctionType):
        enclosed = [cell.cell_contents for cell in thing.__closure__ or ()]
        enclosed = [value for value in enclosed if value is not thing]  # a recursive function
        return [name, _code(thing.__code__), thing.__defaults__, enclosed]
    if isinstance(thing, type) or not hasattr(thing, "get_config"):
        return name
    told = int | float | str | tuple | types.FunctionType | None
    own = {k: v for k, v in vars(thing).items() if k[0] != "_" and isinstance(v, told)}
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):
        return [name, thing.get_config(), own if isinstance(thing, keras.Loss) else None]
    return [name, None, own]


def _code(code: types.CodeType) -> str:
    parts = [
        _code(c) if isinstance(c, types.CodeType)
        else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]  # fmt: skip
    return digest([code.co_code, repr((parts, code.co_names)).encode()])
