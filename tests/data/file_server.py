"""A server on this machine that gives files, and misbehaves on request."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Site:
    """files: {"/path": content}. What the server does, and what it was asked.

    cut: bytes after which the next answers break off, one entry an answer. status: answers to come
    that are errors. endless: answers have no length and go on and on. asked: the path of each
    request.
    """

    files: dict[str, bytes]
    url: str = ""
    cut: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    endless: bool = False
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Site]:
    """The site, while the server runs."""
    site = Site(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            if site.status:
                return self.send_error(site.status.pop(0))
            content = site.files.get(self.path)
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            if not site.endless:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: site.cut.pop(0)] if site.cut else content)
            while site.endless:
                self.wfile.write(content)
            return None

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that has enough

    server = Server(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
