"""Evidence of a benchmark: a log whose lines are chained by hashes, the files that were opened, and a ledger
of how often this machine has opened a test split.

A chain shows that lines were altered, taken out or put in afterwards. It cannot show that a whole log was
invented: keep the last hash somewhere else if that matters.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from terralapse.errors import OutputNotWritableError
from terralapse.layers.weights import cache

START = "0" * 64  # what the first line names as the hash before it


def line_hash(record: dict[str, Any]) -> str:
    """SHA-256 of a record without its own `hash`, as JSON with sorted keys and no spaces."""
    rest = {k: v for k, v in record.items() if k != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class RunLog:
    """Appends events to `log.jsonl`; each line carries the hash of the line before it and its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.last = path, 0, START

    def add(self, event: str, **facts: Any) -> str:
        """Writes one line and returns its hash; `facts` are JSON-ready."""
        record = {
            "n": self.number,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **facts,
            "previous": self.last,
        }
        record["hash"] = line_hash(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.number, self.last = self.number + 1, record["hash"]
        return self.last


def faults(path: Path) -> list[str]:
    """What is wrong with a log, in words; an empty list when its chain holds and its protocol was kept."""
    found: list[str] = []
    records: list[dict[str, Any]] = []
    before = START
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            record = dict(json.loads(line))
        except ValueError:
            return [f"line {number + 1} is no JSON"]
        if record.get("n") != number:
            found.append(f"line {number + 1} has the number {record.get('n')}")
        if record.get("previous") != before:
            found.append(f"line {number + 1} does not follow the line before it")
        if record.get("hash") != line_hash(record):
            found.append(f"line {number + 1} was altered")
        before = str(record.get("hash"))
        records.append(record)
    return found or _protocol(records)


def _protocol(records: list[dict[str, Any]]) -> list[str]:
    """Where the order of events is not that of the protocol."""
    events = [r["event"] for r in records]
    if not events or events[-1] != "finished":
        return ["the run did not finish"]
    found = []
    if events.count("test split opened") != 1 or events.count("test split closed") != 1:
        return [f"the test split was opened {events.count('test split opened')} times"]
    start, stop = events.index("test split opened"), events.index("test split closed")
    frozen = [i for i, e in enumerate(events) if e == "model frozen"]
    if not frozen or max(frozen) > start:
        found.append("a model was frozen after the test split had been opened, or none was")
    read = [i for i, e in enumerate(events) if e == "sample read"]
    names = [records[i]["sample"] for i in read]
    if any(not start < i < stop for i in read):
        found.append("a sample was read outside of the one pass")
    found += [f"{name} was read twice" for name in sorted({n for n in names if names.count(n) > 1})]
    again = [f["file"] for f in records[stop]["files"] if f["opened"] != 1]
    return found + [f"the file {name} was opened more than once" for name in again]


def sample_digest(sample: Any) -> str:
    """SHA-256 of what a sample holds: images, label and map, with their types and sizes."""
    digest = hashlib.sha256()
    for array in (sample.images, sample.label, getattr(sample, "map", None)):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --- files -----------------------------------------------------------------------------------------
class Openings:
    """Use as a context manager: counts how often this process opens each file below `root` for reading.

    It sees what Python opens (Pillow, NumPy, zip archives), not what GDAL opens by itself.
    """

    _watching: list[Openings] = []  # noqa: RUF012 - shared on purpose: a hook cannot be taken out again
    _hooked = False

    def __init__(self, root: Path | str) -> None:
        self.root = os.path.realpath(root) + os.sep
        self.times: dict[str, int] = {}

    def __enter__(self) -> Openings:
        if not Openings._hooked:
            sys.addaudithook(_heard)
            Openings._hooked = True
        Openings._watching.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Openings._watching.remove(self)

    def heard(self, path: str) -> None:
        """Counts a file if it lies below the root."""
        whole = os.path.realpath(path)
        if whole.startswith(self.root):
            name = whole[len(self.root) :]
            self.times[name] = self.times.get(name, 0) + 1

    def files(self) -> list[dict[str, Any]]:
        """Name, size, digest and number of openings of each file. The digest takes a reading of its own: this
        is called when everything has been counted."""
        found = []
        for name, times in sorted(self.times.items()):
            path = Path(self.root) / name
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append({"file": name, "bytes": path.stat().st_size, "sha256": digest, "opened": times})
        return found


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not Openings._watching:
        return
    path, _, flags = arguments
    if isinstance(path, bytes | str) and not flags & (os.O_WRONLY | os.O_RDWR):
        for one in tuple(Openings._watching):
            one.heard(os.fsdecode(path))


# --- ledger ----------------------------------------------------------------------------------------
class Ledger:
    """`bench-ledger.jsonl` in the cache folder: every opening of a test split by this user on this machine.

    An opening is entered before anything is read, and again afterwards with the digests of the samples that
    were read, so that a copy of the data under another name is known again. A run that failed counts too.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache() / "bench-ledger.jsonl"

    def open(self, run: str, place: dict[str, Any]) -> None:
        """Enters an opening.

        Raises:
            OutputNotWritableError: the ledger cannot be written; nothing may be opened then.
        """
        self._add({"event": "opened", "run": run, "time": _now(), "place": place})

    def close(self, run: str, digests: Iterable[str]) -> None:
        """Enters what was read."""
        self._add({"event": "closed", "run": run, "time": _now(), "samples": [d[:16] for d in digests]})

    def earlier(self, run: str, place: dict[str, Any], digests: Iterable[str]) -> int:
        """How many other runs opened the split at this place, or read any of these samples."""
        mine = {d[:16] for d in digests}
        runs: set[str] = set()
        for record in self._records():
            same = record.get("place") == place or not mine.isdisjoint(record.get("samples", ()))
            if same and record.get("run") != run:
                runs.add(str(record.get("run")))
        return len(runs)

    def _records(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(dict(json.loads(line)))
            except ValueError:  # cut off by a full disk or a power failure: the others still count
                continue
        return found

    def _add(self, record: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputNotWritableError(
                self.path,
                f"the ledger of test splits cannot be written ({error.strerror or error})",
                "Set TERRALAPSE_CACHE to a folder that you may write to.",
            ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
