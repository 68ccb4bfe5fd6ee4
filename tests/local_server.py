"""A web server on this machine that breaks off, stalls, moves and sends other files."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np

CONTENT = np.random.default_rng(0).bytes(200_000)


class Handler(BaseHTTPRequestHandler):
    """The first part of a path says how the file is served, the rest which one."""

    def do_GET(self):
        way, _, name = self.path[1:].partition("/")
        server = self.server
        server.asked.append(way)
        body = server.files.get(name, CONTENT)
        if way == "gone":
            return self.send_error(404)
        if way == "busy" and len(server.asked) == 1:
            return self.send_error(503)
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", "http://example.com/file")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if way in ("short", "stalled") or (way == "short_once" and len(server.asked) == 1):
            self.wfile.write(body[: len(body) // 2])
            if way == "stalled":
                server.over.wait(20)
            return None
        self.wfile.write(body)
        return None

    def log_message(self, *arguments):
        pass


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    """A server with `url(way, name)`, `files` it has, and what was `asked` of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.over = {}, [], Event()
    server.url = lambda way, name="file": f"http://127.0.0.1:{server.server_port}/{way}/{name}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
