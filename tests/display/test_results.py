"""Stored measurements: read, narrowed down, averaged; every one says how it was made."""

import json
from pathlib import Path

import numpy as np
import pytest

from tlkeras.display import results as module
from tlkeras.display.results import results

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted(path.stem for path in (ROOT / "data" / "results").glob("*.csv"))
ROWS = "method,labels,seed,score\nfrozen,5,0,0.5\nfrozen,5,1,0.7\nfrozen,30,0,\nscratch,5,0,0.25\n"


@pytest.fixture
def found(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "tiny.csv").write_text(ROWS)
    (folder / "tiny.json").write_text(json.dumps({"command": "python x.py", "settings": "Small."}))
    monkeypatch.setattr(module, "data_root", lambda: tmp_path)
    return results("tiny")


@pytest.mark.parametrize("name", STORED)
def test_every_stored_measurement_says_how_it_was_made(name):
    found = results(name)
    script = found.command.removeprefix("python ").split()[0]
    assert (ROOT / script).exists() and found.settings.endswith(".") and len(found) > 1


def test_numbers_are_numbers(found):
    first = found.rows[0]
    assert first == {"method": "frozen", "labels": 5, "seed": 0, "score": 0.5}
    assert np.isnan(found.rows[2]["score"])
    assert [row["seed"] for row in found.where(method="scratch")] == [0]
    assert len(found.where(labels=[5, 30])) == 4


def test_draws_are_grouped_and_averaged(found):
    scores = found.where(labels=5).scores("method", "labels", scale=100)
    assert {m: {x: list(d) for x, d in s.items()} for m, s in scores.items()} == {
        "frozen": {5: [50, 70]}, "scratch": {5: [25]},
    }  # fmt: skip
    table = found.where(labels=5).mean_by("method", scale=100, digits=0)
    assert table.cells == [["frozen", "60 ± 14"], ["scratch", "25"]]
    assert "python x.py. Small." in repr(table) and "python x.py" in table._repr_html_()
    assert repr(found).splitlines()[2].split() == ["frozen", "5", "0", "0.5"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda found: found.where(labelled=5), "no column 'labelled'"),
        (lambda found: found.where(labels=7), "no row has labels=7; there are [5, 30]"),
        (lambda found: found.scores("method"), "group by one of ['labels']"),
        (lambda found: found.scores("method", value="points"), "no column 'points'"),
        (lambda found: found.scores(), "one or two columns"),
        (lambda found: results("none"), "No stored measurement 'none'; there are ['tiny']"),
    ],
)
def test_errors_say_what_is_there(found, call, message):
    with pytest.raises(ValueError) as error:
        call(found)
    assert message in str(error.value)
