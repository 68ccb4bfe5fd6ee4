"""Every chapter in the online profile up to its first fit: mock data, untrained networks."""

import contextlib
import io
import os
from dataclasses import replace
from pathlib import Path

import build_chapters
import keras
import keras_hub
import pytest
import tensorflow_datasets as tfds
import tiny
from sklearn.linear_model import LogisticRegression

from tlkeras.backbones import load as backbones
from tlkeras.backbones import presets
from tlkeras.tasks import online
from tlkeras.training import runner
from tlkeras.utils import paths

SOURCES = sorted(Path(__file__).resolve().parents[2].glob("chapters/source/*.py"))
IMAGES = 200
CLIP = next(folder for folder in paths.presets() if folder.name == "scene_clip")
MORE = dict.fromkeys(  # enough of every class
    (
        "02_what_is_transfer_learning",
        "07_choosing_layers",
        "08_01_feature_extraction",
        "08_03_head_swapping",
        "08_05_progressive_unfreezing",
        "08_06_distillation",
        "08_11_cheat_sheet",
        "10_1_adapters",
        "10_2_discriminative_learning_rates",
        "10_4_layerwise_schedules",
    ),
    400,
)
BUNDLED = {
    "08_07_multi_task",  # only lesions has masks
    "08_09_zero_and_few_shot",  # the names of its 64 pairs are the answers: only scenes have them
    "08_10_cross_modal",  # only lesions has a report beside each image
    "10_3_domain_adaptive_pretraining",  # only lesions says which pictures show one lesion
    "09_pitfalls",  # it asks ImageNet's old head, which only the bundled network has
}
SHORTER = {"steps=80": "steps=2"}  # gradient ascent: more steps only make better pictures


class FitReached(BaseException):  # cross-validation goes on after an Exception
    pass


@pytest.fixture(scope="module")
def read():
    """What was read once for several chapters."""
    return {}


@pytest.fixture
def online_world(source, monkeypatch, read):
    """What the chapters asked for: names of online tasks and of networks."""
    asked = []

    def fit(*arguments, **options):
        raise FitReached

    def load(name, *arguments):
        asked.append(name)
        count = MORE.get(source.stem, IMAGES)
        if (count, name, *arguments) not in read:
            with tfds.testing.mock_data(num_examples=count):
                read[count, name, *arguments] = real_load(name, *arguments)
        found = read[count, name, *arguments]  # whose splits the caller may cut down
        return replace(found, splits=dict(found.splits))

    def medmnist(task, side, cache):
        return tiny.medmnist(task, side, MORE.get(source.stem, IMAGES))

    def application(function, size, weights, profile):
        asked.append(function.__name__)
        return real_application(function, size, None, profile)

    def hub(name, preset, size, *more):
        if isinstance(preset, Path):  # it comes with tlkeras
            return real_hub(name, preset, size, *more)
        asked.append(name)
        if name.startswith("clip"):
            return real_hub("scene_clip", CLIP, size, *more)
        network = keras_hub.models.ViTBackbone(
            image_shape=(*size, 3), patch_size=size[0] // 4, num_layers=2, num_heads=2,
            hidden_dim=8, mlp_dim=8,
        )  # fmt: skip
        return presets.behind_an_image(network, size, name, keras.layers.Rescaling(1 / 255))

    real_load, real_application = online.load, backbones.application
    real_hub = backbones.load_preset
    monkeypatch.setattr(online, "load", load)
    monkeypatch.setattr(online, "_fetch_archives", lambda *arguments: None)
    monkeypatch.setattr(online, "_load_medmnist", medmnist)
    monkeypatch.setattr(backbones, "application", application)
    monkeypatch.setattr(backbones, "load_preset", hub)
    words = keras_hub.models.CLIPPreprocessor.from_preset(str(CLIP))
    monkeypatch.setattr(keras_hub.models.CLIPPreprocessor, "from_preset", lambda name: words)
    for place in (keras.Model, runner.Runner, LogisticRegression):
        monkeypatch.setattr(place, "train" if place is runner.Runner else "fit", fit)
    monkeypatch.setenv("TLKERAS_PROFILE", "online")
    monkeypatch.chdir(SOURCES[0].parents[1])
    return asked


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_reaches_its_first_fit_online(source, online_world):
    if "MultiOptimizer" in source.read_text() and not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("the chapter says that it wants Keras 3.15")
    before = dict(os.environ)
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(FitReached):
        for cell in build_chapters.code_cells(build_chapters.compose(source)):
            code = cell.source
            for long, short in SHORTER.items():
                code = code.replace(long, short)
            exec(compile(code, source.name, "exec"), names)
    wanted = 1 if source.stem in BUNDLED else 2
    assert len(online_world) >= wanted, "an online task and an online network"
    assert dict(os.environ) == before
