"""Paths of the data that comes with tlkeras and of the data that is prepared on first use."""

import hashlib
import os
import sys
from pathlib import Path


def data_root() -> Path:
    """Return the folder with `tasks/` and `presets/`, in an installed wheel or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent / "data"


def presets() -> list[Path]:
    """Return the preset folders that come with tlkeras, sorted by name."""
    return sorted(p.parent for p in (data_root() / "presets").glob("*/config.json"))


def cache_dir(chosen: str | os.PathLike | None = None) -> Path:
    """Return the folder of prepared tasks: `chosen`, else TLKERAS_DATA_DIR, else the user cache."""
    if chosen or os.environ.get("TLKERAS_DATA_DIR"):
        return Path(chosen or os.environ["TLKERAS_DATA_DIR"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tlkeras"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".cache") / "tlkeras"


def kept_dir() -> Path:
    """Return the folder where `tlkeras fit` keeps the outputs of frozen networks for later runs."""
    return cache_dir() / "features"


def tasks() -> list[Path]:
    """Return the folders of the tasks that come with tlkeras, sorted by name."""
    return sorted(p.parent for p in (data_root() / "tasks").glob("*/*_dataset_builder.py"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
