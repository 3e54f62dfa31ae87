"""The state of a job on disk: a journal of lines of JSON, written by the one process that holds its lock.

The truth about a unit is its own folder, which appears whole with a manifest. The journal says the rest: how
often a unit was tried, why it failed, and which were given up. A line is appended in one write; a line that a
kill cut short is dropped when the journal is opened again. No decision reads a clock: whatever was running
when the writer died is pending for the next one, which can only start after the system has freed the lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from terralapse.engine.output import FolderLock
from terralapse.engine.parts import write_whole
from terralapse.errors import OutputExistsError, ResumeMismatchError

JOURNAL = "journal.jsonl"
DEAD = "dead.jsonl"
LOCK = "job.lock"


class State(StrEnum):
    """Where a unit stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"


@dataclass(frozen=True)
class Entry:
    """What the journal knows of one unit; `failures` counts failed attempts, `digest` is of its outputs."""

    state: State = State.PENDING
    failures: int = 0
    reason: str = ""
    digest: str = ""


class Ledger:
    """The journal in a folder; a context manager that holds the folder's lock.

    Args:
        folder: of the job; made when it is not there.
        plan: digest of the plan.
        resume: go on with the journal that is there.

    Raises (on entering):
        OutputLockedError: another run writes to the folder; names its owner and since when.
        OutputExistsError: there is a job already and `resume` is False.
        ResumeMismatchError: it is a job of another plan, or its journal is damaged.
        OutputNotWritableError: the folder cannot be written.
    """

    def __init__(self, folder: Path, plan: str, *, resume: bool = False) -> None:
        self.folder, self.plan, self.resume = folder, plan, resume
        self.entries: dict[str, Entry] = {}
        self._lock = FolderLock(folder / LOCK, subject=folder)
        self._file: Any = None

    def __enter__(self) -> Ledger:
        self._lock.take_or_explain()
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        finally:
            self._lock.release()

    def _open(self) -> None:
        path = self.folder / JOURNAL
        if path.exists() and path.stat().st_size:
            if not self.resume:
                raise OutputExistsError(
                    self.folder, "already holds a job", "Add --resume to go on with it, or choose another -o."
                )
            whole = _replay(path, self.plan, self.entries)
            self._file = path.open("r+b")
            self._file.truncate(whole)
            self._file.seek(whole)
        else:
            self._file = path.open("wb")
        if self._file.tell() == 0:
            self._append({"job": 1, "plan": self.plan})

    # --- what happens to units -------------------------------------------------------------------------
    def running(self, unit: str) -> None:
        """A unit was handed to a worker."""
        self._tell(unit, State.RUNNING)

    def done(self, unit: str, digest: str) -> None:
        """Its outputs are on disk."""
        self._tell(unit, State.DONE, digest=digest)

    def failed(self, unit: str, reason: str) -> None:
        """An attempt failed; the unit is pending again."""
        failures = self.entries.get(unit, Entry()).failures + 1
        self._tell(unit, State.PENDING, failures=failures, reason=reason)

    def dead(self, unit: str, reason: str) -> None:
        """An attempt failed, and it was the last."""
        failures = self.entries.get(unit, Entry()).failures + 1
        self._tell(unit, State.DEAD, failures=failures, reason=reason)

    def forget(self, unit: str) -> None:
        """A unit that was done is not any more: its outputs are gone."""
        self._tell(unit, State.PENDING, failures=0, reason="", digest="")

    def revive(self) -> int:
        """Makes all dead units pending, with no failures counted; returns how many."""
        dead = [u for u, e in self.entries.items() if e.state is State.DEAD]
        for unit in dead:
            self._tell(unit, State.PENDING, failures=0, reason="")
        return len(dead)

    def entry(self, unit: str) -> Entry:
        """What is known of a unit."""
        return self.entries.get(unit, Entry())

    def count(self, state: State) -> int:
        """Units in a state."""
        return sum(e.state is state for e in self.entries.values())

    def write_dead_letters(self, names: Iterable[tuple[str, str]]) -> Path | None:
        """Writes the list of units that were given up, a line each; None, and no file, when there is none.

        Args:
            names: identifier and name of every unit of the job, in its order.
        """
        path = self.folder / DEAD
        lines = [
            json.dumps({"unit": unit, "name": name, "failures": e.failures, "reason": e.reason}) + "\n"
            for unit, name in names
            if (e := self.entry(unit)).state is State.DEAD
        ]
        if not lines:
            path.unlink(missing_ok=True)
            return None
        write_whole(path, "".join(lines).encode())
        return path

    def _tell(self, unit: str, state: State, **fields: Any) -> None:
        entry = replace(self.entry(unit), state=state, **fields)
        self._append({"unit": unit, "state": state.value, **fields})
        self.entries[unit] = entry

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


def _replay(path: Path, plan: str, entries: dict[str, Entry]) -> int:
    """Fills the entries from a journal; returns the length of what is whole.

    What was running is pending.
    """
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # cut short by a kill
            try:
                record = json.loads(line)
                if number == 1:
                    _same_plan(path, record["plan"], plan)
                else:
                    fields = {k: v for k, v in record.items() if k not in ("unit", "state")}
                    old = entries.get(record["unit"], Entry())
                    state = State(record["state"])
                    state = State.PENDING if state is State.RUNNING else state
                    entries[record["unit"]] = replace(old, state=state, **fields)
            except (ValueError, KeyError, TypeError) as error:
                raise ResumeMismatchError(
                    path,
                    f"line {number} of the journal is damaged",
                    "Remove the journal and use --resume: finished units are known by their own folders.",
                ) from error
            whole += len(line)
    return whole


def _same_plan(path: Path, stored: str, plan: str) -> None:
    if stored != plan:
        raise ResumeMismatchError(
            path.parent,
            "holds a job of another plan",
            "Use the plan it was started with, or choose another folder with -o.",
        )
