import keras
import numpy as np
import pytest
from small import easy_data, small_backbone

from tlkeras.freezing import policies
from tlkeras.freezing.batchnorm import batchnorm_layers
from tlkeras.freezing.flags import freeze
from tlkeras.training import rate_finder
from tlkeras.training.rate_finder import find_learning_rate

SHORT = {"lowest": 1e-4, "highest": 10.0, "steps": 30, "batch_size": 16}


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    backbone = small_backbone((4, 6))
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.1)(backbone(image)))
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


def state(model):
    """Everything that a sweep must leave as it was."""
    return (
        [np.array(v.numpy()).tobytes() for v in model.variables],
        [v.trainable for v in model.variables],
        [layer.trainable for layer in model._flatten_layers()],
        ["call" in vars(layer) for layer in batchnorm_layers(model)],
        model.optimizer,
        [v.numpy().tobytes() for v in model.optimizer.variables] if model.optimizer else None,
        model.compiled and model._compile_config.config,
        model.train_function,
    )


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = easy_data(32)
        return x[index::2], y[index::2]


def tf_data():
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.data is tested with TensorFlow")
    return tf.data.Dataset.from_tensor_slices(easy_data(32)).batch(16)


@pytest.mark.parametrize(
    "make", [easy_data, tf_data, Batches], ids=["arrays", "tf.data", "PyDataset"]
)
def test_it_suggests_a_rate_at_which_the_loss_falls(model, make):
    data = make()  # with fewer batches than steps
    found = find_learning_rate(model, data, **SHORT)
    lowest = found.rates[np.nanargmin(found.losses)]
    assert 1e-4 < found.suggestion < lowest
    assert f"{found.suggestion:.1e}" in repr(found) and "<table" in found._repr_html_()
    assert found.plot().axes[0].get_xscale() == "log"
    np.testing.assert_allclose(found.rates[1:] / found.rates[:-1], 1e5 ** (1 / 29))


def test_training_at_the_suggestion_learns(model):
    x, y = easy_data()
    found = find_learning_rate(model, (x, y), optimizer=keras.optimizers.SGD(momentum=0.9), **SHORT)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(found.suggestion, momentum=0.9), loss)
    losses = model.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("fails", [None, ValueError, KeyboardInterrupt], ids=str)
def test_it_leaves_the_model_as_found(model, monkeypatch, fails):
    x, y = easy_data(32)
    freeze(model, policies.last_blocks(1), "affine")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    before = state(model)
    if fails:
        batches = rate_finder._batches

        def failing(*args):
            yield next(batches(*args))
            raise fails("stop")

        monkeypatch.setattr(rate_finder, "_batches", failing)
        with pytest.raises(fails):
            find_learning_rate(model, (x, y), policy=policies.all_blocks(), **SHORT)
    else:
        find_learning_rate(model, (x, y), policy=policies.all_blocks(), **SHORT)
    assert state(model) == before


def test_it_applies_the_policy_for_the_sweep(model, monkeypatch):
    seen = []
    sweep = rate_finder._sweep

    def watched(model, *args, **options):
        seen.append([v.path for v in model.trainable_variables])
        return sweep(model, *args, **options)

    monkeypatch.setattr(rate_finder, "_sweep", watched)
    find_learning_rate(model, easy_data(32), policy=policies.head_only(), **SHORT)
    assert seen == [["logits/kernel", "logits/bias"]]
    assert len(model.trainable_variables) > 2 and not model.compiled


def test_a_sweep_that_diverges_stops_and_says_so(model):
    found = find_learning_rate(
        model, easy_data(), optimizer=keras.optimizers.SGD(), lowest=1e-3, highest=1e6, steps=40
    )
    assert len(found.rates) < 40 and "diverged" in repr(found)
    assert found.suggestion < found.rates[-1]


def test_no_rate_is_suggested_where_the_loss_never_falls(model):
    tiny = {"lowest": 1e-12, "highest": 1e-10, "steps": 12}
    found = find_learning_rate(model, easy_data(), **tiny, batch_size=48)  # all data every time
    assert found.suggestion is None
    assert "never fell" in repr(found) and found.plot()


@pytest.mark.filterwarnings("error")
def test_a_loss_that_only_rises_gives_no_rate_and_no_warning():
    rates, losses = np.geomspace(1e-3, 1, 20), np.linspace(1, 2, 20)
    assert rate_finder._suggest(rates, losses, losses) is None


def test_the_same_seed_gives_the_same_sweep(model):
    one, two = (find_learning_rate(model, easy_data(), **SHORT, seed=3) for _ in "ab")
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-4)


def test_what_cannot_be_swept_is_an_error(model):
    with pytest.raises(ValueError, match="found a generator"):
        find_learning_rate(model, iter([easy_data()]))
    with pytest.raises(ValueError, match="lowest=1, highest=0.1"):
        find_learning_rate(model, easy_data(), lowest=1, highest=0.1)
