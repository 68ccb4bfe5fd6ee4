"""Contracts 1 and 3 on models as odd as people make them: any block can be frozen alone."""

from collections import Counter

import keras
import keras_hub
import numpy as np
import pytest
from keras import layers

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.freezing.flags import freeze

MODELS = {}


def odd(make):
    MODELS[make.__name__] = make
    return make


def image():
    return keras.Input((8, 8, 3))


def classified(inputs, x, name="out"):
    x = layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else x
    return keras.Model(inputs, layers.Dense(3, name=name)(x))


@odd
def one_layer_called_three_times():
    x = inputs = keras.Input((8,))
    again = layers.Dense(8)
    for _ in range(3):
        x = layers.Dense(8)(again(x))
    return classified(inputs, x)


@odd
def nested_model_called_on_its_own_output():
    net = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(8)])
    inputs = keras.Input((8,))
    return classified(inputs, net(net(net(inputs))))


@odd
def nested_model_with_several_outputs():
    inner = image()
    low = layers.Conv2D(4, 3, 2)(inner)
    high = layers.BatchNormalization()(layers.Conv2D(4, 3)(low))
    inputs = image()
    found = keras.Model(inner, {"low": low, "high": high, "unused": layers.Dense(2)(low)})(inputs)
    pooled = [layers.GlobalAveragePooling2D()(found[name]) for name in ("low", "high")]
    return classified(inputs, layers.Concatenate()(pooled))


@odd
def inner_tensor_is_an_output():
    inputs = image()
    middle = layers.Conv2D(4, 3, 2)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(middle))
    return keras.Model(inputs, [middle, layers.Dense(3)(x)])


@odd
def input_is_an_output():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [inputs, layers.Dense(2)(layers.Dense(4)(inputs))])


@odd
def sequential_in_sequential_in_functional():
    inner = keras.Sequential([layers.Conv2D(4, 3, 2), layers.BatchNormalization()])
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 1), inner])
    inputs = image()
    return classified(inputs, net(inputs))


@odd
def residual_by_one_nested_block():
    block = keras.Sequential([layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()])
    x = inputs = image()
    for _ in range(3):
        x = block(x) + x
    return classified(inputs, x)


@odd
def wrappers_and_cells():
    inputs = keras.Input((3, 8, 8, 3))
    x = layers.TimeDistributed(layers.Conv2D(4, 3, 2))(inputs)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.RNN([layers.LSTMCell(4), layers.GRUCell(4)])(x)
    return classified(inputs, x)


@odd
def network_for_every_picture_of_a_sequence():
    net = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2), layers.BatchNormalization()]
    frame = keras.Sequential([*net, layers.GlobalAveragePooling2D()])
    inputs = keras.Input((3, 8, 8, 3))
    return classified(inputs, layers.GRU(4)(layers.TimeDistributed(frame)(inputs)))


@odd
def layers_that_never_learn():
    scale = layers.Normalization()
    scale.adapt(np.random.default_rng(0).random((8, 4)))
    inputs = keras.Input((4,))
    bins = layers.CategoryEncoding(3)(layers.Discretization([0.3, 0.6])(inputs[:, :1]))
    x = layers.Concatenate()([scale(inputs), bins])
    return classified(inputs, layers.Dense(8)(x))


@odd
def embeddings_tied_to_the_output():
    inputs = keras.Input((6,), dtype="int32")
    embedding = keras_hub.layers.ReversibleEmbedding(9, 8)
    x = keras_hub.layers.TransformerEncoder(8, 2)(embedding(inputs))
    return keras.Model(
        inputs, embedding(keras_hub.layers.TransformerEncoder(8, 2)(x), reverse=True)
    )


@odd
def spectral_and_group_normalisation():
    inputs = image()
    x = layers.SpectralNormalization(layers.Conv2D(4, 3))(inputs)
    return classified(inputs, layers.GroupNormalization(2)(layers.Conv2D(4, 3, 2)(x)))


@odd
def quantized():
    net = [keras.Input((8,)), layers.Dense(8), layers.Dense(8), layers.Dense(3)]
    model = keras.Sequential(net)
    model.quantize("int8")
    return model


@odd
def backbone_with_lora():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3), patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8
    )
    backbone.enable_lora(2)
    inputs = image()
    return classified(inputs, layers.GlobalAveragePooling1D()(backbone(inputs)))


@odd
def two_towers_of_one_network():
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2), layers.Conv2D(4, 3)])
    inputs = [image(), image()]
    return classified(inputs, layers.Subtract()([net(x) for x in inputs]))


@odd
def dictionaries_in_and_out():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = layers.Add()([layers.Dense(4)(inputs["a"]), layers.Dense(4)(inputs["b"])])
    return keras.Model(inputs, {"p": layers.Dense(2)(x), "q": layers.Dense(3)(x)})


@odd
def model_inside_a_layer():
    class Holds(layers.Layer):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])

        def build(self, shape):
            self.net.build(shape)

        def call(self, x):
            return self.net(x)

    inputs = keras.Input((8,))
    return classified(inputs, Holds()(layers.Dense(8)(inputs)))


@odd
def layers_in_lists_and_dictionaries():
    class Holds(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"x": layers.Dense(4), "y": [layers.Dense(4), layers.Dense(4)]}
            self.out = layers.Dense(2)

        def call(self, x):
            return self.out(self.parts["y"][1](self.parts["y"][0](self.parts["x"](x))))

    model = Holds()
    model(np.zeros((1, 8), "float32"))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_in_one_block_and_any_block_learns_alone(name):
    model = MODELS[name]()
    blocks = find_blocks(model)
    held = Counter(id(weight) for block in blocks for weight in block.weights)
    assert held == Counter(id(weight) for weight in model.weights)
    made = {id(v) for x in internals.all_layers(model) for v in internals.trainable_kind(x)}
    closed = {id(v) for v in model.weights if id(v) in made and not v.trainable}
    for block in blocks:
        mine = {id(weight) for weight in block.weights} & made - closed
        if mine:
            freeze(model, lambda found, name=block.name: [b for b in found if b.name == name])
            norms = [x for x in block.layers if isinstance(x, layers.BatchNormalization)]
            frozen = {id(weight) for norm in norms for weight in norm.weights}
            learning = {id(weight) for weight in model.trainable_variables}
            assert learning == mine - (frozen if block.role != "head" else set())

    check_the_last_block_alone_moves(model)


def check_the_last_block_alone_moves(model):
    table = freeze(model, lambda blocks: blocks[-1:], "train")
    held, learning = list(map(numbers, table.held)), list(map(numbers, model.trainable_variables))
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    inputs = getattr(model, "input", keras.KerasTensor((None, 8)))
    x = keras.tree.map_structure(lambda t: np.ones((2, *t.shape[1:]), t.dtype), inputs)
    y = keras.tree.map_structure(lambda t: keras.ops.convert_to_numpy(t) + 1, model(x))
    model.fit(x, y, verbose=0)
    assert list(map(numbers, table.held)) == held
    assert list(map(numbers, model.trainable_variables)) != learning


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor).tolist()
