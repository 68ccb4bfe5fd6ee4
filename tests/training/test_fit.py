import json
import warnings

import keras
import numpy as np
import pytest
from small import easy_data

from tlkeras.blocks.find import find_blocks
from tlkeras.freezing import policies
from tlkeras.optimizers import discriminative
from tlkeras.plans import recipes
from tlkeras.plans.plan import Plan, Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)
LAST = Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=3)


def values(weights):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in weights]


def all_equal(before, after):
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_each_stage_trains_its_blocks_and_leaves_the_others_bit_identical(model, data):
    blocks = find_blocks(model)
    frozen = [w for b in blocks[:-2] for w in b.weights]
    before, before_last = values(frozen), values(blocks[-2].weights)
    fit_stages(model, [HEAD], data, verbose=0)
    assert all_equal(before_last, values(blocks[-2].weights))
    fit_stages(model, [LAST], data, verbose=0)
    assert all_equal(before, values(frozen))
    assert not all_equal(before_last, values(blocks[-2].weights))


def test_the_history_is_one_over_all_stages(model, data):
    run = fit_stages(model, [HEAD, LAST], data, easy_data(12, seed=1), verbose=0)
    assert run.history["stage"] == ["head"] * 2 + ["last"] * 3
    assert run.history["epoch"] == [1, 2, 3, 4, 5]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} < set(run.history)
    assert all(len(column) == 5 for column in run.history.values())
    assert [s.epochs for s in run.stages] == [2, 3] and not run.stopped


@pytest.mark.parametrize("kind", ["arrays", "tf.data", "PyDataset", "list"])
def test_it_takes_any_data_that_fit_takes(model, data, kind):
    x, y = data

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return x[16 * i : 16 * i + 16], y[16 * i : 16 * i + 16]

    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices(data).batch(16)
    given = {"PyDataset": Batches(), "list": list(data)}.get(kind, data)
    run = fit_stages(model, [HEAD], given, given, verbose=0)
    assert len(run.history["val_accuracy"]) == 2


def test_the_best_epochs_weights_are_kept(model, data):
    validation = easy_data(24, seed=1)
    faster = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=2, decay_rate=4.0)
    plan = [Stage("wild", policies.all_blocks(), learning_rate=faster, epochs=6)]
    run = fit_stages(model, plan, data, validation, seed=0, verbose=0)
    best = min(run.history["val_loss"])
    assert run.history["val_loss"][-1] > best  # otherwise this run shows nothing
    assert model.evaluate(*validation, verbose=0)[0] == pytest.approx(best, rel=1e-4)
    assert run.stages[0].best_epoch == 1 + run.history["val_loss"].index(best)
    assert run.stages[0].metrics["val_loss"] == best


def test_a_stage_that_no_longer_improves_ends_early_and_the_next_one_runs(model, data):
    stuck = Stage("stuck", policies.head_only(), learning_rate=1e-12, epochs=9, patience=2)
    run = fit_stages(model, [stuck, HEAD], data, easy_data(12, seed=1), verbose=0)
    assert run.stages[0].epochs < 9
    assert "no better val_loss for 2 epochs" in run.stages[0].stopped
    assert run.stages[1].epochs == 2 and not run.stopped


def test_a_nan_loss_stops_the_run_at_the_last_good_weights(model, data):
    class Burst(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1].bias.assign([np.nan] * 3)

    head = Stage("head", policies.head_only(), epochs=3)
    with pytest.warns(
        RuntimeWarning, match=r"loss became nan in epoch 2.*weights are those of epoch 1"
    ):
        run = fit_stages(model, [head, LAST], data, callbacks=[Burst()], verbose=0)
    assert len(run.stages) == 1 and "nan" in run.stopped and run.stages[0].failed
    assert all(np.isfinite(value).all() for value in values(model.weights))


def test_a_run_that_diverges_in_its_last_stage_says_so(model, data):
    wild = Stage("wild", policies.all_blocks(), learning_rate=1e30, epochs=2)
    with pytest.warns(RuntimeWarning, match="before the stage"):
        run = fit_stages(model, [wild], data, optimizer=keras.optimizers.SGD(), verbose=0)
    assert "Lower the learning rate" in run.stopped


def test_a_frozen_weight_that_changes_is_an_error_that_names_it(model, data):
    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = find_blocks(self.model)[0].weights[0]
            kernel.assign(kernel + 1e-3)

        on_train_end = on_epoch_end

    class After(Meddler):
        """Runs after the weights of the best epoch are back."""

    with pytest.raises(RuntimeError, match=r"changed 1 frozen weight.*stack0_conv/kernel"):
        fit_stages(model, [HEAD], data, callbacks=[After()], verbose=0)


def test_a_seed_makes_two_runs_equal():
    from small import small_backbone, with_head

    results = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        model = with_head(small_backbone())
        fit_stages(model, [HEAD, LAST], easy_data(), seed=3, verbose=0)
        results.append(values(model.weights))
    assert all_equal(*results)


def test_the_loss_and_metrics_of_a_compiled_model_are_kept(model, data):
    x, y = data
    one_hot = keras.utils.to_categorical(y, 3)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["mae"])
    run = fit_stages(model, [HEAD, LAST], (x, one_hot), verbose=0)
    assert {"loss", "mae"} < set(run.history) and "accuracy" not in run.history


def test_the_given_optimizer_is_the_pattern_for_every_stage(model, data):
    pattern = keras.optimizers.SGD(0.5, momentum=0.9)
    fit_stages(model, [HEAD, LAST], data, optimizer=pattern, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.SGD) and model.optimizer is not pattern
    assert model.optimizer.momentum == 0.9
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_a_stage_trains_each_block_at_its_own_rate(model, data):
    rates = {"head": 1.0, "stack2": 0.1, "stack1": 0}
    stage = Stage("two", policies.last_blocks(2), 1e-3, epochs=1, rates=rates)
    before = values(find_blocks(model)["stack1"].weights)
    run = fit_stages(model, [stage], data, verbose=0)
    assert all_equal(before, values(find_blocks(model)["stack1"].weights))
    assert {s.block: s.rate for s in model.optimizer.shares} == {"head": 1.0, "stack2": 0.1}
    assert run.stages[0].learns.blocks == ["stack2", "head"]


def test_the_rates_of_the_given_optimizer_are_those_of_every_stage(model, data):
    rates = {"head": 1.0, "stack2": 0.1, "*": 0.01}
    pattern = discriminative(keras.optimizers.Adam(), model, rates)
    fit_stages(model, [LAST], data, optimizer=pattern, verbose=0)
    assert {s.block: s.rate for s in model.optimizer.shares} == {"head": 1.0, "stack2": 0.1}


def test_rates_that_leave_out_a_learning_block_are_refused_before_training(model, data):
    stage = Stage("last", policies.last_blocks(1), epochs=1, rates={"head": 1.0})
    with pytest.raises(ValueError, match="found none for stack2"):
        fit_stages(model, [HEAD, stage], data, verbose=0)


def test_moments_go_on_from_stage_to_stage_and_the_model_loads_without_tlkeras(model, data):
    ages = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:  # the first of the second stage
                ages.append({s.block: s.age for s in self.model.optimizer.shares})

    fit_stages(model, [HEAD, LAST], data, callbacks=[Look()], verbose=0)
    assert ages == [{"stack2": 0, "head": 4}]  # two epochs of two batches
    assert type(model.optimizer) is keras.optimizers.AdamW
    fit_stages(model, [LAST, HEAD.replace(name="more")], data, verbose=0)
    assert int(model.optimizer.iterations) == 6 + 6 + 4  # as `fit` goes on


def test_a_run_shows_itself_as_a_table_and_a_plot(model, data):
    run = fit_stages(model, [HEAD, LAST], data, verbose=0)
    assert "head" in repr(run) and "last" in run._repr_html_()
    assert len(run.plot().axes) == 2


def test_progress_leaves_one_line_a_stage_where_there_is_no_terminal(model, data, capfd):
    fit_stages(model, [HEAD, LAST], data)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stage ")]
    assert [line.split("  ")[:2] for line in lines] == [
        ["stage 1/2 head", "2 epochs"],
        ["stage 2/2 last", "3 epochs"],
    ]


def test_a_plan_survives_json():
    for plan in (
        recipes.head_only(),
        recipes.two_stage(blocks=2, patience=3),
        recipes.progressive(),
        recipes.middle_only(batchnorm="affine"),
        recipes.full(),
    ):
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_recipes_open_the_network_as_section_1_6_says():
    two, gradual = recipes.two_stage(), recipes.progressive(blocks=2)
    assert [str(s.policy) for s in two.stages] == ["head_only()", "last_blocks(1)"]
    assert 10 <= two.stages[0].learning_rate / two.stages[1].learning_rate <= 100
    assert [str(s.policy) for s in gradual.stages] == [
        "head_only()", "last_blocks(1)", "last_blocks(2)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan([]), "at least one stage"),
        (lambda: Plan([HEAD, HEAD]), "names must differ"),
        (lambda: Stage("x", policies.head_only(), epochs=0), "epochs must be 1 or more, found 0"),
        (lambda: Stage("x", policies.head_only(), learning_rate=0), "above 0, found 0"),
        (lambda: Stage("x", policies.head_only(), batchnorm="eval"), "found 'eval'"),
        (lambda: Stage("x", policies.head_only(), patience=0), "patience must be 1 or more"),
        (lambda: Stage("x", policies.head_only(), views=2), "views=2 needs augment"),
        (lambda: policies.last_blocks(0), "at least 1, found 0"),
        (lambda: policies.named(), "at least one block name"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stage_needs_a_policy_not_its_name():
    with pytest.raises(TypeError, match=r"expected a policy.*found 'head_only'"):
        Stage("x", "head_only")


def test_monitoring_a_metric_that_is_not_there_names_those_that_are(model, data):
    plan = [Stage("x", policies.head_only(), epochs=1, monitor="val_auc")]
    with pytest.raises(ValueError, match=r"'val_auc'; found .*val_accuracy"):
        fit_stages(model, plan, data, data, verbose=0)


@pytest.mark.parametrize("mode", ["frozen", "affine"])
def test_what_a_file_would_forget_is_said_once_at_the_end(mode, model, data):
    stages = [Stage(name, policies.all_blocks(), epochs=1, batchnorm=mode) for name in "ab"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit_stages(model, stages, data, verbose=0)
    said = [str(one.message) for one in caught if "After loading" in str(one.message)]
    assert said == ([run.unsaved] if mode == "affine" else [])
    assert ("batchnorm='affine'" in repr(run)) == (mode == "affine")


def test_a_run_with_rates_says_how_its_model_loads_without_us(model, data):
    stage = Stage("all", policies.all_blocks(), epochs=1, rates={"head": 1.0, "*": 0.1})
    assert "compile=False" in fit_stages(model, [stage], data, verbose=0).unsaved
