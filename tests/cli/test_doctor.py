"""tlkeras doctor: every problem is found and comes with one line of remedy."""

import importlib.metadata
import json
import platform
import shutil
from types import SimpleNamespace

import pytest

from tlkeras.cli import doctor, main
from tlkeras.utils import paths


@pytest.fixture
def installed(monkeypatch):
    """Pretends what tlkeras requires."""

    def pretend(requires=("keras>=3",), python=">=3.11"):
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(requires))
        metadata = {"Requires-Python": python}
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)

    return pretend


def only(checks):
    (check,) = checks
    return check


def test_python_is_compared_with_the_supported_range(installed):
    installed()
    assert only(doctor._python()).ok
    installed(python="<3.4")
    check = only(doctor._python())
    assert not check.ok and check.found == platform.python_version() and "<3.4" in check.remedy


def test_packages_are_compared_with_their_ranges(installed):
    installed(["keras>=3", "keras>=99", "no-such-thing>=1", 'pytest>=99; extra == "test"'])
    good, old, missing = doctor._packages()
    assert good.ok and good.found == importlib.metadata.version("keras")
    assert not old.ok and old.remedy == "pip install 'keras>=99'"
    assert not missing.ok and missing.found == "not installed"


def test_devices_are_listed():
    assert "CPU; Keras runs on" in only(doctor._devices()).found


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TLKERAS_DATA_DIR", str(tmp_path / "file" / "inside"))
    check = only(doctor._data_dir())
    assert not check.ok and "TLKERAS_DATA_DIR" in check.remedy


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("TLKERAS_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**29))
    folder, disk = doctor._data_dir()
    assert folder.ok and not disk.ok and disk.found == "0.5 GiB free"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**31))
    assert all(check.ok for check in doctor._data_dir())


def test_presets_are_compared_with_their_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "data_root", lambda: tmp_path)
    assert "none in" in only(doctor._presets()).found
    preset = tmp_path / "presets" / "small"
    preset.mkdir(parents=True)
    (preset / "config.json").write_text("{}")
    assert "no card.json" in only(doctor._presets()).found
    (preset / "card.json").write_text(json.dumps({"files": {"config.json": "0" * 64}}))
    check = only(doctor._presets())
    assert not check.ok and check.found == "damaged: config.json" and "git checkout" in check.remedy


def test_jupyterlab_is_looked_for(monkeypatch):
    assert only(doctor._jupyter()).ok
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert not only(doctor._jupyter()).ok


def test_a_check_that_breaks_down_is_a_problem(monkeypatch):
    def broken(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", broken)
    found = {check.name: check for check in doctor.examine()}
    assert not found["packages"].ok and "make test" in found["packages"].remedy


def test_one_line_each_and_one_remedy_a_problem(monkeypatch, capsys):
    checks = [doctor.Check("a", True, "fine"), doctor.Check("longer", False, "gone", "get it")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert main.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "a", "fine"], ["problem", "longer", "gone"], ["->", "get", "it"],
    ]  # fmt: skip
    assert lines[0].index("fine") == lines[1].index("gone")
    assert main.main(["doctor", "--json"]) == 1
    stored = json.loads(capsys.readouterr().out)
    assert not stored["ok"] and stored["checks"][1]["remedy"] == "get it"
    checks.pop()
    assert main.main(["doctor"]) == 0
