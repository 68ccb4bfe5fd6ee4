"""Data that would train without an error and only show as a bad result."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.inputs.checks import check
from tlkeras.inputs.objective import default_objective
from tlkeras.plans import recipes
from tlkeras.training.fit import fit_stages

PLAN = recipes.head_only(epochs=1)


def fit(model, data):
    return fit_stages(model, PLAN, data, verbose=0)


def dividing_model():
    """A model that takes 0..255 and divides by 255 itself."""
    image = keras.Input((16, 16, 3))
    x = small_backbone()(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def pixels(n=12):
    x, y = easy_data(n)
    return np.clip(x * 60 + 128, 0, 255), y


def test_a_nan_pixel_is_found(model, data):
    data[0][7, 3, 3, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of the 48 examples"):
        fit(model, data)


def test_a_nan_pixel_is_found_in_a_dataset(model, data):
    tf = pytest.importorskip("tensorflow")
    data[0][30, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit(model, tf.data.Dataset.from_tensor_slices(data).batch(16))


@pytest.mark.parametrize(("label", "found"), [(3, "found 3"), (-1, "found -1")])
def test_a_label_outside_the_classes_is_found(model, data, label, found):
    data[1][5] = label
    with pytest.raises(ValueError, match=f"from 0 to 2.*{found}"):
        fit(model, data)


def test_one_hot_labels_of_another_width_are_found(model, data):
    x, y = data
    with pytest.raises(ValueError, match=r"one-hot labels of 3 classes.*\(48, 5\)"):
        fit(model, (x, keras.utils.to_categorical(y, 5)))


LOSSES = keras.losses
Y = np.arange(12) % 3
SEVERAL = np.eye(3)[Y] + np.eye(3)[0]


@pytest.mark.parametrize(
    ("units", "activation", "labels", "loss", "found"),
    [
        (1, None, np.sign(Y - 1), LOSSES.BinaryCrossentropy(True), "found -1 to 1"),
        (1, "sigmoid", 255 * (Y > 0), "bce", "found 0 to 255"),
        (1, None, Y, LOSSES.BinaryCrossentropy(True), "found 0 to 2"),
        (3, "softmax", 5.0 * SEVERAL, "mse", "ends in a softmax; found 0 to 10"),
        (3, "softmax", SEVERAL > 0, "bce", "that sum to 1"),
        (1, "softmax", Y > 0, LOSSES.binary_crossentropy, "always 1"),
        (3, None, Y, LOSSES.CategoricalCrossentropy(True), "SparseCategoricalCrossentropy"),
        (3, None, np.eye(3)[Y], LOSSES.SparseCategoricalCrossentropy(True), "One-hot rows go"),
        (1, None, SEVERAL, ["mse"], r"\(None, 1\) for mean_squared_error.*found \(12, 3\)"),
        (3, None, Y + 0.5, LOSSES.SparseCategoricalCrossentropy(True), "found 0.5, 1.5"),
    ],
)
def test_labels_that_a_loss_takes_for_something_else_are_found(
    units, activation, labels, loss, found
):
    image = keras.Input((8,))
    model = keras.Model(image, keras.layers.Dense(units, activation)(image))
    with pytest.raises(ValueError, match=found):
        check(model, (np.ones((12, 8)), labels), loss)


def test_labels_of_no_weight_and_losses_of_ones_own_are_left_alone():
    image = keras.Input((8,))
    model, x = keras.Model(image, keras.layers.Dense(1)(image)), np.ones((12, 8))
    check(model, (x, Y - 1, Y > 0), LOSSES.BinaryCrossentropy(from_logits=True))
    check(model, (x, np.eye(3)[Y]), lambda y, p: keras.ops.mean(y * p))
    check(model, (x, np.sign(Y - 1)), "hinge")


def test_rounded_probabilities_are_labels_of_a_softmax():
    image = keras.Input((8,))
    model = keras.Model(image, keras.layers.Dense(3, "softmax")(image))
    check(model, (np.ones((12, 8)), np.full((12, 3), 0.33)), "categorical_crossentropy")


def test_pixels_0_to_1_are_refused_by_a_model_that_divides_itself():
    x, y = pixels()
    fit(dividing_model(), (x, y))
    with pytest.raises(ValueError, match=r"Expected pixels in 0\.\.255.*found values from"):
        fit(dividing_model(), (x / 255, y))


def test_pixels_0_to_255_are_refused_by_a_backbone_pretrained_on_0_to_1():
    backbone = small_backbone()
    backbone.layers[1].kernel.assign(4 * backbone.layers[1].kernel)
    x, y = pixels()
    fit(with_head(backbone), (x / 255, y))
    with pytest.raises(ValueError, match=r"times smaller.*0\.\.1.*Rescale"):
        fit(with_head(backbone), (x, y))


def test_pixels_0_to_1_are_refused_by_a_backbone_pretrained_on_0_to_255():
    backbone, (x, y) = small_backbone(), pixels()
    backbone.get_layer("stack0_bn").moving_variance.assign([60.0**2] * 4)
    fit(with_head(backbone), (x, y))
    with pytest.raises(ValueError, match=r"times larger.*0\.\.255.*without dividing"):
        fit(with_head(backbone), (x / 255, y))


def test_an_untrained_backbone_takes_any_scale():
    x, y = pixels()
    fit(with_head(small_backbone(trained=False)), (x, y))


def test_looking_at_pixels_leaves_the_model_as_it_was(model, data):
    x, _ = data
    before = [keras.ops.convert_to_numpy(w).copy() for w in model.weights]
    from tlkeras.inputs.checks import check

    check(model, data, "sparse_categorical_crossentropy")
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(weight))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_no_data_is_an_error(model, data):
    x, y = data
    with pytest.raises(ValueError, match="at least one batch"):
        fit(model, (x[:0], y[:0]))


def test_inputs_without_labels_are_an_error(model, data):
    with pytest.raises(ValueError, match=r"\(x, y\)"):
        fit(model, (data[0],))


def test_a_model_without_weights_is_an_error(data):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ValueError, match="has none"):
        fit(model, data)


@pytest.mark.parametrize(
    ("units", "activation", "labels", "loss", "logits"),
    [
        (3, None, np.arange(6) % 3, keras.losses.SparseCategoricalCrossentropy, True),
        (3, "softmax", np.eye(3), keras.losses.CategoricalCrossentropy, False),
        (1, "sigmoid", np.arange(6) % 2, keras.losses.BinaryCrossentropy, False),
    ],
)
def test_the_loss_fits_labels_and_outputs(units, activation, labels, loss, logits):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation)])
    chosen, _ = default_objective(model, (np.zeros((len(labels), 4)), labels))
    assert type(chosen) is loss and chosen.get_config()["from_logits"] is logits
