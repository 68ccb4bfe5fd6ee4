"""labels.csv: one label a file, several, or a number; what it cannot mean is said."""

import numpy as np
import pytest
from image_files import photos, save

import tlkeras as tlk


def shots(root, count=12):
    """Images of different values, some of them in a folder of their own."""
    for number in range(count):
        save(root / ("new" if number % 3 == 0 else ".") / f"{number}.png", (10 * number, 0, 0))
    return root


def path_of(number):
    return f"new/{number}.png" if number % 3 == 0 else f"{number}.png"


def write(root, rows, header="file,label"):
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


def labels_of(task):
    """The label of every image, by what is in it, and the split."""
    found = {}
    for split in task.counts:
        for image, label in zip(*task.arrays(split), strict=True):
            found[round(image[0, 0, 0] / 10)] = (label, split)
    return found


def test_a_table_gives_one_class_a_file(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{('odd', 'even')[n % 2]}" for n in range(12)])
    task = tlk.load_task(tmp_path)
    assert task.kind == "class" and task.classes == ("even", "odd")
    assert {n: label for n, (label, _) in labels_of(task).items()} == {
        n: 1 - n % 2 for n in range(12)
    }
    assert set(task.counts) == {"train", "validation", "test"}
    assert "labels from labels.csv" in task.report


@pytest.mark.parametrize(
    ("header", "two", "one"),
    [
        ("\ufeffFilename;Class", "{};a|b", "{};c"),
        ("image\tlabels", "{}\ta;b", "{}\tc"),
        ("file,label", '"{}","a; b"', '"{}","c"'),
        ("file,label,remark", "{},b|a,blurred", "{},c,sharp"),
        ("file,label", "{0},a\n{0},b", "{},c"),
    ],
    ids=["Excel", "tabs", "quotes", "further columns", "rows of their own"],
)
def test_several_labels_a_file(tmp_path, header, two, one):
    rows = [(two if number < 6 else one).format(path_of(number)) for number in range(12)]
    task = tlk.load_task(write(shots(tmp_path), rows, header))
    assert task.kind == "labels" and task.classes == ("a", "b", "c")
    for number, (label, _) in labels_of(task).items():
        assert label.tolist() == ([1, 1, 0] if number < 6 else [0, 0, 1])
    assert "several labels a file (6 of 12 files have more than one)" in task.report
    assert next(iter(task.train))[1].shape[1:] == (3,)
    assert "3 labels" in repr(task)
    titles = [axis.get_title() for axis in task.show(rows=1, columns=4).axes]
    assert set(titles) <= {"a, b", "c"}


def test_a_line_that_contradicts_another_is_named(tmp_path):
    rows = [f"{path_of(number)},{'ab'[number % 2]}" for number in range(12)]
    task = tlk.load_task(write(shots(tmp_path), [*rows, f"{path_of(0)},b"], "file,label"))
    (line,) = [line for line in task.report if line.startswith("several")]
    assert line.endswith(f"should have one, mend {path_of(0).rsplit('/')[-1]}")


def test_a_file_of_several_labels_may_have_none(tmp_path):
    rows = [f"{path_of(n)},{('a;b', 'a', 'b', '')[n % 4]}" for n in range(12)]
    task = tlk.load_task(write(shots(tmp_path), rows))
    assert labels_of(task)[3][0].tolist() == [0, 0]


def test_numbers_when_asked_for(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{n * 1.5}" for n in range(12)], "file,Price")
    with pytest.raises(ValueError, match="found the columns file, Price"):
        tlk.load_task(tmp_path, regression=True)
    write(tmp_path, [f"{path_of(n)},{n * 1.5}" for n in range(12)])
    task = tlk.load_task(tmp_path, regression=True)
    assert task.kind == "number" and task.classes == ("label",)
    for number, (label, _) in labels_of(task).items():
        assert label == number * 1.5 and label.dtype == "float32"
    assert "the number 'label'" in repr(task) and "mean" in task.card


def test_numbers_are_classes_unless_asked_for(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{n % 2}" for n in range(12)])
    task = tlk.load_task(tmp_path)
    assert task.classes == ("0", "1")
    assert any("taken as names of classes" in line and "--regression" in line
               for line in task.report)  # fmt: skip
    write(tmp_path, [f"{path_of(n)},{n}" for n in range(12)])
    with pytest.raises(ValueError, match="12 different numbers as the classes of 12 images"):
        tlk.load_task(tmp_path)


def test_splits_of_a_table_are_kept(tmp_path):
    splits = ("TRAIN", "training", "dev", "Test")
    rows = [f"{path_of(n)},{n // 4 % 2},{splits[n % 4]}" for n in range(12)]
    task = tlk.load_task(write(shots(tmp_path), rows, "file,label,split"))
    assert task.counts == {"train": 6, "validation": 3, "test": 3}
    wanted = ("train", "train", "validation", "test")
    for number, (_, split) in labels_of(task).items():
        assert split == wanted[number % 4]


def test_files_go_by_their_name_where_only_one_has_it(tmp_path):
    rows = [f"{n},{n % 2}" for n in range(11)] + ["new\\..\\11.png,1"]
    write(shots(tmp_path), [*rows[:-1], "./11.png,1"])
    assert sum(tlk.load_task(tmp_path).counts.values()) == 12
    save(tmp_path / "old" / "3.png", (5, 5, 5))
    with pytest.raises(ValueError, match="line 5: 3 is the name of 2 files"):
        tlk.load_task(tmp_path)


def test_images_that_the_table_does_not_name_are_left_out(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{n % 2}" for n in range(10)])
    task = tlk.load_task(tmp_path)
    assert sum(task.counts.values()) == 10
    assert "left out 2 images that labels.csv does not name: 10.png, 11.png" in task.report


def test_files_that_are_not_there_are_named_or_skipped(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{n % 2}" for n in range(12)] + ["gone.png,1"])
    with pytest.raises(ValueError, match=r"gone\.png \(listed in labels\.csv, but not there\)"):
        tlk.load_task(tmp_path)
    task = tlk.load_task(tmp_path, skip_unreadable=True)
    assert sum(task.counts.values()) == 12 and "gone.png" in task.report[0]


GOOD = [f"{path_of(n)},{n % 2}" for n in range(12)]


@pytest.mark.parametrize(
    ("rows", "header", "says", "regression"),
    [
        (GOOD, "name,animal", "expected a first line file,label", False),
        ([], "file,label", "names no image", False),
        ([f"{path_of(n)},cat" for n in range(12)], "file,label", r"labels \['cat'\]", False),
        ([*GOOD[:-1], f"{path_of(11)},"], "file,label", "no label for 11.png", False),
        ([*GOOD, "2.png,0,1"], "file,label", "line 14: expected 2 cells", False),
        (GOOD, "file,label", "Class '.*' has too few", None),
        ([*GOOD[:-1], "11.png,tall"], "file,label", "number for 11.png.*'tall'", True),
        ([*GOOD[:-1], "11.png,inf"], "file,label", "finite number for 11.png", True),
        ([*GOOD, "11.png,2"], "file,label", "number for 11.png.*'1' and '2'", True),
        ([f"{g},later" for g in GOOD], "file,label,split", "the split of .* is 'later'", False),
        ([f"{g},test" for g in GOOD], "file,label,split", "no image for training", False),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, rows, header, says, regression):
    root = shots(tmp_path)
    if regression is None:
        rows, regression = [f"{path_of(n)},{'ab'[n > 1]}" for n in range(12)], False
    with pytest.raises(ValueError, match=says):
        tlk.load_task(write(root, rows, header), regression=regression)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (shots(tmp_path) / "labels.csv").write_bytes("file,label\n1.png,Käse\n".encode("cp1252"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        tlk.load_task(tmp_path)


def test_numbers_need_a_table(tmp_path):
    with pytest.raises(ValueError, match=r"expected a labels\.csv in .*; found none"):
        tlk.load_task(photos(tmp_path), regression=True)
    with pytest.raises(ValueError, match="regression=True is for a folder"):
        tlk.load_task("digits", regression=True)


@pytest.mark.parametrize("regression", [False, True])
def test_so_many_labels_a_class_need_classes(tmp_path, regression):
    cells = [str(n) if regression else "a;b" for n in range(12)]
    write(shots(tmp_path), [f"{path_of(n)},{cells[n]}" for n in range(12)])
    with pytest.raises(ValueError, match="labels_per_class draws images of each class"):
        tlk.load_task(tmp_path, labels_per_class=2, regression=regression)


def test_a_label_that_training_misses_is_an_error(tmp_path):
    rows = [f"{path_of(n)},{'a;b' if n < 8 else 'a;c'},{'train' if n < 8 else 'val'}"
            for n in range(12)]  # fmt: skip
    with pytest.raises(ValueError, match="No readable image of c is left for training"):
        tlk.load_task(write(shots(tmp_path), rows, "file,label,split"))


def test_numbers_far_from_one_keep_their_precision(tmp_path):
    write(shots(tmp_path), [f"{path_of(n)},{1e6 + n}" for n in range(12)])
    task = tlk.load_task(tmp_path, regression=True)
    assert np.ptp(np.concatenate([task.arrays(s, "label")[0] for s in task.counts])) == 11
