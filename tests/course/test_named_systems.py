"""The lines of chapters/named_systems.md, run with untrained networks instead of downloads."""

import contextlib
import io
import re

import keras
import keras_hub
import named_systems
import numpy as np
import pytest
import tiny
from packaging.version import Version

import tlkeras as tlk
from tlkeras.backbones import load as loading
from tlkeras.tasks import online
from tlkeras.training import runner

SYSTEMS = named_systems.systems()
SIZE = re.compile(r"\b(224|448)\b")


class Trained(Exception):
    """The lines have come to training, after all that `fit_stages` checks."""


def train(*arguments):
    raise Trained


def medmnist(task, side, cache):
    """As many pictures as the lines ask for."""
    return tiny.medmnist(task, side, 50 * len(task.classes))


def preset(kind, folder):
    """An untrained network of that kind, in a folder."""
    make = getattr(tiny, kind)
    if kind in ("resnet", "efficientnet", "vit", "dinov2", "sam"):
        tiny.stored(make, folder)
    else:
        make(folder)
    return str(folder)


def known(name):
    """Whether there is a download of that name, as far as Keras and KerasHub know."""
    names = {*keras_hub.models.Backbone.presets, *loading.functions()}
    return name in names or name.startswith("hf://")


@pytest.mark.skipif(
    Version(keras_hub.__version__) < Version("0.32"), reason="older ones lack some of the names"
)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system["name"])
def test_the_lines_of_a_named_system_run(system, tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_PROFILE", "online")
    monkeypatch.setattr(online, "_load_medmnist", medmnist)
    monkeypatch.setattr(runner.Runner, "train", train)
    lines = SIZE.sub(str(tiny.SIDE), system["lines"])
    for name, kind in system.get("tiny", {}).items():
        assert known(name), f"{name}: no preset or network of this name any more"
        assert f'"{name}"' in system["lines"]
        lines = lines.replace(f'"{name}"', repr(preset(kind, tmp_path / kind)))
    labels = np.arange(4) % 2
    given = {
        "tlk": tlk, "keras": keras, "keras_hub": keras_hub, "np": np, "photo": tiny.images()[0],
        "images": tiny.images(4), "labels": labels, "reports": ["a mole", "a", "mole", "a a"],
    }  # fmt: skip
    trains = "fit_stages" in lines
    reaches = pytest.raises(Trained) if trains else contextlib.nullcontext()
    with contextlib.redirect_stdout(io.StringIO()), reaches:
        exec(compile(lines, system["name"], "exec"), given)


def test_the_page_is_what_the_table_says():
    assert named_systems.PAGE.read_text(encoding="utf-8") == named_systems.page()
