"""Batches are read as `fit` reads them."""

import threading

import keras
import numpy as np
import pytest

from tlkeras.inputs import reading


class Numbered(keras.utils.PyDataset):
    """Batch after batch; each waits until as many as there are workers are being read."""

    def __init__(self, count, together, **how):
        super().__init__(**how)
        self.count, self.asked = count, []
        self.together = threading.Barrier(together, timeout=20)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.asked.append(number)
        self.together.wait()
        return np.array([number]), np.array([-number])


def read(data, *count):
    return [int(x[0]) for x, y in reading.opened(data, *count)]


def test_a_pydataset_is_read_by_its_workers_in_its_order():
    data = Numbered(6, 3, workers=3)
    assert read(data) == list(range(6)) and len(data.asked) == 6


@pytest.mark.parametrize("how", [{}, {"workers": 1}, {"workers": 3, "use_multiprocessing": True}])
def test_what_is_not_asked_for_threads_is_read_one_by_one(how):
    data = Numbered(3, 1, **how)
    assert read(data) == [0, 1, 2] == data.asked


def test_looking_reads_no_more_than_it_looks_at():
    data = Numbered(20, 1, workers=3)
    assert reading.look(data)[0] == 20 and data.asked == [0]
    assert read(data, 2) == [0, 1] and sorted(data.asked) == [0, 0, 1]
    assert len(reading.first_batches(data)) == reading.BATCHES == len(data.asked) - 3


def test_an_error_in_a_worker_is_raised():
    class Broken(Numbered):
        def __getitem__(self, number):
            if number == 2:
                raise OSError("no such picture")
            return super().__getitem__(number)

    with pytest.raises(OSError, match="no such picture"):
        read(Broken(9, 1, workers=2))
