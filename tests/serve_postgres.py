"""A PostgreSQL of its own for the tests, in a folder that goes with it."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from job_machines import free_port


def _program(name: str) -> str:
    """Debian keeps those of a server beside the path."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(kept[-1]) if kept else None)
    if found is None:
        pytest.skip(f"needs {name} of PostgreSQL (Debian: apt-get install postgresql)")
    return found


class Postgres:
    """A server on the loopback; `address` is that of a database in it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._count = folder, free_port(), 0
        # It refuses to run as root.
        self._as: dict[str, Any] = {}
        self._user = getpass.getuser()
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
            self._user = "postgres"
        self._run("initdb", "-D", folder / "data", "-A", "trust", "-E", "UTF8", "--no-locale")
        self.start()

    def _run(self, name: str, *words: str | Path) -> None:
        command = [_program(name), *map(str, words)]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=120, **self._as
        )

    def start(self) -> None:
        """Starts it, also again."""
        settings = f"-p {self._port} -h 127.0.0.1 -k {self._folder}"
        self._run(
            "pg_ctl", "-D", self._folder / "data", "-l", self._folder / "log", "-o", settings, "-w", "start"
        )

    def stop(self) -> None:
        """Ends it at once, as a fault would."""
        self._run("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop")

    def new(self) -> str:
        """The address of a new, empty database."""
        self._count += 1
        name = f"db{self._count}"
        place = f"127.0.0.1:{self._port}"
        with psycopg.connect(f"postgresql://{self._user}@{place}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{self._user}@{place}/{name}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that is ended and removed at the end; the test is skipped where there is no PostgreSQL."""
    _program("initdb")
    folder = Path(tempfile.mkdtemp(prefix="terralapse-pg-"))
    try:
        server = Postgres(folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
