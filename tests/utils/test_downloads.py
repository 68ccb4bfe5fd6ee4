"""Downloads from a server that breaks off, stalls, moves and sends other files, as servers do."""

import hashlib
import subprocess
import sys
import time
from threading import Thread

import pytest
from local_server import CONTENT, serving

from tlkeras.utils import downloads

SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    def fetch(*urls, known_hash=SHA256, **options):
        settings = {"timeout": 0.5, "retries": 0} | options
        return downloads.fetch(urls, tmp_path / "in" / "file.zip", known_hash, **settings)

    return fetch


def left(tmp_path):
    """Files beside the lock, and their lengths."""
    return {p.name: p.stat().st_size for p in (tmp_path / "in").iterdir() if p.suffix != ".lock"}


@pytest.mark.parametrize("known_hash", [SHA256, MD5])
def test_a_file_is_downloaded_once(server, fetch, tmp_path, known_hash):
    path = fetch(server.url("good"), known_hash=known_hash)
    assert path.read_bytes() == CONTENT and left(tmp_path) == {"file.zip": len(CONTENT)}
    assert fetch(server.url("good"), known_hash=known_hash) == path and len(server.asked) == 1


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("short", "100000 more expected"),
        ("stalled", "timed out"),
        ("gone", "404"),
        ("moved", "Expected an https:// address; found 'http://example.com/file'"),
    ],
)
def test_a_download_that_fails_ends_and_leaves_nothing(server, fetch, tmp_path, way, says):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="Cannot download file.zip") as error:
        fetch(server.url(way), stand_in="Use digits.")
    assert time.perf_counter() - start < 5
    assert says in str(error.value) and not left(tmp_path)
    by_hand = f"download {server.url(way)} and save it as {tmp_path / 'in' / 'file.zip'}."
    assert str(error.value).endswith(f"By hand: {by_hand} Use digits.")


def test_nobody_listening_is_one_clear_error(fetch, tmp_path):
    with pytest.raises(ConnectionError, match="refused"):
        fetch("http://127.0.0.1:9/file")
    assert not left(tmp_path)


def test_a_wrong_file_leaves_nothing(server, fetch, tmp_path):
    server.files["other"] = b"<html>Please log in.</html>"
    with pytest.raises(ConnectionError, match="does not match the known hash"):
        fetch(server.url("good", "other"))
    assert not left(tmp_path)


@pytest.mark.parametrize("way", ["busy", "short_once"])
def test_a_server_that_fails_once_is_asked_again(server, fetch, monkeypatch, tmp_path, way):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert fetch(server.url(way), retries=1).read_bytes() == CONTENT
    assert len(server.asked) == 2 and left(tmp_path) == {"file.zip": len(CONTENT)}


def test_the_next_mirror_is_asked(server, fetch, tmp_path):
    server.files["other"] = b"something else"
    fetch(server.url("gone"), server.url("good", "other"), server.url("short"), server.url("good"))
    assert server.asked == ["gone", "good", "short", "good"]
    assert left(tmp_path) == {"file.zip": len(CONTENT)}


@pytest.mark.parametrize("url", ["http://example.com/a", "ftp://example.com/a", "file:///a"])
def test_only_safe_addresses_are_asked(fetch, url):
    with pytest.raises(ConnectionError, match="Expected an https:// address"):
        fetch(url)


def test_a_wrong_file_placed_by_hand_is_replaced_or_named(server, fetch, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.zip").write_bytes(b"not it")
    with pytest.raises(ConnectionError, match="under that name is another file"):
        fetch(server.url("gone"))
    assert left(tmp_path) == {"file.zip": 6}
    assert fetch(server.url("good")).read_bytes() == CONTENT


def test_two_processes_download_a_file_once(server, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tlkeras.utils.downloads import fetch; "
        "fetch([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", code, server.url("good"), str(tmp_path / "a.zip"), SHA256]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.communicate()[1] == b"" and process.returncode == 0
    assert len(server.asked) == 1 and (tmp_path / "a.zip").read_bytes() == CONTENT


def test_two_threads_download_a_file_once(server, fetch):
    threads = [Thread(target=fetch, args=[server.url("good")]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


def test_a_person_sees_a_bar(server, fetch, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch(server.url("good"))
    assert "100%" in capsys.readouterr().err
