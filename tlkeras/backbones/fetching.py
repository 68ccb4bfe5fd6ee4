"""Getting pretrained weights: in the online profile only, never waiting for ever, one clear error.

Whatever fails ends in a ConnectionError that names what works without the internet, and no file
that is damaged or half there stays under a name that a later call would trust.
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

STALLED = 30  # seconds without a byte, after which a download has failed


def refuse_offline(name: str, profile: str | None, otherwise: str = "") -> None:
    """Raises ConnectionError unless downloads are wanted (`tlk.is_online`)."""
    if not is_online(profile):
        raise ConnectionError(
            f"{name!r} is an online backbone: it would be downloaded, and the profile is offline. "
            f"Without the internet use {stand_in()}{otherwise}. To download it, pass "
            "profile='online' or set TLKERAS_PROFILE=online."
        )


@contextmanager
def downloading(name: str, otherwise: str = "") -> Iterator[None]:
    """Turns whatever a failed download raises into one error; stalled connections end."""
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
    """The same around a network of `keras.applications`, whose own ValueErrors pass through.

    Keras downloads to the final name at once, and of some networks (MobileNet, MobileNetV2) it
    knows no hash: what is left of a broken download would be taken for the weights ever after.
    Files that were asked for and did not load are therefore removed, whenever they were stored.
    """
    keras_files: Any = sys.modules[keras.utils.get_file.__module__]
    original, asked = keras_files.get_file, list[Path]()
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    otherwise = f"; weights=None builds {name} untrained"

    def get_file(fname: Any = None, origin: Any = None, **options: Any) -> str:
        asked.append(home / options.get("cache_subdir", "datasets") / fname)
        with downloading(name, otherwise):
            return original(fname, origin, **{"cache_dir": str(home), **options})

    with suppress(OSError):  # Keras has a place of its own where this one cannot be written
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
    """The backbones that come with tlkeras, for a message."""
    return " or ".join(repr(folder.name) for folder in paths.presets()) or "a .keras file"


def _failed(name: str, error: Exception, otherwise: str) -> ConnectionError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConnectionError(
        f"Cannot get the weights of {name!r}. Without the internet use {stand_in()}{otherwise}. "
        f"Nothing damaged was kept: calling again downloads anew. ({reason[:200]})"
    )
