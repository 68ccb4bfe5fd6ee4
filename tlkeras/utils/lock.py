"""A file lock between processes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends.

    Args:
        path: the lock file, created if missing and left behind.
        wait: whether to wait while another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock and `wait` is False.
        OSError: the file cannot be locked at all, for example on a file system without locks.
    """
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:  # LK_LOCK waits for at most 10 s
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
