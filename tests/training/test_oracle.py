"""Keras's own behaviour is the oracle: a plan of one stage does what one `fit` does.

Without validation data a stage ends at its last epoch, as `fit` does; with them it ends at its
best, so where they are needed here training goes so slowly that the last one is the best. A stage
without the cache is a `fit`; where only what it is given matters (losses, metrics), the cached one
alone is compared.
"""

import inspect
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import keras
import numpy as np
import pytest

from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

tf = pytest.importorskip("tensorflow")  # an order that is the same for both

RATE, EPOCHS, COUNT = 1e-2, 2, 12
RNG = np.random.default_rng(0)
X, CLASSES = RNG.normal(size=(COUNT, 4)).astype("float32"), np.arange(COUNT) % 3
ONE_HOT = keras.utils.to_categorical(CLASSES, 3)
CACHE = (False, True)


def every(module, base):
    """Names of a module of Keras's that are classes of this kind."""
    found = {n for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base)}
    return sorted(found - {base.__name__})


def network(eagerly=True, time=False):
    """A backbone, to be frozen, and a head of three classes: at each of two steps if `time`."""
    keras.utils.set_random_seed(0)
    inner, outer = keras.Input((4,)), keras.Input((4,))
    backbone = keras.Model(inner, keras.layers.Dense(6, "relu")(inner), name="backbone")
    x = keras.layers.Dense(6 if time else 3)(backbone(outer))
    x = keras.layers.Reshape((2, 3))(x) if time else x
    model = keras.Model(outer, keras.layers.Softmax()(x))
    model.compile("sgd", run_eagerly=eagerly)
    return model


def batches(y):
    return tf.data.Dataset.from_tensor_slices((X, y)).batch(COUNT // 2)


def by_fit(y, optimizer, model=None, epochs=EPOCHS, callbacks=None, validation=None, **objective):
    model = model or network()
    model.get_layer("backbone").trainable = False
    model.compile(optimizer, run_eagerly=True, **objective)
    how = {"epochs": epochs, "callbacks": callbacks, "validation_data": validation}
    seen = model.fit(batches(y), shuffle=False, verbose=0, **how)
    return model, seen.history


def by_stages(y, optimizer, cache, model=None, epochs=EPOCHS, validation=None, **how):
    model = model or network(eagerly=not cache)
    stage = Stage("head", policies.head_only(), RATE, epochs)
    how |= {"optimizer": optimizer, "cache": cache}
    run = fit_stages(model, [stage], batches(y), validation, verbose=0, **how)
    return model, {k: v for k, v in run.history.items() if k not in ("stage", "epoch")}


def assert_same(one, other, state=False):
    """Weights and history; the optimizer's state, too."""
    (model, history), (staged, staged_history) = one, other
    for a, b in zip(model.get_weights(), staged.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    for a, b in (
        zip(*(m.optimizer.variables for m in (model, staged)), strict=True) if state else ()
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=a.path)
    assert {*history} == {*staged_history}
    for name, values in history.items():
        np.testing.assert_allclose(staged_history[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


# Optimizers -------------------------------------------------------------------------------------

OPTIMIZERS = every(keras.optimizers, keras.optimizers.Optimizer)


def optimizer_of(name):
    options = {"weight_decay": 0.01, "global_clipnorm": 0.1, "gradient_accumulation_steps": 2}
    made = getattr(keras.optimizers, name)
    if name == "LossScaleOptimizer":
        return made(keras.optimizers.Adam(RATE, **options), initial_scale=8.0)
    if name == "MultiOptimizer":
        return made(keras.optimizers.OptimizerMap(keras.optimizers.Adam(RATE)))
    return made(RATE, **options)


OLD = {"Muon"} if keras.__version__.startswith("3.12") else set()  # `fit` itself fails there
TRAINING = sorted({*OPTIMIZERS} - {"MultiOptimizer"} - OLD)


@pytest.mark.parametrize("name", TRAINING)
def test_an_optimizer_steps_as_in_fit(name):
    one = by_fit(ONE_HOT, optimizer_of(name), loss="mse")
    for cache in CACHE:
        assert_same(one, by_stages(ONE_HOT, optimizer_of(name), cache, loss="mse"), state=True)


@pytest.mark.parametrize("name", TRAINING)
def test_a_compiled_model_goes_on_with_what_its_optimizer_remembers(name):
    one, other = (by_fit(ONE_HOT, optimizer_of(name), loss="mse")[0] for _ in range(2))
    one.fit(batches(ONE_HOT), epochs=EPOCHS, shuffle=False, verbose=0)
    other = by_stages(ONE_HOT, None, "auto", model=other)
    assert_same((one, one.history.history), other, state=True)


@pytest.mark.skipif("MultiOptimizer" not in OPTIMIZERS, reason="new in Keras 3.15")
def test_an_optimizer_without_a_learning_rate_is_refused_before_training():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"found MultiOptimizer.*Stage\(rates="):
        by_stages(ONE_HOT, optimizer_of("MultiOptimizer"), False, model=model, loss="mse")
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif("ScheduleFreeAdamW" not in OPTIMIZERS, reason="new in Keras 3.15")
def test_an_optimizer_that_starts_from_the_weights_does_so_once_also_where_steps_are_traced():
    one = by_fit(ONE_HOT, optimizer_of("ScheduleFreeAdamW"), loss="mse")  # eagerly
    other = optimizer_of("ScheduleFreeAdamW")  # `fit` alone would start again at every step
    assert_same(one, by_stages(ONE_HOT, other, False, model=network(False), loss="mse"))


def test_rates_that_an_optimizer_cannot_have_are_refused_before_training():
    model, all_blocks = network(), policies.all_blocks()
    before = model.get_weights()
    plan = [Stage("one", all_blocks), Stage("two", all_blocks, rates={"*": 0.5})]
    with pytest.raises(TypeError, match="found Nadam. Pass one of these"):
        fit_stages(model, plan, batches(ONE_HOT), optimizer="nadam", loss="mse", verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))


# Metrics and losses -----------------------------------------------------------------------------

NEEDED = {  # what some cannot be made without
    "IoU": {"num_classes": 3, "target_class_ids": [0], "sparse_y_pred": False},
    "MeanIoU": {"num_classes": 3, "sparse_y_pred": False},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [0]},
    "OneHotMeanIoU": {"num_classes": 3},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "MeanMetricWrapper": {"fn": keras.losses.mean_squared_error},
}
OF_VALUES = {"Mean", "Sum"}  # of no labels: `fit` itself does not take them
NUMBERS = {"IoU", "MeanIoU", "Circle", "CategoricalGeneralizedCrossEntropy"}  # for labels


def labels_of(name):
    return CLASSES if "Sparse" in name or name in NUMBERS else ONE_HOT


@pytest.mark.parametrize("name", sorted({*every(keras.metrics, keras.metrics.Metric)} - OF_VALUES))
def test_a_metric_counts_as_in_fit(name):
    y = labels_of(name)
    loss = "mse" if y is ONE_HOT else "sparse_categorical_crossentropy"

    def made():
        return [getattr(keras.metrics, name)(**NEEDED.get(name, {}), name="counted")]

    one = by_fit(y, "sgd", metrics=made(), loss=loss)
    assert "counted" in one[1]
    assert_same(one, by_stages(y, "sgd", True, metrics=made(), loss=loss))


@pytest.mark.parametrize("name", every(keras.losses, keras.losses.Loss))
def test_a_loss_is_lowered_as_in_fit(name):
    loss, y, time = getattr(keras.losses, name)(), labels_of(name), name == "CTC"
    y = CLASSES[:, None] % 2 + 1 if time else y
    one = by_fit(y, "sgd", loss=loss, model=network(time=time))
    assert np.isfinite(one[1]["loss"]).all()
    assert_same(one, by_stages(y, "sgd", True, loss=loss, model=network(False, time)))


# Callbacks --------------------------------------------------------------------------------------


def teller(path):
    """Writes down what it is told, in order."""
    hooks = [h for h in inspect.signature(keras.callbacks.LambdaCallback).parameters if "on_" in h]

    def telling(hook):
        def tell(*given, logs=None):
            number, names = given[:1], sorted((*given, logs)[-1] or {})
            with open(path, "a") as file:
                print(hook, *(n for n in number if isinstance(n, int)), *names, file=file)

        return tell

    return keras.callbacks.LambdaCallback(**{hook: telling(hook) for hook in hooks})


C = keras.callbacks
MADE = {  # each with a folder of its own
    "CSVLogger": lambda at: C.CSVLogger(at / "log.csv"),
    "CallbackList": lambda at: C.CallbackList([teller(at / "told.csv")]),
    "EarlyStopping": lambda at: C.EarlyStopping("loss", 1e9, 1, restore_best_weights=True),
    "History": lambda at: C.History(),
    "LambdaCallback": lambda at: teller(at / "told.csv"),
    "LearningRateScheduler": lambda at: C.LearningRateScheduler(lambda _, rate: rate / 2),
    "ModelCheckpoint": lambda at: C.ModelCheckpoint(
        at / "{epoch}-{loss:.3f}.keras", monitor="loss", save_best_only=True
    ),
    "OrbaxCheckpoint": lambda at: C.OrbaxCheckpoint(at / "orbax", save_on_background=False),
    "ProgbarLogger": lambda at: C.ProgbarLogger(),
    "ReduceLROnPlateau": lambda at: C.ReduceLROnPlateau("loss", patience=1, min_delta=9.0),
    "RemoteMonitor": lambda at: C.RemoteMonitor(at, send_as_json=True),
    "SwapEMAWeights": lambda at: C.SwapEMAWeights(),
    "TensorBoard": lambda at: C.TensorBoard(at / "board", write_graph=False),
    "TerminateOnNaN": lambda at: C.TerminateOnNaN(),
}
WRITE = {"CSVLogger", "CallbackList", "LambdaCallback", "ModelCheckpoint", "RemoteMonitor"}
REFUSED = {"BackupAndRestore"}  # for backup_dir: see test_one_run.py
NEEDS = {"OrbaxCheckpoint": "orbax.checkpoint", "TensorBoard": "tensorboard"}
CALLBACKS = sorted({*every(C, C.Callback)} - REFUSED)


def written(folder):
    """What the files of a callback hold."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".keras":
            model = keras.models.load_model(path)
            found[path.name] = [type(model.optimizer).__name__, *model.get_weights()]
            found[path.name] += [np.array(v) for v in model.optimizer.variables]
        elif path.suffix in (".csv", ".json"):
            found[path.name] = path.read_text().splitlines()
        elif "tfevents" in path.name:
            events = tf.compat.v1.train.summary_iterator(str(path))
            found[path.parent.name] = [f"{e.step} {v.tag}" for e in events for v in e.summary.value]
    return found


@pytest.fixture
def remote():
    """The address of a server that writes what is posted to it into the folder that it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with open(self.path.removesuffix("/publish/epoch/end/") + "/posted.json", "ab") as file:
                file.write(body + b"\n")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_does_what_it_does_in_fit(name, tmp_path, remote):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])

    def how(where):
        (at := tmp_path / where).mkdir()
        make, averaging = MADE[name], name == "SwapEMAWeights"
        return {
            "callbacks": [make(f"{remote}{at}" if name == "RemoteMonitor" else at)],
            "optimizer": keras.optimizers.SGD(RATE, use_ema=averaging, ema_momentum=0.5),
            "loss": "mse", "epochs": 4, "validation": batches(ONE_HOT) if averaging else None,
        }  # fmt: skip

    one = by_fit(ONE_HOT, **how("fit"))
    expected = written(tmp_path / "fit")
    for cache in CACHE:
        other = by_stages(ONE_HOT, cache=cache, **how(str(cache)))
        assert_same(one, other, state=True)
        assert_written(expected, written(tmp_path / str(cache)))
    assert (len(one[1]["loss"]) < 4) == (name == "EarlyStopping")
    assert bool(expected) == (name in WRITE | set(NEEDS))


def assert_written(expected, found):
    assert expected.keys() == found.keys()
    for name, parts in expected.items():
        for a, b in zip(parts, found[name], strict=True):
            if isinstance(a, str):
                assert rounded(a) == rounded(b)
            else:
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def rounded(line):
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.4f}", line)


def test_a_loss_that_is_no_number_ends_both_in_one_epoch():
    y, stop = np.full_like(ONE_HOT, np.nan), C.TerminateOnNaN()
    _, history = by_fit(y, "sgd", callbacks=[stop], loss="mse")
    for cache in CACHE:
        with pytest.warns(RuntimeWarning, match="weights are those of before the stage"):
            _, staged = by_stages(y, "sgd", cache, callbacks=[stop], loss="mse")
        assert len(history["loss"]) == len(staged["loss"]) == 1
