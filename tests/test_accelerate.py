import inspect
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from tlkeras import multiworker
from tlkeras.devices import Acceleration, accelerate, precision_for
from tlkeras.stages import fit_stages

WORKER = Path(__file__).with_name("worker.py")
BACKEND = keras.backend.backend()
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")


SAYS = {"mirrored": "2 CPU.* mirrored", "workers": "worker 0 of 2, each with 1 CPU"}
TIMEOUT = 300  # seconds; a hang is a failure


def tf_config(ports, index, kind="worker"):
    """TF_CONFIG of one of several workers on this machine."""
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": hosts}, "task": {"type": kind, "index": index}})


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def network_of_its_own():
    """A command prefix that leaves only loopback, for TensorFlow listens on every interface."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    up = [*unshare, "sh", "-c", "ip link set lo up"]
    if not shutil.which("unshare") or subprocess.run(up, capture_output=True).returncode:
        return []
    return [*unshare, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


class Training:
    """worker.py in one process, or in two that train together; a number for each, from 0."""

    def __init__(self, folder, devices, plan):
        self.outs = [folder / f"{devices}{i}" for i in range(2 if devices == "workers" else 1)]
        ports = free_ports(2)
        lines = []
        for i, out in enumerate(self.outs):
            config = f"TF_CONFIG='{tf_config(ports, i)}' " if devices == "workers" else ""
            command = f"'{sys.executable}' '{WORKER}' '{out}' {devices} {plan}"
            lines.append(f"({config}{command} > {out}.log 2>&1; echo $? > {out}.status) &")
        env = os.environ | {"PYTHONPATH": str(Path(multiworker.__file__).parents[1])}
        prefix = network_of_its_own() if devices == "workers" else []
        self.process = subprocess.Popen([*prefix, "sh", "-c", "\n".join([*lines, "wait"])], env=env)

    def log(self, i):
        log = self.outs[i].with_suffix(".log")
        return log.read_text(errors="replace") if log.exists() else ""

    def kill(self, i):
        os.kill(int(self.outs[i].with_suffix(".pid").read_text()), signal.SIGKILL)

    def results(self):
        """What each process stored, once all have ended well."""
        self.wait()
        for i, out in enumerate(self.outs):
            assert out.with_suffix(".status").read_text() == "0\n", self.log(i)[-5000:]
        return [dict(np.load(out.with_suffix(".npz"))) for out in self.outs]

    def wait(self):
        try:
            self.process.wait(TIMEOUT)
        finally:  # processes are left only if they hang
            for i in range(len(self.outs)) if self.process.poll() is None else ():
                self.kill(i)


def check_like(expected, found):
    """What a process stored is the same as `expected` has, but for rounding."""
    assert found
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.fixture(autouse=True)
def settings_restored(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    policy = keras.config.dtype_policy()
    yield
    accelerate(strategy="none", quiet=True)  # XLA as Keras has it
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
    one_of_two = Acceleration("GPU", 4, "float32", False, "multi_worker", 2, 1)
    assert repr(one_of_two) == (
        "tlkeras: worker 1 of 2, each with 4 GPU, float32, XLA off, multi_worker"
    )


def test_precision_can_be_chosen():
    accelerate(precision="mixed_bfloat16", quiet=True)
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    accelerate(precision="float32", quiet=True)
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.parametrize("jit", [True, False])
def test_xla_can_be_chosen_for_every_later_compile(model, jit):
    model.compile(loss="mse")
    default = model.jit_compile
    assert accelerate(jit=jit, quiet=True).jit is jit
    model.compile(loss="mse")
    assert model.jit_compile is jit
    model.compile(loss="mse", jit_compile=not jit)  # who says it to compile is heard
    assert model.jit_compile is not jit
    assert accelerate(quiet=True).jit is default
    model.compile(loss="mse")
    assert model.jit_compile is default


def test_xla_can_be_measured_and_leaves_seeds_and_names_alone(model):
    def next_number():
        return int(keras.layers.Conv2D(1, 1).name.removeprefix("conv2d").lstrip("_") or 0)

    number, before = next_number(), random.getstate()
    chosen = accelerate(jit="measure", quiet=True)
    assert re.match(r"measured: with it [\d.]+x the speed", chosen.why)
    assert random.getstate() == before
    assert next_number() == number + 1
    model.compile(loss="mse")
    assert model.jit_compile is chosen.jit


@pytest.mark.parametrize(
    "wrong", [{"precision": "float8"}, {"jit": "fast"}, {"strategy": "parameter_server"}]
)
def test_a_bad_value_gets_the_choices(wrong):
    before = keras.config.dtype_policy()
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))} to be one of .*found '"):
        accelerate(**wrong)
    assert keras.config.dtype_policy() == before


@tensorflow_only
def test_too_late_for_a_strategy_once_there_are_models(model):
    with pytest.raises(RuntimeError, match="no models yet.*right after the imports"):
        accelerate(strategy="mirrored")


@tensorflow_only
def test_too_late_for_workers_once_tensorflow_is_at_work(monkeypatch):
    import tensorflow as tf

    tf.constant(1)
    monkeypatch.setenv("TF_CONFIG", tf_config([1, 2], 0))
    with pytest.raises(RuntimeError, match="before anything uses TensorFlow"):
        multiworker.strategy()


def test_the_cluster_is_read_from_tf_config(monkeypatch):
    assert multiworker.cluster() == (1, 0)
    monkeypatch.setenv("TF_CONFIG", tf_config([1, 2, 3], 2))
    assert multiworker.cluster() == (3, 2)
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for kind, index, expected in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        config = {"cluster": jobs, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert multiworker.cluster() == (3, expected)


@pytest.mark.parametrize("text", ["{", "[1]", tf_config([1, 2], 2), tf_config([1, 2], 0, "ps")])
def test_a_bad_tf_config_is_explained(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="Expected TF_CONFIG to .*host1:2222"):
        multiworker.cluster()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Plans on one device, on two, and on two workers; all at once, to save time."""
    folder = tmp_path_factory.mktemp("trainings")
    plans = {"one": "all", "mirrored": "short", "workers": "short"}
    return {devices: Training(folder, devices, plan) for devices, plan in plans.items()}


@tensorflow_only
def test_a_killed_worker_ends_the_others_and_all_can_resume(trainings, tmp_path):
    training = Training(tmp_path, "workers", "slow")  # while the others train
    give_up = time.monotonic() + TIMEOUT
    while training.log(0).count("epoch") < 5:  # the second stage
        assert training.process.poll() is None and time.monotonic() < give_up, training.log(0)
        time.sleep(0.1)
    training.kill(1)
    killed = time.monotonic()
    training.wait()
    assert time.monotonic() - killed < 60
    assert training.outs[0].with_suffix(".status").read_text() != "0\n"
    assert "Another worker stopped" in training.log(0)
    assert "finished" not in training.log(0)

    if "backup_dir" in inspect.signature(fit_stages).parameters:
        again = Training(tmp_path, "workers", "long")
        (expected,) = trainings["one"].results()
        for found in again.results():
            check_like(expected, found)
        assert again.log(0).count("epoch") < 10  # it went on, and did not begin anew


@tensorflow_only
@pytest.mark.parametrize("devices", ["mirrored", "workers"])
def test_several_train_like_one(trainings, devices):
    """Both stages, validation, predict and evaluate; a dataset from one file, arrays, batches."""
    (expected,) = trainings["one"].results()
    several = trainings[devices].results()
    for found in several:
        check_like(expected, found)
        for name in found:
            if "weight" in name:
                np.testing.assert_array_equal(found[name], several[0][name])
    assert re.search(rf"tlkeras: .*{SAYS[devices]}", trainings[devices].log(0))
