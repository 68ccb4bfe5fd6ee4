"""Downloads pretrained weights: only in the online profile, with timeouts and one clear error.

Every failure ends in a ConnectionError that names what works without the internet. No damaged or
partial file is left under a name that a later call would trust.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras

from tlkeras.utils import paths
from tlkeras.utils.profiles import is_online

STALLED = 30  # seconds without data after which a download counts as failed


def refuse_offline(name: str, profile: str | None, otherwise: str = "") -> None:
    """Raise ConnectionError unless downloads are allowed (`tlk.is_online`)."""
    if not is_online(profile):
        raise ConnectionError(
            f"{name!r} is an online backbone: it would be downloaded, and the profile is offline. "
            f"Without the internet use {stand_in()}{otherwise}. To download it, pass "
            "profile='online' or set TLKERAS_PROFILE=online."
        )


@contextmanager
def downloading(name: str, otherwise: str = "") -> Iterator[None]:
    """Context manager: errors of a failed download become ConnectionError; stalls time out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        yield
    except ImportError:
        raise  # a package is missing, and the message says which
    except Exception as error:
        raise _failed(name, error, otherwise) from error
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def from_keras(name: str) -> Iterator[None]:
    """Context manager: the same for building a network of `keras.applications`.

    Keras downloads directly to the final name and, for some networks (MobileNet, MobileNetV2),
    knows no hash, so a partial download would be taken for the weights by every later call.
    Therefore, if building the network fails, all files it asked for are removed, including those
    of earlier downloads. Errors raised before a file is asked for pass through unchanged.
    """
    keras_files: Any = sys.modules[keras.utils.get_file.__module__]
    original, asked = keras_files.get_file, list[Path]()
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    otherwise = f"; weights=None builds {name} untrained"

    def get_file(fname: Any = None, origin: Any = None, **options: Any) -> str:
        asked.append(home / options.get("cache_subdir", "datasets") / fname)
        with downloading(name, otherwise):
            return original(fname, origin, **{"cache_dir": str(home), **options})

    with suppress(OSError):  # if this folder cannot be written, Keras uses another one
        home.mkdir(parents=True, exist_ok=True)
    keras_files.get_file = get_file
    try:
        yield
    except Exception as error:
        for path in asked:
            path.unlink(missing_ok=True)
        if asked and not isinstance(error, ConnectionError):
            raise _failed(name, error, otherwise) from error
        raise
    finally:
        keras_files.get_file = original


def stand_in() -> str:
    """Return the names of the backbones that come with tlkeras, for a message."""
    return " or ".join(repr(folder.name) for folder in paths.presets()) or "a .keras file"


def _failed(name: str, error: Exception, otherwise: str) -> ConnectionError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConnectionError(
        f"Cannot get the weights of {name!r}. Without the internet use {stand_in()}{otherwise}. "
        f"Nothing damaged was kept: calling again downloads anew. ({reason[:200]})"
    )
