"""Stores measurements as CSV files, with the versions and the machine used."""

import csv
import os
import platform
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras"))
    return f"Python {platform.python_version()}, {packages}, {os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "")


def write(name: str, header: tuple, rows: list[tuple], key: str) -> None:
    """Replace the rows whose first cell is `key` in results/NAME.csv."""
    path = FOLDER / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    kept = [row for row in read(name) if row[0] != key]
    rows = [[f"{c:.6g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {machine()}\n")
        csv.writer(file, lineterminator="\n").writerows([header, *kept, *rows])
    os.replace(unfinished, path)


def read(name: str) -> list[list[str]]:
    """Return the rows of results/NAME.csv, without its header."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(line for line in file if not line.startswith("#")))[1:]
