"""The user's callbacks see one `fit` over all stages, with the cache and without."""

import csv

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages
from tlkeras.training.one_run import flat

PLAN = [
    Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2),
    Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=3),
]
AVERAGING = {"use_ema": True, "ema_momentum": 0.9}


def fresh():
    keras.utils.set_random_seed(0)
    return with_head(small_backbone())


def train(*callbacks, model=None, plan=PLAN, **options):
    model = model or fresh()
    options = {"seed": 0, "verbose": 0} | options
    return model, fit_stages(
        model, plan, easy_data(45), easy_data(12, seed=1), callbacks=callbacks, **options
    )


def weights_of(model):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]


class Seen(keras.callbacks.Callback):
    """Writes down what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def on_train_begin(self, logs=None):
        self.told.append("begin")

    def on_train_end(self, logs=None):
        self.told += ["end", sorted(logs)]

    def on_epoch_begin(self, epoch, logs=None):
        self.told.append((epoch, self.params["epochs"]))


@pytest.mark.parametrize("cache", [False, True])
def test_epochs_count_on_and_a_log_keeps_all_its_lines(tmp_path, cache):
    seen, checkpoint = Seen(), str(tmp_path / "e{epoch:02d}.weights.h5")
    _, run = train(
        seen,
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(checkpoint, save_weights_only=True),
        cache=cache,
    )
    assert seen.told[:-1] == ["begin", (0, 2), (1, 2), (2, 5), (3, 5), (4, 5), "end"]
    assert {"loss", "val_loss"} <= set(seen.told[-1])
    assert run.history["epoch"] == [1, 2, 3, 4, 5]
    with open(tmp_path / "log.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "4"]
    assert len(list(tmp_path.glob("*.h5"))) == 5


def test_tensorboard_counts_its_steps_on(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("reads TensorFlow's event files")
    pytest.importorskip("tensorboard")
    import tensorflow as tf

    train(keras.callbacks.TensorBoard(str(tmp_path), write_graph=False))
    steps = [
        event.step
        for path in sorted((tmp_path / "train").glob("events*"))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        if any(value.tag == "epoch_loss" for value in event.summary.value)
    ]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cache", [False, True])
def test_early_stopping_ends_a_stage_and_the_next_begins_anew(cache):
    stuck = [stage.replace(learning_rate=1e-12, epochs=6) for stage in PLAN]
    callback = keras.callbacks.EarlyStopping("val_accuracy", patience=1)
    _, run = train(callback, plan=stuck, cache=cache)
    assert [stage.epochs for stage in run.stages] == [2, 2] and not run.stopped


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_swapped_averages_stay_averages(cache, swap):
    swapping = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap)
    optimizer = keras.optimizers.AdamW(**AVERAGING)
    model, run = train(swapping, optimizer=optimizer, cache=cache)
    loss = min(run.history["val_loss"][2:])
    assert model.evaluate(*easy_data(12, seed=1), verbose=0)[0] == pytest.approx(loss, rel=1e-4)
    other, _ = train(optimizer=keras.optimizers.AdamW(**AVERAGING), cache=cache,
                     plan=[PLAN[0]])  # fmt: skip
    swapped, _ = train(
        keras.callbacks.SwapEMAWeights(swap_on_epoch=swap), cache=cache, plan=[PLAN[0]],
        optimizer=keras.optimizers.AdamW(**AVERAGING),
    )  # fmt: skip
    for one, two in zip(weights_of(other), weights_of(swapped), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


class Fail(keras.callbacks.Callback):
    """Fails at the end of an epoch, or in the middle of it."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.batch, self.now = epoch, batch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None and epoch == self.at:
            raise RuntimeError("no quota")


class FailInBatch(Fail):
    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.at and batch == self.batch:
            raise RuntimeError("no quota")


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("failing", [Fail(3), FailInBatch(3, 1)], ids=["epoch", "batch"])
def test_after_an_error_in_a_callback_weights_flags_and_run_are_there(cache, failing, tmp_path):
    model = fresh()
    with pytest.raises(RuntimeError, match="no quota") as caught:
        train(failing, model=model, cache=cache)
    run = caught.value.run
    assert run.history["epoch"] == [1, 2, 3] and len(run.stages) == 2
    assert "RuntimeError in epoch 2; the weights are those of epoch 1" in run.stopped
    assert "attribute `run`" in caught.value.__notes__[0]
    expected, _ = train(plan=[PLAN[0], PLAN[1].replace(epochs=1)], cache=cache)
    for one, two in zip(weights_of(model), weights_of(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert type(model.optimizer) is keras.optimizers.AdamW
    assert [w.path for w in model.trainable_variables] == [
        w.path for w in expected.trainable_variables
    ]
    model.save(tmp_path / "m.keras")


def test_callbacks_that_would_undo_what_is_done_here_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Pass backup_dir"):
        train(keras.callbacks.BackupAndRestore(str(tmp_path / "b")))
    with pytest.raises(ValueError, match="swaps for validation alone"):
        train(
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True), backup_dir=tmp_path,
            optimizer=keras.optimizers.AdamW(**AVERAGING),
        )  # fmt: skip


def test_callbacks_are_taken_alone_nested_and_in_a_callback_list():
    one, two, three = Seen(), Seen(), Seen()
    listed = keras.callbacks.CallbackList([three])
    assert flat(None) == [] and flat(one) == [one]
    assert flat([one, [two], listed]) == [one, two, three]
    for odd in (keras.callbacks.TerminateOnNaN, print):
        with pytest.raises(TypeError, match="that are objects of"):
            flat([one, odd])
