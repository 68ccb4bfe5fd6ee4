"""The doctor: each symptom is found where it is, its cure mends the plan, and health is health."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.runs.diagnosing import DRIFT

HEAD, TWO = tlk.recipes.head_only(9), tlk.recipes.two_stage(9, 9)


def ran(plan, *stages, failed=""):
    """A run whose stages went as these dictionaries of columns say."""
    run = tlk.Run(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]), plan)
    for stage, columns in zip(plan.stages, stages, strict=False):
        epochs = len(columns["loss"])
        run.history.setdefault("stage", []).extend([stage.name] * epochs)
        run.history.setdefault("epoch", []).extend(range(epochs))
        for name, values in columns.items():
            run.history.setdefault(name, []).extend(np.asarray(values, float).tolist())
        run.stages.append(SimpleNamespace(stopped="", failed=failed))
    return run


def course(loss, val_loss, accuracy, val_accuracy):
    return {"loss": loss, "val_loss": val_loss, "accuracy": accuracy, "val_accuracy": val_accuracy}


FALL = np.geomspace(2, 0.1, 9)
GOOD = course(FALL, FALL + 0.1, 1 - FALL / 2, 0.95 - FALL / 2)
TUNED = course(FALL / 20 + 0.05, FALL / 20 + 0.15, np.full(9, 0.97), np.full(9, 0.92))


@pytest.mark.parametrize("plan", [HEAD, TWO])
def test_nothing_is_found_in_a_healthy_run(plan):
    found = ran(plan, GOOD, TUNED).diagnose()
    assert not found and repr(found) == "Nothing found." and "Nothing" in found._repr_html_()


def test_a_rate_too_high_after_unfreezing():
    shaken = TUNED | {"val_accuracy": np.r_[0.5, np.full(8, 0.9)]}
    [found] = tlk.diagnose(ran(TWO, GOOD, shaken))
    assert "dropped" in found.symptom and "0.900 to 0.500" in found.evidence
    assert found.apply(TWO).stages[1].learning_rate == TWO.stages[1].learning_rate / 10
    assert found.apply(TWO).stages[0] == TWO.stages[0]
    plan = tlk.Plan([TWO.stages[0], TWO.stages[1].replace(batchnorm="train")])
    [found] = findings = tlk.diagnose(ran(plan, GOOD, shaken))
    assert "BatchNorm" in found.symptom and found.evidence in repr(findings)
    assert found.apply(plan).stages[1].batchnorm == "frozen"


def test_overfitting_lets_fewer_blocks_learn():
    plan = tlk.recipes.full(9)
    up = np.r_[FALL[:4] + 0.1, np.linspace(0.8, 1.6, 5)]
    [found] = tlk.diagnose(ran(plan, course(FALL, up, 1 - FALL / 2, np.full(9, 0.6))))
    assert "by heart" in found.cause and "0.95 and 0.60" in found.evidence
    assert found.apply(plan).stages[0].policy == tlk.policies.last_blocks(1)


def test_a_loss_that_is_no_number():
    [found] = tlk.diagnose(ran(TWO, GOOD, failed="the loss became nan in epoch 2"))
    slower, before = found.apply(TWO).stages[0], TWO.stages[0]
    assert slower.learning_rate == pytest.approx(before.learning_rate / 10)


def test_a_run_without_its_plan_says_so():
    run = ran(HEAD, GOOD)
    run.plan = None
    with pytest.raises(ValueError, match="with its plan"):
        run.diagnose()


def test_losses_that_are_missing_or_no_numbers_are_no_symptom():
    bad = np.full(9, np.nan)
    assert not tlk.diagnose(ran(TWO, GOOD | {"val_loss": bad}, TUNED | {"val_loss": bad}))
    bare = [{k: v for k, v in part.items() if k != "val_loss"} for part in (GOOD, TUNED)]
    assert not tlk.diagnose(ran(TWO, *bare))


def test_a_head_at_its_limit_opens_a_block():
    flat = course(np.r_[2, 1.5, np.full(7, 1.4)], np.full(9, 1.5), np.full(9, 0.5), np.full(9, 0.5))
    [found] = tlk.diagnose(ran(HEAD, flat))
    assert found.apply(HEAD).stages[1].policy == tlk.policies.last_blocks(1)
    assert "unfreeze" in found.fix


def test_an_end_before_the_loss_stops_falling():
    falling = np.linspace(2, 1.5, 9)
    [found] = tlk.diagnose(ran(HEAD, course(falling, falling, 0.4 - 0 * falling, 0.25 + 0 * FALL)))
    assert found.apply(HEAD).stages[0].epochs == 27


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = with_head(small_backbone())
    data = easy_data(96)
    run = tlk.fit_stages(model, tlk.recipes.full(20, 1e-2), data, easy_data(200, seed=1),
                         verbose=0, seed=0)  # fmt: skip
    return run, data


def test_with_data_a_healthy_run_stays_healthy_and_the_model_as_it_is(trained):
    run, data = trained
    before = [np.array(v) for v in run.model.variables]
    assert not run.diagnose(data, easy_data(200, seed=1))
    assert all(np.array_equal(a, v) for a, v in zip(before, run.model.variables, strict=True))


def test_statistics_that_do_not_fit():
    keras.utils.set_random_seed(0)
    model, plan = with_head(small_backbone()), tlk.recipes.full(15, 1e-2, batchnorm="train")
    run = tlk.fit_stages(model, plan, easy_data(96), verbose=0, seed=0)
    for norm in (x for x in model.layers[1].layers if x.name.endswith("_bn")):
        norm.moving_mean.assign(norm.moving_mean + 50)
    [found] = run.diagnose(easy_data(96))
    assert "BatchNorm" in found.cause
    assert [s.batchnorm for s in found.apply(plan).stages] == ["frozen"]


def test_labels_of_other_images_and_a_class_never_predicted(trained):
    run, _ = trained
    x, y = easy_data(200, seed=1)
    [found] = run.diagnose(validation=(x, (y + 1) % 3))
    assert "guessed" in found.symptom
    with pytest.raises(ValueError, match="not the plan's fault"):
        found.apply(run.plan)
    bias = run.model.layers[-1].bias
    kept = np.array(bias)
    bias.assign(kept - [0, 0, 100])
    found = run.diagnose(validation=(x, y))
    bias.assign(kept)
    assert "class 2: 0 of 66" in found[0].evidence


def test_images_that_were_trained_on_and_too_few_of_them(trained):
    run, (x, y) = trained
    found = run.diagnose((x, y), (x[:12], y[:12]))
    assert [f.symptom.split()[0] for f in found] == ["too", "validation"]
    assert "12 of 12" in found[1].evidence


def test_a_network_that_moved_far(trained):
    run, _ = trained
    before = keras.models.clone_model(run.model.layers[1])
    before.set_weights(run.model.layers[1].get_weights())
    assert not run.diagnose(before=before)
    kernels = [w for w in before.weights if len(w.shape) > 1]
    for kernel in kernels:
        kernel.assign(kernel * (1 + DRIFT / 80))
    assert "forgetting" in run.diagnose(before=before)[0].cause
    with pytest.raises(ValueError, match="as it was loaded"):
        run.diagnose(before=keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))


def test_labels_must_be_class_numbers(trained):
    run, (x, y) = trained
    with pytest.raises(ValueError, match="one class number for each of 96 images"):
        run.diagnose((x, keras.utils.to_categorical(y)))
