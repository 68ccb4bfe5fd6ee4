"""The floors of the house: a module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "tlkeras"
# From the ground up: a module may import only those named before it.
FLOORS = [
    *("paths", "quiet", "workers", "tables", "graph", "units", "names", "blocks"),
    *("batchnorm", "policies"),
    *("rates", "blockwise", "optimizers"),
    *("feed", "batches", "prefix", "cache"),
    *("plan", "plots", "progress", "run"),
    *("keeper", "replay", "cached", "backup", "job", "stages"),
    *("recipes", "rate_finder", "probing"),
]
WINGS = {
    *("tasks", "builders", "folders", "splits", "profiles", "downloads", "online"),
    *("backbones", "pretrained", "kerascv", "heads", "doctor", "devices", "multiworker"),
}
ROOF = {"cli", "__init__", "__main__"}
MODULES = sorted(LIBRARY.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Names of everything a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_has_its_place():
    assert {path.stem for path in MODULES} == {*FLOORS, *WINGS, *ROOF}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_rests_on_those_below_and_on_keras_alone(name):
    names = imported(LIBRARY / f"{name}.py")
    own = {n.split(".")[1] for n in names if n.startswith("tlkeras.")}
    above = {path.stem for path in MODULES} - set(FLOORS[: FLOORS.index(name)])
    assert not own & above
    assert not [n for n in names if n.split(".")[0] in ("tensorflow", "tensorflow_datasets")]
