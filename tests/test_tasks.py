"""Tasks: what load_task returns, and how the builders behind it are prepared."""

import hashlib
import importlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import tlkeras as tlk
from tlkeras import paths


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def digits(cache):
    return tlk.load_task("digits", labels_per_class=5, data_dir=cache)


def test_digits_are_float_rgb_in_0_to_255(digits):
    images, labels = next(iter(digits.train))
    assert images.shape == (32, 32, 32, 3) and images.dtype == "float32"
    assert labels.shape == (32,) and labels.dtype == "int32"
    assert (images.numpy().min(), images.numpy().max()) == (0, 255)
    assert digits.image_size == (32, 32) and digits.classes == tuple("0123456789")


def test_digits_are_split_once_and_for_all(cache):
    whole = tlk.load_task("digits", data_dir=cache)
    assert whole.counts == {"train": 797, "validation": 200, "test": 800}
    found = [whole.arrays(split) for split in ("train", "validation", "test")]
    together = np.concatenate([x for x, _ in found]).astype("uint8")
    assert len(np.unique(together.reshape(1797, -1), axis=0)) == 1797  # disjoint
    for _, labels in found:
        assert np.ptp(np.bincount(labels)) <= 5  # stratified
    content = b"".join(x.astype("uint8").tobytes() + y.tobytes() for x, y in found)
    assert hashlib.sha256(content).hexdigest()[:16] == "6ec384375d40ac1c"


def test_labels_per_class_are_drawn_by_seed(digits, cache):
    assert (np.bincount(digits.arrays()[1]) == 5).all()
    assert digits.counts["test"] == 800
    again = tlk.load_task("digits", labels_per_class=5, data_dir=cache)
    other = tlk.load_task("digits", labels_per_class=5, seed=1, data_dir=cache)
    np.testing.assert_array_equal(digits.arrays()[0], again.arrays()[0])
    assert (digits.arrays()[0] != other.arrays()[0]).any()


def test_training_order_changes_each_epoch_and_is_fixed_by_seed(cache):
    def orders(seed):
        task = tlk.load_task("digits", labels_per_class=5, seed=seed, data_dir=cache)
        epochs = [[x.numpy() for x, _ in task.train] for _ in range(2)]
        return [np.concatenate(epoch) for epoch in epochs]

    first, second = orders(0)
    assert (first != second).any()
    np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(second, axis=0))
    np.testing.assert_array_equal(second, orders(0)[1])


def test_images_are_resized_when_asked_for(cache):
    task = tlk.load_task("digits", labels_per_class=2, image_size=(48, 40), data_dir=cache)
    assert next(iter(task.test))[0].shape[1:] == (48, 40, 3) and task.image_size == (48, 40)


def test_a_prepared_task_loads_quickly(digits, cache):
    start = time.perf_counter()
    tlk.load_task("digits", labels_per_class=30, data_dir=cache)
    assert time.perf_counter() - start < 5  # under 1 s on an idle laptop


def test_plain_tfds_finds_the_builders(cache):
    import tensorflow_datasets as tfds

    import tlkeras.tasks  # noqa: F401

    assert len(tfds.load("digits", split="test", data_dir=cache, download=False)) == 800
    assert tfds.builder("glyphs", data_dir=cache).info.features["label"].num_classes == 464


def builder_of(name):
    import tlkeras.tasks  # noqa: F401  (makes the package known)

    return importlib.import_module(f"tlkeras_tasks.{name}.{name}_dataset_builder")


def test_the_classes_of_glyphs_are_the_letters_of_its_renderer():
    builder = builder_of("glyphs")
    render = importlib.import_module("tlkeras_tasks.glyphs.render")
    assert tuple(builder.LETTERS) == render.letters()
    assert not any(character.isdigit() for character in render.letters())


def test_glyphs_are_drawn_the_same_each_time(monkeypatch, tmp_path):
    builder = builder_of("glyphs")
    monkeypatch.setattr(builder, "LETTERS", "AbДλ")
    monkeypatch.setattr(builder, "PER_CLASS", {"train": 3, "validation": 2, "test": 2})
    first, again = (
        tlk.load_task("glyphs/letters", data_dir=tmp_path / name) for name in ("a", "b")
    )
    assert first.classes == tuple("AbДλ") and first.counts["train"] == 12
    np.testing.assert_array_equal(first.arrays("test")[0], again.arrays("test")[0])
    assert not np.array_equal(first.arrays("validation")[0], first.arrays("test")[0])


def prepare(cache, **options):
    code = "import sys, tlkeras as tlk; print(tlk.load_task('digits', data_dir=sys.argv[1]).counts)"
    command = [sys.executable, "-c", code, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_two_processes_may_prepare_at_once(tmp_path):
    for process in [prepare(tmp_path), prepare(tmp_path)]:
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert b"'test': 800" in out
    assert not list(tmp_path.rglob("*incomplete*"))


def test_a_killed_preparation_is_done_again(tmp_path):
    process = prepare(tmp_path)
    while process.poll() is None and not list(tmp_path.rglob("*incomplete*/*")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not list(tmp_path.glob("digits/1.0.0"))
    assert tlk.load_task("digits", data_dir=tmp_path).counts["test"] == 800
    assert not list(tmp_path.rglob("*incomplete*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name_or_folder": "digit"}, "Did you mean 'digits'"),
        ({"name_or_folder": "digits/large"}, "configurations"),
        ({"name_or_folder": "digits", "labels_per_class": 79}, "class '2' has 78 training images"),
        ({"name_or_folder": "digits", "labels_per_class": 0}, "at least 1"),
        ({"name_or_folder": "digits", "image_size": 0}, "image_size"),
    ],
)
def test_what_cannot_be_loaded_says_why(cache, arguments, says):
    with pytest.raises(ValueError, match=says):
        tlk.load_task(**arguments, data_dir=cache)


def test_an_unknown_split_is_an_error(digits):
    with pytest.raises(ValueError, match="'train', 'validation', 'test'"):
        digits.arrays("valid")


def test_the_card_says_where_the_data_come_from(digits):
    assert "scikit-learn" in digits.card and "Licence" in digits.card
    assert "test 800" in repr(digits) and repr(digits) in digits._repr_html_()


def test_every_task_has_a_card_that_opens_with_a_summary():
    for folder in paths.tasks():
        title, blank, summary = (folder / "card.md").read_text(encoding="utf-8").splitlines()[:3]
        assert title == f"# {folder.name}" and not blank and summary.endswith(".")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the rule for other systems")
def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("TLKERAS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / "tlkeras"
    monkeypatch.setenv("TLKERAS_DATA_DIR", str(tmp_path / "mine"))
    assert paths.cache_dir() == tmp_path / "mine"
    assert paths.cache_dir(os.fspath(tmp_path)) == tmp_path
