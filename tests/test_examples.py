"""Every public name has an example in its docstring, and the example shows what it says."""

import doctest
import inspect
from collections.abc import Iterator
from types import ModuleType

import keras
import numpy as np
import pytest

import tlkeras as tlk
from tlkeras.advice.interpret import Interpretation
from tlkeras.advice.predictions import Predictions
from tlkeras.advice.probing import Probe
from tlkeras.blocks.find import Blocks
from tlkeras.display.results import Results
from tlkeras.freezing.flags import Learning
from tlkeras.tasks.task import Task
from tlkeras.training.rate_finder import LearningRates

# What public functions return, and what a user calls on it.
RETURNED = [
    *(Blocks.split, Learning, LearningRates.plot, Probe.plot, Probe.choices.fget, Task.arrays),
    *(Task.show, Interpretation.plot, Predictions.to_csv, Results.where, Results.scores),
    *(Results.mean_by, tlk.Plan.to_dict, tlk.Plan.from_dict, tlk.Run.plot, tlk.Run.save),
    tlk.Run.save_report,
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[tuple[str, object]]:
    """Names of the library with what they stand for; constants have no docstring of their own."""
    for name in tlk.__all__:
        yield from inside(f"tlk.{name}", getattr(tlk, name))
    for thing in RETURNED:
        yield thing.__qualname__, thing


def inside(name: str, thing: object) -> Iterator[tuple[str, object]]:
    """A thing with its name; of a module also what it defines or says it has, modules too."""
    yield name, thing
    if isinstance(thing, ModuleType):
        for inner, value in vars(thing).items():
            here = getattr(value, "__module__", "").startswith(thing.__name__)
            if inner in getattr(thing, "__all__", ()) or (here and not inner.startswith("_")):
                yield from inside(f"{name}.{inner}", value)


PUBLIC = {
    name: thing
    for name, thing in public()
    if isinstance(thing, ModuleType) or inspect.isclass(thing) or inspect.isroutine(thing)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    finder = doctest.DocTestFinder(recurse=False)
    [test] = finder.find(PUBLIC[name], name, globs={"tlk": tlk, "keras": keras, "np": np})
    assert test.examples, f"{name} has no example: lines that begin with >>> in its docstring"
    shown: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=shown.append)
    assert not failed, "".join(shown)
