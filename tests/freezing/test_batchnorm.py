"""Contract 2: the three BatchNorm modes, the same for flat, nested and KerasHub models."""

import keras
import keras_hub
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing.batchnorm import batchnorm_layers
from tlkeras.freezing.flags import freeze
from tlkeras.freezing.policies import all_blocks, head_only


def hub_backbone():
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=True,
        image_shape=(16, 16, 3),
    )
    for layer in batchnorm_layers(backbone):
        layer.moving_mean.assign(0.1 * keras.random.normal(layer.moving_mean.shape, seed=1))
    return backbone


MODELS = {
    "flat": lambda: with_head(small_backbone(), nested=False),
    "nested": lambda: with_head(small_backbone()),
    "KerasHub": lambda: with_head(hub_backbone()),
}


@pytest.fixture(params=MODELS)
def any_model(request):
    keras.utils.set_random_seed(0)
    return MODELS[request.param]()


def statistics(model):
    layers = batchnorm_layers(model)
    return [
        keras.ops.convert_to_numpy(v).copy()
        for x in layers
        for v in (x.moving_mean, x.moving_variance)
    ]


def scales(model):
    return [
        keras.ops.convert_to_numpy(v).copy()
        for layer in batchnorm_layers(model)
        for v in (layer.gamma, layer.beta)
    ]


def same(before, after):
    return [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def train_one_epoch(model):
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = easy_data()
    model.fit(x, keras.utils.to_categorical(y, 3), epochs=1, verbose=0)


def test_frozen_keeps_statistics_and_scales_bit_identical(any_model):
    freeze(any_model, all_blocks(), batchnorm="frozen")
    before = statistics(any_model) + scales(any_model)
    train_one_epoch(any_model)
    assert all(same(before, statistics(any_model) + scales(any_model)))


def test_affine_keeps_statistics_and_lets_scales_learn(any_model):
    freeze(any_model, all_blocks(), batchnorm="affine")
    before, before_scales = statistics(any_model), scales(any_model)
    train_one_epoch(any_model)
    assert all(same(before, statistics(any_model)))
    assert not any(same(before_scales, scales(any_model)))


def test_train_moves_statistics(any_model):
    freeze(any_model, all_blocks(), batchnorm="train")
    before = statistics(any_model)
    train_one_epoch(any_model)
    assert not any(same(before, statistics(any_model)))


@pytest.mark.parametrize("mode", ["frozen", "affine"])
def test_stored_statistics_normalise_while_training(any_model, mode):
    x, _ = easy_data(8)
    freeze(any_model, all_blocks(), batchnorm=mode)
    training = np.asarray(any_model(x, training=True))
    np.testing.assert_array_equal(training, np.asarray(any_model(x, training=False)))
    freeze(any_model, all_blocks(), batchnorm="train")
    assert np.abs(np.asarray(any_model(x, training=True)) - training).max() > 1e-3


def test_train_after_affine_is_ordinary_training_again(any_model):
    freeze(any_model, all_blocks(), batchnorm="affine")
    freeze(any_model, all_blocks(), batchnorm="train")
    before = statistics(any_model)
    train_one_epoch(any_model)
    assert not any(same(before, statistics(any_model)))


def test_frozen_blocks_keep_their_statistics_in_every_mode(any_model):
    freeze(any_model, head_only(), batchnorm="train")
    before = statistics(any_model)
    train_one_epoch(any_model)
    assert all(same(before, statistics(any_model)))


def test_a_new_heads_batchnorm_trains_in_the_ordinary_way():
    backbone = small_backbone()
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(image))
    x = keras.layers.BatchNormalization(name="head_bn")(x)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    freeze(model, head_only(), batchnorm="frozen")
    train_one_epoch(model)
    assert np.abs(np.asarray(model.get_layer("head_bn").moving_mean)).max() > 0


def test_a_model_saved_in_affine_mode_reloads_with_keras_alone(any_model, tmp_path):
    freeze(any_model, all_blocks(), batchnorm="affine")
    any_model.save(tmp_path / "m.keras")
    x, _ = easy_data(4)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x, training=False), any_model(x, training=False))


def test_an_unknown_mode_is_refused_before_anything_changes(model):
    flags = [weight.trainable for weight in model.weights]
    with pytest.raises(ValueError, match="frozen, affine, train; found 'eval'"):
        freeze(model, head_only(), batchnorm="eval")
    assert flags == [weight.trainable for weight in model.weights]
