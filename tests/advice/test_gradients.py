import keras
import numpy as np
import pytest
from small import easy_data, small_backbone

import tlkeras as tlk
from tlkeras.advice import linear


@pytest.mark.parametrize("names", [["ash", "elm"], ["ash", "elm", "oak"]])
def test_the_gradient_is_that_of_a_fitted_linear_model(names):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    y = np.arange(60) % len(names)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    kernel, bias = model.layers[0].get_weights()
    features = x @ kernel + bias
    fitted = linear.classifier(linear.strength(features, y)).fit(features, y)
    missed = fitted.predict_proba(features) - np.eye(len(names))[y]
    linear_model, scale = fitted[-1].coef_, fitted[0].scale_
    rows = np.vstack([-linear_model, linear_model]) / 2 if len(names) == 2 else linear_model
    back = missed @ (rows / scale) / len(x)
    size = np.sqrt(np.square(x.T @ back).sum() + np.square(back.sum(0)).sum())
    size /= np.sqrt(np.square(kernel).sum() + np.square(bias).sum())
    [(_, _, found, share)] = tlk.relative_gradients(model, (x, np.array(names)[y])).cells
    assert found == f"{size:.1e}" and share == "1.00"


def test_the_model_is_afterwards_as_before():
    model = tlk.add_head(small_backbone(), 3)
    tlk.freeze(model, tlk.policies.last_blocks(1))
    model.compile("adam", "sparse_categorical_crossentropy")
    optimizer, learning = model.optimizer, [w.path for w in model.trainable_weights]
    before = [np.array(variable) for variable in model.variables]
    found = tlk.relative_gradients(model, easy_data(90))
    assert [row[0] for row in found.cells] == ["stem", "stack1", "stack2"]
    assert model.optimizer is optimizer
    assert [w.path for w in model.trainable_weights] == learning
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(variable, value)


def test_one_class_is_refused():
    x, y = easy_data(20)
    with pytest.raises(ValueError, match="at least two classes; found"):
        tlk.relative_gradients(small_backbone(), (x, 0 * y))


def test_blocks_that_nothing_reaches_are_at_zero():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    model.layers[0].set_weights([np.zeros((4, 5)), np.zeros(5)])
    x, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    [(_, _, found, share)] = tlk.relative_gradients(model, (x, y)).cells
    assert (found, share) == ("0.0e+00", "0.00")
