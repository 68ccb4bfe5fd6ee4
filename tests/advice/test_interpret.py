"""tlk.interpret: scores are those of other people's formulas, examples those that matter."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from light import bright, run_of
from sklearn import metrics
from small import easy_data

import tlkeras as tlk
from tlkeras.advice.scores import judge


def fixed(probabilities):
    """A model that looks its answer up in the first pixel."""
    table = np.log(np.asarray(probabilities, "float32"))
    pixels = keras.Input((4, 4, 3))
    number = keras.layers.GlobalMaxPooling2D()(pixels)[:, :1]
    x = keras.layers.Embedding(len(table), table.shape[1], name="table")(number)
    x = keras.layers.Softmax()(keras.layers.Flatten()(x))
    model = keras.Model(pixels, x)
    model.get_layer("table").set_weights([table])
    return model


def numbered(n):
    return np.zeros((n, 4, 4, 3)) + np.arange(n)[:, None, None, None]


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    given = rng.dirichlet([0.5] * 4, 200).astype("float32")
    truth = np.where(rng.random(200) < 0.6, given.argmax(-1), rng.integers(0, 4, 200))
    return given, truth


def test_scores_are_those_of_scikit_learn(drawn):
    given, truth = drawn
    found = tlk.interpret(fixed(given), (numbered(200), truth), examples=0)
    said = given.argmax(-1)
    assert np.array_equal(found.matrix, metrics.confusion_matrix(truth, said))
    assert found.scores["accuracy"][0] == pytest.approx(metrics.accuracy_score(truth, said))
    balanced = metrics.balanced_accuracy_score(truth, said)
    assert found.scores["balanced accuracy"][0] == pytest.approx(balanced)
    assert found.scores["log loss"] == pytest.approx(metrics.log_loss(truth, given), rel=1e-4)
    report = metrics.classification_report(truth, said, output_dict=True)
    for number, row in enumerate(found.record["classes"]):
        for name in ("precision", "recall", "support"):
            assert row[name] == pytest.approx(report[str(number)][name])
    pair = found.record["confused"][0]
    off = found.matrix - np.diag(np.diag(found.matrix))
    assert pair["count"] == off.max() == off[int(pair["is"]), int(pair["taken for"])]


def test_the_interval_covers_what_other_draws_give():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        truth = rng.integers(0, 2, 150)
        said = np.where(rng.random(150) < 0.8, truth, 1 - truth)
        found = judge((np.eye(2)[said], truth), "class", ("a", "b"))
        _, low, high = found["scores"]["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_worst_and_the_uncertain_are_found():
    given = np.full((40, 3), 1e-3, "float32")
    given[:, 0] = 0.998
    truth = np.zeros(40, int)
    truth[[7, 31]] = 1  # sure, and wrong
    given[31] = [0.9, 0.09, 0.01]
    given[12] = [0.4, 0.39, 0.21]  # right by a hair
    files = [f"photos/{n}.png" for n in range(40)]
    data = SimpleNamespace(
        test=(numbered(40), truth), validation=None, features=("image", "label", "file"),
        classes=("cat", "dog", "owl"), arrays=lambda split, name: (np.array(files),),
    )  # fmt: skip
    found = tlk.interpret(fixed(given), data, examples=3)
    assert [one.file for one in found.worst] == ["photos/7.png", "photos/31.png"]
    assert (found.worst[0].truth, found.worst[0].said) == ("dog", "cat")
    assert found.uncertain[0].file == "photos/12.png" and found.worst[0].image[0, 0, 0] == 7
    assert "1 of 2 dog" not in repr(found) and "2 of 2 dog taken for cat" in repr(found)
    for figure in (found.plot(), found.plot_calibration(), found.plot_examples("uncertain")):
        assert figure.axes


def test_a_temperature_is_never_chosen_on_what_is_judged(drawn):
    given, truth = drawn
    data = (numbered(200), truth)
    assert tlk.interpret(fixed(given), data).record["calibration"]["temperature"] is None
    found = tlk.interpret(fixed(given), data, validation_data=data)
    assert found.record["calibration"]["temperature"] > 1
    task = SimpleNamespace(test=None, validation=data, features=(), classes=None)
    record = tlk.interpret(fixed(given), task).record
    assert record["split"] == "validation" and record["calibration"]["temperature"] is None


def test_thresholds_are_chosen_on_validation():
    model = bright(2)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    x = np.zeros((8, 8, 8, 3)) + np.linspace(0, 255, 8)[:, None, None, None]
    y = np.stack([np.ones(8), np.arange(8) >= 6], axis=1)
    task = SimpleNamespace(test=(x, y), validation=(x, y), features=(), classes=None)
    for given in (task, SimpleNamespace(**vars(task) | {"test": None})):
        found = tlk.interpret(model, given, examples=0)
        assert len(found.record["thresholds"]) == 2 and found.scores["every label right"] == 1
    found = tlk.interpret(model, (x, y), examples=0)
    assert found.record["thresholds"] is None and found.scores["every label right"] == 0.75
    record = tlk.interpret(model, task, thresholds=[0.9, 0.1], examples=0).record
    assert record["thresholds"] == [0.9, 0.1]
    assert record["validation"] == record["scores"]  # of the same images


def test_labels_and_numbers(tmp_path):
    model = bright(3)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    levels = np.array([20, 140, 160, 30])
    x = np.zeros((4, 8, 8, 3)) + levels[:, None, None, None]
    y = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
    found = tlk.interpret(model, (x, y), classes=("a", "b", "light"))
    assert found.scores["mean average precision"] == 1
    assert found.scores["every label right"] == 0.75
    assert found.worst[0].truth == "a, b" and found.worst[0].said == "a, b, light"
    with pytest.raises(ValueError, match="one class for each"):
        found.plot()
    with pytest.raises(ValueError, match="Expected 3 labels or numbers for each"):
        tlk.interpret(model, (x, y[:, 0]))
    run = run_of(bright(1), "mse", tmp_path, ("age",))
    found = tlk.interpret(run, (x, 60 * levels / 255 - 29))
    assert found.scores["mean absolute error"] == pytest.approx(1, rel=1e-3)
    assert found.worst and not found.uncertain and "error" in repr(found)


def test_grad_cam_comes_with_the_examples(model):
    x, y = easy_data()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = tlk.interpret(model, (x, y), examples=2)
    assert found.uncertain[0].heat.shape == (2, 2) and not model.layers[-1]._outbound_nodes


def test_a_model_that_diverged_is_not_judged():
    model = bright(activation="softmax")
    model.layers[-1].set_weights([np.full((3, 2), np.nan), np.zeros(2)])
    with pytest.raises(ValueError, match="diverge"):
        tlk.interpret(model, (np.zeros((4, 8, 8, 3)), np.arange(4) % 2))


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        ([0, 1, 2, 9], {}, "labels from 0 to 1"),
        ([0, 1, 0, 1], {"classes": ("light", "dark")}, "in their order"),
        ([0, 1, 0, 1], {"classes": ("a", "b", "c")}, "2 classes"),
    ],
)
def test_data_that_do_not_fit_are_refused(labels, options, says, tmp_path):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    run = run_of(bright(), loss, tmp_path, ("dark", "light"))
    with pytest.raises(ValueError, match=says):
        tlk.interpret(run, (np.zeros((4, 8, 8, 3)), np.array(labels)), **options)
