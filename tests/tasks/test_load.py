"""Tasks: what load_task returns, and how the builders behind it are prepared."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tlkeras as tlk
from tlkeras.tasks import builders
from tlkeras.utils import paths


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
    import tlkeras.tasks  # noqa: F401

    assert len(tfds.load("digits", split="test", data_dir=cache, download=False)) == 800
    assert tfds.builder("glyphs", data_dir=cache).info.features["label"].num_classes == 464


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


class Spots(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Grey squares, each with a bright half, in two domains; a builder with all there can be."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)
    NOTE, GROUP = "Synthetic, <no> validity", "person"
    DOMAINS = {"clinic": "plain", "phone": "dim"}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "dim", "odd")]
    COUNTS = {"held_out": 3, "train": 30, "validation": 6, "test": 9}

    def _info(self):
        features = {
            "person": tfds.features.Text(),
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "kind": tfds.features.ClassLabel(names=["x", "y"]),
            "mask": tfds.features.Image(shape=(8, 8, 1)),
            "score": np.float32,
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description="Spots.", features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(count) for name, count in self.COUNTS.items()}

    def _generate_examples(self, count):
        level = {"plain": 2, "dim": 1, "odd": 3}[self.builder_config.name]
        for number in range(count):
            mask = np.zeros((8, 8, 1), "uint8")
            mask[:, : 1 + number % 7] = 1
            yield (
                f"{number:02d}",
                {
                    "person": f"Zoë {number}",
                    "image": np.repeat(mask * level * (number + 10), 3, axis=-1),
                    "label": number % 3,
                    "kind": number % 2,
                    "mask": mask,
                    "score": number / 2,
                },
            )


@pytest.fixture
def spots(monkeypatch, cache):
    monkeypatch.setattr(builders, "names", lambda: ["spots"])
    monkeypatch.setattr(builders, "builder_class", lambda name: Spots)
    return lambda name="spots", **options: tlk.load_task(name, data_dir=cache, **options)


def test_features_are_aligned_by_example(spots):
    task = spots(labels_per_class=4)
    assert task.features == ("image", "label", "person", "kind", "mask", "score")
    person, image, mask, kind, label, score = task.arrays(
        "train", "person", "image", "mask", "kind", "label", "score"
    )
    number = np.array([int(name.removeprefix("Zoë ")) for name in person])
    assert len(number) == 12 and (np.bincount(label) == 4).all()
    np.testing.assert_array_equal(number % 3, label)
    np.testing.assert_array_equal(number % 2, kind)
    np.testing.assert_array_equal(number / 2, score)
    np.testing.assert_array_equal(mask.sum((1, 2, 3)), 8 * (1 + number % 7))
    np.testing.assert_array_equal(
        image, mask * 2.0 * (number + 10)[:, None, None, None] * [1, 1, 1]
    )
    assert (image.dtype, mask.dtype, kind.dtype) == ("float32", "uint8", "int32")
    np.testing.assert_array_equal(task.arrays("train")[0], image)
    (streamed,) = (y for _, y in task.train.take(1))
    np.testing.assert_array_equal(np.sort(streamed), np.sort(label))


def test_masks_are_resized_without_new_values(spots):
    image, mask = spots(image_size=(20, 12)).arrays("test", "image", "mask")
    assert image.shape == (9, 20, 12, 3) and mask.shape == (9, 20, 12, 1)
    assert set(np.unique(mask)) == {0, 1} and len(np.unique(image)) > 10


def test_arrays_are_copies(spots):
    task = spots()
    for name in task.features:
        task.arrays("test", name)[0][:] = 0
    assert task.arrays("test", "score")[0].any() and task.arrays("test", "mask")[0].any()


def test_further_splits_are_there_as_arrays(spots):
    task = spots()
    assert task.counts == {"train": 30, "validation": 6, "test": 9, "held_out": 3}
    assert list(task.counts)[:3] == ["train", "validation", "test"]
    assert task.arrays("held_out")[0].shape == (3, 8, 8, 3)


def test_domains_are_the_same_task_seen_otherwise(spots):
    clinic, phone = spots(), spots(domain="phone")
    assert (clinic.domain, phone.domain) == ("clinic", "phone") and clinic.group == "person"
    np.testing.assert_array_equal(clinic.arrays("test")[0], 2 * phone.arrays("test")[0])
    assert spots("spots/dim").domain == "phone" and spots("spots/odd").domain is None
    assert repr(phone).startswith("Task(spots, phone: 3 classes, 8x8, train 30")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"domain": "tablet"}, "'clinic', 'phone'"),
        ({"name": "spots/dim", "domain": "phone"}, "give one of them"),
        ({"name": ".", "domain": "phone"}, "no domains"),
    ],
)
def test_domains_that_are_not_there(spots, arguments, says):
    with pytest.raises(ValueError, match=says):
        spots(**arguments)


def test_a_note_is_wherever_the_task_is_shown(digits, spots):
    task = spots(domain="phone")
    assert task.note in repr(task) and "&lt;no&gt; validity" in task._repr_html_()
    title = task.show("test", rows=1, columns=3).get_suptitle()
    assert title == "spots, phone: test (Synthetic, <no> validity)"
    assert digits.note == "" and digits.show().get_suptitle() == "digits: train"
    assert digits.domain is digits.group is None and digits.features == ("image", "label")


def test_a_sheet_of_samples_has_every_class_and_is_always_the_same(digits):
    def drawn(figure):
        return [(axis.get_title(loc="center"), axis.images[0].get_array()) for axis in figure.axes]

    first, again = drawn(digits.show("test")), drawn(digits.show("test"))
    assert len(first) == 24 and [name for name, _ in first] == sorted(name for name, _ in first)
    assert {name for name, _ in first} == set("0123456789")
    for (_, one), (_, other) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(digits.show("test", rows=1, columns=4).axes) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name_or_folder": "digits", "domain": "phone"}, "no domains"),
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


def test_an_unknown_split_or_feature_is_an_error(digits):
    with pytest.raises(ValueError, match="'train', 'validation', 'test'"):
        digits.arrays("valid")
    with pytest.raises(ValueError, match="'image', 'label'.*'mask'"):
        digits.arrays("test", "mask")


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


def test_every_task_says_which_network_to_start_from():
    for name in tlk.list_tasks():
        task = tlk.load_task(name)
        assert task.start in {folder.name for folder in paths.presets()}
        assert f"**Start from.** `{task.start}`" in task.card
    assert tlk.load_task("digits").start == "glyph_resnet"
    assert tlk.load_task("clothes").start == "efficientnet_lite0"
