"""tlkeras predict: what it prints, writes and returns."""

import csv
import json
import os
import sys
from pathlib import Path

import keras
import pytest
from light import bright, run_of
from PIL import Image

from tlkeras.cli import main


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, level in (("day", 230), ("night", 20)):
        Image.new("RGB", (8, 8), (level,) * 3).save(f"{name}.png")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return run_of(bright(), loss, tmp_path, ("dark", "light, very"))


def test_a_line_for_each_image_and_how_fast(capsys):
    assert main.main(["predict", "run", "night.png", "day.png", "--top", "1"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "night.png  dark 1.000" and second == "day.png  light, very 1.000"
    assert last.startswith("2 images in ") and "a second" in last


def test_json_is_one_object(capsys):
    assert main.main(["predict", "run", "night.png", "day.png", "--json", "--tta"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 2 and result["images_per_second"] > 0
    names = {told["file"]: told["class"] for told in result["predictions"]}
    assert names["day.png"] == "light, very" and names["night.png"] == "dark"


def test_a_table_is_written_batch_by_batch(capsys):
    command = ["predict", "run", "day.png", "night.png", "day.png", "--csv", "out.csv"]
    assert main.main([*command, "--batch-size", "1"]) == 0
    assert capsys.readouterr().out.endswith("written to out.csv\n")
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [row["class_1"] for row in rows] == ["light, very", "dark", "light, very"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_name_that_is_no_text_is_printed_all_the_same(capsys):
    Path("day.png").rename(os.fsdecode(b"d\xffy.png"))
    assert main.main(["predict", "run", os.fsdecode(b"d\xffy.png"), "--top", "1"]) == 0
    assert capsys.readouterr().out.startswith("d?y.png  light, very 1.000\n")


def test_what_cannot_be_read_is_no_success(capsys):
    Path("torn.jpg").write_bytes(b"\xff\xd8\xff")
    assert main.main(["predict", "run", "day.png", "torn.jpg"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].endswith("1 could not be read")
    assert captured.err.startswith("tlkeras: cannot read torn.jpg: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ran", "day.png"], "no folder 'ran'"),
        (["run", "dusk.png"], "No file 'dusk.png'"),
        ([".", "day.png"], "has none"),
        (["run", "day.png", "--top", "0"], "at least 1"),
        (["run", "day.png", "--csv", "gone/out.csv"], "gone/out.csv"),
    ],
)
def test_a_mistake_costs_one_line(arguments, says, capsys):
    assert main.main(["predict", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tlkeras: ") and says in line
