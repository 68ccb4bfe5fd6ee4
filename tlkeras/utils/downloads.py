"""Downloads that end: with the file whole and its hash checked, or with one error that helps.

pooch asks, asks again, draws a bar and checks the hash; a file has its name only when it is right.
Ours is that processes wait for one another, that only https is asked, and what the error says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from tlkeras.utils.lock import lock

if TYPE_CHECKING:
    import requests

CHUNK = 2**16  # bytes


def fetch(
    urls: Sequence[str],
    path: Path,
    known_hash: str,
    *,
    timeout: float = 30.0,
    retries: int = 2,
    stand_in: str = "",
) -> Path:
    """Downloads a file unless it is there with this hash already.

    Processes that want the same file wait for the first one, which leaves `path.lock` behind. A
    download that breaks off is deleted and begins anew; that of a process which was killed stays,
    as `tmp...` beside `path`.

    Args:
        urls: where the file is; each is tried in turn. Only https://, or http:// on this machine.
        path: where it goes; another file there is replaced.
        known_hash: "sha256:" or "md5:" and the hash in hexadecimal.
        timeout: seconds without data after which a connection is given up.
        retries: how often to ask each URL again, after a pause of 1 s, then 2 s, and so on.
        stand_in: ends the message of an error; say there what works without the internet.

    Returns:
        `path`, whole and with the right hash.

    Raises:
        ConnectionError: no URL gave that file.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its lines go to standard error
    ask = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),  # if a person looks at it
        chunk_size=CHUNK,
        timeout=timeout,
        hooks={"response": _refuse_unsafe_redirect},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    with lock(path.with_name(path.name + ".lock")):
        for url in urls:
            source = pooch.Pooch(
                path.parent,
                base_url="",
                registry={path.name: known_hash},
                urls={path.name: url},
                retry_if_failed=retries,
            )
            try:
                refuse_unsafe(url)
                source.fetch(path.name, downloader=ask)
                return path
            except (OSError, ValueError) as error:  # from requests; a wrong hash
                problems.append(f"{url}: {str(error).rstrip('.')}.")
    wrong = " What is there under that name is another file." if path.exists() else ""
    raise ConnectionError(
        f"Cannot download {path.name}. {' '.join(problems)} By hand: download {urls[0]} and save "
        f"it as {path}.{wrong} {stand_in}".rstrip()
    )


def refuse_unsafe(url: str) -> None:
    """Raises ConnectionError unless the address is https://, or on this machine."""
    place = urlsplit(url)
    here = place.hostname in ("localhost", "127.0.0.1", "::1")
    if place.scheme != "https" and not (place.scheme == "http" and here):
        raise ConnectionError(f"Expected an https:// address; found {url!r}.")


def _refuse_unsafe_redirect(response: "requests.Response", **options: object) -> None:
    """Called by requests with every response, before it follows one elsewhere."""
    if response.is_redirect:
        refuse_unsafe(urljoin(response.url, response.headers["location"]))
