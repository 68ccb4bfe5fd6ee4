"""Plans in files: of this version and of those before it."""

import json

import keras
import numpy as np
import pytest

from tlkeras.freezing import policies
from tlkeras.plans import recipes
from tlkeras.plans.plan import Plan, Stage

FIRST = """{"stages": [{"name": "tune", "policy": ["last_blocks", [2]], "learning_rate": 1e-05,
"epochs": 10, "batchnorm": "frozen", "patience": 3, "monitor": "val_loss",
"rates": {"kind": "mapping", "rates": {"head": 1.0}}, "augment": null, "views": null}]}"""
SECOND = """{"version": 2, "stages": [{"name": "tune", "policy": ["last_blocks", [2]],
"learning_rate": 1e-05, "epochs": 10, "batchnorm": "frozen", "patience": 3, "monitor": "val_loss",
"rates": {"kind": "mapping", "rates": {"head": 1.0}}, "augment": null, "views": null, "mode": "min",
"min_delta": 0.01}]}"""
TUNE = Stage(
    "tune", policies.last_blocks(2), 1e-5, 10, patience=3, rates={"head": 1.0}
)  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "stage"),
    [(FIRST, TUNE), (SECOND, TUNE.replace(mode="min", min_delta=0.01))],
    ids=["version 1", "version 2"],
)
def test_plans_that_older_versions_stored_are_read(stored, stage):
    assert Plan.from_dict(json.loads(stored)) == Plan([stage])


def test_a_batch_size_is_stored_and_a_newer_version_refused():
    plan = Plan([TUNE.replace(batch_size=8)])
    stored = json.loads(json.dumps(plan.to_dict()))
    assert stored["version"] == 3 and Plan.from_dict(stored) == plan
    with pytest.raises(ValueError, match="found 4.*Update tlkeras"):
        Plan.from_dict(stored | {"version": 4})
    stored["stages"][0]["data"] = [1]
    with pytest.raises(ValueError, match="unknown in a stored plan: data"):
        Plan.from_dict(stored)


@pytest.mark.parametrize(
    "held",
    [
        {"callbacks": [keras.callbacks.TerminateOnNaN()]},
        {"data": (np.zeros((2, 2)), np.zeros(2))},
        {"validation_data": (np.zeros((2, 2)), np.zeros(2))},
    ],
    ids=lambda held: next(iter(held)),
)
def test_what_no_file_can_hold_is_refused_and_kept_out_of_the_way(held):
    stage = TUNE.replace(**held)
    with pytest.raises(TypeError, match=f"'tune': expected what a file.*found {next(iter(held))}"):
        Plan([stage]).to_dict()
    assert "0., 0." not in repr(stage)


def test_of_functions_those_that_can_be_found_again_are_stored():
    for function in (lambda x: x, np.flip):
        with pytest.raises(TypeError, match="augment of Keras layers"):
            Plan([TUNE.replace(augment=function)]).to_dict()
    for kept in (keras.layers.RandomFlip(), registered):
        stored = Plan([TUNE.replace(augment=kept)]).to_dict()
        assert Plan.from_dict(json.loads(json.dumps(stored))).stages[0].augment is not None


@keras.saving.register_keras_serializable("tests")
def registered(x, y):
    return x, y


@pytest.mark.parametrize("given", ["two_stage", recipes.two_stage, [recipes.two_stage()]])
def test_a_plan_is_of_stages(given):
    with pytest.raises(TypeError, match="a Plan or a list of stages; found"):
        Plan(given)


def test_callbacks_are_callbacks():
    assert TUNE.replace(callbacks=keras.callbacks.TerminateOnNaN()).callbacks
    with pytest.raises(TypeError, match="list of keras callbacks; found"):
        TUNE.replace(callbacks=["early"])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, found 0"):
        TUNE.replace(batch_size=0)
