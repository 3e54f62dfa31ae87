"""Attempts at an analysis: each a process of its own, here or beside a worker of a Dask cluster.

A runner starts attempts and says how many may run at once. An attempt that was lost (its worker died, the
server ends, another process still writes the same folder) is worth another; one that failed is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from terralapse.serve.worker import ABANDONED

PATIENCE = 20.0  # seconds from the wish to stop to the end of patience
Told = Callable[[str, float], None]  # the stage, and the share of it that is done
_INTERRUPTED = (130, -2, -15)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: `done`, `failed` with a message for a person, or `lost`."""

    how: str
    message: str = ""


class Attempt(Protocol):
    """One analysis on its way."""

    def follow(self, told: Told) -> Ending:
        """Waits for the end, and tells how far it is."""
        ...

    def end(self) -> None:
        """Ends it, from another thread; `follow` then returns."""
        ...


class Runner(Protocol):
    """Starts attempts."""

    @property
    def slots(self) -> int:
        """How many may run at once; 0 where none can be started now."""
        ...

    def start(self, task: Mapping[str, Any]) -> Attempt:
        """An attempt at a task as `terralapse.serve.worker` takes it."""
        ...

    def close(self) -> None:
        """Lets go of what it holds; nothing runs any more."""
        ...


class Here:
    """Processes of this machine, one at a time.

    Args:
        command: what starts a worker; tests give another.
    """

    slots = 1

    def __init__(self, command: tuple[str, ...] = ()) -> None:
        self._command = command

    def start(self, task: Mapping[str, Any]) -> Attempt:
        """A process at work."""
        return Process(task, self._command)

    def close(self) -> None:
        """Holds nothing."""


class Process:
    """A worker in a process of its own, `python -m terralapse.serve.worker` unless told otherwise."""

    def __init__(self, task: Mapping[str, Any], command: tuple[str, ...] = ()) -> None:
        self._task = task
        self._ended = False
        self._process = subprocess.Popen(
            command or (sys.executable, "-m", "terralapse.serve.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def follow(self, told: Told) -> Ending:
        """Waits for the end, and tells how far it is."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        said = ""
        try:
            process.stdin.write(json.dumps(self._task) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                news = json.loads(line)
                said = news.get("error", said)
                if "stage" in news:
                    told(news["stage"], news["share"])
        except BrokenPipeError:
            said = ""  # it ended before it was told; its code says why
        code = process.wait()
        reader.join(PATIENCE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        if code == 0:
            return Ending("done")
        if code in (ABANDONED, *_INTERRUPTED) or (self._ended and code == -9):
            return Ending("lost")
        last = errors[-1].strip() if errors else ""
        return Ending("failed", said or f"The analysis ended with code {code}. {last}".strip())

    def end(self) -> None:
        """Asks, waits, and then does not ask."""
        self._ended = True
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
