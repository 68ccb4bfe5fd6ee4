"""What is frozen is frozen in a loaded model, or said and put back by one call."""

import re

import keras
import keras_hub
import numpy as np
import pytest
from small import small_backbone, with_head

import tlkeras as tlk
from tlkeras.freezing.flags import freeze
from tlkeras.freezing.policies import all_blocks, head_only, last_blocks
from tlkeras.freezing.stored import forgotten, remark


@keras.saving.register_keras_serializable("tests")
class Tokens(keras.layers.Layer):
    """Holds a weight itself, and a layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(8, name="dense")

    def build(self, shape):
        self.token = self.add_weight(shape=(8,), name="token")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) + self.token


@keras.saving.register_keras_serializable("tests")
class Scale(keras.layers.Layer):
    """Writes down its name alone."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], name="scale")

    def call(self, x):
        return x * self.scale

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A network that is written down by its arguments, as KerasHub's are."""

    def __init__(self, width, **options):
        image = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(width, 3, 4, name="stack0_conv")(image)
        x = keras.layers.Conv2D(width, 3, 2, name="stack1_conv")(x)
        super().__init__(image, x, **options)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name, "trainable": self.trainable}


def flat(*layers):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 4, 4, name="stack0_conv")(image)
    x = keras.layers.Reshape((16, 8))(x)
    for layer in layers:
        x = layer(x, x) if isinstance(layer, keras.layers.MultiHeadAttention) else layer(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


MODELS = {  # with what is forgotten when all but the head is frozen
    "nested": (lambda: with_head(small_backbone()), []),
    "flat": (lambda: with_head(small_backbone(), nested=False), []),
    "Sequential": (
        lambda: tlk.add_head(
            keras.Sequential([keras.Input((16, 16, 3)), *map(keras.layers.Dense, (4, 5))]), 3
        ),
        [],
    ),
    "token": (lambda: flat(Tokens(name="tokens")), ["tokens"]),
    "no flag in its config": (lambda: flat(Scale(name="scaling")), ["scaling"]),
    "attention": (lambda: flat(keras.layers.MultiHeadAttention(1, 4, name="att")), ["att"]),
    "recurrent": (
        lambda: flat(
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.Bidirectional(keras.layers.GRU(2, return_sequences=True)),
            keras.layers.TimeDistributed(keras.layers.Dense(4)),
        ),
        [],
    ),
    "convolutional LSTM": (
        lambda: flat(
            keras.layers.Reshape((2, 4, 2, 8)),
            keras.layers.ConvLSTM2D(4, 1, name="conv_lstm"),
            keras.layers.Reshape((8, 4)),
        ),
        ["conv_lstm"],
    ),
    "of its own class": (lambda: with_head(Own(4, name="backbone")), ["backbone"]),
    "glyph_resnet_small": (lambda: tlk.add_head(tlk.load_backbone("glyph_resnet_small"), 3), []),
    "glyph_vit": (
        lambda: tlk.add_head(tlk.load_backbone("glyph_vit", image_size=32), 3),
        ["vi_t_backbone"],
    ),
}


def positions(model):
    """Which of the model's weights learn."""
    learning = {id(weight) for weight in model.trainable_variables}
    return [id(weight) in learning for weight in model.weights]


@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_learns_the_same_or_it_is_said_and_put_back(name, tmp_path):
    make, expected = MODELS[name]
    model = make()
    for policy in (head_only(), last_blocks(1)):
        table = freeze(model, policy)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        text = remark(model, policy, table.blocks, "frozen")
        same = positions(loaded) == positions(model)
        assert same == (not text)
        if policy == head_only():
            found = [layer.name.rstrip("_0123456789") for layer in forgotten(model)]
            assert found == expected
        freeze(loaded, policy)
        assert positions(loaded) == positions(model)


def test_affine_is_said_and_put_back(tmp_path):
    model = with_head(small_backbone())
    table = freeze(model, last_blocks(2), "affine")
    text = remark(model, last_blocks(2), table.blocks, "affine")
    assert "tlk.freeze(model, tlk.policies.last_blocks(2), batchnorm='affine')" in text
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    freeze(loaded, last_blocks(2), "affine")
    assert positions(loaded) == positions(model)
    x = np.random.default_rng(0).normal(0, 3, (4, 16, 16, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))


def test_the_call_names_the_blocks_where_no_policy_of_ours_was_used():
    model = flat(Tokens(name="tokens"))
    text = remark(
        model, lambda blocks: blocks[-1:], freeze(model, lambda b: b[-1:]).blocks, "train"
    )
    assert "tlk.policies.named('head'), batchnorm='train'" in text


def close_one(tokens):
    tokens.dense.trainable = False


def close_all(tokens):
    tokens.trainable = False


def close_a_variable(tokens):
    tokens.dense.bias.trainable = False


def close_inside_a_transformer_layer(layer):
    layer._feedforward_intermediate_dense.trainable = False


HIDDEN = {  # what the user closes inside a layer, and how it is called
    "tokens/dense": (Tokens, close_one),
    "tokens": (Tokens, close_all),
    "tokens/dense/bias": (Tokens, close_a_variable),
    "tokens/feedforward_intermediate_dense": (
        lambda name: keras_hub.layers.TransformerEncoder(8, 2, name=name),
        close_inside_a_transformer_layer,
    ),
}


@pytest.mark.parametrize("closed", HIDDEN)
def test_what_the_user_closed_inside_a_layer_stays_and_after_a_file_it_is_said(closed, tmp_path):
    make, close = HIDDEN[closed]
    model = flat(make(name="tokens"))
    close(model.get_layer("tokens"))
    for policy in (head_only(), last_blocks(1), all_blocks()):
        freeze(model, policy)
        learning = {v.path for v in model.trainable_variables}
        assert not any(path.startswith(closed) for path in learning)
    text = remark(model, all_blocks(), freeze(model, all_blocks()).blocks, "frozen")
    [named] = re.findall("close (.*) again, as you had, then call", text)
    assert closed.removesuffix("/bias") in named.split(", ")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    close(loaded.get_layer(index=3))
    freeze(loaded, all_blocks())
    assert positions(loaded) == positions(model)
    freeze(loaded, all_blocks(), reopen=True)
    assert all(positions(loaded))


def test_a_layer_that_cannot_be_written_down_is_no_matter():
    class Unwritten(Scale):
        def get_config(self):
            raise NotImplementedError

    model = flat(Unwritten(name="scaling"))
    freeze(model, head_only())
    assert not forgotten(model)


def test_lora_and_state_that_is_held_are_said():
    model = with_head(small_backbone())
    freeze(model, all_blocks())
    assert not forgotten(model)
    model.get_layer("logits").enable_lora(2)
    assert "LoRA" in remark(model, all_blocks(), ["head"], "frozen")
    image = keras.Input((16, 16, 3))
    x = keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3), name="sn")(image)
    model = with_head(keras.Model(image, keras.layers.Conv2D(4, 3)(x), name="backbone"))
    freeze(model, head_only())
    assert [layer.name for layer in forgotten(model)] == ["sn"]
