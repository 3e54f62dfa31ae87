"""An http server of a folder that answers like an object store, late and wrongly when it is told to.

Tests use it in their own process; `python tests/file_server.py FOLDER --delay 0.05` is for measurements,
which must not share an interpreter with the server.
"""

from __future__ import annotations

import argparse
import http.server
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ask:
    """One request: the path, the first byte and one past the last (None: the whole file), the status of the
    answer, and how many bytes of a file it held."""

    method: str
    path: str
    start: int | None
    end: int | None
    status: int = 0
    sent: int = 0


@dataclass
class FileServer:
    """What a server does and what it saw.

    Attributes:
        folder: what is served.
        delay: seconds before each answer, and once more for a new connection (a round trip each).
        ranged: whether parts of files are given; else the whole file comes whatever was asked.
        etag: of all files; None for none.
        faults: taken one by one by requests of parts that do not begin at 0: a status (500), `cut` (half of
            the body, then the connection ends), or `ok`.
        asks: all requests in the order in which they came.
        most_open: the largest number of requests that waited for an answer at the same time.
    """

    folder: Path
    delay: float = 0.0
    ranged: bool = True
    etag: str | None = '"fixture"'
    faults: deque[int | str] = field(default_factory=deque)
    asks: list[Ask] = field(default_factory=list)
    most_open: int = 0
    address: str = ""
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sent(self) -> int:
        """Bytes of files in all answers."""
        return sum(ask.sent for ask in self.asks)

    def enter(self, ask: Ask) -> int | str:
        """A request came; returns the fault that it gets, or `ok`."""
        with self._lock:
            self.asks.append(ask)
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            return self.faults.popleft() if ask.start and self.faults else "ok"

    def leave(self) -> None:
        """A request was answered."""
        with self._lock:
            self._open -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: FileServer

    def setup(self) -> None:
        super().setup()
        time.sleep(self.served.delay)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else None
        end = int(wanted[2]) + 1 if wanted and wanted[2] else None
        ask = Ask(self.command, self.path, start, end)
        fault = self.served.enter(ask)
        try:
            time.sleep(self.served.delay)
            self._send(ask, fault, with_body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader hung up, as it may
        finally:
            self.served.leave()

    def _send(self, ask: Ask, fault: int | str, with_body: bool) -> None:
        path = (self.served.folder / self.path.partition("?")[0].lstrip("/")).resolve()
        if not (path.is_relative_to(self.served.folder.resolve()) and path.is_file()):
            self._head(ask, 404, 0)
            return
        if isinstance(fault, int):
            self._head(ask, fault, 0)
            return
        whole = path.stat().st_size
        start, end = 0, whole
        if ask.start is not None and self.served.ranged:
            start, end = ask.start, min(ask.end or whole, whole)
            if start >= whole:
                self._head(ask, 416, 0, {"Content-Range": f"bytes */{whole}"})
                return
            self._head(ask, 206, end - start, {"Content-Range": f"bytes {start}-{end - 1}/{whole}"})
        else:
            self._head(ask, 200, end - start)
        if not with_body:
            return
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        ask.sent = len(body)  # before the reader has it, who may look at once
        self.wfile.write(body)

    def _head(self, ask: Ask, status: int, length: int, more: dict[str, str] | None = None) -> None:
        ask.status = status
        self.send_response(status)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        if self.served.etag is not None:
            self.send_header("ETag", self.served.etag)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with five, the sixth connection at once waits a second

    def server_activate(self) -> None:
        self.connections: set[socket.socket] = set()
        super().server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Ends the connections that readers keep."""
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve_files(folder: Path, **settings: object) -> Iterator[FileServer]:
    """Serves `folder` on this machine while the block runs; `settings` are fields of `FileServer`."""
    served = FileServer(folder, **settings)  # pyright: ignore[reportArgumentType]
    handler = type("Handler", (_Handler,), {"served": served})
    with _Server(("127.0.0.1", 0), handler) as server:
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            server.hang_up()
            thread.join()


def main() -> None:
    """Serves until the standard input ends, then says how many requests came and how many bytes went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    with serve_files(options.folder, delay=options.delay) as served:
        sys.stdout.write(f"{served.address}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(f"{len(served.asks)} {served.sent} {served.most_open}\n")


if __name__ == "__main__":
    main()
