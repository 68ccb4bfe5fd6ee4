"""The part of every batch that a process takes; tests/devices/test_processes.py trains on it."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tlkeras.inputs import shares
from tlkeras.inputs.order import Ordered
from tlkeras.utils import processes


@pytest.fixture
def as_process(monkeypatch):
    """Lets the test be one of two processes, with two devices each."""

    def become(number):
        mesh = SimpleNamespace(device_mesh=SimpleNamespace(devices=np.zeros(4)))
        monkeypatch.setattr(keras.distribution, "distribution", lambda: mesh)
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "index", lambda: number)

    return become


@pytest.mark.parametrize("seed", [None, (3,)])
def test_the_shares_are_the_batch_cut_in_two(as_process, seed):
    arrays = {"a": np.arange(20), "b": np.arange(20)[:, None]}, np.arange(20) * 10
    whole = Ordered(arrays, 8, seed)
    parts = []
    for number in (0, 1):
        as_process(number)
        part = shares.share(Ordered(arrays, 8, seed), 8)
        part.begin(4)
        assert part.num_batches == 3
        parts.append([part[i] for i in range(3)])
    whole.begin(4)
    for i, sizes in enumerate([4, 4, 2]):
        (x0, y0), (x1, y1) = parts[0][i], parts[1][i]
        assert len(y0) == len(y1) == sizes
        np.testing.assert_array_equal(np.concatenate([y0, y1]), whole[i][1])
        np.testing.assert_array_equal(np.concatenate([x0["b"], x1["b"]]), whole[i][0]["b"])


def test_arrays_that_are_validated_on_keep_their_order(as_process):
    as_process(1)
    validated = shares.share((np.arange(16), np.arange(16)), 8)
    assert validated[1][0].tolist() == [12, 13, 14, 15]


def test_an_uneven_batch_in_the_middle_is_refused_when_it_comes(as_process):
    as_process(0)
    data = shares.share((np.arange(18), np.arange(18)), 8)
    assert len(data[0][0]) == 4
    with pytest.raises(ValueError, match="4 devices of 2 processes.*data with a batch of 2"):
        data[2]


def test_processes_that_do_not_train_together_are_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: None)
    with pytest.raises(ValueError, match="DataParallel; found None. Call tlk.accelerate"):
        shares.check((np.zeros(8), np.zeros(8)), 8)
