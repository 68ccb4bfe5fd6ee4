"""The versions of the libraries that a run was made with."""

import contextlib
from importlib import metadata

import keras


def versions() -> dict[str, str]:
    """Return the versions of the libraries that the results of a training depend on."""
    backend = keras.backend.backend()
    found = {"keras": keras.__version__, "backend": backend}
    for name in (backend, "numpy", "tlkeras"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # for example tensorflow-cpu
            found[name] = metadata.version(name)
    return found
