"""What measurements store: a row once, and never half a row."""

import csv
import importlib
from pathlib import Path

import pytest
import rows

TOOLS = sorted(path.stem for path in Path(rows.__file__).parent.glob("measure_*.py"))
HEADER = "method,rate,seed,validation,note\n"
ROW = '"soft, all",0.001,0,0.5000,"two\nlines"\n'
FIRST = HEADER + ROW


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A file with one row, and what opens it anew."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    (tmp_path / "made_up.csv").write_text(FIRST)
    return lambda: rows.Rows("made_up", ("method", "rate", "seed"), ("validation", "note"))


def test_a_stored_row_is_not_measured_again(stored):
    row = stored().once(("soft, all", 1e-3, 0), pytest.fail, "measured again")
    assert row["validation"] == "0.5000"
    assert stored().path.read_text() == FIRST


def test_a_new_row_is_stored_beside_those_of_other_settings(stored):
    for number in range(2):  # the second time it is there
        stored().once(("soft, all", 0.01, 0), lambda n=number: {"validation": 0.25 + n})
    assert stored().path.read_text() == FIRST + '"soft, all",0.01,0,0.2500,\n'


def test_the_first_row_brings_the_header(stored):
    stored().path.unlink()
    stored().add(("soft, all", 0.001, 0), {"validation": 0.5, "note": "two\nlines"})
    assert stored().path.read_text() == FIRST


@pytest.mark.parametrize("half", [ROW[:1], ROW[:20], ROW[: ROW.index("\n") + 1], ROW[:-1]])
@pytest.mark.parametrize("whole", [FIRST, HEADER])
def test_half_a_row_is_not_counted_and_gives_way_to_the_next(stored, whole, half):
    stored().path.write_text(whole + half)
    assert len(stored().stored) == (whole == FIRST)
    stored().add(("alone", 0.1, 1), {"validation": 1.0})
    assert stored().path.read_text() == whole + "alone,0.1,1,1.0000,\n"


def test_rows_that_belong_together_are_stored_once_each(stored):
    found = [(("soft, all", 1e-3, seed), {"validation": 0.1}) for seed in range(3)]
    stored().add_all(found)
    assert [row["validation"] for row in stored().stored] == ["0.5000", "0.1000", "0.1000"]


def test_the_best_of_a_column_has_the_best_mean(stored):
    kept = stored()
    for rate, seed, score in ((1e-3, 1, 0.1), (0.01, 0, 0.4), (0.01, 1, 0.3)):
        kept.add(("soft, all", rate, seed), {"validation": score})
    assert kept.best("rate", method="soft, all") == "0.01"
    assert kept.find("soft, all", 0.01)["seed"] == "0"
    assert kept.find("alone") is None


def test_other_columns_are_refused(stored):
    stored().path.write_text("method,seed\nalone,0\n")
    with pytest.raises(ValueError, match="expected .*found"):
        stored().find("alone")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_finds_what_it_has_stored(tool):
    kept = importlib.import_module(tool).ROWS
    if not kept.path.exists():
        pytest.skip("nothing is stored yet")
    with kept.path.open(newline="") as file:
        assert kept.stored == list(csv.DictReader(file))
    keys = [tuple(row[column] for column in kept.key) for row in kept.stored]
    assert len(set(keys)) == len(keys)
