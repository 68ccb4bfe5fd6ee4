"""Downloads that end either with a complete file and a checked hash, or with one helpful error.

pooch downloads, retries, draws a progress bar and checks the hash; a file gets its final name only
after that check. This module adds a lock between processes, the restriction to https, and the text
of the error.
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
    """Download a file, unless it already exists with this hash.

    Processes that want the same file wait for the first one, which leaves `path.lock` behind. An
    interrupted download is deleted and starts again from the beginning. If the process is killed,
    its partial download remains next to `path`, as `tmp...`.

    Args:
        urls: addresses of the file, tried in turn. Only https://, or http:// on this machine.
        path: where to store the file; a different file with that name is replaced.
        known_hash: "sha256:" or "md5:" followed by the hash in hexadecimal.
        timeout: seconds without data after which the connection is closed.
        retries: how often to retry each URL, after a pause of 1 s, then 2 s, and so on.
        stand_in: text added to the error message: what works without the internet.

    Returns:
        `path`, a complete file with the right hash.

    Raises:
        ConnectionError: no URL provided that file.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its messages go to standard error
    ask = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),  # only in a terminal
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
            except (OSError, ValueError) as error:  # from requests; or a wrong hash
                problems.append(f"{url}: {str(error).rstrip('.')}.")
    wrong = " What is there under that name is another file." if path.exists() else ""
    raise ConnectionError(
        f"Cannot download {path.name}. {' '.join(problems)} By hand: download {urls[0]} and save "
        f"it as {path}.{wrong} {stand_in}".rstrip()
    )


def refuse_unsafe(url: str) -> None:
    """Raise ConnectionError unless the address is https://, or http:// on this machine."""
    place = urlsplit(url)
    here = place.hostname in ("localhost", "127.0.0.1", "::1")
    if place.scheme != "https" and not (place.scheme == "http" and here):
        raise ConnectionError(f"Expected an https:// address; found {url!r}.")


def _refuse_unsafe_redirect(response: "requests.Response", **options: object) -> None:
    """Check a redirect; requests calls this with every response before it follows one."""
    if response.is_redirect:
        refuse_unsafe(urljoin(response.url, response.headers["location"]))
