"""How several processes are described; test_processes.py starts some."""

import keras
import pytest

from tlkeras.devices import join
from tlkeras.devices.setup import accelerate
from tlkeras.utils import processes


@pytest.fixture
def on_jax(monkeypatch):
    """As if Keras ran on JAX; whoever is joined is written down."""
    joined = []
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(join, "_initialize", lambda *what: joined.append(what))
    return joined


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "found no job_addresses"),
        (("10.0.0.1:1234", None, None), "found no num_processes and no process_id"),
        (("10.0.0.1:1234", 2, None), "found no process_id"),
        (("10.0.0.1:1234", 2, 2), "from 0 to num_processes - 1 = 1; found 2"),
        (("10.0.0.1:1234", 2, -1), "found -1"),
        (("10.0.0.1:1234", 0, 0), "at least 1; found 0"),
        (("10.0.0.1:1234,10.0.0.2:1234", 3, 0), "each of the 3 processes; found 2"),
        (("10.0.0.1", 2, 0), "host:port; found '10.0.0.1'"),
        (("10.0.0.1:port", 2, 0), "host:port; found '10.0.0.1:port'"),
        (("10.0.0.1:1234", "two", 0), "whole number; found 'two'"),
    ],
)
def test_an_incomplete_or_wrong_description_is_refused(on_jax, given, message):
    with pytest.raises(ValueError, match=message):
        join.join(*given, 300)
    assert not on_jax


def test_the_environment_describes_them_and_arguments_go_before_it(on_jax, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", "10.0.0.1:1234,10.0.0.2:1234")
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "0")
    join.join(None, None, 1, 60)
    assert on_jax == [("10.0.0.1:1234", 2, 1, 60)]
    assert capsys.readouterr().out.startswith("tlkeras: process 1 of 2 waits up to 60 s")


def test_one_process_alone_joins_nobody(on_jax):
    join.join(None, 1, 0, 300)
    join.join(None, None, None, 300)
    assert not on_jax and (processes.count(), processes.index()) == (1, 0)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="of other backends")
def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="Expected Keras's jax backend.*Set KERAS_BACKEND=jax"):
        accelerate(quiet=True)


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234"),
        ("localhost:1234", "localhost:1234"),
        ("192.0.2.1:1234", None),  # of no machine: RFC 5737
        ("no.such.machine.invalid:1234", None),
    ],
)
def test_process_0_listens_at_its_address_alone(address, listens):
    assert join._bind_address(address) == listens
