"""Controls in a notebook, set in Python and read; and what stands there without them."""

import sys

import pytest

import tlkeras as tlk
from tlkeras.advice.recommending import guide


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


def by_name(box):
    return {control.description: control for control in box.children[:-1]}


def test_the_guide_answers_whatever_is_changed(capsys):
    controls = by_name(tlk.decision_guide(controls=True))
    assert "the head alone" in capsys.readouterr().out
    controls["shift"].value = "high"
    assert "adapters" in capsys.readouterr().out
    controls["compute"].value = "medium"
    assert "one more block per stage" in capsys.readouterr().out
    controls["images"].value = 50_000
    assert "two to four blocks" in capsys.readouterr().out
    controls["labelled, %"].value = 5
    assert "self-supervised" in capsys.readouterr().out
    controls["compute"].value = "low"
    assert "nothing to recommend" in capsys.readouterr().out


def test_a_filtered_table_shows_the_rows_that_have_what_was_chosen(capsys):
    rows = [["LoRA", 30, "blinds"], ["prompts", 5, "blinds"], ["heads", 30, "lesions"]]
    table = tlk.table(rows, ["flavour", "labels", "data"])
    controls = by_name(tlk.filtered(table, "labels", "data", controls=True))
    assert "prompts" in capsys.readouterr().out
    controls["labels"].value = "30"
    shown = capsys.readouterr().out
    assert "LoRA" in shown and "heads" in shown and "prompts" not in shown
    controls["data"].value = "lesions"
    assert "LoRA" not in capsys.readouterr().out
    controls["labels"].value = controls["data"].value = "any"
    assert "prompts" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"found \['label'\]"):
        tlk.filtered(table, "label")


def test_a_table_stands_where_nobody_can_drag(monkeypatch):
    assert tlk.decision_guide().cells == guide().cells  # no Jupyter server
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    assert len(tlk.decision_guide().children) == 5
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as where it is not installed
    assert "with ipywidgets" in tlk.decision_guide().note
    with pytest.raises(ImportError):
        tlk.decision_guide(controls=True)
