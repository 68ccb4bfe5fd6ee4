"""Two things have one name only if their outputs are the same."""

import keras
import numpy as np
import pytest
from small import easy_data

from tlkeras.features import identity
from tlkeras.features.cached_evaluate import evaluate
from tlkeras.features.store import FeatureCache
from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=1)

PARTS = {
    "plain": lambda x: x,
    "flipped": lambda x: keras.ops.flip(x, axis=-1),
    "turned": lambda x: keras.ops.flip(x, axis=-2),
    "scaled": lambda x: x / 255.0 * 2 - 1,
    "scaled less": lambda x: x / 255.0 * 1 - 1,
    "reversed": lambda x: x[:, ::-1],
    "swapped": lambda x: 1 - x,
    "rest": lambda x: x - 1,
    "half": keras.layers.Activation("relu", dtype="float16"),
    "whole": keras.layers.Activation("relu", dtype="float32"),
}


def network(first):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, strides=2)(first(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
    return keras.Model(image, keras.layers.Dense(3)(x))


def name(model):
    return identity.of_part(model, model.outputs[0])


def test_a_part_is_named_by_its_calls_arguments_types_and_weights():
    names = {kind: name(network(first)) for kind, first in PARTS.items()}
    assert len(set(names.values())) == len(PARTS)
    assert name(network(PARTS["flipped"])) == names["flipped"]
    model = network(PARTS["plain"])
    model.weights[0].assign(model.weights[0] * 1.0001)
    assert name(model) != names["plain"]


def test_the_order_of_two_branches_counts():
    image = keras.Input((4,))
    one, other = keras.layers.Rescaling(2.0)(image), keras.layers.Rescaling(3.0)(image)
    models = [
        keras.Model(image, keras.layers.Subtract()(pair)) for pair in ([one, other], [other, one])
    ]
    assert name(models[0]) != name(models[1])


class Times(keras.layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()  # forgets the factor


class Without(keras.layers.Layer):
    def __init__(self, factor, function=None):
        super().__init__()
        self.factor, self.function = factor, function

    def call(self, x):
        return x * self.factor

    def get_config(self):
        raise NotImplementedError


@pytest.mark.parametrize("make", [Times, Without, lambda f: keras.layers.Lambda(lambda x: x * f)])
def test_what_cannot_be_described_is_cached_but_not_shared(make):
    shared = FeatureCache()
    for factor in (1.0, 0.1):
        model, same = network(make(factor)), network(make(factor))
        run = fit_stages(model, [HEAD], easy_data(), cache=shared, seed=0, verbose=0)
        plain = fit_stages(same, [HEAD], easy_data(), cache=False, seed=0, verbose=0)
        assert run.stages[0].cache.startswith("after") and len(shared._stores) == 1
        np.testing.assert_allclose(run.history["loss"], plain.history["loss"], rtol=1e-4)
        found = evaluate(model, easy_data(), shared)
        assert found == model.evaluate(*easy_data(), verbose=0, return_dict=True)


def test_examples_are_named_by_type_shape_and_content():
    def of(*parts):
        return identity.of_examples(list(parts))[0]

    zeros = np.zeros((1, 4), "float32")
    names = [
        *(of(zeros), of(zeros.reshape(1, 2, 2)), of(zeros.astype("int32")), of(zeros[:, :2])),
        *(of(zeros[:, :1], zeros[:, 1:]), of(zeros[:, :2], zeros[:, 2:])),
        *(of(np.array([["ab", "c"]])), of(np.array([["a", "bc"]])), of(np.array([[b"ab", b"c"]]))),
    ]
    assert len(set(names)) == len(names)
    text = np.array([["ab", "c"]])
    assert of(text) == of(text.astype(object)) == of(text.astype("U9"))
    with pytest.raises(identity.Unknown, match="a dict in it"):
        of(np.array([{}], object))


def test_augmentations_are_named_by_what_they_do_next():
    flips = [keras.layers.RandomFlip(how, seed=0) for how in ("vertical", "horizontal")]
    names = [identity.of_augmentation(flip) for flip in flips]
    assert names[0] != names[1]
    assert names[1] == identity.of_augmentation(keras.layers.RandomFlip("horizontal", seed=0))
    flips[1](np.zeros((1, 4, 4, 3)), training=True)
    assert names[1] != identity.of_augmentation(flips[1])
    with pytest.raises(identity.Unknown):
        identity.of_augmentation(lambda x, training: x)


def test_a_function_that_augments_has_one_name_for_one_call():
    cache, call = FeatureCache(), type("Call", (), {})()

    def same(x, training):
        return x

    mark = cache.mark(same, call)
    assert cache.mark(same, call) == mark != cache.mark(lambda x, training: x, call)
    assert cache.mark(same, type("Call", (), {})()) != mark
