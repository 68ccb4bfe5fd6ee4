"""The loss is chosen where it is sure, and refused where it contradicts the model's ending."""

import keras
import numpy as np
import pytest
from keras import layers
from small import easy_data, small_backbone, with_head

from tlkeras.blocks.activation import endings
from tlkeras.inputs.objective import check_loss, counted, default_objective
from tlkeras.plans import recipes
from tlkeras.training.fit import fit_stages
from tlkeras.training.rate_finder import find_learning_rate

LOSSES = keras.losses


def ending_in(last, inputs=(8,)):
    entry = keras.Input(inputs)
    return keras.Model(entry, last(entry))


def dense(units=3, activation=None):
    return ending_in(layers.Dense(units, activation))


def nested():
    inner = ending_in(lambda x: layers.Softmax()(layers.Dense(3)(x)))
    return ending_in(lambda x: inner(layers.Dense(8)(x)))


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (dense, "logits"),
        (lambda: dense(activation="softmax"), "softmax"),
        (lambda: dense(activation=keras.ops.sigmoid), "sigmoid"),
        (lambda: dense(activation="relu"), None),
        (lambda: dense(activation=lambda x: x), None),
        (nested, "softmax"),
        (lambda: keras.Sequential([keras.Input((8,)), nested()]), "softmax"),
        (lambda: ending_in(lambda x: keras.ops.softmax(dense()(x))), "softmax"),
        (lambda: ending_in(lambda x: keras.ops.sigmoid(dense()(x))), "sigmoid"),
        (lambda: ending_in(lambda x: layers.Activation("sigmoid")(dense()(x))), "sigmoid"),
        (lambda: ending_in(lambda x: keras.ops.log_softmax(dense()(x))), "logits"),
        (lambda: ending_in(lambda x: dense()(x) / 2.0 + dense()(x)), "logits"),
        (lambda: ending_in(lambda x: dense(activation="softmax")(x) * 2.0), None),
        (lambda: ending_in(lambda x: dense(activation="softmax")(x)[:, :1]), None),
        (lambda: ending_in(layers.Softmax(axis=1), (4, 8)), None),
        (lambda: ending_in(layers.TimeDistributed(layers.Dense(3)), (4, 8)), "logits"),
        (lambda: ending_in(layers.Conv2D(3, 1, activation="softmax"), (4, 4, 8)), "softmax"),
    ],
)
def test_the_last_activation_is_found_through_the_graph(make, ending):
    assert endings(make()) == [ending]


ROWS = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], "float32")


@pytest.mark.parametrize(
    ("model", "labels", "loss", "metric"),
    [
        (dense(), np.arange(6) % 3, LOSSES.SparseCategoricalCrossentropy(from_logits=True), ""),
        (nested(), np.arange(6.0) % 3, LOSSES.SparseCategoricalCrossentropy(), ""),
        (nested(), np.eye(3), LOSSES.CategoricalCrossentropy(), ""),
        (dense(3, "sigmoid"), np.eye(3), LOSSES.BinaryCrossentropy(), 0.5),
        (dense(), ROWS, LOSSES.BinaryCrossentropy(from_logits=True), 0.0),
        (dense(3, "sigmoid"), ROWS, LOSSES.BinaryCrossentropy(), 0.5),
        (dense(1), np.arange(6) % 2, LOSSES.BinaryCrossentropy(from_logits=True), 0.0),
        (dense(1, "sigmoid"), ROWS[:, :1], LOSSES.BinaryCrossentropy(), 0.5),
        (
            ending_in(layers.Conv2D(2, 1), (4, 4, 8)),
            np.ones((4, 4, 4), int),
            LOSSES.SparseCategoricalCrossentropy(from_logits=True),
            "",
        ),
    ],
)
def test_it_is_chosen_for_the_labels_and_the_ending(model, labels, loss, metric):
    chosen, [counts] = default_objective(model, (np.zeros((len(labels), 8)), labels))
    assert type(chosen) is type(loss) and chosen.from_logits == loss.from_logits
    assert counts == "accuracy" if metric == "" else counts.threshold == metric


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (dense(1), np.linspace(1, 2, 6), r"from 1 to 2\. Pass loss=\.\.\., e\.g\. 'mse'"),
        (dense(1), np.arange(6), "e.g. 'mse'"),
        (dense(4), np.random.default_rng(0).uniform(0, 9, (6, 4)), "e.g. 'mse'"),
        (dense(), np.full((6, 3), 1 / 3), "e.g. 'mse'"),
        (dense(3, "softmax"), ROWS, "logits or sigmoid.*rows of 0 and 1; found a softmax"),
        (dense(3, "sigmoid"), np.arange(6) % 3, "logits or softmax.*class numbers.*a sigmoid"),
        (dense(3, "relu"), np.arange(6) % 3, "activation is not known"),
    ],
)
def test_where_it_is_not_sure_it_is_asked_for(model, labels, message):
    with pytest.raises(ValueError, match=message):
        default_objective(model, (np.zeros((len(labels), 8)), labels))


def test_of_a_subclassed_model_the_loss_is_asked_for_and_a_given_one_is_taken():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = layers.Dense(3)
            self.unused = layers.BatchNormalization()

        def call(self, x):
            return self.out(keras.ops.mean(x, (1, 2)))

    model, (x, y) = Own(), easy_data(12)
    model(x)
    with pytest.raises(ValueError, match=r"Own, whose call is its own\. Pass loss="):
        default_objective(model, (x, y))
    check_loss(model, "sparse_categorical_crossentropy")


@pytest.mark.parametrize(
    ("model", "loss", "right"),
    [
        (dense(), "sparse_categorical_crossentropy", r"SparseCategorical.*from_logits=True"),
        (dense(), LOSSES.categorical_crossentropy, r"CategoricalCrossentropy\(from_logits=True"),
        (dense(1), "bce", r"BinaryCrossentropy\(from_logits=True"),
        (dense(), LOSSES.CategoricalFocalCrossentropy(), r"CategoricalFocal.*from_logits=True"),
        (
            nested(),
            LOSSES.SparseCategoricalCrossentropy(from_logits=True),
            r"softmax.*from_logits=False\)",
        ),
        (
            dense(1, "sigmoid"),
            LOSSES.BinaryCrossentropy(from_logits=True),
            r"sigmoid.*from_logits=False\)",
        ),
        (dense(1), "sparse_categorical_crossentropy", "always 0"),
    ],
)
def test_a_loss_that_contradicts_the_ending_is_refused(model, loss, right):
    with pytest.raises(ValueError, match=right):
        check_loss(model, loss)


def test_of_several_outputs_each_loss_is_looked_at():
    entry = keras.Input((8,))
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(entry),
        "size": layers.Dense(1, name="size")(entry),
    }
    model = keras.Model(entry, outputs)
    check_loss(model, {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    with pytest.raises(ValueError, match="from_logits=True"):
        check_loss(model, {"kind": "sparse_categorical_crossentropy", "size": "bce"})


def test_losses_of_ones_own_and_sigmoids_with_softmax_losses_are_left_alone():
    class Own(LOSSES.BinaryCrossentropy):
        pass

    check_loss(dense(1), Own())
    check_loss(dense(1), lambda y, p: p)
    check_loss(dense(), "mse")
    check_loss(dense(3, "sigmoid"), "categorical_crossentropy")


def test_accuracy_of_one_score_is_counted_at_0(data):
    x, y = data
    scores = LOSSES.BinaryCrossentropy(from_logits=True)
    [metric, kept] = counted(dense(1), scores, ["accuracy", "mae"])
    assert metric.threshold == 0 and metric.name == "accuracy" and kept == "mae"
    assert counted(dense(1), "bce", ["accuracy"]) == ["accuracy"]
    assert counted(dense(3), scores, ["accuracy"]) == ["accuracy"]
    model, y = with_head(small_backbone(), classes=1), y % 2
    run = fit_stages(model, recipes.head_only(1), (x, y), (x, y), seed=0, verbose=0)
    right = (model.predict(x, verbose=0)[:, 0] > 0) == y
    assert run.history["val_accuracy"][-1] == pytest.approx(right.mean())


def test_several_labels_are_learned_as_such(data):
    x, y = data
    rows = np.stack([y > 0, y > 1, y >= 0], 1).astype("int32")
    run = fit_stages(with_head(small_backbone()), recipes.head_only(1), (x, rows), verbose=0)
    assert "binary_accuracy" in run.history


def test_masks_may_leave_a_class_out(data):
    x, _ = data
    entry = keras.Input((16, 16, 3))
    model = keras.Model(entry, layers.Conv2D(2, 1)(layers.UpSampling2D(8)(small_backbone()(entry))))
    mask = (x[..., 0] > 0).astype("int32")
    mask[:, 0] = 255
    loss = LOSSES.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    run = fit_stages(model, recipes.head_only(1), (x, mask), loss=loss, verbose=0)
    assert np.isfinite(run.history["loss"]).all()
    plain = LOSSES.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="found 255"):
        fit_stages(model, recipes.head_only(1), (x, mask), loss=plain, verbose=0)


def test_the_sweep_refuses_the_same(data):
    with pytest.raises(ValueError, match="from_logits=True"):
        find_learning_rate(
            with_head(small_backbone()), data, loss="sparse_categorical_crossentropy"
        )
