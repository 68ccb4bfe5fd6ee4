"""tlk.export: what is written gives the same, and is refused where it does not."""

import importlib.util

import keras
import numpy as np
import pytest
from light import bright, run_of
from packaging.version import Version

import tlkeras as tlk
from tlkeras.advice import exporting


@pytest.fixture
def run(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras exports best from TensorFlow")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return run_of(bright(), loss, tmp_path, ("dark", "light"))


@pytest.mark.parametrize("format", exporting.FORMATS)
def test_the_same_outputs_for_any_number_of_images(run, format):
    for package in exporting.FORMATS[format].needs:
        pytest.importorskip(package)
    if format == "litert" and Version(keras.__version__) < Version("3.13"):
        pytest.skip("Keras writes LiteRT from 3.13 on")
    made = tlk.export(run, format)
    assert made.path.parent == run and made.path.exists() and made.difference < 1e-5
    ask, model = exporting._READERS[format](made.path), tlk.load_run(run).model
    for count in (1, 3):
        images = np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3)).astype("float32")
        np.testing.assert_allclose(ask(images), model.predict(images, verbose=0), atol=1e-5)
    assert tlk.export(run, format, run.parent / "other").path.exists()  # by any name
    assert tlk.export(run, format).path == made.path  # again, in place of the first
    tlk.load_run(run).save(run)
    assert not made.path.exists()  # it was of the earlier run


def test_other_outputs_leave_nothing(run, monkeypatch):
    right = exporting._saved_model
    broken = {"savedmodel": lambda path: lambda images: right(path)(images) + 0.01}
    monkeypatch.setattr(exporting, "_READERS", broken)
    with pytest.raises(ValueError, match=r"difference of 0\.01"):
        tlk.export(run, "savedmodel")
    assert not (run / "saved_model").exists()


def test_a_missing_package_is_named_with_what_to_do(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'tlkeras\[export\]'"):
        tlk.export(run, "onnx")


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="Expected a format"):
        tlk.export(run, "pickle")
    with pytest.raises(ValueError, match="path to write to"):
        tlk.export(bright(activation="softmax"), "savedmodel")
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        tlk.export(run, "savedmodel", tmp_path / "thesis")
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
    with pytest.raises(ValueError, match="model of images"):
        tlk.export(flat, "savedmodel", tmp_path / "flat")
