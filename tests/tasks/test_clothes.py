"""Clothes out of Fashion-MNIST: what is committed, and the IDX files it and the whole come in."""

import dataclasses
import gzip
import hashlib
import importlib.util

import numpy as np
import pytest

import tlkeras as tlk
from tlkeras.tasks import idx, online
from tlkeras.utils import paths

FOLDER = paths.data_root() / "tasks" / "clothes"


@pytest.fixture(scope="module")
def task():
    return tlk.load_task("clothes")


def test_every_class_has_its_share(task):
    for split, each in (("train", 300), ("validation", 100), ("test", 200)):
        images, labels = task.arrays(split)
        assert images.shape == (10 * each, 28, 28, 3)
        np.testing.assert_array_equal(np.bincount(labels), [each] * 10)
    assert task.classes[0] == "T-shirt/top" and task.note == ""


def test_no_image_is_there_twice(task):
    images = np.concatenate([task.arrays(split)[0] for split in task.counts])
    assert len({image.tobytes() for image in images}) == len(images) == 6000


def test_the_files_are_those_of_the_card(task):
    for split in ("train", "validation", "test"):
        files = [FOLDER / f"{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        content = b"".join(gzip.decompress(file.read_bytes()) for file in files)
        assert f"| {split} | `{hashlib.sha256(content).hexdigest()}` |" in task.card
    assert sum(file.stat().st_size for file in FOLDER.glob("*.gz")) < 4e6


def test_splits_are_drawn_apart_and_evenly():
    spec = importlib.util.spec_from_file_location("make_clothes", FOLDER / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    labels = np.repeat(np.arange(10), 20)
    rng = np.random.default_rng(0)
    places = make.draw(labels, {"train": 12, "validation": 5}, rng)
    np.testing.assert_array_equal(np.bincount(labels[places["train"]]), [12] * 10)
    np.testing.assert_array_equal(np.bincount(labels[places["validation"]]), [5] * 10)
    assert not set(places["train"]) & set(places["validation"])


@pytest.fixture
def folder(tmp_path):
    """Files as Fashion-MNIST has them, with 30 and 10 images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), "uint8")
        idx.write_examples(tmp_path, part, images, (np.arange(count) % 10).astype("uint8"))
    return tmp_path


@pytest.fixture
def small(folder, monkeypatch):
    """The table, as if those were all of Fashion-MNIST."""
    counts = {"train": 20, "validation": 10, "test": 10}
    parts = {part: idx.digest(*idx.examples(folder, name)) for part, name in idx.PARTS.items()}
    table = [
        dataclasses.replace(t, counts=counts, idx=parts) if t.name == "fashion_mnist" else t
        for t in online.TABLE
    ]
    monkeypatch.setattr(online, "TABLE", table)


def test_all_of_fashion_mnist_is_read_from_a_folder_offline(folder, small):
    packed = folder / "t10k-labels-idx1-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()  # packed or not, file by file
    before = sorted(folder.iterdir())
    task = tlk.load_task("fashion_mnist", data_dir=folder, image_size=56)
    assert task.counts == {"train": 20, "validation": 10, "test": 10}
    assert task.classes == tlk.load_task("clothes").classes
    images, labels = idx.examples(folder, "train")
    found = [tlk.load_task("fashion_mnist", data_dir=folder).arrays(s) for s in task.counts]
    np.testing.assert_array_equal(np.concatenate([found[0][0], found[1][0]]), images)
    np.testing.assert_array_equal(np.concatenate([found[0][1], found[1][1]]), labels)
    assert next(iter(task.test))[0].shape[1:] == (56, 56, 3)
    assert sorted(folder.iterdir()) == before


def test_without_its_files_it_says_where_they_may_be(tmp_path):
    with pytest.raises(ConnectionError, match="give it as data_dir"):
        tlk.load_task("fashion_mnist", data_dir=tmp_path)


def test_files_of_another_data_set_are_refused(folder):
    with pytest.raises(ValueError, match="not those of fashion_mnist"):
        tlk.load_task("fashion_mnist", data_dir=folder)


def test_a_missing_file_is_named(folder):
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no train-labels-idx1-ubyte and no"):
        tlk.load_task("fashion_mnist", data_dir=folder)


@pytest.mark.parametrize(
    "damage", ["cut", "packed cut", "other", "types", "counts", "header", "empty"]
)
def test_a_damaged_file_is_refused(folder, damage):
    path = folder / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    wrong = {
        "cut": gzip.compress(content[:-1]),
        "packed cut": path.read_bytes()[:-9],
        "other": b"no such file",
        "types": gzip.compress(content[:2] + b"\x0d" + content[3:]),
        "counts": gzip.compress(content[:7] + b"\x1d" + content[8 : -28 * 28]),
        "header": gzip.compress(content[:9]),
        "empty": gzip.compress(b""),
    }
    path.write_bytes(wrong[damage])
    with pytest.raises(ValueError, match=r"again\.$"):
        tlk.load_task("fashion_mnist", data_dir=folder)
