"""A folder of images: every file is read rightly, converted and reported, or named in an error."""

import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import tlkeras as tlk


def save(path, value=128, size=(12, 10), mode="RGB", **options):
    """A real image file of one value; `dpi` makes the bytes of two equal images differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def scene(path, seed, size=(64, 64), **options):
    """A real image file with something to see: random blobs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blobs = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype="uint8")
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).save(path, **options)


def places(folder):
    """The split of every image of `photos`, by class and value."""
    task = tlk.load_task(folder)
    return {
        (task.classes[label], int(image[0, 0, 0])): split
        for split in task.counts
        for image, label in zip(*task.arrays(split), strict=True)
    }


def photos(root, classes=("cat", "dog"), count=8):
    for label, name in enumerate(classes):
        for number in range(count):
            value = 40 + 100 * label + number
            save(root / name / f"{number}.png", (value, value, value))
    return root


def only_image(folder, path):
    """What load_task makes of one file: the image of its class that is all of its split."""
    task = tlk.load_task(folder)
    images = np.concatenate([task.arrays(split)[0] for split in task.counts])
    labels = np.concatenate([task.arrays(split)[1] for split in task.counts])
    mine = task.classes.index(path.parent.name)
    return images[labels == mine], task.report


def png16(path, values):
    """Writes a 16-bit PNG, grey (height, width) or RGB (height, width, 3), byte by byte."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else 2
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_a_folder_is_split_for_good(tmp_path):
    photos(tmp_path, count=100)
    first, again = tlk.load_task(tmp_path, seed=0), tlk.load_task(tmp_path, seed=1)
    assert sum(first.counts.values()) == 200 and first.classes == ("cat", "dog")
    assert all(10 <= first.counts[split] <= 50 for split in ("validation", "test"))
    for split in first.counts:
        np.testing.assert_array_equal(first.arrays(split)[0], again.arrays(split)[0])
    assert len(places(tmp_path)) == 200  # each image once


def test_neither_new_files_nor_new_names_move_an_image(tmp_path):
    photos(tmp_path, count=40)
    before = places(tmp_path)
    for number in range(40):
        value = 200 + number
        save(tmp_path / "cat" / f"new{number}.png", (value, value, value))
    after = places(tmp_path)
    assert len(after) == 120 and before.items() <= after.items()
    for number, path in enumerate(sorted((tmp_path / "cat").iterdir())):
        path.rename(path.with_name(f"renamed_{number}.png"))
    (tmp_path / "cat").rename(tmp_path / "ant")
    renamed = {("ant" if kind == "cat" else kind, v): s for (kind, v), s in after.items()}
    assert places(tmp_path) == renamed


def test_copies_stay_together(tmp_path):
    photos(tmp_path, count=20)
    for path in list((tmp_path / "cat").iterdir()):
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
    task = tlk.load_task(tmp_path)
    for split in task.counts:
        x, y = task.arrays(split)
        _, times = np.unique(x[y == 0][:, 0, 0, 0], return_counts=True)
        assert (times == 2).all()
    assert not any("more than one split" in line for line in task.report)
    (line,) = [line for line in task.report if "more than once in the same split (" in line]
    assert "cat/0.png = cat/copy_0.png" in line


def test_a_split_that_a_class_misses_gets_its_nearest_image(tmp_path):
    for label, name in enumerate("abcdefgh"):
        for number in range(3):
            value = 40 + 20 * label + number
            save(tmp_path / name / f"{number}.png", (value, value, value))
    task = tlk.load_task(tmp_path)
    for split in ("train", "validation", "test"):
        assert np.bincount(task.arrays(split)[1]).tolist() == [1] * 8
    assert any("by its hash: took the nearest one" in line for line in task.report)


def test_uneven_classes_are_reported(tmp_path):
    photos(tmp_path / "train", count=3)
    photos(tmp_path / "train", classes=("cat",), count=10)
    photos(tmp_path / "val", count=1)
    (line,) = [line for line in tlk.load_task(tmp_path).report if "uneven" in line]
    assert "10 images of cat, 3 of dog" in line and "class_weight" in line
    (tmp_path / "train" / "cat" / "9.png").unlink()
    assert not any("uneven" in line for line in tlk.load_task(tmp_path).report)


@pytest.fixture
def given(tmp_path):
    """Scenes in train, val and test, all different."""
    for number, place in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            for picture in range(4):
                scene(tmp_path / place / name / f"{picture}.png", (number, label, picture))
    return tmp_path


def test_different_images_are_no_copies(given):
    assert tlk.load_task(given).report == ()


def test_an_image_in_two_splits_is_reported_first(given):
    shutil.copy(given / "train" / "cat" / "0.png", given / "test" / "cat" / "again.png")
    Image.open(given / "train" / "dog" / "1.png").save(given / "val" / "dog" / "b.bmp")
    save(given / "train" / "cat" / "grey.png", 7, size=(64, 64), mode="L")
    task = tlk.load_task(given)
    assert task.report[0].startswith("images in more than one split, so that scores will be too")
    assert "(2): train/cat/0.png = test/cat/again.png" in task.report[0]
    assert "train/dog/1.png = val/dog/b.bmp" in task.report[0]
    assert task.counts == {"train": 9, "validation": 9, "test": 9}  # nothing is taken away


def test_an_image_of_two_classes_is_reported(given):
    shutil.copy(given / "train" / "cat" / "0.png", given / "train" / "dog" / "same.png")
    (line,) = tlk.load_task(given).report
    assert line == "images in more than one class (1): train/cat/0.png = train/dog/same.png"


def test_given_splits_are_kept(tmp_path):
    photos(tmp_path / "train", count=10)
    photos(tmp_path / "val", count=3)
    photos(tmp_path / "test", count=2)
    assert tlk.load_task(tmp_path).counts == {"train": 20, "validation": 6, "test": 4}


def test_validation_is_taken_from_train_and_a_missing_test_stays_missing(tmp_path):
    photos(tmp_path / "train", count=40)
    photos(tmp_path / "test", count=2)
    counts = tlk.load_task(tmp_path).counts
    assert counts["test"] == 4 and counts["train"] + counts["validation"] == 80
    assert 2 <= counts["validation"] <= 26
    photos(tmp_path / "only" / "train", count=10)
    photos(tmp_path / "only" / "val", count=2)
    assert tlk.load_task(tmp_path / "only").test is None


def test_splits_with_other_classes_are_refused(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", classes=("cat", "horse"))
    with pytest.raises(ValueError, match="'horse'.*'dog'"):
        tlk.load_task(tmp_path)


def test_a_class_folder_beside_train_is_refused(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path, classes=("bird",))
    with pytest.raises(ValueError, match="expected either one folder for each class"):
        tlk.load_task(tmp_path)


def test_every_unreadable_file_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "cat" / "notes.png").write_text("this is not a picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype="uint8")
    Image.fromarray(noise).save(tmp_path / "dog" / "whole.jpg")
    whole = (tmp_path / "dog" / "whole.jpg").read_bytes()
    (tmp_path / "dog" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="notes.png") as error:
        tlk.load_task(tmp_path)
    (tmp_path / "cat" / "notes.png").unlink()
    with pytest.raises(ValueError, match=r"half\.jpg.*truncated") as error:
        tlk.load_task(tmp_path)
    assert "Replace them" in str(error.value) and "whole" not in str(error.value)


def test_grey_is_repeated_over_the_channels(tmp_path):
    save(tmp_path / "grey" / "a.jpg", 77, mode="L")
    save(tmp_path / "grey" / "b.png", 77, mode="L")
    save(tmp_path / "grey" / "c.png", 77, mode="L", dpi=(9, 9))
    images, report = only_image(photos(tmp_path), tmp_path / "grey" / "a.jpg")
    assert (images == 77).all()
    assert "3 of 19 images grey: repeated over three channels" in report


def test_transparent_pixels_are_white(tmp_path):
    for number in range(3):
        save(tmp_path / "clear" / f"{number}.png", (255, number, 0, 0), mode="RGBA")
    images, report = only_image(photos(tmp_path), tmp_path / "clear" / "0.png")
    assert (images == 255).all()
    assert any("transparent: laid over white" in line for line in report)


@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 3)], ids=["grey", "RGB"])
def test_sixteen_bits_keep_their_scale(tmp_path, shape):
    for number in range(3):
        png16(tmp_path / "deep" / f"{number}.png", np.full(shape, 0x8040 + number, "uint16"))
    images, report = only_image(photos(tmp_path), tmp_path / "deep" / "0.png")
    assert (images == 0x80).all()
    assert any("3 of 19 images 16 bits a channel" in line for line in report)


def test_palette_and_cmyk_become_rgb(tmp_path):
    for number in range(3):
        red = Image.new("RGB", (12, 10), (200 + number, 0, 0))
        (tmp_path / "ink").mkdir(exist_ok=True)
        (tmp_path / "table").mkdir(exist_ok=True)
        red.quantize(4).save(tmp_path / "table" / f"{number}.gif")
        red.convert("CMYK").save(tmp_path / "ink" / f"{number}.jpg")
    for name in ("table", "ink"):
        images, report = only_image(photos(tmp_path), tmp_path / name / "0")
        np.testing.assert_allclose(images.mean((0, 1, 2)), [200, 0, 0], atol=4)
    assert any("palette" in line for line in report) and any("CMYK" in line for line in report)


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, number in ((n, i) for n in ("a", "b") for i in range(3)):
        (tmp_path / name).mkdir(exist_ok=True)
        photo = Image.new("RGB", (12, 10), (80 * (name == "b"), 40 * number, 0))
        photo.save(tmp_path / name / f"{number}.jpg", exif=exif)
    task = tlk.load_task(tmp_path)
    assert task.image_size == (12, 10)
    assert any("upright" in line for line in task.report)


def test_mixed_sizes_are_resized_and_reported(tmp_path):
    photos(tmp_path)
    save(tmp_path / "cat" / "wide.png", (9, 9, 9), size=(40, 20))
    task = tlk.load_task(tmp_path, image_size=16)
    assert task.arrays("train")[0].shape[1:] == (16, 16, 3)
    assert any("2 sizes, 10x12 to 20x40, resized to 16x16" in line for line in task.report)
    assert tlk.load_task(tmp_path).image_size == (128, 128)


def test_files_that_are_left_out_are_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "cat" / "readme.txt").write_text("hello")
    save(tmp_path / "dog" / "scan.tif", (5, 5, 5))
    save(tmp_path / "loose.png", (5, 5, 5))
    (line,) = [line for line in tlk.load_task(tmp_path).report if "left out" in line]
    assert all(name in line for name in ("cat/readme.txt", "dog/scan.tif", "loose.png"))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda root: None, ValueError, "holds 0 class folders"),
        (lambda root: save(root / "a.png", 3, mode="L"), ValueError, "0 class folders and 1 files"),
        (lambda root: photos(root, classes=("cat",)), ValueError, "1 class folders"),
        (lambda root: (photos(root) / "bird").mkdir(), ValueError, "No images in .*bird"),
        (lambda root: (photos(root) / "bird" / "x.gif").mkdir(parents=True), ValueError, "bird"),
        (lambda root: photos(root, count=2), ValueError, r"too few images \(2\): at least 3"),
    ],
    ids=["empty", "loose files", "one class", "class without images", "folder", "too few"],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, make, error, says):
    make(tmp_path)
    with pytest.raises(error, match=says):
        tlk.load_task(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tlk.load_task(tmp_path / "nowhere")


def test_more_labels_than_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"class '...' has \d training images"):
        tlk.load_task(photos(tmp_path), labels_per_class=9)


def test_the_card_counts_the_classes(tmp_path):
    task = tlk.load_task(photos(tmp_path))
    counts = [int((task.arrays(split)[1] == 0).sum()) for split in task.counts]
    assert sum(counts) == 8 and f"| cat | {' | '.join(map(str, counts))} |" in task.card
