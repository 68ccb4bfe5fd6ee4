"""swap_head: another head in an old one's place; all the rest is what it was."""

import re

import keras
import keras_hub
import numpy as np
import pytest
from networks import HUB
from small import easy_data, small_backbone, with_head

import tlkeras as tlk

KINDS = {
    "nested": lambda: with_head(small_backbone()),
    "flat": lambda: with_head(small_backbone(), nested=False),
    "tlk": lambda: tlk.add_head(small_backbone(), 3),
    "sequential": lambda: keras.Sequential(
        [small_backbone(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    ),
    "whole classifier in a model": lambda: wrapped(with_head(small_backbone(), nested=False)),
}


def wrapped(classifier):
    image = keras.Input((16, 16, 3))
    return keras.Model(image, classifier(keras.layers.Rescaling(2.0)(image)), name="wrapped")


def by_rows(features):
    _, height, width, channels = features.shape
    rows = keras.layers.Reshape((height, width * channels))(features)
    return keras.layers.Dense(5)(keras.layers.GRU(4)(rows))


def body(model):
    return [w for block in tlk.find_blocks(model) if block.role != "head" for w in block.weights]


def same(first, second):
    assert len(first) == len(second) > 0
    return all(a is b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_head_gets_the_vector_the_old_one_had(kind):
    model = KINDS[kind]()
    x, _ = easy_data(4)
    head = keras.layers.Dense(5)
    new = tlk.heads.swap_head(model, head)
    assert new.output_shape == (None, 5)
    assert same(body(new), body(model))
    old = model if kind != "whole classifier in a model" else model.layers[-1]
    kernel, bias = old.layers[-1].get_weights()
    head.set_weights([np.tile(kernel, 2)[:, :5], np.tile(bias, 2)[:5]])
    before = model.predict(x, verbose=0)
    np.testing.assert_allclose(new.predict(x, verbose=0)[:, :3], before, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_head_can_have_the_map(kind):
    model = KINDS[kind]()
    new = tlk.heads.swap_head(model, by_rows, at="map")
    assert new.output_shape == (None, 5)
    assert same(body(new), body(model))
    assert [layer for layer in new.layers if isinstance(layer, keras.layers.GRU)]


def test_a_head_that_says_it_takes_a_map_gets_it():
    model = tlk.add_head(small_backbone(), 3)
    convolution = keras.layers.Conv2D(5, 2)
    assert tlk.heads.swap_head(model, convolution).output_shape == (None, 1, 1, 5)
    image = keras.Input((2, 2, 8))
    whole = keras.Model(image, by_rows(image))
    assert tlk.heads.swap_head(model, whole).layers[-1] is whole
    assert tlk.heads.swap_head(model, keras.layers.Dense(5)).output_shape == (None, 5)


def test_a_head_on_a_map_is_the_head_also_in_a_flat_model():
    new = tlk.heads.swap_head(KINDS["flat"](), by_rows, at="map")
    learning = tlk.freeze(new, tlk.policies.head_only())
    assert len(new.trainable_variables) == 5 and learning.blocks == ["head"]


def test_a_swapped_head_can_be_swapped_back():
    model = tlk.add_head(small_backbone(), 3)
    x, _ = easy_data(4)
    first = tlk.heads.swap_head(model, by_rows, at="map")
    again = tlk.heads.swap_head(first, model.get_layer("head"))  # has to pool anew
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["nested", "flat"])
@pytest.mark.parametrize("batchnorm", ["frozen", "affine"])
def test_what_is_frozen_stays_so_and_is_saved(kind, batchnorm, tmp_path):
    model = KINDS[kind]()
    tlk.freeze(model, tlk.policies.last_blocks(1), batchnorm=batchnorm)
    before = [weight.trainable for weight in body(model)]
    assert True in before and False in before
    new = tlk.heads.swap_head(model, keras.layers.Dense(5))
    assert [weight.trainable for weight in body(new)] == before
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    x, y = easy_data(8)
    np.testing.assert_array_equal(loaded(x), new(x))
    assert len(loaded.trainable_variables) == len(new.trainable_variables)
    held = [w.numpy() for w in body(new) if not w.trainable]
    new.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    new.fit(x, y, verbose=0)
    after = [w.numpy() for w in body(new) if not w.trainable]
    assert all(np.array_equal(a, b) for a, b in zip(held, after, strict=True))


def test_stages_are_fitted_after_a_swap():
    x, y = easy_data()
    model = tlk.heads.swap_head(tlk.add_head(small_backbone(), 7), keras.layers.Dense(3))
    before = [weight.numpy() for weight in body(model)]
    run = tlk.fit_stages(model, tlk.recipes.head_only(2, 0.01), (x, y), verbose=0)
    assert run.history["loss"][-1] < run.history["loss"][0]
    after = [weight.numpy() for weight in body(model)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_head_of_a_hub_classifier():
    backbone = HUB["ResNet"]()
    task = keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=3)
    x = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3)).astype("float32")
    new = tlk.heads.swap_head(task, keras.layers.Dense(5, name="mine"))
    assert backbone in new.layers and new.get_layer("mine").kernel.shape == (64, 5)
    old = task.get_layer("predictions")
    again = tlk.heads.swap_head(task, old)
    np.testing.assert_allclose(again(x), task(x), rtol=1e-5)


def test_the_head_of_a_network_of_keras():
    options = {"input_shape": (32, 32, 3), "alpha": 0.35, "weights": None}
    model = keras.applications.MobileNetV2(classes=10, **options)
    new = tlk.heads.swap_head(model, keras.layers.Dense(5))
    assert same(body(new), body(model))
    assert new.layers[-2] is model.layers[-2]  # its pooling
    assert tlk.heads.swap_head(model, by_rows, at="map").output_shape == (None, 5)


def test_what_has_no_head_or_several_is_refused():
    with pytest.raises(ValueError, match=r"tlk\.add_head puts a head"):
        tlk.heads.swap_head(small_backbone(), keras.layers.Dense(5))
    model = with_head(small_backbone())
    two = keras.Model(model.input, [model.output, keras.layers.Dense(2)(model.layers[-2].output)])
    with pytest.raises(ValueError, match="one output; .* has 2"):
        tlk.heads.swap_head(two, keras.layers.Dense(5))


def test_a_vector_is_no_map():
    image = keras.Input((16, 16, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(small_backbone()(image))
    model = tlk.add_head(keras.Model(image, pooled, name="pooled"), 3)
    with pytest.raises(ValueError, match="without pooling"):
        tlk.heads.swap_head(model, by_rows, at="map")
    assert tlk.heads.swap_head(model, keras.layers.Dense(5)).output_shape == (None, 5)


def test_a_head_of_another_shape_is_told_what_it_was_given():
    model = tlk.add_head(small_backbone(), 3)
    built = keras.layers.Dense(5)
    built.build((None, 7))
    for head, at, says in (
        (built, None, "the vector of shape (None, 8); at='map' gives it the map"),
        (keras.layers.GRU(4), "map", "the map of shape (None, 2, 2, 8)"),
        (lambda x: [x, x], None, "one tensor from the new head"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            tlk.heads.swap_head(model, head, at)
    with pytest.raises(ValueError, match="at must be"):
        tlk.heads.swap_head(model, built, at="pool")
    with pytest.raises(TypeError, match="a layer, a model or a function"):
        tlk.heads.swap_head(model, 5)


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = keras.layers.Conv2D(4, 3)
            self.logits = keras.layers.Dense(3)

        def call(self, x):
            return self.logits(keras.ops.mean(self.convolution(x), (1, 2)))

    model = Own()
    model(easy_data(2)[0])
    with pytest.raises(ValueError, match="no graph"):
        tlk.heads.swap_head(model, keras.layers.Dense(5))
