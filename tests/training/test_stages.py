"""What a stage has of its own, which stage is kept, and what is refused before the first trains."""

import warnings

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)
LAST = Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=2)
WILD = LAST.replace(name="wild", learning_rate=3.0)
DATA, TESTED = easy_data(48), easy_data(24, seed=1)
OTHER = easy_data(30, seed=2)


def fresh(size=16):
    keras.utils.set_random_seed(0)
    backbone = small_backbone()
    if size is None:  # takes any
        entry = keras.Input((None, None, 3))
        flat = keras.models.clone_model(backbone, input_tensors=entry)
        flat.set_weights(backbone.get_weights())
        backbone = flat
    return with_head(backbone)


def train(plan, data=DATA, tested=TESTED, model=None, **options):
    model = model or fresh()
    run = fit_stages(model, plan, data, tested, **{"seed": 0, "verbose": 0} | options)
    return model, run


def equal(one, other, atol=1e-6):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


class Seen(keras.callbacks.Callback):
    """Writes down what it is told; ends training as a crash would in the `at`-th epoch."""

    def __init__(self, at=0):
        super().__init__()
        self.told, self.left = [], at

    def on_train_begin(self, logs=None):
        self.told.append("begin")

    def on_train_end(self, logs=None):
        self.told.append("end")

    def on_epoch_begin(self, epoch, logs=None):
        self.told.append(epoch)
        self.left -= 1
        if self.left == 0:
            raise OSError("power cut")


def test_a_last_stage_that_ends_worse_is_said_once():
    with pytest.warns(RuntimeWarning, match="'wild' ended at val_loss.*worse than stage 'head'"):
        _, run = train([HEAD, WILD], verbose=1)
    assert run.worse in repr(run) and not run.kept
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train([HEAD, LAST], verbose=1)
        assert train([HEAD, WILD])[1].worse  # says it when it is looked at


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("stages", [[HEAD, WILD], [HEAD, LAST], [HEAD, LAST, WILD]], ids=len)
def test_the_best_stage_of_the_run_is_kept(stages, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model, run = train(stages, keep="best_of_run", cache=cache)
    best = min(run.history["val_loss"])
    assert model.evaluate(*TESTED, verbose=0)[0] == pytest.approx(best, rel=1e-4)
    assert run.kept == [s.name for s in run.stages if s.metrics["val_loss"] == best][0]
    assert (run.kept in run.worse) == (stages[-1] is WILD)


@pytest.mark.parametrize("at", [2, 3, 4, 5])
def test_the_best_stage_is_kept_by_a_run_that_was_killed(tmp_path, at):
    plan = [HEAD, WILD, WILD.replace(name="wilder")]
    whole, _ = train(plan, keep="best_of_run")
    with pytest.raises(OSError, match="power cut"):
        train(plan, keep="best_of_run", backup_dir=tmp_path, callbacks=[Seen(at)])
    resumed, run = train(plan, keep="best_of_run", backup_dir=tmp_path, callbacks=[Seen()])
    equal(whole, resumed)
    assert run.kept == "head"
    with pytest.raises(ValueError, match="of another training: keep"):
        train(plan, backup_dir=tmp_path, callbacks=[Seen()])


def test_the_best_stage_is_kept_by_a_plan_that_grew(tmp_path):
    more = Stage("all", policies.all_blocks(), learning_rate=1.0, epochs=1)
    whole, _ = train([HEAD, WILD, more], keep="best_of_run")
    train([HEAD, WILD], keep="best_of_run", backup_dir=tmp_path, callbacks=[Seen()])
    grown, run = train([HEAD, WILD, more], keep="best_of_run", backup_dir=tmp_path,
                       callbacks=[Seen()])  # fmt: skip
    equal(whole, grown)
    assert run.kept == "head" and len(run.stages) == 3


def test_after_an_error_the_best_stage_is_kept():
    model = fresh()
    with pytest.raises(OSError, match="power cut") as caught:
        train([HEAD, WILD], model=model, keep="best_of_run", callbacks=[Seen(4)])
    expected, _ = train([HEAD])
    equal(model, expected)
    assert caught.value.run.kept == "head"


@pytest.mark.parametrize(
    ("stages", "tested", "message"),
    [
        ([HEAD, LAST], None, "on no validation data"),
        ([HEAD, LAST.replace(monitor="val_accuracy")], TESTED, "val_accuracy auto, val_loss auto"),
        ([HEAD, LAST.replace(validation_data=OTHER)], TESTED, "on 2 validation data"),
    ],
)
def test_stages_that_cannot_be_compared_are_refused(stages, tested, message):
    with pytest.raises(ValueError, match=message):
        train(stages, tested=tested, keep="best_of_run")
    with pytest.raises(ValueError, match="found 'best'"):
        train(stages, keep="best")


@pytest.mark.parametrize("cache", [True, False])
def test_callbacks_of_a_stage_begin_and_end_with_it(cache):
    own, whole = Seen(), Seen()
    train([HEAD, LAST.replace(callbacks=[own])], cache=cache, callbacks=[whole])
    assert own.told == ["begin", 0, 1, "end"]
    assert whole.told == ["begin", 0, 1, 2, 3, "end"]


@pytest.mark.parametrize("cache", [True, False])
def test_data_and_batch_size_of_a_stage_are_what_it_trains_on(cache):
    stage = HEAD.replace(data=DATA, validation_data=TESTED, batch_size=8)
    ours, run = train([stage], data=None, tested=None, cache=cache)
    expected, other = train([HEAD], batch_size=8, cache=cache)
    equal(ours, expected)
    assert run.history == other.history


def larger(data, size):
    x, y = data
    return np.repeat(np.repeat(x, size // 16, 1), size // 16, 2), y


@pytest.mark.parametrize("tested", [TESTED, None], ids=["validated", "not"])
def test_pictures_may_grow_from_stage_to_stage(tested):
    plan = [
        HEAD,
        LAST.replace(data=larger(DATA, 32), batch_size=16, epochs=1),
        LAST.replace(
            name="large", data=larger(OTHER, 48), validation_data=tested and larger(tested, 48)
        ),
    ]
    cached, run = train(plan, tested=tested, model=fresh(None))
    plain, other = train(plan, tested=tested, model=fresh(None), cache=False)
    assert "after" in run.stages[0].cache and "after" in run.stages[2].cache
    assert ("other shapes" if tested else "after") in run.stages[1].cache
    equal(cached, plain, atol=1e-5)
    np.testing.assert_allclose(run.history["loss"], other.history["loss"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_a_run_with_data_of_its_stages_goes_on(tmp_path, kind):
    def plan():
        data = OTHER
        if kind == "tf.data":
            tf = pytest.importorskip("tensorflow")
            data = tf.data.Dataset.from_tensor_slices(data).shuffle(30, seed=1).batch(8)
        return [HEAD, LAST.replace(data=data, batch_size=8, epochs=3)]

    whole, _ = train(plan(), backup_dir=tmp_path / "whole")
    with pytest.raises(OSError, match="power cut"):
        train(plan(), backup_dir=tmp_path / "cut", callbacks=[Seen(4)])
    resumed, run = train(plan(), backup_dir=tmp_path / "cut", callbacks=[Seen()])
    equal(whole, resumed)
    assert run.stages[1].epochs == 3
    if kind == "arrays":
        turned = {"augment": lambda x, y: (x[:, ::-1], y)}
        for change in ({"data": DATA}, {"batch_size": 16}, turned):
            stages = [HEAD, plan()[1].replace(**change)]
            with pytest.raises(ValueError, match=f"stages 2, {next(iter(change))}"):
                train(stages, backup_dir=tmp_path / "cut", callbacks=[Seen()])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"policy": policies.named("nowhere")}, {}, "nowhere"),
        ({"policy": lambda blocks: []}, {}, "expected a block that learns"),
        ({"rates": {"nowhere": 1.0}}, {}, "nowhere"),
        ({"rates": {"*": 0.0}}, {}, "with a rate above 0"),
        ({"monitor": "val_auc"}, {}, r"'last' monitors 'val_auc'; found val_accuracy, val_loss"),
        ({"data": (DATA[0][:, :8], DATA[1])}, {}, r"found \(8, 16, 3\)"),
        ({"data": (DATA[0][8:], DATA[1])}, {}, "found 40 in x, 48 in y"),
        ({"data": (DATA[0], DATA[1] + 1)}, {}, "from 0 to 2"),
        ({"validation_data": (TESTED[0], TESTED[1] + 1)}, {}, "Of the validation data"),
        ({"data": (*DATA, np.ones(48))}, {"class_weight": {0: 2.0}}, "not both"),
        ({"data": DATA}, {"validation_split": 0.2, "tested": None}, "same data for all stages"),
        ({"augment": lambda x: x[:, ::2]}, {}, r"Stage 'last' cannot augment.*found \(8, 16, 3\)"),
        ({"augment": lambda x, y: 1 / 0}, {}, "cannot augment: division by zero"),
        ({"augment": keras.layers.MixUp()}, {}, "cannot augment: Expected one-hot"),
        ({"policy": policies.all_blocks()}, {"cache": True}, "cache=True, but the first block"),
        ({"callbacks": [keras.callbacks.BackupAndRestore("b")]}, {}, "Pass backup_dir"),
    ],
    ids=range(16),
)
def test_what_is_wrong_with_a_later_stage_is_said_before_the_first_trains(change, options, message):
    model, seen = fresh(), Seen()
    with pytest.raises(ValueError, match=message):
        train([HEAD, LAST.replace(**change)], model=model, callbacks=[seen], **options)
    assert not seen.told
    equal(model, fresh(), atol=0)


def test_a_later_stage_of_which_the_user_closed_everything_is_refused_before():
    model, seen = fresh(), Seen()
    model.layers[-1].trainable = False
    with pytest.raises(ValueError, match="found all of them closed by hand"):
        train([LAST, HEAD.replace(batchnorm="affine")], model=model, callbacks=[seen])
    assert not seen.told


def test_no_data_at_all_are_refused():
    with pytest.raises(ValueError, match="Expected data for every stage"):
        train([HEAD.replace(data=DATA), LAST], data=None)
