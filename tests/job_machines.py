"""A Dask scheduler and its workers, each a process of its own, as on several machines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

TESTS = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machines:
    """What runs, and where its scheduler answers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
        quiet = subprocess.DEVNULL
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        with self._lock:
            self.running.append(subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment))
            return self.running[-1]

    def scheduler(self) -> subprocess.Popen[bytes]:
        return self.start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"
        )

    def start_again(self) -> None:
        """Kills everything; then a new scheduler at the same address, and two workers."""
        self.end()
        self.scheduler()
        self.worker()
        self.worker()

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
