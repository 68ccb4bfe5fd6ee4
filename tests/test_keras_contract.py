"""What tlkeras relies on in Keras beyond what Keras promises, one test a thing.

A test here that fails on a new Keras says what has changed, before a network silently loses its
cuts, or Dropout is cached. The names are those of `PRIVATE` in tests/test_house.py.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from small import small_backbone, with_head
from test_house import PRIVATE

from tlkeras.blocks import internals
from tlkeras.optimizers.pattern import may_decay

TENSORFLOW = keras.backend.backend() == "tensorflow"


def variables(count=2):
    return [keras.Variable(np.ones(3, "float32"), name=f"v{i}") for i in range(count)]


def numbers(variable):
    return keras.ops.convert_to_numpy(variable)


def step(optimizer, held, gradient=1.0):
    optimizer.apply([keras.ops.full(v.shape, gradient) for v in held], held)


@pytest.mark.parametrize("name", sorted(set.union(*PRIVATE.values())))
def test_every_private_name_in_use_is_tested_here(name):
    assert f"`{name}`" in Path(__file__).read_text("utf-8")


# How a graph is stored -----------------------------------------------------------------------


def test_nodes_by_depth_lists_the_calls_inputs_first():
    """`_nodes_by_depth`: depth -> nodes, the deepest first; each knows operation and tensors."""
    model = with_head(small_backbone())
    operations = [node.operation.name for node in internals.nodes(model)]
    assert operations[0] == "backbone" and operations[-1] == "logits"
    first = internals.nodes(model)[0]
    assert not first.is_input and first.input_tensors[0] is model.inputs[0]
    assert first.arguments.args[0] is model.inputs[0]
    filled, _ = first.arguments.fill_in({id(model.inputs[0]): "filled in"})
    assert filled[0] == "filled in"
    assert internals.fed(first, model.get_layer("backbone"))[0] is model.inputs[0]


def test_a_sequential_holds_its_graph():
    """`_functional`, there once a Sequential is built."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    assert [len(node.outputs) for node in internals.nodes(internals.functional(model))] == [1, 1]


def test_a_functional_model_with_a_call_of_its_own_is_not_taken_for_its_graph():
    class Own(keras.Model):
        def call(self, x):
            return super().call(x) * 2

    x = keras.Input((4,))
    assert internals.functional(Own(x, keras.layers.Dense(2)(x))) is None
    assert internals.functional(keras.Model(x, keras.layers.Dense(2)(x))) is not None


def test_layers_are_tracked_in_the_order_they_were_made():
    """`_layers`: the children, and `_flatten_layers`: the layer itself and all below it."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")], name="inner")
    outer = keras.Sequential([inner, keras.layers.Dense(2, name="b")], name="outer")
    names = [layer.name for layer in internals.all_layers(outer)]
    assert names[0] == "outer" and {"inner", "a", "b"} <= set(names)
    attention = keras.layers.MultiHeadAttention(1, 2)
    attention.build((1, 3, 4), (1, 3, 4))
    assert [child.name for child in internals.children(attention)][:3] == ["query", "key", "value"]
    assert internals.children(keras.layers.Dense(1)) == []


def test_a_layer_lists_what_it_holds_itself_frozen_or_not():
    """`_trainable_variables` and `_non_trainable_variables`: by kind, whatever the flag says."""
    norm = keras.layers.BatchNormalization()
    norm.build((None, 4))
    norm.trainable = False
    assert [v.name for v in internals.trainable_kind(norm)] == ["gamma", "beta"]
    held = [v.name for v in internals.fixed_kind(norm)]
    assert held == ["moving_mean", "moving_variance"]


def test_a_layer_lets_go_of_a_variable():
    """`_untrack_variable`: it is in none of the layer's lists afterwards, the others stay."""
    dense = keras.layers.Dense(3)
    dense.build((None, 4))
    dense.enable_lora(2)
    assert [v.name for v in dense.weights] == ["kernel", "bias", "lora_kernel_a", "lora_kernel_b"]
    internals.untrack(dense, dense.lora_kernel_a)
    assert [v.name for v in dense.weights] == ["kernel", "bias", "lora_kernel_b"]


def test_the_flag_of_a_layer_can_be_set_alone():
    """`_trainable`: does not reach into the children, as `trainable` does."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    internals.set_flag(model, False)
    assert model.layers[0].trainable and not internals.flag(model)
    model.trainable = True
    model.trainable = False
    assert not model.layers[0].trainable


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dropout(0.5),
        keras.layers.SpatialDropout2D(0.5),
        keras.layers.GaussianNoise(1.0),
        keras.layers.RandomFlip(),
        keras.layers.RandomRotation(0.1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_random_layer_shows_its_generator(layer):
    """`_seed_generators`: without it Dropout would be cached."""
    assert internals.seed_generators(layer)
    assert not internals.seed_generators(keras.layers.Dense(1))


def test_a_mask_travels_on_the_tensor():
    """`_keras_mask`: without it a cut would lose the mask."""
    tokens = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(10, 4, mask_zero=True)(tokens)
    assert internals.mask_of(embedded) is not None
    assert internals.mask_of(keras.layers.Embedding(10, 4)(tokens)) is None


def test_what_a_class_does_not_override_is_marked():
    """`_is_default`: on the hooks of a Callback, and on `compute_output_shape`."""

    class Sees(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    assert not internals.is_as_keras_has_it(Sees().on_train_batch_end)
    assert internals.is_as_keras_has_it(Sees().on_test_batch_end)
    assert not internals.is_as_keras_has_it(keras.layers.Dense(1).compute_output_shape)


def test_a_compiled_model_gives_back_the_objects_it_was_compiled_with(model):
    """`_compile_config`: loss and metrics, not copies of them."""
    loss, metric = keras.losses.MeanSquaredError(), keras.metrics.MeanAbsoluteError()
    model.compile(loss=loss, metrics=[metric])
    found = internals.compiled_with(model)
    assert found["loss"] is loss and found["metrics"][0] is metric
    assert found["loss_weights"] is None and found["weighted_metrics"] is None


# Layers and `fit` ----------------------------------------------------------------------------


def test_a_call_of_a_layer_is_noted_on_it_and_on_what_it_reads():
    """`_inbound_nodes` and `_outbound_nodes`: lists that a new call is put at the end of."""
    model = with_head(small_backbone())
    calls = internals.nodes(model)
    for node in calls:
        assert node in node.operation._inbound_nodes
    assert calls[1] in calls[0].operation._outbound_nodes
    before = [len(node.operation._inbound_nodes) for node in calls]
    with internals.Traces(model):
        keras.Model(calls[0].outputs[0], model.output)
        assert [len(node.operation._inbound_nodes) for node in calls[1:]] > before[1:]
    assert [len(node.operation._inbound_nodes) for node in calls] == before
    x = np.ones((2, 16, 16, 3), "float32")
    assert model(x).shape == keras.Model.from_config(model.get_config())(x).shape


def test_a_layer_that_forgets_its_calls_is_traced_from_the_next_one():
    """`_inbound_nodes`, emptied: `input` and `output` are those of the next call."""
    layer, first, second = keras.layers.Dense(2), keras.Input((3,)), keras.Input((3,))
    layer(first)
    internals.forget_calls(layer)
    found = layer(second)
    assert layer.input is second and layer.output is found
    assert keras.Model(second, found).count_params() == 8


def test_an_operation_holds_its_arguments_itself():
    """`_auto_config` and `_lock` are Keras's own; all else says what an operation does."""
    flipped = keras.ops.flip(keras.Input((3,)), axis=-1)
    assert {"_auto_config", "_lock"} <= set(vars(flipped._keras_history.operation))
    assert internals.settings(flipped._keras_history.operation)["axis"] == -1


def test_a_call_put_on_the_instance_is_honoured_in_fit(model, data):
    """How BatchNorm keeps its statistics while gamma and beta learn ("affine")."""
    seen = []
    norm = model.get_layer("backbone").get_layer("stack1_bn")

    def call(inputs, training=None, mask=None):
        seen.append(training)
        return type(norm).call(norm, inputs, training=False, mask=mask)

    norm.call = call
    before = numbers(norm.moving_mean)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(*data, epochs=2, verbose=0)
    assert True in seen
    np.testing.assert_array_equal(numbers(norm.moving_mean), before)


def test_a_frozen_batchnorm_normalises_with_its_stored_statistics(model, data):
    """`trainable = False` means inference mode, for this layer alone of all."""
    norm = model.get_layer("backbone").get_layer("stack0_bn")
    norm.trainable = False
    x = np.random.default_rng(0).normal(5, 3, (4, 8, 8, 4)).astype("float32")
    trained, tested = (numbers(norm(x, training=mode)) for mode in (True, False))
    np.testing.assert_array_equal(trained, tested)


@pytest.mark.skipif(not TENSORFLOW, reason="an order that tf.data draws at every opening")
def test_fit_opens_a_dataset_twice_an_epoch():
    """What a resumed run has to catch up on, for a dataset that shuffles itself."""
    import tensorflow as tf

    def shuffled(seen):
        def note(i):
            seen.append(int(i))
            return np.full(3, i, "float32")

        data = tf.data.Dataset.range(8).shuffle(8, seed=1)
        data = data.map(lambda i: (tf.ensure_shape(tf.numpy_function(note, [i], "float32"), 3), i))
        return data.batch(8)

    trained, opened = [], []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(shuffled(trained), epochs=3, shuffle=False, verbose=0)
    data = shuffled(opened)
    for _ in range(3):
        next(iter(data))
        iter(data)  # opened, not read
    assert trained == opened


@pytest.mark.skipif(not TENSORFLOW, reason="the loop in the graph is TensorFlow's")
def test_a_train_function_can_be_built_and_called_by_hand(model, data):
    """`_symbolic_build`, `make_train_function` and `_get_metrics_result_or_logs`."""
    x, y = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    model._symbolic_build(data_batch=(x, y))
    assert model.optimizer.built
    model.make_train_function()
    logs = model.train_function(iter([(x, y)]))
    found = model._get_metrics_result_or_logs(logs)
    assert {"loss", "accuracy"} <= set(found)
    assert int(numbers(model.optimizer.iterations)) == 1


def test_a_callback_may_say_which_epoch_is_the_first(model, data, tmp_path):
    """`_initial_epoch`: how BackupAndRestore tells `fit` where to go on."""
    model.compile("sgd", "sparse_categorical_crossentropy")
    seen = []

    class Jump(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model._initial_epoch = 2

        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    model.fit(*data, epochs=3, callbacks=[Jump()], verbose=0)
    assert seen == [2]


# Optimizers ----------------------------------------------------------------------------------


def test_an_optimizer_steps_each_variable_by_update_step():
    """`_get_variable_index` finds it, whatever kind of variable the backend hands over."""

    class Watched(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            seen.append(self._get_variable_index(variable))
            super().update_step(gradient, variable, learning_rate)

    seen, held = [], variables()
    step(Watched(0.1), held)
    assert seen == [0, 1]


def test_the_learning_rate_of_a_step_comes_from_one_place():
    """`_get_current_learning_rate`, and `_learning_rate` holds what was given."""

    class Halved(keras.optimizers.SGD):
        def _get_current_learning_rate(self):
            return super()._get_current_learning_rate() / 2

    held = variables(1)
    step(Halved(1.0), held)
    np.testing.assert_allclose(numbers(held[0]), 0.5)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert keras.optimizers.SGD(schedule)._learning_rate is schedule
    assert float(numbers(keras.optimizers.SGD(0.25)._learning_rate)) == 0.25


def test_adam_corrects_its_bias_by_the_property_iterations():
    """`_iterations` is the count itself; the property may be overridden."""

    class Aged(keras.optimizers.Adam):
        @property
        def iterations(self):
            return super().iterations + 1000

    held = variables()
    young, aged = keras.optimizers.Adam(0.1), Aged(0.1)
    step(young, held[:1])
    step(aged, held[1:])
    assert int(numbers(aged._iterations)) == 1
    assert 1 - numbers(held[0])[0] < 0.11 and 1 - numbers(held[1])[0] > 0.2


def test_weight_decay_is_applied_to_those_that_may_decay():
    """`_apply_weight_decay` asks `_use_weight_decay` of each variable."""

    class First(keras.optimizers.AdamW):
        def _use_weight_decay(self, variable):
            return self._get_variable_index(variable) == 0

        def _apply_weight_decay(self, variables):
            calls.append(len(variables))
            super()._apply_weight_decay(variables)

    calls, held = [], variables()
    step(First(0.1, weight_decay=1.0), held, gradient=0.0)
    assert calls == [2]
    np.testing.assert_allclose([numbers(v)[0] for v in held], [0.9, 1.0], rtol=1e-6)


def test_weight_decay_may_be_asked_of_an_optimizer_that_is_not_built():
    """`_use_weight_decay`, or from Keras 3.16 on `_is_excluded_from_weight_decay`."""
    held, optimizer = variables(), keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=held[:1])
    assert [may_decay(optimizer, variable) for variable in held] == [False, True]
    assert not optimizer.built


def test_averages_are_kept_beside_the_variables_and_updated_in_one_place():
    """`_model_variables_moving_average`, `_update_model_variables_moving_average`."""

    class Counted(keras.optimizers.SGD):
        def _update_model_variables_moving_average(self, trainable_variables):
            calls.append(len(trainable_variables))
            super()._update_model_variables_moving_average(trainable_variables)

    calls, held = [], variables()
    optimizer = Counted(0.1, use_ema=True)
    step(optimizer, held)
    assert calls == [2] and len(optimizer._model_variables_moving_average) == 2


@pytest.mark.parametrize(
    "optimizer, names",
    [
        (keras.optimizers.SGD(0.1, momentum=0.9), {"momentums"}),
        (keras.optimizers.RMSprop(momentum=0.9), {"_velocities", "_momentums"}),
        (keras.optimizers.Adam(), {"_momentums", "_velocities"}),
        (keras.optimizers.Lion(), {"_momentums"}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_slots_are_lists_beside_the_list_of_variables(optimizer, names):
    """`_trainable_variables` and lists as long: `_momentums` and others; not the lists
    `_variables` and `_accumulated_gradients`."""
    held = variables(3)
    optimizer.build(held)
    assert optimizer._trainable_variables == held
    found = {
        name
        for name, value in vars(optimizer).items()
        if isinstance(value, list) and len(value) == 3 and value is not optimizer._variables
    }
    assert found - {"_trainable_variables", "_accumulated_gradients"} >= names
