"""add_head: one classifier for maps, tokens, vectors and dictionaries of outputs."""

import keras
import numpy as np
import pytest

import tlkeras as tlk


def backbone(shape, name="backbone"):
    """Turns (batch, 4) into features of the shape given."""
    vector = keras.Input((4,))
    x = keras.layers.Dense(int(np.prod(shape)))(vector)
    return keras.Model(vector, keras.layers.Reshape(shape)(x), name=name)


def two_outputs(names):
    inputs = {"ids": keras.Input((4,), name="ids"), "mask": keras.Input((4,), name="mask")}
    x = keras.layers.Dense(3)(keras.layers.Multiply()([inputs["ids"], inputs["mask"]]))
    return keras.Model(inputs, {name: keras.ops.tanh(x) for name in names}, name="text")


@pytest.mark.parametrize("shape", [(2, 2, 6), (5, 6), (6,)], ids=["map", "tokens", "vector"])
def test_features_of_every_shape_are_pooled(shape):
    features = backbone(shape)
    model = tlk.add_head(features, 3)
    x = np.ones((2, 4), "float32")
    pooled = np.reshape(features(x), (2, -1, 6)).mean(1)
    head = model.get_layer("head")
    np.testing.assert_allclose(model(x), pooled @ head.kernel + head.bias, rtol=1e-4)
    assert features in model.layers  # as one layer


def test_the_class_token_can_be_taken():
    features = backbone((5, 6))
    model = tlk.add_head(features, 3, pooling="token")
    x = np.ones((2, 4), "float32")
    head = model.get_layer("head")
    np.testing.assert_allclose(
        model(x), np.array(features(x))[:, 0] @ head.kernel + head.bias, rtol=1e-4
    )


def test_pooled_output_is_used_where_there_is_one():
    model = tlk.add_head(two_outputs(["sequence_output", "pooled_output"]), 3)
    batch = {"ids": np.ones((2, 4)), "mask": np.ones((2, 4))}
    assert model.predict(batch, verbose=0).shape == (2, 3)


def test_several_outputs_ask_for_a_choice():
    towers = two_outputs(["image", "text"])
    with pytest.raises(ValueError, match=r"\['image', 'text'\].*output='image'"):
        tlk.add_head(towers, 3)
    assert tlk.add_head(towers, 3, output="text").output_shape == (None, 3)


def test_logits_stay_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tlk.add_head(backbone((2, 2, 6)), 3, activation="softmax")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.output.dtype == "float32"


def test_a_saved_classifier_reloads_equal(tmp_path):
    model = tlk.add_head(backbone((5, 6)), 3, pooling="token")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(model(x), again(x))


def test_a_backbone_with_its_classifier_is_refused():
    model = tlk.add_head(backbone((6,)), 3, activation="softmax")
    with pytest.raises(ValueError, match="include_top=False"):
        tlk.add_head(model, 3)


def test_classes_may_be_counted_with_numpy(tmp_path):
    model = tlk.add_head(backbone((6,)), np.array([0, 2, 1]).max() + 1)
    model.save(tmp_path / "model.keras")
    assert model.output_shape == (None, 3)


def test_a_sequential_backbone_takes_a_head_and_is_frozen_as_any_other(tmp_path):
    parts = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(6, 3)]
    model = tlk.add_head(keras.Sequential(parts), 3)
    assert tlk.freeze(model, tlk.policies.head_only()).blocks == ["head"]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.trainable_variables) == len(model.trainable_variables) == 2


def test_a_list_of_inputs_stays_a_list():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    x = keras.layers.Dense(3)(keras.layers.Concatenate()([a, b]))
    model = tlk.add_head(keras.Model([a, b], x), 3)
    assert model.predict([np.ones((2, 4)), np.ones((2, 2))], verbose=0).shape == (2, 3)


def test_a_backbone_that_does_not_know_its_inputs_is_refused():
    with pytest.raises(ValueError, match=r"Begin it with keras.Input"):
        tlk.add_head(keras.Sequential([keras.layers.Dense(3)]), 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"classes": 0}, "at least 1"),
        ({"classes": 2.5}, "at least 1"),
        ({"classes": 3, "dropout": 1.0}, "dropout"),
        ({"classes": 3, "pooling": "max"}, "'mean' or 'token'"),
        ({"classes": 3, "pooling": "token"}, "Cannot pool features of shape"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        tlk.add_head(backbone((2, 2, 6)), **arguments)
