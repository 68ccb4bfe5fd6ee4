"""Memory stays within its limit, rows stay what they are, and nothing is left behind."""

import gc

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.features.cached_evaluate import evaluate
from tlkeras.features.frozen_part import find_frozen_part
from tlkeras.features.store import FeatureCache
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages


def part_of(model):
    freeze(model, policies.head_only())
    blocks = find_blocks(model)
    return find_frozen_part(model, blocks, len(blocks) - 1)


class Drawn(keras.utils.PyDataset):
    """A share of the examples is new in every epoch."""

    def __init__(self, share):
        super().__init__()
        self.x, self.y = easy_data(60)
        self.share, self.epoch = share, 0

    def __len__(self):
        return 3

    def __getitem__(self, i):
        x = self.x[20 * i : 20 * i + 20].copy()
        rng = np.random.default_rng([self.epoch, i])
        x[: int(20 * self.share)] += rng.uniform(0, 9)
        return x, self.y[20 * i : 20 * i + 20]

    def on_epoch_end(self):
        self.epoch += 1


@pytest.mark.parametrize("each_batch", [False, True])
@pytest.mark.parametrize("limit", [None, 1_000])
def test_outputs_of_data_that_change_are_those_of_the_epoch(limit, each_batch):
    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    def train(cache):
        keras.utils.set_random_seed(0)
        stages = [Stage(n, policies.head_only(), learning_rate=1e-2, epochs=2) for n in "ab"]
        return fit_stages(
            with_head(small_backbone()), stages, Drawn(1), Drawn(1), cache=cache, seed=0,
            callbacks=[Watch()] if each_batch else [], verbose=0,
        )  # fmt: skip

    with pytest.warns(RuntimeWarning, match="were not in the epoch before"):
        run = train(FeatureCache(limit))
    plain = train(False)
    assert run.stages[0].cache.startswith("off: 60 examples of epoch 2")
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(run.history[name], plain.history[name], rtol=1e-3)


def test_a_cache_that_few_new_examples_would_fill_without_end_switches_itself_off(model):
    cache = FeatureCache(limit=100_000)
    held = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            held.append(sum(len(store) for store in cache._stores.values()))

    stage = Stage("head", policies.head_only(), epochs=9)
    with pytest.warns(RuntimeWarning) as said:
        fit_stages(model, [stage], Drawn(0.25), cache=cache, callbacks=[Watch()], verbose=0)
    assert len([w for w in said if "were not in the epoch before" in str(w.message)]) == 1
    assert max(held) <= 120 + 15


def test_outputs_that_outgrow_memory_move_to_a_file(model):
    part, limit = part_of(model), 20
    cache = FeatureCache(limit * part.bytes_per_example)
    features = cache.features(part, 4)
    (few, _), (many, _) = easy_data(4), easy_data(40, seed=1)
    first = features.find(few)
    assert not features.on_disk and cache._used == features.nbytes == 4 * part.bytes_per_example
    rows = [features.find(many[i : i + 5]) for i in range(0, 40, 5)]
    assert features.on_disk and cache._used == 0
    expected = keras.ops.convert_to_numpy(part.below(np.concatenate([few, many])))
    found = features.read(np.concatenate([first, *rows]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_short_read_is_an_error(model):
    features = FeatureCache(disk=True).features(part_of(model), 4)
    rows = features.find(easy_data(4)[0])
    features._file.truncate(10)
    with pytest.raises(OSError, match="ends early"):
        features.read(rows)
    with pytest.raises(ValueError, match="rows that `find` gave, below 0"):
        features.for_one_epoch().read(rows)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_file_of_outputs_is_closed_with_its_owner(model):
    features = FeatureCache(disk=True).features(part_of(model), 4)
    features.find(easy_data(4)[0])
    file = features._file
    del features
    gc.collect()
    assert file.closed


def test_repeated_calls_leave_nothing_behind(model):
    stages = [
        Stage("head", policies.head_only(), epochs=1),
        Stage("last", policies.last_blocks(1), 1e-4, epochs=1),
    ]
    shared, data = FeatureCache(), easy_data(8)

    def left():
        gc.collect()
        models = [held for held in gc.get_objects() if isinstance(held, keras.Model)]
        layers = internals.all_layers(model)
        calls = [len(op._inbound_nodes) + len(op._outbound_nodes) for op in layers]
        return len(models), sum(calls)

    counts = []
    for cache in (shared, "auto", shared):
        fit_stages(model, stages, data, data, cache=cache, verbose=0)
        evaluate(model, data, shared)
        counts.append(left())
    assert counts[1:] == counts[:1] * 2
