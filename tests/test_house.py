"""The rooms of the house: which package may know which, and who may know Keras's private parts."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "tlkeras"
CORE = [
    *("utils", "blocks", "freezing", "optimizers", "inputs", "plans", "display"),
    *("features", "runs", "training"),
]
WINGS = ["backbones", "tasks", "devices"]
# From the ground up: a package imports only from packages named before it.
PACKAGES = [*CORE, *WINGS, "advice", "flavors", "cli"]
MODULES = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("*.py"))
}
# Names of Keras that begin with an underscore, where they are used. Each has a test in
# tests/test_keras_contract.py.
PRIVATE = {
    "blocks.internals": {
        *("_auto_config", "_compile_config", "_flatten_layers", "_functional", "_inbound_nodes"),
        *("_is_default", "_keras_mask", "_layers", "_lock", "_nodes_by_depth"),
        *("_non_trainable_variables", "_outbound_nodes", "_seed_generators"),
        *("_trainable", "_trainable_variables", "_untrack_variable"),
    },
    "optimizers.blockwise": {
        *("_apply_weight_decay", "_get_current_learning_rate", "_get_variable_index"),
        *("_iterations", "_learning_rate", "_model_variables_moving_average"),
        *("_update_model_variables_moving_average", "_use_weight_decay"),
    },
    "optimizers.pattern": {"_is_excluded_from_weight_decay", "_use_weight_decay"},
    "optimizers.state": {
        *("_accumulated_gradients", "_get_current_learning_rate", "_iterations", "_learning_rate"),
        *("_model_variables_moving_average", "_momentums", "_trainable_variables", "_variables"),
    },
    "features.cached_fit": {"_get_metrics_result_or_logs", "_initial_epoch", "_symbolic_build"},
}


def package(name: str) -> str:
    return name.partition(".")[0]


def imported(path: Path) -> set[str]:
    """Names of everything a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def own_imports(name: str) -> set[str]:
    """The modules of tlkeras that a module imports."""
    names = {found.removeprefix("tlkeras.") for found in imported(MODULES[name])}
    return {found for found in names if found in MODULES}


def test_the_root_holds_packages_alone():
    assert {path.stem for path in LIBRARY.glob("*.py")} == {"__init__", "__main__"}
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_a_package_imports_only_from_those_before_it(name):
    allowed = PACKAGES[: PACKAGES.index(package(name)) + 1]
    assert {package(found) for found in own_imports(name)} <= set(allowed)
    if package(name) != "cli":  # the roof, `import tlkeras as tlk`, knows them all
        assert not re.search(r"^import tlkeras( as \w+)?$", MODULES[name].read_text("utf-8"), re.M)


def test_no_flavour_imports_another():
    flavours = [name for name in MODULES if package(name) == "flavors"]
    for name in flavours[1:]:  # after the package itself, which names them
        assert not own_imports(name) & set(flavours), name


def test_there_are_no_circles():
    left = {name: own_imports(name) - {name} for name in MODULES if "." in name}
    while left:
        free = {name for name, needed in left.items() if not needed & set(left)}
        assert free, f"circle among {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


@pytest.mark.parametrize("name", MODULES)
def test_tensorflow_is_for_the_wings_alone(name):
    if package(name) not in WINGS:
        roots = {found.partition(".")[0] for found in imported(MODULES[name])}
        allowed = {"jax"} if name == "utils.processes" else set()  # once JAX has joined them
        assert not roots & ({"tensorflow", "tensorflow_datasets", "jax", "torch"} - allowed)


def test_keras_private_parts_are_known_in_their_rooms_alone():
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
    ours = {attribute for tree in trees.values() for attribute in _defined(tree)}
    keras_names = set.union(*PRIVATE.values())
    found = {name: _private(tree) for name, tree in trees.items()}
    used = {name: (f & keras_names) | (f - ours) for name, f in found.items()}
    foreign = {"backbones", "tasks", "utils"}  # endings of names of files and networks
    assert {n: f for n, f in used.items() if f and package(n) not in foreign} == PRIVATE


def _defined(tree: ast.AST) -> set[str]:
    """Names that a module gives to its own functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if getattr(node.value, "id", "") == "self" else set()
    return names


def _private(tree: ast.AST) -> set[str]:
    """Names with one leading underscore: attributes, functions, and strings that could be one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return {n for n in names if re.fullmatch("_[a-z]\\w*[a-z]", n)}


def test_contributing_shows_the_rooms_in_their_order():
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    shown = [line.split("/")[0].split()[-1] for line in lines if "/  " in line and "──" in line]
    assert shown == PACKAGES
