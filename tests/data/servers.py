"""A web server on this machine that fails on purpose."""

from __future__ import annotations

import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes).

    Attributes:
        faults: path -> what the next GETs of it meet, one after the other: a status such as "503", "stall", "short" (fewer bytes
            than wanted, as if these were all), "close" (the connection ends early), "ok".
        ranges: whether it knows them; sizes: whether it tells the size of a file; secret: a path that is forbidden.
        log: (path, "bytes=..." or "" for the whole file) of each GET.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, deque[str]] = {}
        self.ranges = self.sizes = True
        self.secret = ""
        self.log: list[tuple[str, str]] = []
        self.done = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self) -> Counter[str]:
        """GETs by path."""
        return Counter(path for path, _ in self.log)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        data = self.server.files.get(self.path.split("?")[0])
        self.send_response(403 if self.path == self.server.secret else 404 if data is None else 200)
        if data is None or self.server.sizes:
            self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        asked = self.headers.get("Range", "")
        self.server.log.append((path, asked))
        faults = self.server.faults.get(path)
        fault = faults.popleft() if faults else "ok"
        if fault == "stall":
            self.server.done.wait(5)
            self.close_connection = True
            return
        data = self.server.files.get(path)
        if path == self.server.secret:
            fault = "403"
        if fault.isdigit() or data is None:
            self.send_response(int(fault) if fault.isdigit() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = 200
        if asked and self.server.ranges:
            first, last = (int(end) for end in asked.removeprefix("bytes=").split("-"))
            data, status = data[first : last + 1], 206
        if fault == "short":
            data = data[: len(data) // 2]
        self.send_response(status)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "close" else data)
        if fault == "close":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.done.set()
            server.shutdown()
            thread.join()
