"""Downloads from a server that breaks off, stalls, moves and sends other files, as servers do."""

import hashlib
import subprocess
import sys
import time
from threading import Thread

import pytest
from local_server import CONTENT, HALF, serving

from tlkeras.utils import downloads

SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    def fetch(*urls, **options):
        settings = {"sha256": SHA256, "timeout": 0.5, "pause": 0.01, "tries": 2} | options
        return downloads.fetch(urls, tmp_path / "in" / "file.zip", **settings)

    return fetch


def left(tmp_path):
    """Files beside the lock, and their lengths."""
    return {p.name: p.stat().st_size for p in (tmp_path / "in").iterdir() if p.suffix != ".lock"}


def test_a_file_is_downloaded_once(server, fetch, tmp_path):
    path = fetch(server.url("good"))
    assert path.read_bytes() == CONTENT and left(tmp_path) == {"file.zip": len(CONTENT)}
    assert fetch(server.url("good")) == path and len(server.asked) == 1


def test_md5_and_size_are_checked_where_they_are_known(server, fetch):
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert fetch(server.url("good"), sha256=None, md5=md5, size=len(CONTENT)).exists()


def test_what_breaks_off_is_kept_and_gone_on_with(server, fetch, tmp_path):
    with pytest.raises(ConnectionError, match="ended after 100,000 of 200,000 bytes") as error:
        fetch(server.url("short"), tries=1)
    assert "file.zip.part keeps 100,000 bytes" in str(error.value)
    assert left(tmp_path) == {"file.zip.part": HALF}
    assert fetch(server.url("good")).read_bytes() == CONTENT
    assert server.asked[-1] == ("good", f"bytes={HALF}-") and server.sent == HALF
    assert left(tmp_path) == {"file.zip": len(CONTENT)}


def test_a_server_without_ranges_sends_everything_again(server, fetch, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.zip.part").write_bytes(CONTENT[:HALF])
    assert fetch(server.url("whole")).read_bytes() == CONTENT
    assert server.asked == [("whole", f"bytes={HALF}-")] and server.sent == len(CONTENT)


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_part_of_full_length_or_more_comes_to_an_end(server, fetch, tmp_path, extra):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.zip.part").write_bytes(CONTENT + extra)
    assert fetch(server.url("good")).read_bytes() == CONTENT
    assert server.sent == (len(CONTENT) if extra else 0)


def test_a_stalled_connection_is_given_up(server, fetch, tmp_path):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"no data for 0\.5 s"):
        fetch(server.url("stalled"), tries=1)
    assert time.perf_counter() - start < 5
    assert left(tmp_path) == {"file.zip.part": HALF}


def test_a_wrong_file_leaves_nothing(server, fetch, tmp_path):
    server.files["other"] = b"<html>Please log in.</html>"
    with pytest.raises(ValueError, match="sha256 .* and was deleted") as error:
        fetch(server.url("good", "other"))
    assert not left(tmp_path) and len(server.asked) == 1
    assert "Left on disk: nothing" in str(error.value)


def test_a_part_of_another_file_is_thrown_away(server, fetch, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.zip.part").write_bytes(b"?" * HALF)
    assert fetch(server.url("good")).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={HALF}-", None]


def test_a_wrong_length_is_seen_before_anything_is_sent(server, fetch, tmp_path):
    with pytest.raises(ConnectionError, match="offers 200,000 bytes, not the 12 expected"):
        fetch(server.url("good"), size=12)
    assert not left(tmp_path)


def test_a_file_that_is_gone_is_asked_for_once(server, fetch, tmp_path):
    with pytest.raises(ConnectionError, match="HTTP 404") as error:
        fetch(server.url("gone"), stand_in="Use digits.")
    assert len(server.asked) == 1 and not left(tmp_path)
    by_hand = f"download {server.url('gone')} and save it as {tmp_path / 'in' / 'file.zip'}."
    assert str(error.value).endswith(f"{by_hand} Use digits.")


def test_the_next_mirror_is_asked(server, fetch, tmp_path):
    server.files["other"] = b"something else"
    fetch(server.url("gone"), server.url("good", "other"), server.url("short"), server.url("good"))
    assert [way for way, _ in server.asked] == ["gone", "good", "short", "short", "good"]
    assert server.asked[-1][1] == f"bytes={HALF}-" and left(tmp_path) == {"file.zip": len(CONTENT)}


def test_a_busy_server_is_asked_again(server, fetch):
    assert fetch(server.url("busy")).exists() and len(server.asked) == 2


def test_nobody_listening_is_one_clear_error(fetch, tmp_path):
    with pytest.raises(ConnectionError, match="refused"):
        fetch("http://127.0.0.1:9/file")
    assert not left(tmp_path)


@pytest.mark.parametrize("url", ["http://example.com/a", "ftp://example.com/a", "file:///a"])
def test_only_safe_addresses_are_asked(fetch, url):
    with pytest.raises(ValueError, match="https://"):
        fetch(url)


def test_nobody_is_sent_on_to_an_unsafe_address(server, fetch):
    with pytest.raises(ConnectionError, match="redirects to http://example"):
        fetch(server.url("moved"))


def test_a_file_placed_by_hand_is_checked_and_kept(server, fetch, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.zip").write_bytes(b"not it")
    with pytest.raises(ValueError, match="is not the file expected"):
        fetch(server.url("good"))
    assert left(tmp_path) == {"file.zip": 6} and not server.asked


def test_a_hash_is_needed(fetch):
    with pytest.raises(ValueError, match="md5 or a sha256"):
        fetch("https://example.com/a", sha256=None)


def test_two_processes_download_a_file_once(server, tmp_path):
    code = (
        "import sys; from tlkeras.utils.downloads import fetch; "
        "fetch(*sys.argv[1:3], sha256=sys.argv[3])"
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
    assert "file.zip: 100%" in capsys.readouterr().err
