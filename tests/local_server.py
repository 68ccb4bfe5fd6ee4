"""A web server on this machine that breaks off, stalls, moves and sends other files."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np

CONTENT = np.random.default_rng(0).bytes(200_000)
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    """The first part of a path says how the file is served, the rest which one."""

    def do_GET(self):
        way, _, name = self.path[1:].partition("/")
        asked = self.headers.get("Range")
        server = self.server
        server.asked.append((way, asked))
        body = server.files.get(name, CONTENT)
        if way == "gone":
            return self.send_error(404)
        if way == "busy" and len(server.asked) == 1:
            return self.send_error(503)
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", "http://example.com/file")
            return self.end_headers()
        start = int(asked[6:-1]) if asked and way != "whole" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if way in ("short", "stalled"):
            self.wfile.write(body[start:HALF])
            if way == "stalled":
                server.over.wait(20)
            return None
        server.sent += len(body) - start
        self.wfile.write(body[start:])
        return None

    def log_message(self, *arguments):
        pass


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    """A server with `url(way, name)`, `files` it has, what was `asked` of it, bytes `sent`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.sent, server.over = {}, [], 0, Event()
    server.url = lambda way, name="file": f"http://127.0.0.1:{server.server_port}/{way}/{name}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
