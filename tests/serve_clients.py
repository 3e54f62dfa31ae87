"""Requests as they are, servers as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-the-tests"


def call(client: Any, path: str) -> Any:
    """GET with the path exactly as it is written, which clients would tidy up."""
    request = client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    return client.send(request)


def start(*arguments: str | Path, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """A `terralapse serve` in a process of its own on a free port, and its address."""
    command = [sys.executable, "-m", "terralapse", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Map  http"), process.communicate(timeout=20)[1]
    return process, line.split()[1]


@contextmanager
def running(*arguments: str | Path, **environment: str) -> Iterator[str]:
    """The address of a server that is interrupted at the end."""
    process, address = start(*arguments, **environment)
    try:
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


@contextmanager
def living(options: Any, looker: Any = None) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    import uvicorn

    from terralapse.serve.app import create_app

    app = create_app(options, looker)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
