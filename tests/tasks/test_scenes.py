"""Scenes: what is in the images is what the captions and labels say."""

import hashlib
import importlib

import numpy as np
import pytest

import tlkeras as tlk
import tlkeras.tasks  # makes the builders known


@pytest.fixture(scope="module")
def render():
    return importlib.import_module("tlkeras_tasks.scenes.render")


@pytest.fixture
def builder(monkeypatch):
    """The builder, with few images a split."""
    module = importlib.import_module("tlkeras_tasks.scenes.scenes_dataset_builder")
    counts = {"train": 200, "validation": 40, "test": 60, "held_out": 60}
    monkeypatch.setattr(module, "SPLITS", counts)
    return module


def pairs(task, split):
    return set(zip(*task.arrays(split, "label", "colour"), strict=True))


def test_held_out_pairs_are_in_no_other_split(builder, render, tmp_path):
    task = tlk.load_task("scenes", data_dir=tmp_path)
    held_out = set(render.HELD_OUT.items())
    assert len(held_out) == len({colour for _, colour in held_out}) == 8
    assert pairs(task, "held_out") == held_out
    for split in ("train", "validation", "test"):
        assert not pairs(task, split) & held_out
    assert task.counts == builder.SPLITS and "Synthetic" in repr(task)


def test_a_caption_names_the_shape_and_the_colour(builder, render, tmp_path):
    task = tlk.load_task("scenes", data_dir=tmp_path)
    labels, colours, captions = task.arrays("train", "label", "colour", "caption")
    names = list(render.COLOURS)
    for label, colour, caption in zip(labels, colours, captions, strict=True):
        assert any(word in caption for word in render.WORDS[task.classes[label]])
        assert any(word in caption.split() for word in render.WORDS[names[colour]])
    assert len(set(captions)) > 180


def test_the_shape_has_its_colour_and_its_place(render):
    rng = np.random.default_rng(0)
    n = len(render.COLOURS)
    centre, plain = np.zeros(n, int), np.zeros(n, int)
    scenes = render.Scenes(plain, np.arange(n), plain, np.full(n, 2), centre)  # large circles
    middle = render.draw(scenes, rng)[:, 28:36, 28:36].mean(axis=(1, 2)) / 255
    table = np.array(list(render.COLOURS.values()))
    distance = np.abs(middle[:, None] - table).sum(axis=-1)
    assert (distance.argmin(axis=1) == np.arange(n)).all()


def test_a_style_changes_how_the_same_scene_looks(render):
    scenes = render.sample(20, np.random.default_rng(0))
    plain, sketch, inverted, noisy = (
        render.draw(scenes, np.random.default_rng(1), style=style).astype(int)
        for style in render.STYLES
    )
    assert np.abs(plain + inverted - 255).max() <= 1
    assert np.ptp(sketch, axis=-1).max() == 0 and np.ptp(plain, axis=-1).max() > 100

    def grain(images):
        return np.abs(np.diff(images, axis=2)).mean()

    assert grain(noisy) > 2 * grain(plain)


def test_a_domain_is_a_style(builder, render, monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "SPLITS", dict.fromkeys(builder.SPLITS, 20))
    sketch = tlk.load_task("scenes", domain="sketch", data_dir=tmp_path)
    assert sketch.domain == "sketch" and np.ptp(sketch.arrays()[0], axis=-1).max() == 0
    assert set(builder.STYLES) == {*render.STYLES, "exotic"}


def test_scenes_are_drawn_the_same_everywhere(render):
    rng = np.random.default_rng(0)
    scenes = render.sample(64, rng)
    images = np.stack([render.draw(scenes, rng, style=s) for s in (*render.STYLES, "exotic")])
    captions = " ".join(render.caption(scenes[i], rng) for i in range(64))
    content = images.tobytes() + captions.encode()
    assert hashlib.sha256(content).hexdigest()[:16] == "6cad5aa5f7a4ca87"
