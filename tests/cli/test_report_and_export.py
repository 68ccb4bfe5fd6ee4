"""tlkeras report and tlkeras export: what they print, write and return."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from light import bright, run_of
from PIL import Image

from tlkeras.cli import main


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return run_of(bright(), loss, tmp_path, ("dark", "light"))


@pytest.fixture
def photos():
    """Twenty images a class, two of which are in the folder of the other."""
    for number in range(40):
        place = Path("photos", "dark" if number < 20 else "light")
        place.mkdir(parents=True, exist_ok=True)
        level = (20 if number < 20 else 200) + number % 20
        level = 240 - level if number in (0, 20) else level
        Image.new("RGB", (8, 8), (level,) * 3).save(place / f"{number}.png")


def test_a_run_is_judged_on_other_images(photos, run, capsys):
    assert main.main(["report", "run", "--data", "photos", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] == "run/report.html" and result["split"] == "test"
    accuracy = result["scores"]["accuracy"][0]
    assert 0.5 < accuracy <= 1
    text = (run / "report.html").read_text()
    assert f"Accuracy {accuracy:.1%} on {result['images']} test images" in text


def test_a_run_that_predicts_numbers_is_judged_by_numbers(photos, tmp_path, capsys):
    run_of(bright(1), "mse", tmp_path, ("label",))
    rows = [f"{path.name},{number}" for number, path in enumerate(Path("photos").rglob("*.png"))]
    Path("photos", "labels.csv").write_text("\n".join(["file,label", *rows]))
    asked = ["report", "run", "--data", "photos", "--out", "new/page.html"]
    assert main.main(asked) == 0 and Path("new", "page.html").exists()
    assert capsys.readouterr().out.startswith("mean absolute error ")


def test_other_images_are_decoded_as_those_of_training_were(tmp_path, capsys):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    run_of(bright(), loss, tmp_path, ("dark", "light"), white=4095.0)
    for number in range(24):
        place, level = ("dark", 100) if number % 2 else ("light", 1000)
        Path("deep", place).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), level + number, "uint16")  # of 12 bits; light among 10
        Image.fromarray(pixels).save(Path("deep", place, f"{number}.png"))
    assert main.main(["report", "run", "--data", "deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["balanced accuracy"][0] == 0.5


def test_it_says_where_the_report_is_and_makes_one_that_is_gone(run, capsys):
    (run / "report.html").unlink()
    assert main.main(["report", "run"]) == 0
    assert capsys.readouterr().out == "run/report.html\n"
    assert "has not been measured" in (run / "report.html").read_text()
    assert main.main(["report", "run", "--out", "page.html"]) == 0 and Path("page.html").exists()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports from TensorFlow")
def test_export_says_how_far_outputs_moved(capsys):
    assert main.main(["export", "run", "--format", "savedmodel", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["largest_difference"] < 1e-5 and Path(result["path"]).is_dir()
    assert result["bytes"] > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "ran"], "no folder 'ran'"),
        (["report", "run", "--data", "nowhere"], "No task and no folder"),
        (["export", "ran"], "pip install 'tlkeras[export]'"),
        (["export", "ran", "--format", "savedmodel"], "no folder 'ran'"),
    ],
)
def test_a_mistake_costs_one_line(arguments, says, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "onnx" in n else find(n))
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tlkeras: ") and says in line
