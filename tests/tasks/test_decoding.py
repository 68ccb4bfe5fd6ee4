"""Images that are too many for memory: kept in a file, and the same in every other way."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import photos, scene

import tlkeras as tlk
from tlkeras.tasks import decoding, folders


@pytest.fixture
def scenes(tmp_path):
    for place, count in (("train", 9), ("val", 4), ("test", 5)):
        for name in ("cat", "dog"):
            for number in range(count):
                seed = (len(place), ord(name[0]), number)
                scene(tmp_path / "photos" / place / name / f"{number}.png", seed, (20, 16))
    return tmp_path / "photos"


@pytest.fixture
def both(scenes, monkeypatch, tmp_path):
    """The task in memory, and from a file."""

    def load(**options):
        in_memory = tlk.load_task(scenes, batch_size=4, **options)
        with monkeypatch.context() as patched:
            patched.setattr(decoding, "IN_MEMORY", 1000)
            return in_memory, tlk.load_task(scenes, batch_size=4, data_dir=tmp_path, **options)

    return load


@pytest.mark.parametrize("options", [{}, {"labels_per_class": 3, "seed": 1}, {"image_size": 8}])
def test_a_file_of_pixels_gives_what_memory_does(both, options):
    memory, disk = both(**options)
    assert memory.counts == disk.counts and memory.image_size == disk.image_size
    for split in memory.counts:
        for one, other in zip(memory.arrays(split), disk.arrays(split), strict=True):
            np.testing.assert_array_equal(one, other)
    for split in ("train", "validation", "test"):
        for _ in range(2):  # shuffled anew in each epoch
            pairs = zip(getattr(memory, split), getattr(disk, split), strict=True)
            for (x, y), (other_x, other_y) in pairs:
                np.testing.assert_array_equal(x, other_x)
                np.testing.assert_array_equal(y, other_y)
    assert disk.show(rows=1, columns=4)


def test_it_is_said_and_leaves_nothing_behind(both, tmp_path):
    before = sorted(tmp_path.iterdir())
    _, disk = both()
    (line,) = [line for line in disk.report if "kept in a file" in line]
    assert str(tmp_path) in line and "not in memory" in line
    assert sorted(tmp_path.iterdir()) == before


def test_unreadable_files_are_skipped_there_too(scenes, both):
    whole = (scenes / "train" / "cat" / "0.png").read_bytes()
    (scenes / "train" / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    memory, disk = both(skip_unreadable=True)
    assert disk.counts["train"] == 17
    np.testing.assert_array_equal(*(task.arrays("train")[0] for task in (memory, disk)))


def test_a_model_trains_on_them(both):
    _, disk = both()
    model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=disk.image_size), 2)
    plan = tlk.recipes.head_only(epochs=2)
    run = tlk.fit_stages(model, plan, disk.train, disk.validation, seed=0, verbose=0)
    assert run.stages[0].cache.startswith("after ")


def test_no_room_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "IN_MEMORY", 1000)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: SimpleNamespace(free=9))
    with pytest.raises(ValueError, match="16 images of 10x12 take .*choose a smaller image_size"):
        tlk.load_task(photos(tmp_path), data_dir=tmp_path / "cache")


def test_images_are_indexed_like_an_array(tmp_path):
    images = decoding.OnDisk(5, (2, 3), tmp_path)
    wanted = np.arange(5 * 2 * 3 * 3, dtype="uint8").reshape(5, 2, 3, 3)
    for place in (4, 0, 2, 1, 3):
        images[place] = wanted[place]
    for rows in (2, slice(1, 4), np.array([3, 0, 3]), [4], slice(0, 0)):
        np.testing.assert_array_equal(images[rows], wanted[rows])
    taken = images.take(np.array([4, 1]))
    assert taken.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(taken[1:], wanted[[1]])


@pytest.mark.parametrize("limit", [0, 2**30], ids=["from a file", "from memory"])
def test_images_go_with_the_task_and_not_before(scenes, monkeypatch, tmp_path, limit):
    monkeypatch.setattr(decoding, "IN_MEMORY", limit)
    task = tlk.load_task(scenes, batch_size=4, data_dir=tmp_path)
    images = weakref.ref(task.splits["train"]["image"])
    made = task.train.map(lambda x, y: (x / 255, y)).prefetch(1)
    del task
    gc.collect()
    assert sum(len(y) for _, y in made) == 18
    del made
    gc.collect()
    assert images() is None
