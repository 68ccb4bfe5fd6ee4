"""A folder of images: every file is read rightly, converted and reported, or named in an error."""

import itertools
import os
import shutil
import sys

import numpy as np
import pytest
from image_files import photos, png16, save, scene
from PIL import Image

import tlkeras as tlk
from tlkeras.tasks import pictures


def places(folder):
    """The split of every image of `photos`, by class and value."""
    task = tlk.load_task(folder)
    return {
        (task.classes[label], int(image[0, 0, 0])): split
        for split in task.counts
        for image, label in zip(*task.arrays(split), strict=True)
    }


def only_image(folder, path):
    """What load_task makes of one file: the image of its class that is all of its split."""
    task = tlk.load_task(folder)
    images = np.concatenate([task.arrays(split)[0] for split in task.counts])
    labels = np.concatenate([task.arrays(split)[1] for split in task.counts])
    mine = task.classes.index(path.parent.name)
    return images[labels == mine], task.report


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


def spoil(folder):
    """Two files that are no images: one by its first bytes, one that breaks off."""
    (folder / "cat" / "notes.png").write_text("this is not a picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype="uint8")
    half = folder / "dog" / "half.jpg"
    Image.fromarray(noise).save(half)
    half.write_bytes(half.read_bytes()[:2000])


def test_every_unreadable_file_is_named(tmp_path):
    spoil(photos(tmp_path))
    with pytest.raises(ValueError, match="Cannot read 1 images: .*notes.png") as error:
        tlk.load_task(tmp_path)
    (tmp_path / "cat" / "notes.png").unlink()
    with pytest.raises(ValueError, match=r"Cannot read 1 images: .*half\.jpg.*truncated") as error:
        tlk.load_task(tmp_path)
    assert "Replace them" in str(error.value)


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
    (line,) = [line for line in report if "3 of 19 images 16 bits a channel" in line]
    assert "0 to 65,535 (16 bits" in line


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_twelve_bits_in_sixteen_are_scaled_by_the_range_of_the_whole_folder(tmp_path, channels):
    values = np.arange(10 * 12).reshape(10, 12) * 34 % 4096
    for number in range(3):
        part = (values // 4, values, values // 2)[number]
        deep = np.stack([part] * channels, -1).astype("uint16")
        if channels == 4:
            deep[..., 3] = 65535  # alpha has a range of its own
        png16(tmp_path / "deep" / f"{number}.png", deep[..., 0] if channels == 1 else deep)
    photos(tmp_path, classes=("plain",), count=3)
    task = tlk.load_task(tmp_path)
    read = {}
    for split in task.counts:
        read |= dict(zip(*reversed(task.arrays(split, "image", "file")), strict=True))
    for name, part in (("deep/0.png", values // 4), ("deep/1.png", values)):
        wanted = np.round(part * 255 / 4095)[..., None] * [1, 1, 1]
        np.testing.assert_array_equal(read[name], wanted)
    assert task.white == 4095 and any("0 to 4,095 (12 bits" in line for line in task.report)


def test_floats_are_scaled_by_their_range(tmp_path):
    photos(tmp_path)
    for number in range(3):
        values = np.linspace(0, 1, 120, dtype="float32").reshape(10, 12) ** (1 + number)
        (tmp_path / "float").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "float" / f"{number}.tif")
    images, report = only_image(tmp_path, tmp_path / "float" / "0.tif")
    assert (images.min(), images.max()) == (0, 255) and len(np.unique(images)) > 100
    assert any("0 to 1 becomes 0 to 255" in line for line in report)


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "PNG", "bmp", "webp", "tif", "TIFF", "ppm"])
def test_every_usual_format_is_read(tmp_path, suffix):
    task = tlk.load_task(photos(tmp_path, suffix=suffix))
    assert sum(task.counts.values()) == 16
    assert not any("left out" in line or "of 16 images" in line for line in task.report)
    images, labels = task.arrays("train")
    assert (abs(images[labels == 1] - 144) <= 6).all()


def test_several_formats_are_counted(tmp_path):
    photos(tmp_path, classes=("cat",), suffix="webp")
    photos(tmp_path, classes=("dog",), suffix="JPG")
    assert "files of several formats: 8 .jpg, 8 .webp" in tlk.load_task(tmp_path).report


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_of_several_frames_the_first_is_taken(tmp_path, suffix):
    photos(tmp_path)
    for number in range(3):
        first, second = (Image.new("RGB", (12, 10), (v, v, v)) for v in (200 + number, 20))
        (tmp_path / "moving").mkdir(exist_ok=True)
        path = tmp_path / "moving" / f"{number}.{suffix}"
        first.save(path, save_all=True, append_images=[second])
    images, report = only_image(tmp_path, tmp_path / "moving" / "0")
    assert (abs(images - 201) <= 4).all()
    assert any("3 of 19 images of several frames" in line for line in report)


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


@pytest.mark.parametrize("orientation", [0, 2, 3, 6, 8, 9])
@pytest.mark.parametrize("suffix", ["png", "tif", "deep.png", "deep.tif"])
def test_every_orientation_and_format_is_turned_once(tmp_path, suffix, orientation):
    values = np.arange(10 * 12).reshape(10, 12) * 34
    stored = values.astype("uint16") if "deep" in suffix else (values // 17).astype("uint8")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    scaled = np.round(values * (255 / 4095)) if "deep" in suffix else values // 17
    turned = {2: scaled[:, ::-1], 3: scaled[::-1, ::-1], 6: np.rot90(scaled, -1)}
    wanted = (turned | {8: np.rot90(scaled)}).get(orientation, scaled)
    assert pictures.inspect(path).size == wanted.shape
    read = pictures.decode(path, wanted.shape, white=4095)
    np.testing.assert_array_equal(read, wanted[..., None] * [1, 1, 1])


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
    save(tmp_path / "loose.png", (5, 5, 5))
    (line,) = [line for line in tlk.load_task(tmp_path).report if "left out" in line]
    assert "left out 2 files" in line and "cat/readme.txt, loose.png" in line


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("TRAIN", "Valid", "TEST"),
        ("train_set", "dev-set", "Test Images"),
        ("train2017", "val2017"),
        ("trainset", "eval"),
    ],
    ids="/".join,
)
def test_splits_are_known_by_their_usual_names(tmp_path, names):
    for number, name in enumerate(names):
        photos(tmp_path / name, count=8 + number)
    task = tlk.load_task(tmp_path)
    assert task.classes == ("cat", "dog")
    assert sum(task.counts.values()) == sum(2 * (8 + number) for number in range(len(names)))
    assert ("test" in task.counts) == any("tes" in name.lower() for name in names)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "val", "bird"), ("x", "Test")])
def test_splits_are_never_taken_as_classes(tmp_path, names):
    photos(tmp_path, classes=names)
    with pytest.raises(ValueError, match="has the folders .*expected"):
        tlk.load_task(tmp_path)


def test_a_train_among_other_vehicles_is_a_class(tmp_path):
    assert tlk.load_task(photos(tmp_path, ("bus", "train"))).classes == ("bus", "train")


def test_images_for_testing_without_labels_are_left_out(tmp_path):
    photos(tmp_path / "train")
    save(tmp_path / "test" / "1.png", (1, 2, 3))
    task = tlk.load_task(tmp_path)
    assert sum(task.counts.values()) == 16
    assert "test has no class folders, so what is in it has no labels and is left out" in (
        task.report
    )


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    root = photos(tmp_path / "photos", count=4)
    for number in range(5):
        save(tmp_path / "elsewhere" / "more" / f"{number}.png", (number, 0, 0))
        save(tmp_path / "elsewhere" / "ant" / f"{number}.png", (0, number, 255))
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    (root / "dog" / "round").symlink_to(root)
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(root / "cat")
    (root / "itself").symlink_to(root)
    task = tlk.load_task(root)
    assert task.classes == ("ant", "cat", "dog") and sum(task.counts.values()) == 18
    (line,) = [line for line in task.report if "links" in line]
    assert "left out 4 links" in line and "dog/round" in line and "itself" in line


def test_a_broken_link_is_named_as_unreadable(tmp_path):
    photos(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"Cannot read 1 images: .*gone\.png \(.*No such file"):
        tlk.load_task(tmp_path)


def test_what_systems_leave_behind_is_passed_over_and_counted(tmp_path):
    photos(tmp_path)
    junk = ["__MACOSX/._a.png", ".ipynb_checkpoints/b.png", "cat/@eaDir/c.png", "cat/.hidden.png"]
    junk += ["dog/Thumbs.db", "dog/desktop.ini", ".DS_Store", "cat/.DS_Store", "dog/._0.png"]
    for name in junk:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    task = tlk.load_task(tmp_path)
    assert task.classes == ("cat", "dog") and sum(task.counts.values()) == 16
    (line,) = [line for line in task.report if "passed over" in line]
    assert line.startswith("passed over 9 hidden or system files and folders: .DS_Store, ")


def test_names_are_one_however_their_accents_are_stored(tmp_path):
    composed, decomposed = "Caf\u00e9 \u72ac", "Cafe\u0301 \u72ac"
    photos(tmp_path / "train", classes=(composed, "tea"))
    photos(tmp_path / "val", classes=(decomposed, "tea"), count=2)
    task = tlk.load_task(tmp_path)
    assert task.classes == (composed, "tea") and task.counts["validation"] == 4


def test_splits_inside_the_classes_are_not_mixed_in_silence(tmp_path):
    for name, split, number in itertools.product(("cat", "dog"), ("train", "test"), range(4)):
        scene(tmp_path / name / split / f"{number}.png", (len(split), ord(name[0]), number))
    (line,) = [line for line in tlk.load_task(tmp_path).report if "for no splits" in line]
    assert "took 4 folders" in line and "cat/test, cat/train, dog/test" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has none")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(photos(tmp_path) / "cat" / "pipe.png")
    assert any("cat/pipe.png" in line for line in tlk.load_task(tmp_path).report)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_names_that_are_no_text_can_be_printed(tmp_path):
    photos(tmp_path, classes=("cat", os.fsdecode(b"d\xffg")))
    task = tlk.load_task(tmp_path)
    assert task.classes == ("cat", "d?g")
    "\n".join([repr(task), task.card, *task.report]).encode()


def test_a_folder_around_the_folder_is_seen_through(tmp_path):
    photos(tmp_path / "archive")
    with pytest.raises(ValueError, match=r"1 class folders.*Or did you mean .*archive\?"):
        tlk.load_task(tmp_path)


def test_unreadable_files_can_be_skipped(tmp_path):
    spoil(photos(tmp_path, count=12))
    task = tlk.load_task(tmp_path, image_size=(10, 12), skip_unreadable=True)
    assert sum(task.counts.values()) == 24
    assert task.report[0].startswith("left out 2 unreadable images: ")
    assert all(name in task.report[0] for name in ("notes.png", "half.jpg", "truncated"))
    for split in task.counts:
        images, files = task.arrays(split, "image", "file")
        for image, file in zip(images, files, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / file)))


def test_a_class_of_unreadable_files_is_an_error(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "val", count=2)
    for path in (tmp_path / "train" / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="No readable image of dog is left for training"):
        tlk.load_task(tmp_path, skip_unreadable=True)


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


def test_a_folder_at_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos(tmp_path / "home").parent))
    assert tlk.load_task("~/home").name == "home"


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tlk.load_task(tmp_path / "nowhere")


def test_more_labels_than_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"class '...' has \d training images"):
        tlk.load_task(photos(tmp_path), labels_per_class=9)


def test_the_card_counts_the_classes_whose_names_are_text(tmp_path):
    task = tlk.load_task(photos(tmp_path, classes=("cat", "dog [1]")))
    counts = [int((task.arrays(split)[1] == 1).sum()) for split in task.counts]
    assert sum(counts) == 8 and "| cat | " in task.card
    assert rf"| dog \[1\] | {' | '.join(map(str, counts))} |" in task.card
