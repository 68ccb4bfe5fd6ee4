"""Downloads that end: with the file whole and its hash checked, or with one error that helps.

What has arrived is kept in `name.part` and the next try goes on from there; `name` itself appears
only once the hash is right. A server that sends nothing for a while is given up.
"""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

CHUNK = 2**16  # bytes
PASSING = (408, 425, 429)  # statuses below 500 that another try may cure


def fetch(
    urls: str | Sequence[str],
    path: str | os.PathLike,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
    tries: int = 3,
    pause: float = 1.0,
    stand_in: str = "",
) -> Path:
    """Downloads a file unless it is there, and checks its hash either way.

    Processes that want the same file wait for the first one, which leaves `path.lock` behind.

    Args:
        urls: where the file is; each is tried in turn. Only https://, or http:// on this machine.
        path: where it goes.
        md5, sha256: its hash in hexadecimal; one of the two, SHA-256 first.
        size: its length in bytes, if known; a server that offers another one is passed over.
        timeout: seconds without data after which a connection is given up.
        tries: how often to ask each URL; after a status such as 404, once.
        pause: seconds to wait before the second try, twice as many before the third, and so on.
        stand_in: ends the message of an error; say there what works without the internet.

    Returns:
        `path`, whole and with the right hash.

    Raises:
        ConnectionError: no URL gave the whole file; the error says what is left on disk.
        ValueError: the file has another hash, or a URL is not allowed. A wrong download is
            deleted; a wrong file that was at `path` already stays.
        OSError: the disk is full, or the folder not to be written to.
    """
    urls, path = [urls] if isinstance(urls, str) else list(urls), Path(path)
    for url in urls:
        _refuse_unsafe(url)
    kind, wanted = ("sha256", sha256) if sha256 else ("md5", md5)
    if not wanted:
        raise ValueError(f"{path.name} needs an md5 or a sha256 to be checked by.")
    advice = f"By hand: download {urls[0]} and save it as {path}. {stand_in}".rstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(path.name + ".lock")):
        if path.exists():
            found = _hash(path, kind)
            if found != wanted:
                raise ValueError(
                    f"{path} is not the file expected: its {kind} is {found}, not {wanted}. "
                    f"Delete it and try again. {advice}"
                )
            return path
        part = path.with_name(path.name + ".part")
        problems, wrong = [], False
        for url in urls:
            problem, is_wrong = _try(url, part, kind, wanted, size, timeout, tries, pause)
            if not problem:
                os.replace(part, path)
                return path
            problems.append(f"{url}: {problem}")
            wrong |= is_wrong
        kept = part.stat().st_size if part.exists() else 0
        left = f"{part} keeps {kept:,} bytes; try again to go on from there" if kept else "nothing"
        if not kept:
            part.unlink(missing_ok=True)
        raise (ValueError if wrong else ConnectionError)(
            f"Cannot download {path.name}. {'; '.join(problems)}. Left on disk: {left}. {advice}"
        )


def _try(url, part, kind, wanted, size, timeout, tries, pause) -> tuple[str, bool]:
    """Asks one URL up to `tries` times: ("", False), or what is wrong and whether it is the hash.

    A part from an earlier try may be of another file: with a wrong hash it is deleted, and the
    next try begins anew.
    """
    problem = ""
    for number in range(tries):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        begun = part.exists() and part.stat().st_size > 0
        try:
            _transfer(url, part, size, timeout)
        except _Failure as failure:
            problem = str(failure)
            if failure.final:
                break
            continue
        found = _hash(part, kind)
        if found == wanted:
            return "", False
        part.unlink()
        if not begun:
            return f"the file has the {kind} {found}, not {wanted}, and was deleted", True
        problem = "what an earlier try had left did not fit"
    return problem, False


class _Failure(Exception):
    """A transfer did not finish; `final` if asking the same URL again is of no use."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


def _transfer(url: str, part: Path, size: int | None, timeout: float) -> None:
    """Writes what the part lacks; raises _Failure unless the file has the length announced."""
    start = part.stat().st_size if part.exists() else 0
    if size and start == size:
        return
    headers = {"User-Agent": "tlkeras", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    response = _ask(lambda: _OPENER.open(request, timeout=timeout), part, start, timeout)
    if response is None:  # nothing was missing
        return
    with response:
        span = response.headers.get("Content-Range", "")
        if response.status != 206 or not span.startswith(f"bytes {start}-"):
            if response.status == 206:
                raise _Failure(f"sent the range {span!r} instead of from byte {start}", final=True)
            start = 0  # the server knows no ranges, and sends everything
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        if size and total != size:
            raise _Failure(f"offers {total:,} bytes, not the {size:,} expected", final=True)
        with part.open("ab" if start else "wb") as file, _progress(part.stem, total, start) as tell:
            done = start
            while chunk := _ask(lambda: response.read1(CHUNK), part, start, timeout):
                file.write(chunk)
                done += len(chunk)
                tell(len(chunk))
    if total and done != total:
        raise _Failure(f"ended after {done:,} of {total:,} bytes")


def _ask(action: Callable, part: Path, start: int, timeout: float):
    """The action's result; what can go wrong with a connection becomes a _Failure."""
    try:
        return action()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
            return None
        if error.code == 416:  # the part is longer than the file
            part.unlink()
        final = error.code < 500 and error.code not in (*PASSING, 416)
        raise _Failure(f"HTTP {error.code} {error.reason}", final) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no data for {timeout:g} s"
        raise _Failure(str(reason) or type(reason).__name__) from error


def _refuse_unsafe(url: str) -> None:
    place = urlsplit(url)
    here = place.hostname in ("localhost", "127.0.0.1", "::1")
    if place.scheme != "https" and not (place.scheme == "http" and here):
        raise ValueError(f"Downloads are from https:// addresses only, not {url!r}.")


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere only where a URL may point in the first place."""

    def redirect_request(self, request, file, code, message, headers, url):
        try:
            _refuse_unsafe(url)
        except ValueError as error:
            raise _Failure(f"redirects to {url}, which is not https://", final=True) from error
        return super().redirect_request(request, file, code, message, headers, url)


_OPENER = urllib.request.build_opener(_Redirect)


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


@contextmanager
def _progress(name: str, total: int | None, start: int) -> Iterator[Callable[[int], object]]:
    """A bar on standard error if a person looks at it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True) as bar:
        yield bar.update


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the file for this process alone; the system lets go of it when the process ends."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # waits for 10 s at most
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
