"""tlk.predict: what is read, what is said of it, and what is refused."""

import csv

import keras
import numpy as np
import pytest
from light import bright, run_of
from PIL import Image

import tlkeras as tlk
from tlkeras.advice.predicting import VIEWS
from tlkeras.tasks import pictures


@pytest.fixture
def run(tmp_path):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return run_of(bright(), loss, tmp_path, ("dark", "light"))


@pytest.fixture
def photos(tmp_path):
    """Eight photos of 20x30 pixels, the odd ones light, two folders deep."""
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for number in range(8):
        level = 230 if number % 2 else 20
        Image.new("RGB", (30, 20), (level,) * 3).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_files_folders_and_arrays_are_one(run, photos):
    found = tlk.predict(run, photos, batch_size=3)
    assert found.names == ["dark", "light"] * 4 and len(found) == 8
    assert [name.rpartition("/")[2] for name in found.files] == [f"{n}.png" for n in range(8)]
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-6)
    files = [str(path) for path in sorted(photos.rglob("*.png"))]
    again = tlk.predict(run, files).probabilities  # batches of another size round otherwise
    np.testing.assert_allclose(again, found.probabilities, rtol=1e-5)
    assert np.array_equal(tlk.predict(run, files, batch_size=3).probabilities, found.probabilities)
    pixels = np.stack([pictures.decode(photos / "deep" / f"{n}.png", (8, 8)) for n in range(8)])
    again = tlk.predict(run, pixels).probabilities
    np.testing.assert_allclose(again, found.probabilities, rtol=1e-5)
    assert tlk.predict(run, [files[1], files[0], files[1]]).names == ["light", "dark", "light"]
    assert tlk.predict(run, np.full((40, 20, 3), 230)).names == ["light"]
    assert "light 1.000" in repr(found) and found.images_per_second > 0
    assert tlk.predict(tlk.load_run(run).model, pixels).names == ["0", "1"] * 4


def test_what_cannot_be_read_is_named(run, photos, tmp_path):
    whole = (photos / "deep" / "1.png").read_bytes()
    (photos / "deep" / "1.png").write_bytes(whole[: len(whole) // 2])
    found = tlk.predict(run, photos)
    assert len(found) == 7 and len(found.files) == 7
    [(name, why)] = found.unreadable.items()
    assert name.endswith("1.png") and why and "cannot read" in repr(found)
    found.to_csv(tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 8 and rows[1]["class_1"] == "dark" and float(rows[1]["probability_1"]) > 0.9
    assert rows[-1]["problem"] == why and rows[-1]["file"] == name


def test_decoding_is_that_of_training(tmp_path, photos):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    run = run_of(bright(), loss, tmp_path, ("dark", "light"), white=4095.0)
    deep = np.full((8, 8), 3900, "uint16")  # 12 bits: light among its like, dark among 16
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert tlk.predict(run, tmp_path / "deep.png").names == ["light"]


def test_one_logit_stands_for_two_classes(tmp_path):
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    run = run_of(bright(1), loss, tmp_path, ("dark", "light"))
    found = tlk.predict(run, np.full((1, 8, 8, 3), 230))
    assert found.names == ["light"] and found.probabilities.shape == (1, 2)


def test_several_labels_and_numbers(tmp_path, photos):
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    found = tlk.predict(run_of(bright(3), loss, tmp_path, ("a", "b", "light")), photos)
    assert found.kind == "labels" and found.names[:2] == [["a", "b"], ["a", "b", "light"]]
    assert found.header()[:3] == ["file", "labels", "class_1"]
    assert next(found.lines())[1] == "a;b"
    found = tlk.predict(run_of(bright(1), "mse", tmp_path, ("age",)), photos)
    assert found.kind == "number" and found.header() == ["file", "age", "problem"]
    np.testing.assert_allclose(
        found.names[:2], [60 * 20 / 255 - 30, 60 * 230 / 255 - 30], rtol=1e-4
    )


def test_views_are_five_and_their_mean_is_taken(run):
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    views = [view(image) for view in VIEWS]
    assert {view.shape for view in views} == {image.shape} and np.array_equal(views[0], image)
    assert np.array_equal(views[1][:, 2:, 2:], image[:, :-2, :-2])
    assert len({view.tobytes() for view in views}) == 5
    half = np.zeros((1, 8, 8, 3)) + np.linspace(0, 20, 8)[:, None, None] ** 2
    once, five = (tlk.predict(run, half, tta=tta).probabilities for tta in (False, True))
    model = tlk.load_run(run).model
    mean = np.mean([model.predict(view(half), verbose=0) for view in VIEWS], axis=0)
    np.testing.assert_allclose(five, mean, atol=1e-6)
    assert not np.allclose(once, five, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.full((2, 8, 8, 3), 0.5), "Multiply by 255"),
        (np.zeros((2, 8, 8)), "height, width, 3"),
        (np.zeros((0, 8, 8, 3)), "height, width, 3"),
        ("empty", "found none"),
    ],
)
def test_a_mistake_is_named(run, images, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=says):
        tlk.predict(run, images)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        tlk.predict(run, ["gone.jpg"])
    with pytest.raises(ValueError, match="at least 1"):
        tlk.predict(run, images, top=0)


def test_a_run_at_hand_is_asked_and_stays_as_it_is(tmp_path):
    model = bright()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = tlk.Run(model, tlk.recipes.head_only(1))
    found = tlk.predict(run, np.full((1, 8, 8, 3), 230))
    assert found.names == ["1"] and 0.99 < found.probabilities[0, 1] <= 1
    assert not model.layers[-1]._outbound_nodes
