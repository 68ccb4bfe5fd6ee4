"""A killed training goes on where it was, and ends where the uninterrupted one ends."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.backup import difference, known
from tlkeras.training.fit import fit_stages
from tlkeras.utils.lock import lock

CHILD = Path(__file__).with_name("interrupted.py")
PLAN = [
    Stage("head", policies.head_only(), learning_rate=1e-2, epochs=3),
    Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=3),
]


class Die(keras.callbacks.Callback):
    """Ends training as a crash would, in the `at`-th epoch of all."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_epoch_begin(self, epoch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise OSError("power cut")


def fresh(seed=0):
    keras.utils.set_random_seed(seed)
    backbone = small_backbone()
    keras.utils.set_random_seed(0)
    return with_head(backbone)


def train(folder, plan=PLAN, data=None, model=None, die_at=0, **options):
    model = model or fresh()
    options = {"seed": 1, "verbose": 0, "validation_data": easy_data(12, seed=1)} | options
    run = fit_stages(
        model, plan, data or easy_data(45), backup_dir=folder, callbacks=[Die(die_at)], **options
    )
    return model, run


def difference_of(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.fixture(scope="module", params=["auto", False])
def uninterrupted(request, tmp_path_factory):
    """The whole training with the cache and without: how it was called, model and Run."""
    how = {"cache": request.param}
    return how, *train(tmp_path_factory.mktemp("whole"), **how)


@pytest.mark.parametrize("die_at", [1, 3, 4, 6])
def test_a_rerun_ends_at_the_weights_of_the_uninterrupted_run(tmp_path, die_at, uninterrupted):
    how, whole, expected = uninterrupted
    with pytest.raises(OSError, match="power cut"):
        train(tmp_path, die_at=die_at, **how)
    resumed, run = train(tmp_path, **how)
    assert difference_of(whole, resumed) < 1e-6
    assert run.history["epoch"] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(run.history["loss"], expected.history["loss"], rtol=1e-4)


def test_a_dataset_goes_on_in_its_order(tmp_path):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("shuffles with TensorFlow")

    def data():
        return tf.data.Dataset.from_tensor_slices(easy_data(45)).shuffle(45, seed=7).batch(8)

    whole, _ = train(tmp_path / "a", data=data())
    with pytest.raises(OSError):
        train(tmp_path / "b", data=data(), die_at=5)
    resumed, _ = train(tmp_path / "b", data=data())
    assert difference_of(whole, resumed) < 1e-6


def test_a_finished_training_is_not_run_again(tmp_path):
    whole, _ = train(tmp_path)
    again, run = train(tmp_path, die_at=1)  # would die in its first epoch
    assert difference_of(whole, again) == 0 and len(run.stages) == 2


def test_a_process_killed_in_the_middle_goes_on(tmp_path):
    def start(folder):
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, [CHILD.parents[1], CHILD.parents[2]]))
        }
        return subprocess.Popen(
            [sys.executable, CHILD, folder], stderr=subprocess.PIPE, text=True, env=env
        )

    def finished_epochs(folder):
        log = folder / "epochs.txt"
        return log.read_text().splitlines() if log.exists() else []

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference, child = start(whole), start(killed)
    while len(finished_epochs(killed)) < 4 and child.poll() is None:
        time.sleep(0.01)
    assert child.poll() is None, child.stderr.read()
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = start(killed)
    for process in (reference, again):
        assert process.wait(900) == 0, process.stderr.read()
    one, other = (np.load(folder / "weights.npz") for folder in (whole, killed))
    assert all(np.abs(one[name] - other[name]).max() < 1e-6 for name in one.files)
    repeated = len(finished_epochs(killed)) - len(finished_epochs(whole))
    assert 0 <= repeated <= 1


def test_half_a_file_is_never_seen(tmp_path, monkeypatch):
    with pytest.raises(OSError):
        train(tmp_path, die_at=3)
    before = (tmp_path / "backup.npz").read_bytes()

    def no_space(*args, **arrays):
        args[0].write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(OSError, match="no space"):
        train(tmp_path)
    assert (tmp_path / "backup.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": [PLAN[0], Stage("last", policies.last_blocks(1), 1e-4, 3)]},
         "plan, stages 2, learning_rate was 0.001 and is now 0.0001"),
        ({"data": easy_data(45, seed=3)}, "data, content was"),
        ({"data": easy_data(44)}, "data, examples was 45 and is now 44"),
        ({"seed": 2}, "seed was 1 and is now 2"),
        ({"batch_size": 16}, "batch size was 32 and is now 16"),
        ({"optimizer": keras.optimizers.SGD()}, "optimizer, "),
    ],
)  # fmt: skip
def test_other_work_is_refused_and_the_difference_named(tmp_path, change, message):
    with pytest.raises(OSError):
        train(tmp_path, die_at=3)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **change)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(OSError):
        train(tmp_path, die_at=3)
    with pytest.raises(ValueError, match="weights that the plan leaves alone was"):
        train(tmp_path, model=fresh(seed=9))
    wider = with_head(small_backbone((4, 6, 10)))
    with pytest.raises(ValueError, match="of another training: model"):
        train(tmp_path, model=wider)


def test_the_same_weights_in_another_graph_are_another_model(tmp_path):
    def model(activation):
        keras.utils.set_random_seed(0)
        backbone = small_backbone()
        image = keras.Input((16, 16, 3))
        x = keras.layers.GlobalAveragePooling2D()(backbone(image))
        x = keras.layers.Dense(4, activation, name="own")(x)
        return keras.Model(image, keras.layers.Dense(3)(x))

    rates = [PLAN[1].replace(rates={"head": 1.0, "top": 0.5})]
    with pytest.raises(OSError):
        train(tmp_path, rates, model=model("relu"), die_at=3)
    resumed, _ = train(tmp_path, rates, model=model("relu"))  # whose layers have other numbers
    assert difference_of(resumed, train(tmp_path / "a", rates, model=model("relu"))[0]) == 0
    with pytest.raises(ValueError, match="of another training: graph was"):
        train(tmp_path, rates, model=model("tanh"))


def test_callbacks_that_compare_epochs_go_on_comparing(tmp_path):
    def judged(folder, die_at=0):
        slower = keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=99, factor=0.5)
        stages = [PLAN[0].replace(epochs=5, callbacks=[slower])]
        return train(folder, stages, die_at=die_at)

    whole, _ = judged(tmp_path / "a")
    with pytest.raises(OSError):
        judged(tmp_path / "b", die_at=3)
    resumed, _ = judged(tmp_path / "b")
    assert difference_of(whole, resumed) == 0
    assert float(resumed.optimizer.learning_rate) == pytest.approx(1e-2 / 16)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A backup of a training that died in its third epoch."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.raises(OSError):
        train(folder, die_at=3)
    return (folder / "backup.npz").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"not a zip file",
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:3000] + bytes([whole[3000] ^ 255]) + whole[3001:],
        lambda whole: b"\0" * len(whole),
    ],
    ids=["text", "empty", "half", "all but one", "one changed", "zeros"],
)
def test_a_file_that_is_no_backup_is_refused(tmp_path, damage, half_done):
    (tmp_path / "backup.npz").write_bytes(damage(half_done))
    with pytest.raises(ValueError, match=r"backup.npz is no backup that can be read.*Remove it"):
        train(tmp_path)


def test_a_whole_file_of_other_things_is_refused(tmp_path):
    np.savez(tmp_path / "backup.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"no backup that can be read.*Remove it"):
        train(tmp_path)


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path):
    busy = pytest.raises(ValueError, match="Another training is writing its backup to")
    with lock(tmp_path / "backup.lock"), busy:
        train(tmp_path)
    short = [PLAN[0].replace(epochs=1)]
    train(tmp_path, plan=short)

    class Intrude(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            train(tmp_path, plan=short)

    with pytest.raises(ValueError, match="Wait for it to end or stop it"):
        fit_stages(fresh(), [PLAN[0]], easy_data(45), easy_data(12, seed=1),
                   backup_dir=tmp_path, callbacks=[Intrude()], seed=1, verbose=0)  # fmt: skip


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    save, tries = np.savez, []

    def full(file, **arrays):
        tries.append(file)
        if len(tries) == 1:
            return save(file, **arrays)
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(RuntimeWarning, match="No room for a backup") as said:
        whole, run = train(tmp_path, cache=False)
    assert len(run.history["epoch"]) == 6 == len(tries)
    assert len([w for w in said if "No room" in str(w.message)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.lock", "backup.npz"]
    monkeypatch.undo()
    again, run = train(tmp_path, cache=False)  # from the one that was whole
    assert difference_of(whole, again) < 1e-6


@pytest.mark.parametrize("cache", ["auto", False])
def test_a_finished_run_is_extended_by_epochs_and_stages(tmp_path, cache):
    short = [PLAN[0], PLAN[1].replace(epochs=1)]
    longer = [*PLAN, Stage("more", policies.last_blocks(2), learning_rate=1e-3, epochs=1)]
    train(tmp_path, plan=short, cache=cache)
    extended, run = train(tmp_path, plan=longer, cache=cache)
    whole, expected = train(tmp_path / "whole", plan=longer, cache=cache)
    assert difference_of(whole, extended) < 1e-6
    np.testing.assert_allclose(run.history["loss"], expected.history["loss"], rtol=1e-4)
    for plan in (short, [PLAN[0].replace(epochs=4), *longer[1:]], [longer[0], *longer[2:]]):
        with pytest.raises(ValueError, match="of another training: plan, stages"):
            train(tmp_path, plan=plan, cache=cache)


class Focal(keras.losses.Loss):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_pred), -1) * self.gamma


def scaled(factor):
    return lambda y_true, y_pred: keras.ops.mean(y_pred, -1) * factor


def test_a_loss_is_known_by_what_it_is_and_how_it_was_made():
    smooth = keras.losses.CategoricalCrossentropy
    makers = [
        lambda: Focal(1.0), lambda: Focal(2.0), lambda: scaled(1), lambda: scaled(2),
        lambda: smooth(), lambda: smooth(from_logits=True), lambda: smooth(label_smoothing=0.1),
        lambda: "mse", lambda: ["mse", "mae"], lambda: {"a": "mse"},
        lambda: functools.partial(scaled(1), 2), lambda: keras.metrics.AUC(num_thresholds=7),
        lambda: keras.metrics.AUC(num_thresholds=8),
    ]  # fmt: skip
    found = [json.dumps(known(make())) for make in makers]
    assert len(set(found)) == len(makers)
    assert found == [json.dumps(known(make())) for make in makers]


def test_a_loss_may_call_itself_and_others_that_call_it():
    def one(y, prediction):
        return two(one(y, prediction), {(1, 2): 3}) if y else prediction

    def two(y, prediction):
        return one(y, prediction)

    assert "one" in json.dumps(known(one))


def test_other_metrics_or_libraries_are_refused(tmp_path, half_done, monkeypatch):
    (tmp_path / "backup.npz").write_bytes(half_done)
    with pytest.raises(ValueError, match="another training: metrics"):
        train(tmp_path, metrics=["accuracy", keras.metrics.SparseCategoricalAccuracy()])
    monkeypatch.setattr(keras, "__version__", "3.0.0")
    with pytest.raises(ValueError, match=r"versions, keras was .* and is now \"3.0.0\""):
        train(tmp_path)


def test_ctrl_c_leaves_the_last_good_weights_and_the_run_so_far(tmp_path):
    class Press(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    model = fresh()
    with pytest.warns(RuntimeWarning, match="interrupted in epoch 3"):
        run = fit_stages(model, PLAN, easy_data(45), callbacks=[Press()], seed=1, verbose=0)
    assert run.history["epoch"] == [1, 2] and "weights are those of epoch 2" in run.stopped
    expected = fresh()
    fit_stages(expected, [Stage("head", policies.head_only(), 1e-2, epochs=2)], easy_data(45),
               seed=1, verbose=0)  # fmt: skip
    assert difference_of(model, expected) < 1e-6


def test_a_difference_is_named_by_its_place():
    old = {"plan": {"stages": [{"epochs": 1}, {"epochs": 2}]}, "seed": 0}
    new = json.loads(json.dumps(old))
    assert difference(old, new) == ""
    new["plan"]["stages"][1]["epochs"] = 3
    assert difference(old, new) == "plan, stages 2, epochs was 2 and is now 3"
