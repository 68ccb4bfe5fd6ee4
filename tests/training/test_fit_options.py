"""How a model was compiled is how its stages run; optimizers are taken in any form."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.optimizers.pattern import may_decay
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages
from tlkeras.training.rate_finder import find_learning_rate

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)
LAST = Stage("last", policies.last_blocks(1), learning_rate=1e-2, epochs=1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Signed(keras.optimizers.SGD):
    """An optimizer of one's own."""


class Slower(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is not registered with Keras."""

    def __call__(self, step):
        return 0.1 / (1 + keras.ops.cast(step, "float32"))

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("adam", keras.optimizers.Adam),
        (Signed(0.1), Signed),
        (keras.optimizers.Adam(Slower()), keras.optimizers.Adam),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), keras.optimizers.Adam),
        (None, keras.optimizers.AdamW),
    ],
)
def test_an_optimizer_by_name_or_subclass_is_taken(model, data, optimizer, kind):
    fit_stages(model, [HEAD, LAST], data, optimizer=optimizer, callbacks=None, verbose=0)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert type(inner) is kind
    assert hasattr(model.optimizer, "inner_optimizer") == hasattr(optimizer, "inner_optimizer")
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-2)
    assert len(find_learning_rate(model, data, optimizer=optimizer, steps=10).rates)


def test_the_compiled_optimizer_is_the_pattern_with_what_it_excludes_from_decay(model, data):
    compiled = keras.optimizers.AdamW(1e-5, weight_decay=0.5, beta_1=0.7)
    compiled.exclude_from_weight_decay(var_names=["bias"])
    model.compile(compiled, LOSS)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(
                {w.name: may_decay(self.model.optimizer, w) for w in self.model.layers[-1].weights}
            )

    fit_stages(model, [HEAD], data, callbacks=[Look()], verbose=0)
    assert seen[0] == {"kernel": True, "bias": False}
    assert [may_decay(model.optimizer, w) for w in model.layers[-1].weights] == [True, False]
    assert model.optimizer.beta_1 == 0.7 and model.optimizer.weight_decay == 0.5
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-2)


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
def test_run_options_of_a_compiled_model_are_kept(model, data, how):
    model.compile("adam", LOSS, **how)
    run = fit_stages(model, [HEAD], data, verbose=0)
    [(name, value)] = how.items()
    assert getattr(model, name) == value and name in run.stages[0].cache


def test_what_a_compile_of_ones_own_was_given_stays(data):
    class Own(keras.Model):
        def compile(self, optimizer, factor, **others):
            super().compile(optimizer, **others)
            self.factor = factor

        def compute_loss(self, *args, **kwargs):
            return self.factor * super().compute_loss(*args, **kwargs)

    plain = with_head(small_backbone())
    model = Own(plain.input, plain.output)
    model.compile("sgd", factor=0.0, loss=LOSS)
    run = fit_stages(model, [HEAD], data, verbose=0)
    assert model.factor == 0.0 and run.history["loss"] == [0.0, 0.0]


def test_a_model_with_its_own_loss_may_learn_without_labels(data):
    class Smooth(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y_pred))

    for given in ((data[0],), data[0]):
        plain = with_head(small_backbone())
        run = fit_stages(Smooth(plain.input, plain.output), [HEAD], given, verbose=0)
        assert run.history["loss"][1] < run.history["loss"][0]


def test_a_subclassed_model_is_trained_with_a_loss_given_or_compiled(data):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.net, self.pool = small_backbone(), keras.layers.GlobalAveragePooling2D()
            self.out = keras.layers.Dense(3)
            self.unused = keras.layers.BatchNormalization()

        def build(self, shape):
            self.out.build((None, 8))

        def call(self, x, training=None):
            return self.out(self.pool(self.net(x, training=training)))

    for compiled in (False, True):
        model = Net()
        model(data[0][:1])
        if compiled:
            model.compile("adam", LOSS, metrics=["accuracy"])
        run = fit_stages(model, [HEAD], data, loss=None if compiled else LOSS, verbose=0)
        assert "off" in run.stages[0].cache and np.isfinite(run.history["loss"]).all()


def test_a_model_may_be_trained_again_from_its_own_backup(model, tmp_path):
    data = easy_data(24)
    fit_stages(model, [HEAD], data, seed=0, backup_dir=tmp_path, verbose=0)
    again = fit_stages(model, [HEAD], data, seed=0, backup_dir=tmp_path, verbose=0)
    assert len(again.history["loss"]) == 2


def test_a_model_on_several_devices_is_trained_there_without_a_scope(data):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a tf.distribute.Strategy")
    import tensorflow as tf

    losses = []
    for name in ("adam", "nadam"):
        for inside in (True, False):
            strategy = tf.distribute.MirroredStrategy(["CPU:0"])
            keras.utils.set_random_seed(0)
            with strategy.scope():
                model = with_head(small_backbone())
            with strategy.scope() if inside else nullcontext():
                run = fit_stages(
                    model, [HEAD], data, optimizer=name, cache=False, seed=0, verbose=0
                )
            losses.append(run.history["loss"])
            assert "Mirrored" in type(model.optimizer.variables[-1].value).__name__
    assert losses[0] == losses[1] and losses[2] == losses[3]
