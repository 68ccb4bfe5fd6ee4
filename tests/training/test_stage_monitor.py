"""The judge of a stage: what is better, what is kept, what is said."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.plans.plan import Plan, Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=3)
LAST = Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=2)


def weights_of(model):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]


def fresh(classes=3):
    keras.utils.set_random_seed(0)
    return with_head(small_backbone(), classes)


def regression():
    x, y = easy_data(36)
    return x, y.astype("float32")


@pytest.mark.parametrize("cache", [False, "auto"])
@pytest.mark.parametrize(
    ("metric", "monitor", "best"),
    [
        ("mae", "val_mae", min),
        (keras.metrics.RootMeanSquaredError(name="far"), "val_far", min),
        (keras.metrics.R2Score(), "val_r2_score", max),
    ],
)
def test_the_metric_itself_says_which_direction_is_better(cache, metric, monitor, best):
    x, y = regression()
    y = y[:, None]
    run = fit_stages(
        fresh(1), [HEAD.replace(monitor=monitor)], (x, y), (x, y), loss="mse", metrics=[metric],
        cache=cache, seed=0, verbose=0,
    )  # fmt: skip
    seen = run.history[monitor]
    assert len(set(seen)) > 1 and run.stages[0].best_epoch == 1 + seen.index(best(seen))


def strange(y, prediction):
    return keras.ops.mean(keras.ops.abs(prediction))


def test_a_metric_that_does_not_say_is_asked_for(model, data):
    stage = HEAD.replace(monitor="val_strange")
    mean = keras.metrics.MeanMetricWrapper(strange, name="strange")
    for metric in (strange, mean):
        with pytest.raises(ValueError, match=r"less or more.*Stage\(mode='min'\)") as caught:
            fit_stages(model, [stage], data, data, metrics=[metric], verbose=0)
        assert not hasattr(caught.value, "run")  # before training
    for mode, best in (("min", min), ("max", max)):
        run = fit_stages(
            fresh(), [stage.replace(mode=mode)], data, data, metrics=[strange], verbose=0
        )
        seen = run.history["val_strange"]
        assert run.stages[0].best_epoch == 1 + seen.index(best(seen))


def test_less_than_min_delta_is_no_improvement(model, data):
    stage = HEAD.replace(min_delta=100.0, patience=1)
    run = fit_stages(model, [stage], data, data, verbose=0)
    assert run.stages[0].epochs == 2 and run.stages[0].best_epoch == 1
    assert run.stages[0].stopped == "no better val_loss for 1 epochs"


def test_a_metric_of_several_numbers_is_in_the_history_and_cannot_be_monitored(model, data):
    x, y = data[0], keras.utils.to_categorical(data[1], 3)
    how = {"loss": keras.losses.CategoricalCrossentropy(from_logits=True), "verbose": 1}
    f1 = keras.metrics.F1Score()
    run = fit_stages(model, [HEAD], (x, y), (x, y), metrics=[f1], **how)
    assert np.shape(run.history["val_f1_score"]) == (3, 3)
    assert "val_f1_score" in repr(run) and run.plot()
    stage = HEAD.replace(monitor="val_f1_score")
    with pytest.raises(ValueError, match="one number; found 3 numbers"):
        fit_stages(model, [stage], (x, y), (x, y), metrics=[f1], **how)


@pytest.mark.parametrize("cache", [False, "auto"])
def test_nan_in_validation_ends_the_run_and_keeps_what_was_learned(cache):
    x, y = regression()
    wrong = y.copy()
    wrong[3] = np.nan
    model = fresh(1)
    before = weights_of(model)
    with pytest.warns(RuntimeWarning, match=r"val_loss became nan.*weights are those of epoch 1"):
        run = fit_stages(
            model, [HEAD, LAST], (x, y), (x, wrong), loss="mse", cache=cache, verbose=0
        )
    assert len(run.stages) == 1 and run.stages[0].best_epoch == 1 and "val_loss" in run.stopped
    changed = [not np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True)]
    assert any(changed)


def test_weights_that_are_nan_are_not_kept_though_the_loss_is_a_number(model, data):
    class Burst(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            self.model.layers[-1].bias.assign([np.nan] * 3)

    with pytest.warns(RuntimeWarning, match="val_loss became nan.*before the stage"):
        fit_stages(model, [HEAD], data, data, callbacks=[Burst()], cache=False, verbose=0)
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


@pytest.mark.parametrize("cache", [False, True])
def test_averaged_weights_are_kept_as_fit_keeps_them(cache, data):
    def optimizer():
        return keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)

    class Raw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.last = weights_of(self.model)

    raw, model = Raw(), fresh()
    fit_stages(
        model, [HEAD], data, optimizer=optimizer(), callbacks=[raw], cache=cache, seed=0, verbose=0
    )
    kept = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    assert not np.allclose(kept, raw.last[-2], atol=1e-4)
    expected = fresh()
    for layer in expected.layers[:-1]:
        layer.trainable = False
    expected.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    orders = [np.random.default_rng([0, 0, epoch]).permutation(len(data[0])) for epoch in range(3)]
    x, y = (np.concatenate([part[order] for order in orders]) for part in data)
    batches = [(x[48 * e : 48 * e + 48], y[48 * e : 48 * e + 48]) for e in range(3)]

    class Same(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            epoch, half = divmod(i, 2)
            return tuple(part[32 * half : 32 * half + 32] for part in batches[epoch])

    expected.fit(Same(), shuffle=False, verbose=0)
    np.testing.assert_allclose(
        kept, keras.ops.convert_to_numpy(expected.layers[-1].kernel), atol=1e-5
    )


def test_a_train_step_of_ones_own_needs_no_loss_in_its_logs(data):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a train_step has other arguments there")

    class Own(keras.Model):
        def train_step(self, batch):
            super().train_step(batch)
            return {"steps": 1.0}

    base = fresh()
    model = Own(base.input, base.output)
    run = fit_stages(model, [HEAD], data, cache=False, verbose=0)
    assert run.history["steps"] == [1, 1, 1] and run.stages[0].best_epoch == 3
    assert run.plot()


def test_a_last_stage_that_ends_worse_is_said(model, data):
    wild = LAST.replace(learning_rate=3.0)
    run = fit_stages(model, [HEAD, wild], data, data, seed=0, verbose=0)
    assert "stage 'last' ended at val_loss" in run.worse and run.worse in repr(run)
    assert "worse than stage 'head'" in run._repr_html_().replace("&#x27;", "'")
    assert not fit_stages(fresh(), [HEAD], data, data, verbose=0).worse


def test_plans_of_the_first_version_are_read_and_newer_ones_refused():
    stored = Plan([HEAD]).to_dict()
    old = {"stages": [{k: v for k, v in s.items() if k not in ("mode", "min_delta")}
                      for s in stored["stages"]]}  # fmt: skip
    assert Plan.from_dict(old) == Plan.from_dict(stored) == Plan([HEAD])
    with pytest.raises(ValueError, match="Update tlkeras"):
        Plan.from_dict(stored | {"version": 99})
    with pytest.raises(ValueError, match="unknown in a stored plan: colour"):
        Plan.from_dict({"stages": [stored["stages"][0] | {"colour": 1}]})


@pytest.mark.parametrize(
    ("change", "message"), [({"mode": "up"}, "found 'up'"), ({"min_delta": -1}, "found -1")]
)
def test_a_judge_that_cannot_judge_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HEAD.replace(**change)


def test_random_numbers_go_on_where_they_were_when_the_best_weights_are_put_back():
    """As with `EarlyStopping`: else later stages would see the same noise again."""
    keras.utils.set_random_seed(0)
    noise = keras.layers.Dropout(0.5)
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(1)(noise(keras.layers.Dense(4)(x))))
    data = np.ones((8, 4)), np.ones((8, 1))
    stage = Stage("all", policies.all_blocks(), 10.0, epochs=3)
    run = fit_stages(model, [stage], data, data, loss="mse", batch_size=4, verbose=0)
    assert run.stages[0].best_epoch < 3
    assert keras.ops.convert_to_numpy(noise.seed_generator.state)[1] == 3 * 2
