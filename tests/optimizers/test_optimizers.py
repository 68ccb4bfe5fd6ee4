"""Learning rates block by block: against optimizers run block by block, or by hand."""

import json
import math
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import CosineDecay, ExponentialDecay
from small import easy_data, small_backbone, with_head

from tlkeras import optimizers
from tlkeras.blocks.find import Block, find_blocks
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.optimizers import blockwise, carry, discriminative, layerwise_decay, plain, state

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)
RATES = {"first": 0.1, "second": 0.5, "head": 1.0}
EXTRA = {
    keras.optimizers.SGD: {"momentum": 0.9, "nesterov": True},
    keras.optimizers.RMSprop: {"momentum": 0.5, "centered": True},
    keras.optimizers.Adam: {"amsgrad": True},
}
every_optimizer = pytest.mark.parametrize(
    "base", optimizers.SUPPORTED, ids=lambda base: base.__name__
)


def tiny():
    """Three blocks of one Dense layer each, named by hand: quick, and without a graph to find."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(n, name=name) for n, name in ((4, "a"), (3, "b"), (2, "c"))]
    return keras.Sequential([keras.Input((5,)), *layers])


@pytest.fixture(autouse=True)
def blocks_of_tiny(monkeypatch):
    def found(model):
        if not isinstance(model, keras.Sequential):
            return find_blocks(model)
        return [
            Block(name, role, [layer], layer.weights, layer.count_params(), None)
            for layer, name, role in zip(
                [x for x in model.layers if x.weights],
                ("first", "second", "head"),
                ("bottom", "top", "head"),
                strict=True,
            )
        ]

    monkeypatch.setattr(blockwise, "find_blocks", found)


def gradients(model, step, scale=1.0):
    rng = np.random.default_rng(step)
    return [
        keras.ops.convert_to_tensor(rng.normal(0, scale, v.shape).astype("float32"))
        for v in model.trainable_variables
    ]


def train(optimizer, model, steps=4, start=0, scale=1.0):
    for step in range(start, start + steps):
        optimizer.apply(gradients(model, step, scale), model.trainable_variables)
    return model.get_weights()


def train_apart(make, rates, steps=4, scale=1.0):
    """The same steps by plain optimizers, one a block, whose learning rates are scaled by hand."""
    model = tiny()
    each = [
        (make(rate), layer.trainable_variables)
        for rate, layer in zip(rates, model.layers, strict=True)
    ]
    for step in range(steps):
        grads = iter(gradients(model, step, scale))
        for optimizer, variables in each:
            optimizer.apply([next(grads) for _ in variables], variables)
    return model.get_weights()


def assert_close(found, expected, rtol=2e-5, atol=1e-7):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


# Rates ------------------------------------------------------------------------------------------


@every_optimizer
def test_rates_are_learning_rates_of_optimizers_apart(base):
    options = EXTRA.get(base, {})
    model = tiny()
    found = train(discriminative(base(0.01, **options), model, RATES), model)
    expected = train_apart(lambda rate: base(0.01 * rate, **options), RATES.values())
    assert_close(found, expected)


@every_optimizer
def test_rates_of_one_are_the_plain_optimizer_bit_for_bit(base):
    model, other = tiny(), tiny()
    options = EXTRA.get(base, {}) | {"weight_decay": 0.01}
    found = train(discriminative(base(0.01, **options), model), model)
    for one, two in zip(found, train(base(0.01, **options), other), strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_schedule_is_multiplied_by_the_rates():
    schedule = ExponentialDecay(0.1, 1, 0.5)
    model = tiny()
    optimizer = discriminative(keras.optimizers.SGD(schedule), model, RATES)
    before = model.get_weights()
    after = train(optimizer, model, steps=3)
    summed = [
        sum(0.1 * 0.5**k * keras.ops.convert_to_numpy(gradients(model, k)[i]) for k in range(3))
        for i in range(6)
    ]
    rates = np.repeat(list(RATES.values()), 2)
    assert_close(
        after, [b - r * s for b, r, s in zip(before, rates, summed, strict=True)], 1e-5, 1e-6
    )


def test_a_block_can_have_a_schedule_of_its_own():
    model = tiny()
    rates = RATES | {"second": CosineDecay(1.0, 4)}
    optimizer = discriminative(keras.optimizers.SGD(0.1), model, rates)
    before = model.get_weights()
    after = train(optimizer, model, steps=3)
    for i, step in ((2, "kernel"), (3, "bias")):
        moved = sum(
            0.1
            * 0.5
            * (1 + math.cos(math.pi * k / 4))
            * keras.ops.convert_to_numpy(gradients(model, k)[i])
            for k in range(3)
        )
        np.testing.assert_allclose(after[i], before[i] - moved, atol=1e-6, err_msg=step)


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue"])
def test_every_gradient_is_clipped_before_its_rate(clip):
    options = {clip: 0.3}
    model = tiny()
    found = train(discriminative(keras.optimizers.SGD(0.1, **options), model, RATES), model)
    expected = train_apart(lambda rate: keras.optimizers.SGD(0.1 * rate, **options), RATES.values())
    assert_close(found, expected)


def test_one_norm_over_all_blocks_is_clipped():
    model = tiny()
    optimizer = discriminative(keras.optimizers.SGD(0.1, global_clipnorm=0.5), model, RATES)
    before = model.get_weights()
    after = train(optimizer, model, steps=1)
    grads = [keras.ops.convert_to_numpy(g) for g in gradients(model, 0)]
    scale = 0.5 / math.sqrt(sum(float((g**2).sum()) for g in grads))
    rates = np.repeat(list(RATES.values()), 2)
    assert_close(
        after, [b - 0.1 * r * scale * g for b, r, g in zip(before, rates, grads, strict=True)]
    )


@pytest.mark.parametrize("rates", [RATES, RATES | {"first": CosineDecay(0.1, 10**9)}])
def test_weight_decay_follows_the_rate(rates):
    model = tiny()
    optimizer = discriminative(keras.optimizers.AdamW(0.1, weight_decay=0.5), model, rates)
    before = model.get_weights()
    zero = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zero, model.trainable_variables)
    for one, old, rate in zip(
        model.get_weights(), before, np.repeat([0.1, 0.5, 1], 2), strict=True
    ):
        np.testing.assert_allclose(one, old * (1 - 0.1 * rate * 0.5), rtol=1e-6)


def test_what_weight_decay_leaves_out_stays_out_also_after_saving(tmp_path):
    model = tiny()
    for layer in model.layers:
        layer.bias.assign(np.ones(layer.bias.shape))
    pattern = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    pattern.exclude_from_weight_decay(var_names=["bias"])
    model.compile(discriminative(pattern, model, RATES), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        zero = [keras.ops.zeros(v.shape) for v in each.trainable_variables]
        each.optimizer.apply(zero, each.trainable_variables)
        assert all((layer.bias.numpy() == 1).all() for layer in each.layers)


@pytest.mark.parametrize("base", [keras.optimizers.AdamW, keras.optimizers.SGD])
@pytest.mark.parametrize(
    "options",
    [
        {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2, "weight_decay": 0.1},
    ],
    ids=["average", "accumulation"],
)
def test_averages_and_accumulated_gradients_go_by_block(base, options):
    model = tiny()
    found = train(discriminative(base(0.01, **options), model, RATES), model, 5)
    expected = train_apart(lambda rate: base(0.01 * rate, **options), RATES.values(), 5)
    assert_close(found, expected)


# In fit -----------------------------------------------------------------------------------------


def moved(model, before):
    """How far each layer's weights moved, as one number a layer."""
    now = [np.concatenate([w.ravel() for w in x.get_weights()]) for x in model.layers]
    old = iter(before)
    then = [np.concatenate([next(old).ravel() for _ in x.weights]) for x in model.layers]
    return [float(np.abs(a - b).max()) for a, b in zip(now, then, strict=True)]


def compiled(rates=RATES, learning_rate=0.01, base=keras.optimizers.Lion, **options):
    model = tiny()
    model.compile(discriminative(base(learning_rate), model, rates), "mse", **options)
    return model


X = np.random.default_rng(0).normal(0, 1, (8, 5)).astype("float32")
Y = np.random.default_rng(1).normal(0, 1, (8, 2)).astype("float32")


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_fit_steps_every_block_at_its_rate(jit):
    model = compiled(jit_compile=jit)  # Lion steps by the learning rate, whatever the gradient
    before = model.get_weights()
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_allclose(moved(model, before), [0.001, 0.005, 0.01], rtol=1e-3)


def test_a_scheduler_callback_sets_the_rate_of_all_blocks():
    model = compiled()
    before = model.get_weights()
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1)
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[callback])
    np.testing.assert_allclose(moved(model, before), [0.01, 0.05, 0.1], rtol=1e-3)


def test_reduce_on_plateau_reduces_all_blocks():
    model = compiled()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=1e9)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[plateau])
    before = model.get_weights()
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_allclose(moved(model, before), [0.0001, 0.0005, 0.001], rtol=1e-2)


def test_backup_and_restore_goes_on_as_if_nothing_had_happened(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    def fit(model, *callbacks):
        model.fit(X, Y, batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=list(callbacks))

    base = keras.optimizers.Adam
    unbroken, broken, resumed = (compiled(base=base) for _ in range(3))
    fit(unbroken)
    backup = {"backup_dir": str(tmp_path / "backup")}
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, keras.callbacks.BackupAndRestore(**backup), Interrupt())
    fit(resumed, keras.callbacks.BackupAndRestore(**backup))
    assert_close(resumed.get_weights(), unbroken.get_weights(), 1e-6)


def test_mixed_precision_scales_the_loss_around_it():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled()
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    before = model.get_weights()
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_allclose(moved(model, before), [0.001, 0.005, 0.01], rtol=1e-2)


@on_tensorflow
def test_a_distribution_strategy_steps_the_same():
    tf = pytest.importorskip("tensorflow")
    weights = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0"])):
        with strategy.scope():
            model = compiled(base=keras.optimizers.AdamW)
            model.fit(X, Y, batch_size=4, shuffle=False, epochs=2, verbose=0)
            weights.append(model.get_weights())
    assert_close(*weights, 1e-6)


@every_optimizer
def test_a_saved_model_goes_on_training_the_same(base, tmp_path):
    model = tiny()
    rates = RATES | {"first": CosineDecay(0.5, 20)}
    first = discriminative(base(0.01), model)
    train(first, model)
    second = discriminative(base(ExponentialDecay(0.01, 5, 0.5)), model, rates)
    carry(first, second, model.trainable_variables)
    model.compile(second, "mse")
    train(model.optimizer, model, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(second)
    assert [s.age for s in loaded.optimizer.shares] == [4] * 6
    assert [s.rate for s in loaded.optimizer.shares[2:]] == [0.5, 0.5, 1.0, 1.0]
    found, expected = (train(m.optimizer, m, 3, start=2) for m in (loaded, model))
    assert_close(found, expected, 1e-6)


# From stage to stage ----------------------------------------------------------------------------


@every_optimizer
def test_carried_state_goes_on_as_if_one_optimizer_had_trained(base):
    options = EXTRA.get(base, {}) | {"use_ema": True}
    unbroken, model = tiny(), tiny()
    alone = base(0.01, **options)
    expected = train(alone, unbroken, 6)
    first = base(0.01, **options)
    train(first, model, 3)
    second = discriminative(base(0.01, **options), model)
    assert len(carry(first, second, model.trainable_variables).carried) == 6
    third = discriminative(base(0.01, **options), model)
    train(second, model, 1, start=3)
    carry(second, third, model.trainable_variables)
    assert {share.age for share in third.shares} == {4}
    assert_close(train(third, model, 2, start=4), expected, 1e-6)
    averages = (each._model_variables_moving_average for each in (third, alone))
    assert_close(*([keras.ops.convert_to_numpy(a) for a in each] for each in averages), 1e-6)
    slots = len(third.variables) - 2
    assert sum(len(slot) for slot in state._slots(third).values()) == slots


def test_a_joining_block_steps_no_further_than_its_learning_rate():
    steps = {}
    for name in ("plain", "carried"):
        model = tiny()
        model.layers[0].trainable = False
        first = keras.optimizers.Adam(0.01)
        train(first, model, 5)
        first._iterations.assign(2000)  # the stayers' moments hardly matter here
        model.layers[0].trainable = True
        second = discriminative(keras.optimizers.Adam(0.01), model)
        report = carry(first, second, model.trainable_variables)
        if name == "plain":  # one count for all, as Keras has it
            second.shares = tuple(replace(s, age=2000) for s in second.shares)
        before = model.layers[0].get_weights()[0]
        largest = 0.0
        for _ in range(10):
            train(second, model, 1, start=100)  # the same gradient again and again
            now = model.layers[0].get_weights()[0]
            largest = max(largest, float(np.abs(now - before).max()))
            before = now
        steps[name] = largest
    assert report.fresh == tuple(w.path for w in model.layers[0].weights)
    assert steps["carried"] <= 0.01 * 1.001
    assert steps["plain"] > 0.03


def test_slots_find_their_variable_where_paths_are_equal():
    def part():
        vector = keras.Input((4,))
        return keras.Model(vector, keras.layers.Dense(4, name="same")(vector))

    model = keras.Sequential([keras.Input((4,)), part(), part(), keras.layers.Dense(2, name="c")])
    paths = [v.path for v in model.trainable_variables]
    assert paths[0] == paths[2]
    model.layers[0].trainable = False
    first = keras.optimizers.Adam(0.01)
    train(first, model, 2)
    moment = first._momentums[0].numpy()
    model.layers[0].trainable = True
    second = discriminative(keras.optimizers.Adam(0.01), model)
    carry(first, second, model.trainable_variables)
    np.testing.assert_array_equal(second._momentums[2].numpy(), moment)
    assert not second._momentums[0].numpy().any()
    assert [share.age for share in second.shares] == [0, 0, 2, 2, 2, 2]


def test_another_class_of_optimizer_carries_nothing_and_says_so():
    model = tiny()
    first = keras.optimizers.RMSprop(0.01)
    train(first, model)
    report = carry(first, discriminative(keras.optimizers.Adam(), model), model.trainable_variables)
    assert not report.carried and "RMSprop" in str(report)


def test_carry_wants_an_optimizer_that_has_not_stepped():
    model = tiny()
    optimizer = discriminative(keras.optimizers.Adam(), model)
    with pytest.raises(ValueError, match="variables="):
        carry(keras.optimizers.Adam(), optimizer)
    train(optimizer, model, 1)
    with pytest.raises(ValueError, match="found 1 steps"):
        carry(keras.optimizers.Adam(), optimizer)


@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_is_keras_own_and_goes_on(wrapped):
    if wrapped and keras.backend.backend() == "jax":
        pytest.skip("a LossScaleOptimizer of Keras steps only inside fit on JAX")
    model = tiny()
    made = discriminative(keras.optimizers.AdamW(0.01), model)
    made = keras.optimizers.LossScaleOptimizer(made) if wrapped else made
    train(made, model)
    simple = plain(made, model.trainable_variables)
    inner = simple.inner_optimizer if wrapped else simple
    assert type(inner).__module__.startswith("keras.")
    before = model.get_weights()
    expected = train(made, model, 2, start=4)
    model.set_weights(before)
    assert_close(train(simple, model, 2, start=4), expected, 1e-6)
    rated = discriminative(keras.optimizers.AdamW(0.01), model, RATES)
    assert plain(rated, model.trainable_variables) is rated


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"frist": 1, "*": 1}, r"No block is called 'frist'.*first, second, head"),
        ({"first": 1, "head": 1}, "found none for second"),
        (RATES | {"second": -1}, "'second': expected a rate of 0 or more.*found -1"),
        (RATES | {"second": math.nan}, "found nan"),
        ({"*": 0}, "none with a rate above 0"),
    ],
)
def test_rates_that_do_not_fit_are_errors_that_name_blocks(rates, message):
    with pytest.raises(ValueError, match=message):
        discriminative(keras.optimizers.Adam(), tiny(), rates)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Nadam(),
        keras.optimizers.Ftrl(),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        "adam",
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_optimizers_are_refused_with_a_list(optimizer):
    with pytest.raises(TypeError, match=f"SGD, RMSprop, Adam.*found {type(optimizer).__name__}"):
        discriminative(optimizer, tiny())


def test_a_rate_of_zero_freezes_and_says_so():
    keras.utils.set_random_seed(0)
    model = with_head(small_backbone())
    freeze(model, policies.last_blocks(2), batchnorm="affine")
    names = [block.name for block in find_blocks(model)]
    with pytest.warns(UserWarning, match=f"{names[-3]!r} is frozen by its rate of 0"):
        optimizer = discriminative(keras.optimizers.SGD(0.1), model, {names[-3]: 0, "*": 1})
    model.compile(optimizer, "sparse_categorical_crossentropy")
    held = {w.path: w.numpy() for b in find_blocks(model)[:-2] for w in b.weights}
    affine = [x for x in model._flatten_layers() if "call" in vars(x)]
    assert [x.name for x in affine] == ["stack2_bn"]
    kernel = model.get_layer("logits").kernel.numpy()
    model.fit(*easy_data(12), verbose=0)
    after = {w.path: w.numpy() for b in find_blocks(model)[:-2] for w in b.weights}
    assert all(after[path].tobytes() == held[path].tobytes() for path in held)
    assert (model.get_layer("logits").kernel.numpy() != kernel).any()


def test_a_variable_that_learns_later_is_an_error():
    model = tiny()
    model.layers[0].trainable = False
    optimizer = discriminative(keras.optimizers.Adam(), model)
    model.layers[0].trainable = True
    with pytest.raises(
        ValueError, match="none for .*a/kernel, .*a/bias. Call.*discriminative again"
    ):
        optimizer.build(model.trainable_variables)


def test_some_of_the_variables_in_another_order_find_their_rates():
    model = tiny()
    optimizer = discriminative(keras.optimizers.Adam(), model, RATES)
    optimizer.build(model.trainable_variables[::-2])
    assert [share.block for share in optimizer.shares] == ["head", "second", "first"]


# The words --------------------------------------------------------------------------------------


def test_a_name_goes_before_a_pattern_and_a_pattern_before_a_role():
    blocks = blockwise.find_blocks(tiny())
    rates = {"bottom": 1, "top": 2, "head": 3, "f*": 4, "fir*": 5}
    assert optimizers.block_rates(rates, blocks) == {"first": 5, "second": 2, "head": 3}
    assert optimizers.block_rates(rates | {"first": 6, "[f]irst*": 7}, blocks)["first"] == 6
    assert optimizers.block_rates(lambda b: len(b.name), blocks)["second"] == 6
    assert optimizers.block_rates({"head": 1}, blocks, {"head"}) == {"head": 1}


def test_layerwise_decay_falls_from_the_head_down():
    found = optimizers.block_rates(layerwise_decay(0.8), blockwise.find_blocks(tiny()))
    assert found == pytest.approx({"first": 0.64, "second": 0.8, "head": 1})
    with pytest.raises(ValueError, match="found 1.5"):
        layerwise_decay(1.5)


@pytest.mark.parametrize("rates", [None, layerwise_decay(0.7), {"*": 0.5, "head": 1.0}])
def test_rates_can_be_stored(rates):
    stored = json.loads(json.dumps(optimizers.rates_to_dict(rates)))
    assert optimizers.rates_from_dict(stored) == rates


def test_stored_schedules_come_back_and_functions_are_refused():
    stored = optimizers.rates_to_dict({"head": CosineDecay(1.0, 7)})
    assert optimizers.rates_from_dict(stored)["head"].decay_steps == 7
    with pytest.raises(TypeError, match="can be stored"):
        optimizers.rates_to_dict(lambda block: 1)


def test_it_shows_its_class_and_rates():
    shown = repr(discriminative(keras.optimizers.AdamW(0.01), tiny(), RATES))
    assert (
        shown == "<discriminative AdamW, learning rate 0.01: first x 0.1, second x 0.5, head x 1>"
    )


def test_a_carried_momentum_shrinks_with_the_learning_rate():
    model = tiny()
    first = keras.optimizers.SGD(0.1, momentum=0.9)
    train(first, model, 5)
    second = discriminative(keras.optimizers.SGD(1e-4, momentum=0.9), model)
    carry(first, second, model.trainable_variables)
    for old, new in zip(first.momentums, second.momentums, strict=True):
        old, new = (keras.ops.convert_to_numpy(momentum) for momentum in (old, new))
        assert np.abs(old).max() > 0
        np.testing.assert_allclose(new, old * 1e-3, rtol=1e-4)
