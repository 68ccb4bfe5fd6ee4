"""Runs side by side."""

import keras
import numpy as np
import pytest

import tlkeras as tlk

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = np.arange(64) % 2


def run(epochs=1, validation=True, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    judged = (X, Y) if validation else None
    return tlk.fit_stages(
        model, tlk.recipes.full(epochs=epochs), (X, Y), judged, verbose=0, **options
    )


@pytest.fixture(scope="module")
def two():
    return {"short": run(1), "long <b>": run(3)}


def test_each_run_is_a_row_with_where_it_ended_and_what_it_cost(two):
    found = tlk.compare(two)
    assert found.metric == "val_accuracy"
    rows, header = found._rows()
    assert header[:3] == ("run", "val_accuracy", "stages and their epochs")
    for (name, ended, stages, learned, *_), (key, one) in zip(rows, two.items(), strict=True):
        assert name == key and stages.endswith(str(len(one.history["epoch"]))) and learned == "10"
        assert ended == f"{one.stages[-1].metrics['val_accuracy']:.4f}"
    assert "short" in repr(found) and "long &lt;b&gt;" in found._repr_html_()


def test_the_page_holds_table_and_picture_and_escapes_names(two, tmp_path):
    path = tlk.compare(two).save(tmp_path / "runs.html")
    made = path.read_text("utf-8")
    assert "long &lt;b&gt;" in made and "long <b>" not in made
    assert 'alt="val_accuracy over the epochs' in made and list(tmp_path.iterdir()) == [path]


def test_stored_runs_are_named_after_their_folders(two, tmp_path):
    folders = [one.save(tmp_path / name) for name, one in zip("ab", two.values(), strict=True)]
    assert list(tlk.compare(folders).runs) == ["a", "b"]
    assert list(tlk.compare([folders[0], two["short"]]).runs) == ["a", "run 2"]


def test_without_a_common_metric_of_validation_the_loss_is_compared(two):
    assert tlk.compare([two["short"], run(validation=False)]).metric == "loss"


def test_what_cannot_be_compared_is_refused(two, tmp_path):
    with pytest.raises(ValueError, match="two runs or more to compare; found 1"):
        tlk.compare([two["short"]])
    with pytest.raises(ValueError, match="Expected auc in the history of every run"):
        tlk.compare(two, "auc")
    folder = two["short"].save(tmp_path / "a")
    with pytest.raises(ValueError, match="found 'a' twice"):
        tlk.compare([folder, folder])
