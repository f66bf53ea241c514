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

    cut: bytes after which the next answers break off, one entry an answer. ranges: whether a part
    can be asked for. endless: whether answers go on and on. status: answers to come that are
    errors. asked: (path, Range) of each request.
    """

    files: dict[str, bytes]
    url: str = ""
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    lengths: bool = True
    endless: bool = False
    status: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Site]:
    """The site, while the server runs."""
    site = Site(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.asked.append((self.path, asked))
            if site.status:
                return self.send_error(site.status.pop(0))
            content = site.files.get(self.path)
            if content is None:
                return self.send_error(404)
            start = int(asked[len("bytes=") : -1]) if asked and site.ranges else 0
            if start >= len(content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            body = content[start:]
            self.send_response(206 if start else 200)
            if start:
                end = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
            if site.lengths and not site.endless:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.cut.pop(0)] if site.cut else body)
            while site.endless:
                self.wfile.write(body)
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
