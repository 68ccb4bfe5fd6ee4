"""pyproject.toml, environment.yml, the Makefile and what else names them say the same."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import tlkeras as tlk

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_environment_lists_what_pyproject_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    *packages, here = pip["pip"]
    assert packages == PROJECT["dependencies"]
    assert here == "-e .[test]"
    assert python.removeprefix("python=") in supported_pythons()


def test_every_dependency_says_what_it_serves():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    listed = [line for line in lines if line.strip().startswith("- ") and ">=" in line]
    assert len(listed) == len(PROJECT["dependencies"])
    assert all("  #" in line for line in listed)


def test_makefile_takes_the_pythons_that_pyproject_does():
    lowest, highest = re.search(
        r"\((3, \d+)\) <= sys.version_info\[:2\] <= \((3, \d+)\)", MAKEFILE
    ).groups()
    ends = [end.replace(", ", ".") for end in (lowest, highest)]
    assert ends == [supported_pythons()[0], supported_pythons()[-1]]
    looked_for = re.search(r"for p in python3 (.*); do", MAKEFILE).group(1)
    assert looked_for.replace("python", "").split() == supported_pythons()[::-1]


def supported_pythons() -> list[str]:
    lowest, beyond = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    return [f"3.{minor}" for minor in range(int(lowest), int(beyond))]


def test_oldest_pins_every_lower_bound(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    makefile = ROOT / "Makefile"
    subprocess.run(["make", "-f", makefile, "build/oldest.txt"], cwd=tmp_path, check=True)
    pins = (tmp_path / "build/oldest.txt").read_text().split()
    assert pins == [bound.replace(">=", "==") for bound in PROJECT["dependencies"]]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_commands_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:`|^|\w=\S+ |exec )make ([a-z-]+)", text, re.MULTILINE))
    assert named and named <= TARGETS
    if page == "README.md":
        assert {"lab", "test", "demo"} <= named


@pytest.mark.parametrize(("page", "limit"), [("README.md", 150), ("CONTRIBUTING.md", 80)])
def test_pages_stay_short(page, limit):
    assert len((ROOT / page).read_text().splitlines()) <= limit


def test_the_wheel_carries_the_data_and_no_leftovers(tmp_path):
    """Built from a small copy: the real configuration, made-up files."""
    for name in ("pyproject.toml", "LICENSE", ".gitignore", "tlkeras/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    wanted = [
        "tlkeras/__init__.py",
        "tlkeras/py.typed",
        "data/tasks/digits/digits.py",
        "data/tasks/online.toml",
        "data/presets/glyph_resnet/model.weights.h5",
    ]
    leftovers = ["data/tasks/.cache/x", "data/presets/checkpoints/x", "data/presets/y.part"]
    for name in ["README.md", *wanted, *leftovers]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    build = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    assert wheel.name.startswith(f"tlkeras-{tlk.__version__}-")
    assert names == {re.sub("^data", "tlkeras/_data", name) for name in wanted}
