"""Layers of frozen blocks that would update their own state stay as they are, to the bit."""

import keras
import numpy as np
import pytest
from small import easy_data

from tlkeras.freezing.flags import freeze
from tlkeras.freezing.inference import is_held
from tlkeras.freezing.policies import all_blocks, head_only


class Counts(keras.layers.Layer):
    """Keeps a running mean and a count, in training and out of it: it does not ask."""

    def build(self, shape):
        options = {"initializer": "zeros", "trainable": False}
        self.mean = self.add_weight(shape=shape[-1:], name="mean", **options)
        self.seen = self.add_weight(shape=(), dtype="int32", name="seen", **options)

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=(0, 1, 2)))
        self.seen.assign(self.seen + 1)
        return x - self.mean


def normalised():
    return keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3, 2), name="stack0_conv")


def model_with(layer, learns_too=False):
    image = keras.Input((16, 16, 3))
    x = layer(keras.layers.Conv2D(3, 1, name="stack0_first")(image))
    x = keras.layers.Conv2D(4, 3, 2, name="stack1_conv")(x)
    backbone = keras.Model(image, x, name="backbone")
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(image))
    return keras.Model(image, keras.layers.Dense(3)(x))


def moved(model, layer):
    before = [keras.ops.convert_to_numpy(w).copy() for w in layer.weights]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = easy_data()
    model.fit(x, keras.utils.to_categorical(y, 3), epochs=1, verbose=0)
    after = [keras.ops.convert_to_numpy(w) for w in layer.weights]
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("make", [normalised, Counts])
def test_state_in_a_frozen_block_stays_and_in_a_learning_one_moves(make):
    layer = make()
    model = model_with(layer)
    table = freeze(model, head_only())
    assert {id(w) for w in layer.weights} <= {id(w) for w in table.held}
    assert not any(moved(model, layer))
    freeze(model, all_blocks())
    assert all(moved(model, layer))


def test_a_layer_closed_by_hand_keeps_its_state_in_a_learning_block():
    layer = normalised()
    model = model_with(layer)
    layer.trainable = False
    freeze(model, all_blocks())
    assert is_held(layer) and not any(moved(model, layer))
