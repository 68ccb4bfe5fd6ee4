"""What is not known to do the same in training is tried, and off where it does not."""

import keras
import ml_dtypes
import numpy as np
import pytest
from small import easy_data, small_backbone

from tlkeras.features import exactness
from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)


class Own(keras.layers.Layer):
    """A layer of the user's, as wrong as `do` says."""

    def __init__(self, do="nothing", **options):
        super().__init__(**options)
        self.do, self.seeds = do, keras.random.SeedGenerator(0)
        self.numbers = np.random.default_rng(0) if do == "own numbers" else None
        self.calls = 0

    def build(self, shape):
        if self.do == "count":
            self.count = self.add_weight(shape=(), name="count")

    def call(self, x, training=False):
        if self.do == "batch":
            return x - keras.ops.mean(x, axis=0, keepdims=True)
        if not training or self.do == "nothing":
            return x
        if self.do == "scale":
            return x * 1.001
        if self.do == "loss":
            self.add_loss(keras.ops.mean(x))
        elif self.do == "count":
            self.count.assign(self.count + 1)
        elif self.do == "rarely":  # stochastic depth at a low rate: no trial would see its effect
            kept = keras.random.uniform((keras.ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > 1e-6
            return x * keras.ops.cast(kept, x.dtype)
        elif self.do == "calls":  # shows its effect after the trial
            self.calls += 1
            return x * (1 + (self.calls > 100))
        elif self.do == "tensorflow":  # leaves the whole layer out, as rarely
            import tensorflow as tf

            return x * tf.cast(tf.random.uniform(()) > 1e-6, x.dtype)
        elif self.do == "numpy":
            return x * (np.random.random() > 1e-6)  # noqa: NPY002
        return x


class OwnDense(keras.layers.Conv2D):
    """A subclass with a call of its own."""

    def call(self, x, training=False):
        return super().call(x) * (2.0 if training else 1.0)


def network(layer):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(small_backbone()(layer(image)))
    return keras.Model(image, keras.layers.Dense(3)(x))


WRONG = {
    "scale": "the output of the frozen blocks is different in training: Own 'odd'",
    "batch": "depends on the batch: Own 'odd'",
    "loss": "Own 'odd' adds to the loss",
    "rarely": "Own 'odd' draws random numbers",
    "numpy": "Own 'odd' draws random numbers",
    "calls": "Own 'odd' counts its calls",
    "own numbers": "frozen Own 'odd' is random in training",
}
if keras.backend.backend() == "tensorflow":
    WRONG["tensorflow"] = "Own 'odd' draws random numbers"


@pytest.mark.parametrize("do", WRONG)
def test_a_layer_of_ones_own_that_is_wrong_is_found_out_and_nothing_is_changed(do):
    def train(cache):
        model = network(Own(do, name="odd"))
        return model, fit_stages(model, [HEAD], easy_data(), cache=cache, seed=0, verbose=0)

    (one, run), (other, plain) = train("auto"), train(False)
    assert run.stages[0].cache.startswith("off: ") and WRONG[do] in run.stages[0].cache
    assert run.history["loss"] == plain.history["loss"]
    for weights in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(*weights)


def test_a_trial_leaves_the_state_as_it_was():
    image = keras.Input((16, 16, 3))
    layer = Own("count")
    model = keras.Model(image, layer(image))
    before = keras.ops.convert_to_numpy(layer.count)
    with pytest.raises(exactness.NotExact, match="changes a state"):
        exactness.check(model, easy_data()[0], "Own")
    assert keras.ops.convert_to_numpy(layer.count) == before


@pytest.mark.parametrize("augment", [None, keras.layers.RandomFlip(seed=0)])
def test_it_is_found_out_between_two_cuts_and_behind_augmentation(augment):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, strides=2)(image)
    x = keras.layers.Conv2D(4, 3, strides=2)(Own("scale", name="odd")(x))
    x = keras.layers.Conv2D(4, 2)(x)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))
    stages = [
        Stage(s.name, s.policy, 1e-3, 1, augment=augment, views=augment and 2)
        for s in (HEAD, Stage("more", policies.last_blocks(2), epochs=1))
    ]
    run = fit_stages(model, stages, easy_data(), verbose=0)
    assert "different in training: Own 'odd'" in run.stages[0].cache


@pytest.mark.parametrize(
    "layer", [Own(), keras.layers.Dropout(0.0), keras.layers.Lambda(lambda x: x * 2)]
)
def test_what_does_the_same_in_training_is_cached(layer):
    run = fit_stages(network(layer), [HEAD], easy_data(), cache=True, seed=0, verbose=0)
    assert run.stages[0].cache.startswith("after")


@pytest.mark.parametrize(
    ("layer", "known"),
    [
        (keras.layers.Conv2D(3, 1), True),
        (keras.layers.Dropout(0.0), True),
        (keras.layers.Dropout(0.1), False),
        (keras.layers.Activation(lambda x: x), False),
        (keras.layers.Softmax(axis=0), False),
        (OwnDense(3, 1), False),
    ],
)
def test_layers_are_known_by_class_and_settings(layer, known):
    image = keras.Input((16, 16, 3))
    assert bool(exactness.doubt(keras.Model(image, layer(image)))) != known


def test_a_subclass_of_a_known_layer_is_tried():
    run = fit_stages(network(OwnDense(3, 1, name="odd")), [HEAD], easy_data(), verbose=0)
    assert "OwnDense 'odd'" in run.stages[0].cache


class Around(keras.layers.Layer):
    """Holds a layer that makes a mask, and says nothing of it."""

    def __init__(self):
        super().__init__()
        self.inside = keras.layers.Masking()

    def call(self, x):
        return self.inside(x)


def test_a_mask_that_a_layer_of_ones_own_makes_unseen_is_found():
    steps = keras.Input((5, 4))
    x = keras.layers.Dense(4)(Around()(steps))
    model = keras.Model(steps, keras.layers.Dense(3)(keras.layers.LSTM(4)(x)))
    data = np.random.default_rng(0).normal(size=(12, 5, 4)), np.arange(12) % 3
    stage = Stage("top", policies.last_blocks(1), epochs=1)
    run = fit_stages(model, [stage], data, seed=0, verbose=0)
    assert "a mask leaves the frozen blocks" in run.stages[0].cache


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="shuffles with TensorFlow")
@pytest.mark.parametrize("augment", [None, keras.layers.Rescaling(0.5)])
def test_a_trial_takes_nothing_from_data_that_shuffle_themselves(augment):
    import tensorflow as tf

    def train(cache):
        data = tf.data.Dataset.from_tensor_slices(easy_data(45)).shuffle(45, seed=7).batch(8)
        model, stage = network(Own("scale")), HEAD.replace(augment=augment, views=augment and 2)
        return fit_stages(model, [stage], data, cache=cache, seed=0, verbose=0).history["loss"]

    assert train("auto") == train(False)


def test_all_that_may_have_been_wrong_is_named():
    image = keras.Input((4,))
    x = keras.layers.Lambda(lambda x: x * 2, name="double")(keras.layers.Dense(3)(image) - 1)
    assert exactness.doubt(keras.Model(image, x)) == "the operation Subtract or Lambda 'double'"


@pytest.mark.parametrize(
    ("operation", "known"),
    [
        (keras.ops.relu, True),
        (lambda x: keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), True),
        (lambda x: keras.ops.pad(x, [[1, 1], [1, 1], [1, 1], [0, 0]]), False),
        (lambda x: keras.ops.pad(x, 1), False),
        (lambda x: keras.ops.flip(x, 0), False),
        (lambda x: keras.ops.softmax(x, 0), False),
    ],
)
def test_operations_that_keep_examples_apart_need_no_trial(operation, known):
    image = keras.Input((4, 4, 3))
    assert bool(exactness.doubt(keras.Model(image, operation(image)))) != known


class Off(keras.layers.Layer):
    """Its output in training is larger by some steps of its number type."""

    def __init__(self, steps, **options):
        super().__init__(**options)
        self.factor = 1 + steps * float(ml_dtypes.finfo(self.compute_dtype).eps)

    def call(self, x, training=False):
        return x * keras.ops.cast(self.factor, x.dtype) if training else x


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_part_in_a_short_number_type_is_tried_to_its_own_precision(kind):
    def tried(steps):
        part = keras.Sequential([keras.Input((4,)), Off(steps, dtype=kind)])
        exactness.check(part, np.ones((6, 4), "float32"), "a layer of one's own")

    tried(2)
    with pytest.raises(exactness.NotExact, match="in training"):
        tried(8)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="words in TensorFlow alone")
def test_words_are_looked_up_once():
    keras.utils.set_random_seed(0)
    word = keras.Input((3,), dtype="string")
    x = keras.layers.StringLookup(vocabulary=["ash", "elm", "oak"])(word)
    x = keras.layers.Flatten()(keras.layers.Embedding(4, 5)(x))
    model = keras.Model(word, keras.layers.Dense(3)(keras.layers.Dense(6)(x)))
    words = np.array([["ash", "oak", "yew"], ["elm", "elm", "oak"]] * 8, object)
    run = fit_stages(model, [HEAD], (words, np.arange(16) % 3), verbose=0)
    assert run.stages[0].cache.startswith("after ")
