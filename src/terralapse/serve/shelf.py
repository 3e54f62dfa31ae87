"""The results that a server shows: where they lie, what they are called, and which files they hold.

Nothing that a client sends ever becomes part of a path. Ids and names of files are looked up among those that
were found by listing the folders of the operator, in which links are passed over.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from terralapse.errors import TerralapseError, UnreadableFileError
from terralapse.grid._safety import MAX_TEXT_BYTES
from terralapse.products.result import ChangeResult
from terralapse.products.series_result import SeriesResult

_RECORD = "run.json"
_MOST_FILES = 10_000
_DEEPEST = 4
_FRESH = 1.0  # seconds for which a listing is good: a page asks for many tiles at once


@dataclass
class Result:
    """One finished folder. `id` is stable as long as its folder keeps its name."""

    id: str
    folder: Path
    product: ChangeResult | SeriesResult = field(repr=False)
    stamp: str

    @property
    def kind(self) -> str:
        """`change` or `series`."""
        return "series" if isinstance(self.product, SeriesResult) else "change"

    @property
    def run(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return self.product.run

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `facts.json`."""
        return _read(self.folder, "facts.json")

    @cached_property
    def alignment(self) -> dict[str, Any]:
        """The content of `alignment.json`; empty where the run has none."""
        return _read(self.folder, "alignment.json") if "alignment.json" in self.files() else {}

    def files(self) -> dict[str, Path]:
        """Every product by its name (`map.pdf`, `composites/2020.tif`); no links, nothing hidden."""
        found: dict[str, Path] = {}
        for path in _walk(self.folder, _DEEPEST):
            found[path.relative_to(self.folder).as_posix()] = path
            if len(found) == _MOST_FILES:
                break
        return dict(sorted(found.items()))

    def file(self, name: str) -> Path | None:
        """A product by its exact name, or None."""
        return self.files().get(name)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        if path.is_symlink() or path.stat().st_size > MAX_TEXT_BYTES:
            raise UnreadableFileError(path, "is a link or too large", "Run the command again.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableFileError(path, "is missing or damaged", "Run the command again.") from error
    if not isinstance(found, dict):
        raise UnreadableFileError(path, "holds no record", "Run the command again.")
    return found


def _walk(folder: Path, deep: int) -> Iterator[Path]:
    """Plain files below a folder, without links and without what is hidden."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            elif deep and entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), deep - 1)


class Shelf:
    """The results below the folders that an operator gave; looked for anew at each listing, so that a run
    that ends while the server is up is there.

    Args:
        roots: folders of one result each, or folders that hold such folders.

    Raises:
        TerralapseError: a folder that was named and holds a damaged result.
    """

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots = tuple(r.resolve() for r in roots)
        self._known: dict[Path, Result] = {}
        self._lock = threading.Lock()
        self._listing: tuple[dict[str, Result], list[str]] = ({}, [])
        self._listed = -_FRESH
        for root in self._roots:
            if (root / _RECORD).exists():
                self._open(root)

    def results(self) -> tuple[dict[str, Result], list[str]]:
        """Results by id, in the order of the folders, and what is wrong with those that cannot be shown."""
        with self._lock:
            if time.monotonic() - self._listed < _FRESH:
                return self._listing
            found: dict[str, Result] = {}
            problems: list[str] = []
            for folder in self._folders():
                try:
                    result = self._open(folder)
                except TerralapseError as error:
                    problems.append(f"{folder.name}: {error.fault}. {error.hint}")
                    continue
                base, number = result.id, 1
                while result.id in found and found[result.id] is not result:
                    number += 1
                    result.id = f"{base}-{number}"
                found[result.id] = result
            self._listing, self._listed = (found, problems), time.monotonic()
            return self._listing

    def get(self, result_id: str) -> Result | None:
        """A result by id, or None."""
        return self.results()[0].get(result_id)

    def _folders(self) -> Iterator[Path]:
        for root in self._roots:
            if (root / _RECORD).exists():
                yield root
                continue
            with os.scandir(root) as entries:
                names = sorted(
                    e.name
                    for e in entries
                    if e.is_dir(follow_symlinks=False)
                    and not e.name.startswith(".")
                    and ".part" not in e.name
                )
            yield from (root / n for n in names if (root / n / _RECORD).exists())

    def _open(self, folder: Path) -> Result:
        record = folder / _RECORD
        stat = record.stat()
        stamp = f"{stat.st_mtime_ns:x}{stat.st_size:x}"
        known = self._known.get(folder)
        if known is not None and known.stamp == stamp:
            return known
        run = _read(folder, _RECORD)
        if not isinstance(run.get("summary"), dict) or not isinstance(run["summary"].get("summary"), str):
            raise UnreadableFileError(
                record, "is no record of a run", "Give a folder that a run has written."
            )
        product = SeriesResult(folder) if run.get("kind") == "series" else ChangeResult(folder)
        name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:48] or "result"
        number = re.sub(r"[^a-z0-9]", "", str(run.get("run_id", "")).lower())[:8]
        found = Result(f"{name}-{number}" if number else name, folder, product, stamp)
        self._known[folder] = found
        return found
