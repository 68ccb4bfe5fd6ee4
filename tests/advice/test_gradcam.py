"""Grad-CAM: the slopes are those of calculus, also through nested backbones."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.advice.gradcam import gradcam


def by_hand(backbone, kernel, images, classes):
    """With mean pooling and one Dense layer, Grad-CAM is the class's own row of the kernel."""
    maps = backbone.predict(images, verbose=0)
    heat = np.maximum(np.einsum("nhwc,cn->nhw", maps, kernel[:, classes]), 0)
    return heat / heat.max(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("ending", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("nested", [True, False])
def test_it_is_what_calculus_says(nested, ending):
    keras.utils.set_random_seed(0)
    backbone = small_backbone()
    model = with_head(backbone, nested=nested)
    kernel = model.layers[-1].get_weights()[0]
    if ending:
        model = keras.Model(model.input, keras.layers.Activation(ending)(model.output))
    images, classes = easy_data()[0][:5], np.array([0, 1, 2, 1, 0])
    before = [weight.numpy().copy() for weight in model.weights]
    heat = gradcam(model, images, classes)
    np.testing.assert_allclose(heat, by_hand(backbone, kernel, images, classes), atol=1e-4)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_it_finds_what_decides():
    """Class 1 wherever there is a bright spot: that is where the map is warm."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 3, padding="same", name="a")(image)
    x = keras.layers.MaxPooling2D(4)(x)
    x = keras.layers.Conv2D(2, 1, activation="relu", name="b")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2)(x))
    for weight in model.weights:
        weight.assign(np.ones(weight.shape) if weight.name == "kernel" else np.zeros(weight.shape))
    x = np.zeros((1, 32, 32, 3))
    x[0, 24:28, 4:8] = 255
    [heat] = gradcam(model, x, np.array([1]))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row / heat.shape[0], column / heat.shape[1]) == (0.75, 0.125)


def test_tokens_have_no_map():
    model = tlk.add_head(tlk.load_backbone("glyph_vit"), classes=2)
    assert gradcam(model, np.zeros((1, *model.input_shape[1:])), np.array([0])) is None
