"""`tlkeras doctor`: check that everything tlkeras needs is installed, and how to fix problems."""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tlkeras.utils import paths

TEXT = "check this installation, with a remedy for every problem"
FREE_BYTES = 2**30
REINSTALL = "install again: `make test` in the repository, or `pip install --upgrade tlkeras`"


@dataclass
class Check:
    """The result of one check: its name, whether it passed, what was found, and a remedy."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run all checks; a check that raises an exception counts as a problem."""
    checks: list[Check] = []
    for look in (_python, _packages, _devices, _data_dir, _presets, _jupyter):
        try:
            checks += look()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            checks.append(Check(look.__name__.strip("_"), False, reason, REINSTALL))
    return checks


def table(checks: list[Check]) -> str:
    """Return one aligned line per check, with a remedy below each problem."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'ok' if check.ok else 'problem':<8} {check.name:<{width}}  {check.found}")
        if not check.ok:
            lines.append(f"{'':<8} {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


def _python() -> Iterator[Check]:
    wanted = importlib.metadata.metadata("tlkeras")["Requires-Python"]
    found = platform.python_version()
    ok = SpecifierSet(wanted).contains(found, prereleases=True)
    yield Check("Python", ok, found, f"use Python {wanted}: `PYTHON=python3.12 make test`")


def _packages() -> Iterator[Check]:
    for line in importlib.metadata.requires("tlkeras") or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(wanted.name, False, "not installed", remedy)
            continue
        ok = wanted.specifier.contains(found, prereleases=True)
        expected = f"{found} ({wanted.specifier} expected)"
        yield Check(wanted.name, ok, found if ok else expected, remedy)


def _devices() -> Iterator[Check]:
    import keras

    from tlkeras.devices.setup import find_device

    backend = keras.config.backend()
    yield Check("devices", True, f"{find_device(backend)[0]}; Keras runs on {backend}", REINSTALL)


def _data_dir() -> Iterator[Check]:
    place = paths.cache_dir()
    remedy = "choose another folder: set the environment variable TLKERAS_DATA_DIR"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Check("data folder", False, f"cannot write to {place}: {error.strerror}", remedy)
        return
    yield Check("data folder", True, str(place))
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free"
    yield Check("disk", free >= FREE_BYTES, found, f"free 1 GiB, or {remedy}")


def _presets() -> Iterator[Check]:
    from tlkeras.backbones.presets import damaged_files

    again = (
        "`git checkout data/presets` in the repository, or `pip install --force-reinstall tlkeras`"
    )
    folders = paths.presets()
    if not folders:
        yield Check("presets", False, f"none in {paths.data_root() / 'presets'}", again)
    for folder in folders:
        damaged = damaged_files(folder)
        listed = Path(folder, "card.json").exists()
        found = "as its card lists" if listed else "no card.json to compare with"
        if damaged:
            found = f"damaged: {', '.join(damaged)}"
        yield Check(f"preset {folder.name}", listed and not damaged, found, again)


def _jupyter() -> Iterator[Check]:
    found = importlib.util.find_spec("jupyterlab") is not None
    yield Check("JupyterLab", found, "importable" if found else "missing", "pip install jupyterlab")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments of its own."""


def run(options: argparse.Namespace) -> int:
    checks = examine()
    sound = all(check.ok for check in checks)
    if options.json:
        print(json.dumps({"ok": sound, "checks": [vars(check) for check in checks]}))
    else:
        print(table(checks))
    return 0 if sound else 1
