"""Which network `tlkeras fit` starts from, and that it says so."""

import argparse
import io

import pytest
import small

from tlkeras.cli import fit, main


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.photos(tmp_path / "photos", side=40)
    return "photos"


def loaded(task, *more):
    """The task and network that the command would take, and what it says of them."""
    parser, talk = argparse.ArgumentParser(), io.StringIO()
    fit.add_arguments(parser)
    found, network, _ = fit._load(parser.parse_args([task, *more]), talk)
    return found, network, talk.getvalue().splitlines()[-1]


@pytest.mark.parametrize("name", ["photos", "clothes", "lesions", "scenes"])
def test_photographs_start_from_photographs_and_are_large_enough(name, photos):
    task, network, line = loaded(name, "--labels-per-class", "5")
    assert network == "efficientnet_lite0" and task.image_size == (96, 96)
    assert "learned from photographs (ImageNet); images enlarged to 96x96" in line


@pytest.mark.parametrize("name", ["digits", "glyphs/digits"])
def test_strokes_start_from_letters(name, photos):
    task, network, line = loaded(name)
    assert network == "glyph_resnet" and task.image_size == (32, 32)
    assert line == "starts from glyph_resnet: it has learned from printed letters"


def test_whoever_names_a_network_or_a_size_gets_it(photos):
    task, network, line = loaded(photos, "--backbone", "glyph_vit")
    assert (task.image_size, network) == ((40, 40), "glyph_vit") and "as --backbone says" in line
    task, _, line = loaded(photos, "--image-size", "64")
    assert task.image_size == (64, 64) and line.endswith("it wants images of 96x96 or more")


def test_a_folder_is_fitted_from_photographs(photos, monkeypatch, capsys):
    monkeypatch.setitem(fit.SETTINGS, "two_stage", {"head_epochs": 2, "tune_epochs": 1})
    assert main.main(["fit", photos]) == 0
    out = capsys.readouterr().out
    assert "starts from efficientnet_lite0" in out.split("block4-5")[0]
    assert "test accuracy" in out
