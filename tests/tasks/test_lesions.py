"""Lesions: the phantom's patients, pictures, masks and reports."""

import hashlib
import importlib
import re

import numpy as np
import pytest

import tlkeras.tasks  # noqa: F401  (makes the package known)
from tlkeras.utils import paths

CLASS_WORDS = (
    "melanoma", "carcinoma", "keratosis", "nevus", "naevus", "dermatofibroma", "angioma",
    "mole", "vascular", "basal", "actinic", "benign", "malignant", "cancer",
)  # fmt: skip


def module(name):
    return importlib.import_module(f"tlkeras_tasks.lesions.{name}")


@pytest.fixture(scope="module")
def splits():
    """What `draw_cases` gives for each split: lesions, views, lesion of each view, reports."""
    builder, cases = module("lesions_dataset_builder"), module("cases")
    return {
        split: cases.draw_cases([builder.SEED, 0, number], "dermatoscope", images)
        for number, (split, images) in enumerate(builder.SPLITS.items())
    }


@pytest.fixture(scope="module")
def four_of_each(splits):
    """Lesions and views of the first four validation images of every class."""
    lesions, views, of_view, _ = splits["validation"]
    labels = lesions["label"][of_view]
    chosen = np.concatenate([np.flatnonzero(labels == label)[:4] for label in range(7)])
    lesions = {name: rows[of_view[chosen]] for name, rows in lesions.items()}
    return lesions, {name: rows[chosen] for name, rows in views.items()}


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """All examples of a small version, {split: {feature: array}}."""
    builder = module("lesions_dataset_builder")
    small = {"train": 120, "validation": 100, "test": 110}
    monkeypatch.setattr(builder, "SPLITS", small)
    made = builder.Builder(config="64", data_dir=tmp_path)
    made.download_and_prepare()
    return {split: list(made.as_dataset(split).as_numpy_iterator()) for split in small}


def test_the_builder_gives_every_feature_and_splits_by_patient(prepared):
    ids = {"patient": [], "lesion": []}
    for examples in prepared.values():
        first = examples[0]
        assert first["image"].shape == (64, 64, 3) and first["mask"].shape == (64, 64, 1)
        for example in examples:
            assert example["malignant"] == (example["label"] in (0, 1, 4))  # akiec, bcc, mel
            assert example["mask"].max() == 1 and example["report"].endswith(b".")
        for name, found in ids.items():
            found.append({int(example[name]) for example in examples})
    for first, second, third in ids.values():
        assert not first & second and not first & third and not second & third
        assert len(first) < 120  # some are seen again


def test_the_two_domains_have_other_patients_and_the_first_is_the_default():
    made_by = module("lesions_dataset_builder").Builder
    assert list(made_by.DOMAINS.values()) == ["64", "64_phone"]
    assert made_by.BUILDER_CONFIGS[0].name == "64" and made_by.GROUP == "patient"
    draw_cases = module("cases").draw_cases
    reports = [draw_cases([0, k, 0], d, 50)[3] for k, d in enumerate(made_by.DOMAINS)]
    assert reports[0] != reports[1]


def test_classes_are_as_unequal_as_in_ham10000(splits):
    shares = np.array(module("cases").HAM10000) / 10_015
    for lesions, _, of_view, _ in splits.values():
        counts = np.bincount(lesions["label"][of_view], minlength=7)
        assert (np.abs(counts - shares * len(of_view)) < 4).all() and counts.min() >= 7
    assert np.bincount(lesions["label"])[3] < 18  # df in test: fewer lesions than images
    assert splits["train"][0]["pictures"].max() > 1


def test_train_has_enough_of_the_rarest_class(splits):
    lesions, _, of_view, _ = splits["train"]
    assert np.bincount(lesions["label"][of_view]).min() >= 36


def test_images_are_drawn_the_same_each_time(four_of_each):
    images, masks = module("render").draw(*four_of_each, 64)
    assert images.shape == (28, 64, 64, 3) and images.dtype == masks.dtype == np.uint8
    content = hashlib.sha256(images.tobytes() + masks.tobytes()).hexdigest()
    assert content[:16] == "72f0ddf203aaa9d6"
    lesions, views = ({name: rows[5:9] for name, rows in part.items()} for part in four_of_each)
    np.testing.assert_array_equal(module("render").draw(lesions, views, 64)[0], images[5:9])


def test_a_mask_covers_what_differs_from_the_skin(four_of_each):
    images, masks = module("render").draw(*four_of_each, 64)
    inside = masks[..., 0] == 1
    assert ((inside.mean((1, 2)) > 0.02) & (inside.mean((1, 2)) < 0.9)).all()
    middle = np.hypot(*np.meshgrid(*[np.arange(64) - 31.5] * 2)) < 30  # not the dark corners
    gaps = [
        np.abs(image[mask].mean(0) - image[~mask & middle].mean(0)).max()
        for image, mask in zip(images, inside, strict=True)
    ]
    assert np.median(gaps) > 25 and np.mean(np.array(gaps) > 10) > 0.8  # of 255


def test_128_shows_the_same_lesions(four_of_each):
    (small, mask), (large, fine) = (module("render").draw(*four_of_each, s) for s in (64, 128))
    halved = large.reshape(28, 64, 2, 64, 2, 3).mean((2, 4))
    for one, other in zip(small, halved, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
    assert np.abs(fine[:, ::2, ::2] != mask).mean() < 0.03


def test_reports_vary_and_name_no_class(splits):
    names = {*module("cases").CLASSES, *CLASS_WORDS}
    reports = [report for split in splits.values() for report in split[3]]
    assert len(set(reports)) > 0.8 * len(reports)
    words = {word for report in reports for word in re.findall(r"[a-z]+", report.lower())}
    assert not words & names and "grown" in words and "network" in words


def test_a_report_leaves_out_and_mistakes_some_criteria(splits):
    lesions, _, of_view, reports = splits["test"]
    says = np.array(["vessels" in r and "dotted" not in r for r in reports])
    has = lesions["vessels"][of_view] > 0
    assert 0.15 < says[has].mean() < 0.7 and 0 < says[~has].mean() < 0.1


def test_the_card_says_that_nothing_here_is_real():
    card = (paths.data_root() / "tasks" / "lesions" / "card.md").read_text(encoding="utf-8")
    note = module("lesions_dataset_builder").Builder.NOTE
    assert note == "Synthetic, no medical validity" and note in card.splitlines()[2]
