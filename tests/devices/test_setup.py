import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tlkeras.devices.setup import Acceleration, accelerate, precision_for

TESTS = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("worker.py")
tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.distribute"
)


@pytest.fixture(autouse=True)
def settings_restored():
    policy = keras.config.dtype_policy()
    yield
    accelerate(strategy="none", quiet=True)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    "device, capability, expected",
    [
        ("CPU", None, "float32"),
        ("TPU", None, "mixed_bfloat16"),
        ("GPU", 9.0, "mixed_bfloat16"),
        ("GPU", 8.0, "mixed_bfloat16"),
        ("GPU", 7.5, "mixed_float16"),
        ("GPU", 6.1, "float32"),
        ("GPU", None, "float32"),
        ("GPU", 12.0, "mixed_bfloat16"),
    ],
)
def test_precision_follows_the_device(device, capability, expected):
    assert precision_for(device, capability) == expected


def test_it_prints_one_line_that_says_what_was_chosen(capsys):
    chosen = accelerate()
    assert capsys.readouterr().out == f"{chosen!r}\n"
    assert accelerate() == chosen  # twice is harmless
    assert chosen.precision == keras.config.dtype_policy().name
    assert accelerate(quiet=True) == chosen
    assert capsys.readouterr().out.count("\n") == 1


def test_the_line():
    alone = Acceleration("GPU", 1, "mixed_bfloat16", True)
    assert repr(alone) == "tlkeras: 1 GPU, mixed_bfloat16, XLA on"
    several = Acceleration("GPU", 4, "float32", False, "mirrored")
    assert repr(several) == "tlkeras: 4 GPU, float32, XLA off, mirrored"
    joined = Acceleration("GPU", 2, "float32", True, "mirrored", 1, 4)
    assert repr(joined) == "tlkeras: 2 GPU, float32, XLA on, mirrored, process 1 of 4"


def test_precision_can_be_chosen():
    accelerate(precision="mixed_bfloat16", quiet=True)
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    accelerate(precision="float32", quiet=True)
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.parametrize("wrong", [{"precision": "float8"}, {"strategy": "parameter_server"}])
def test_a_bad_value_gets_the_choices(wrong):
    before = keras.config.dtype_policy()
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))} to be one of .*found '"):
        accelerate(**wrong)
    assert keras.config.dtype_policy() == before


@tensorflow_only
def test_two_devices_train_like_one(tmp_path):
    """Both stages, validation, predict and evaluate; a dataset, arrays, batches."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [TESTS, TESTS.parent]))}
    command = [sys.executable, WORKER, tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search("tlkeras: 2 CPU.* mirrored", done.stdout)
    one, two = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "mirrored"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=2e-6, err_msg=name)
