"""Where things are: the data that comes with tlkeras, and what is prepared on first use."""

import hashlib
import os
import sys
from pathlib import Path


def data_root() -> Path:
    """The folder with `tasks/` and `presets/`: inside an installed wheel, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent / "data"


def presets() -> list[Path]:
    """The preset folders that come with tlkeras, by name."""
    return sorted(p.parent for p in (data_root() / "presets").glob("*/config.json"))


def cache_dir(chosen: str | os.PathLike | None = None) -> Path:
    """Where prepared tasks are kept: `chosen`, else TLKERAS_DATA_DIR, else the user's cache."""
    if chosen or os.environ.get("TLKERAS_DATA_DIR"):
        return Path(chosen or os.environ["TLKERAS_DATA_DIR"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tlkeras"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".cache") / "tlkeras"


def kept_dir() -> Path:
    """Where `tlkeras fit` keeps what frozen networks put out, for later runs."""
    return cache_dir() / "features"


def tasks() -> list[Path]:
    """The folders of the tasks that come with tlkeras, by name."""
    return sorted(p.parent for p in (data_root() / "tasks").glob("*/*_dataset_builder.py"))


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
