"""Which libraries a run was made with."""

import contextlib
from importlib import metadata

import keras


def versions() -> dict[str, str]:
    """Of the libraries that a training's numbers depend on."""
    backend = keras.backend.backend()
    found = {"keras": keras.__version__, "backend": backend}
    for name in (backend, "numpy", "tlkeras"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # tensorflow-cpu, for one
            found[name] = metadata.version(name)
    return found
