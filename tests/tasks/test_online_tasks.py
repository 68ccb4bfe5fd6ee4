"""Online tasks, without the internet: TFDS's own specifications, and files from a local server."""

import dataclasses
import hashlib
import io
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from local_server import serving
from PIL import Image

import tlkeras as tlk
from tlkeras.tasks import builders, online
from tlkeras.utils import downloads

FROM_TFDS = [task.name for task in online.TABLE if not task.md5]
MEDMNIST = [task.name for task in online.TABLE if task.md5]


@pytest.fixture
def server():
    with serving() as server:
        yield server


def entry(name):
    return next(task for task in online.TABLE if task.name == name)


def change(monkeypatch, name, **values):
    """The table with another entry for `name`."""
    new = [dataclasses.replace(t, **values) if t.name == name else t for t in online.TABLE]
    monkeypatch.setattr(online, "TABLE", new)


@pytest.mark.parametrize("name", FROM_TFDS)
def test_tfds_data_sets_load_as_tasks(name, monkeypatch, tmp_path):
    monkeypatch.setattr(online, "_fetch_archives", lambda *arguments: None)
    with tfds.testing.mock_data(num_examples=5):
        task = tlk.load_task(name, profile="online", data_dir=tmp_path)
    side = entry(name).size
    images, labels = next(iter(task.train))
    assert images.shape == (5, side, side, 3) and images.dtype == "float32"
    assert labels.dtype == "int32" and max(labels) < len(task.classes)
    assert task.counts == {"train": 5, "validation": 5, "test": 5} and task.note == ""
    assert any("train[:" in line for line in task.report) and "Licence" in task.card


def test_images_are_read_at_the_size_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(online, "_fetch_archives", lambda *arguments: None)
    with tfds.testing.mock_data(num_examples=2):
        task = tlk.load_task(
            "eurosat/rgb", image_size=(24, 20), profile="online", data_dir=tmp_path
        )
    assert task.arrays("test")[0].shape == (2, 24, 20, 3)
    assert "images of 64x64 read at 24x20" in task.report


@pytest.mark.parametrize("name", FROM_TFDS)
def test_every_file_of_tfds_is_at_a_safe_address_with_a_hash(name, monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(downloads, "fetch", lambda *args, **options: fetched.append(args))
    task = entry(name)
    builder = tfds.builder(f"{name}/{task.config}".rstrip("/"), data_dir=tmp_path)
    online._fetch_archives(builder, task, tmp_path)
    assert fetched
    for urls, path, known_hash in fetched:
        for url in urls:
            downloads.refuse_unsafe(url)
        assert len(known_hash.removeprefix("sha256:")) == 64 and path.suffix
        assert "EuroSATall" not in path.name


def cells():
    """A zip laid out like that of the task malaria, with 20 small cells of each class."""
    file, rng = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as archive:
        for folder in ("Parasitized", "Uninfected"):
            for number in range(20):
                image, name = io.BytesIO(), f"cell_images/{folder}/C{number}.png"
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), "uint8")).save(image, "png")
                archive.writestr(name, image.getvalue())
    return file.getvalue()


@pytest.fixture
def malaria(server, monkeypatch):
    """TFDS's own builder, with a small archive from the local server for its large one."""
    content = server.files["cell_images.zip"] = cells()
    made_by = tfds.builder_cls("malaria")
    ((url, known),) = made_by.url_infos.items()
    small = dataclasses.replace(
        known, size=tfds.core.units.Size(len(content)), checksum=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(made_by, "url_infos", {url: small})
    change(monkeypatch, "malaria", mirrors={url: [server.url("good", "cell_images.zip")]})


def test_a_tfds_data_set_is_downloaded_unpacked_and_read(malaria, server, tmp_path, capsys):
    task = tlk.load_task("malaria", profile="online", data_dir=tmp_path)
    assert task.counts == {"train": 28, "validation": 6, "test": 6}
    assert task.classes == ("parasitized", "uninfected") and task.image_size == (64, 64)
    assert "Preparing malaria" in capsys.readouterr().err and len(server.asked) == 1
    assert [p.name for p in (tmp_path / "downloads" / "malaria").iterdir() if p.suffix == ".zip"]
    again = tlk.load_task("malaria", profile="online", data_dir=tmp_path)
    np.testing.assert_array_equal(again.arrays("test")[0], task.arrays("test")[0])
    assert len(server.asked) == 1 and not list(tmp_path.rglob("extracted"))


def test_what_tfds_cannot_prepare_is_one_clear_error(malaria, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(tfds.builder_cls("malaria"), "download_and_prepare", fail)
    with pytest.raises(ConnectionError, match="could not prepare malaria: no way.*'lesions'"):
        tlk.load_task("malaria", profile="online", data_dir=tmp_path)


def medmnist(name, server, monkeypatch, channels=(3,)):
    """The server's file for a MedMNIST task, with the table's address and hash set to it."""
    classes, rng = len(entry(name).classes), np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 21), ("val", 14), ("test", 7)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28, *channels), "uint8")
        arrays[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype("uint8")
    file = io.BytesIO()
    np.savez(file, **arrays)
    server.files[f"{name}.npz"] = file.getvalue()
    monkeypatch.setattr(online, "_MEDMNIST", server.url("good", "{file}"))
    change(monkeypatch, name, md5={28: hashlib.md5(file.getvalue()).hexdigest()})
    return arrays


@pytest.mark.parametrize("name", MEDMNIST)
def test_medmnist_loads_as_a_task(name, server, monkeypatch, tmp_path):
    grey = name == "pneumoniamnist"
    arrays = medmnist(name, server, monkeypatch, () if grey else (3,))
    monkeypatch.setenv("TLKERAS_PROFILE", "online")
    task = tlk.load_task(name, data_dir=tmp_path, labels_per_class=2)
    assert task.counts == {"train": 2 * len(task.classes), "validation": 14, "test": 7}
    x, y = task.arrays("validation")
    expected = arrays["val_images"]
    np.testing.assert_array_equal(x, np.repeat(expected[..., None], 3, -1) if grey else expected)
    np.testing.assert_array_equal(y, arrays["val_labels"][:, 0])
    assert tlk.load_task(name, data_dir=tmp_path).classes == tuple(entry(name).classes)
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", online.names())
def test_the_offline_profile_downloads_nothing_and_says_what_to_use(name, tmp_path):
    with pytest.raises(ConnectionError, match="TLKERAS_PROFILE=online") as error:
        tlk.load_task(name, data_dir=tmp_path)
    assert f"tlk.load_task({entry(name).stand_in!r})" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_offline_tasks_load_in_both_profiles(tmp_path):
    assert tlk.load_task("digits", profile="online", data_dir=tmp_path).counts["test"] == 800
    assert tlk.list_tasks() == builders.names()
    assert tlk.list_tasks("online") == builders.names() + online.names()
    with pytest.raises(ValueError, match="'offline' or 'online'"):
        tlk.load_task("digits", profile="both", data_dir=tmp_path)


@pytest.mark.parametrize("way", ["gone", "good"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(way, server, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.files["dermamnist.npz"] = b"something else"
    monkeypatch.setattr(online, "_MEDMNIST", server.url(way, "{file}"))
    with pytest.raises(ConnectionError, match="Cannot download dermamnist.npz") as error:
        tlk.load_task("dermamnist", profile="online", data_dir=tmp_path)
    path = tmp_path / "downloads" / "dermamnist" / "dermamnist.npz"
    assert f"save it as {path}" in str(error.value)
    assert "tlk.load_task('lesions')" in str(error.value)
    assert [p.suffix for p in path.parent.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name_or_folder": "dermamnist/32"}, "'28', '64', '128', '224'"),
        ({"name_or_folder": "eurosat/all"}, r"\['rgb'\]"),
        ({"name_or_folder": "malaria/x"}, "no configurations"),
        ({"name_or_folder": "malaria", "domain": "phone"}, "no domains"),
        ({"name_or_folder": "malaria", "image_size": 512}, "choose a smaller image_size"),
        ({"name_or_folder": "dermamnst"}, "Did you mean 'dermamnist'"),
        ({"name_or_folder": "food101"}, "online.*colorectal_histology"),
    ],
)
def test_what_cannot_be_loaded_says_why(arguments, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        tlk.load_task(**arguments, profile="online", data_dir=tmp_path)


def test_the_table_is_complete():
    for task in online.TABLE:
        assert task.stand_in in builders.names() and task.summary.endswith((".", "?"))
        assert set(task.counts) == {"train", "validation", "test"}
        assert task.card().splitlines()[2] == task.summary
        assert all(len(md5) == 32 for md5 in task.md5.values())
