"""Two processes on one machine train one model: Keras on JAX, collectives on CPUs."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("worker_jax.py")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs jax (make test-processes)"
)
LONG = 900  # seconds: a minute where the machine has nothing else to do
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
ON_JAX = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": QUICK,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(folder):
    """Results without interruption: of both of two processes, and of one that is alone."""
    started = [*start(folder, "two"), *start(folder, "one", count=1)]
    for process in started:
        assert process.wait(LONG) == 0, log(process)
    return [results(folder, name) for name in ("two-0", "two-1", "one-0")]


def start(folder, name, *change, backup=None, count=2):
    """Starts the worker in `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | ON_JAX | {
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS, TESTS.parent])),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
    }  # fmt: skip
    command = [sys.executable, WORKER, folder / name, folder / f"backup {backup or name}", *change]
    started = []
    for number in range(count):
        with open(folder / f"{name}-{number}.log", "w") as output:
            env = common | {"KERAS_DISTRIBUTION_PROCESS_ID": str(number)}
            process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        process.log = Path(output.name)
        started.append(process)
    return started


def log(process):
    return process.log.read_text()


def results(folder, name):
    with np.load(folder / f"{name}.npz") as stored:
        return dict(stored)


def epochs(folder, name):
    return (folder / f"{name}.txt").read_text().splitlines()


def test_two_processes_train_as_one(folder, whole):
    first, second, alone = whole
    assert first.keys() == second.keys() == alone.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-5, err_msg=name)
    for number in (0, 1):
        line = f"tlkeras: 1 CPU.*, mirrored, process {number} of 2$"
        assert re.search(line, (folder / f"two-{number}.log").read_text(), re.MULTILINE)


def test_one_is_killed_the_other_ends_and_a_restart_goes_on(folder, whole):
    one, other = start(folder, "killed", "die")
    assert other.wait(LONG) == -signal.SIGKILL, log(other)
    killed = time.monotonic()
    assert one.wait(LONG) != 0
    assert time.monotonic() - killed < 90  # 7 to 10: JAX notices that signs of life are missing
    message = r"Process 0 of 2 lost another one.*Start all of them again; with backup_dir"
    assert re.search(message, log(one)), log(one)
    assert not (folder / "killed-0.npz").exists()

    for process in start(folder, "again", backup="killed"):
        assert process.wait(LONG) == 0, log(process)
    for number in (0, 1):
        assert epochs(folder, f"again-{number}") == ["stage 2 epoch 4", "stage 2 epoch 5"]
        resumed = results(folder, f"again-{number}")
        for name, expected in whole[0].items():
            np.testing.assert_allclose(resumed[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_what_would_drift_apart_or_hang_is_refused_in_every_process(folder):
    for process in start(folder, "refused", "refused"):
        assert process.wait(LONG) == 0, log(process)
    expected = {
        "uneven batches": "2 devices of 2 processes .* training data with a batch of 15.* divides",
        "uneven last batch": "45 examples in batches of 16, with a batch of 13",
        "uneven validation": "found validation data with a batch of 9",
        "uneven PyDataset": "found training data with a batch of 21",
        "generator": "that can be begun again .* found a generator",
        "no seed": "Expected a seed, the same in every .*found seed=None.*Pass seed=0",
        "another seed": "same call of fit_stages in each of the 2 processes; found others: seed",
        "other data": "found others: data",
        "other order": "found others: data",
        "sweep": "Expected a process that is alone; found 2 joined",
        "cached": "cache=True, but several devices train together",
    }
    for number in (0, 1):
        said = json.loads((folder / f"refused-{number}.json").read_text())
        assert said.keys() == expected.keys()
        for name, message in expected.items():
            assert re.search(message, said[name]), (name, said[name])


def test_the_script_of_the_page_runs_on_two_virtual_devices(folder):
    page = (TESTS.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    script = re.search("```python\n(.*?)```", page, re.DOTALL).group(1)
    assert "tlk.accelerate()" in script
    script = script.replace("tlk.accelerate()", 'tlk.accelerate(strategy="mirrored")')
    env = os.environ | ON_JAX | {
        "PYTHONPATH": str(TESTS.parent),
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search("tlkeras: 2 CPU .* mirrored\n", done.stdout)
    assert (folder / "digits.keras").exists()


def test_joining_too_late_is_refused():
    code = (
        "import jax; jax.numpy.zeros(1) + 1; import tlkeras as tlk;"
        "tlk.accelerate(job_addresses='127.0.0.1:1', num_processes=2, process_id=1, quiet=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ON_JAX, capture_output=True, text=True
    )
    assert "Expected accelerate() before anything else that uses JAX" in done.stderr
