"""A file that one process holds at a time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds the file for this process alone; the system lets go of it when the process ends.

    Args:
        path: made if missing, and left behind.
        wait: for another that holds it.

    Raises:
        BlockingIOError: another holds it, with `wait=False`. OSError: it cannot be held at all,
            on a file system without locks, say.
    """
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:  # LK_LOCK waits for 10 s at most
                    kind = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK
                    msvcrt.locking(file.fileno(), kind, 1)
                    break
                except OSError as error:
                    if not wait:
                        raise BlockingIOError(*error.args) from error
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
