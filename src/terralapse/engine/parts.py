"""What a run keeps on disk while it goes: finished parts, and the record that says whose they are.

A part is one file that holds two uint8 layers (stored probability, reason). It appears under its name only
when it is whole and on the disk, so that the name itself is the marker of a finished part. Nothing in it
depends on when it was written: a run that was killed and went on leaves the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.engine.plan import Part, ScenePlan
from terralapse.engine.stitch import NODATA, Piece, cut, inside, quantise
from terralapse.errors import ModelInputError, ResumeMismatchError
from terralapse.grid.scene import Window
from terralapse.labels import Reason

WORK = ".work"  # in the staging folder; `OutputFolder` leaves it out of what it publishes
LAYERS = ("prob", "valid", "change")  # the rasters of a run, as NAME.tif
_LEVEL = 1  # of zlib: parts are read once and thrown away
_NAME = re.compile(r"part-(\d{6})")


@dataclass(frozen=True)
class Counts:
    """Pixels of one part or of many."""

    valid: int = 0
    changed: int = 0
    reasons: tuple[int, ...] = (0,) * len(Reason)

    def __add__(self, other: Counts) -> Counts:
        reasons = tuple(a + b for a, b in zip(self.reasons, other.reasons, strict=True))
        return Counts(self.valid + other.valid, self.changed + other.changed, reasons)


class PartStore:
    """The parts of one run under `folder/.work`."""

    def __init__(self, folder: Path, plan: ScenePlan) -> None:
        self.folder = folder / WORK / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan

    def done(self) -> set[int]:
        """Numbers of the parts that are finished. Half-written ones are removed."""
        found: set[int] = set()
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                found.add(int(match[1]))
            else:
                path.unlink()
        return found

    def write(self, part: Part, prob: np.ndarray, reason: np.ndarray, counts: Counts) -> None:
        """Stores a part: when this returns it is on the disk, whole."""
        layers = [zlib.compress(layer.tobytes(), _LEVEL) for layer in (prob, reason)]
        head = {"shape": list(prob.shape), "sizes": [len(b) for b in layers], "counts": asdict(counts)}
        write_whole(self._path(part.index), json.dumps(head).encode() + b"\n", *layers)

    def read(self, part: Part, layer: str) -> np.ndarray:
        """One layer of a part as it was stored: `prob`, or `valid` for the reason."""
        with self._path(part.index).open("rb") as file:
            head = json.loads(file.readline())
            skipped, size = (0, head["sizes"][0]) if layer == "prob" else head["sizes"]
            file.seek(skipped, os.SEEK_CUR)
            pixels = zlib.decompress(file.read(size))
        return np.frombuffer(pixels, np.uint8).reshape(head["shape"])

    def counts(self) -> Counts:
        """Pixels of all parts together."""
        total = Counts()
        for part in self.plan.parts():
            with self._path(part.index).open("rb") as file:
                own = json.loads(file.readline())["counts"]
            total += Counts(own["valid"], own["changed"], tuple(own["reasons"]))
        return total

    def windows(self, layer: str, threshold: float) -> Iterator[tuple[Window, np.ndarray]]:
        """One layer (`prob`, `valid` or `change`), part after part."""
        for part in self.plan.parts():
            if layer in ("prob", "valid"):
                yield part.window, self.read(part, layer)
            else:
                prob = self.read(part, "prob")
                yield part.window, np.where(prob == NODATA, NODATA, prob >= cut(threshold)).astype(np.uint8)

    def clear(self) -> None:
        """Removes all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}"


class PartWriter:
    """Gathers pieces into parts and stores each part as soon as all its pixels are there.

    Args:
        store: where finished parts go.
        todo: the parts of one lane that are wanted; pieces of others are dropped.
        threshold: probability from which a pixel counts as changed.
        name: of the detector, for errors.
        sink: called with what each part takes, before it is quantised; every pixel comes once.
    """

    def __init__(
        self,
        store: PartStore,
        todo: list[Part],
        threshold: float,
        name: str,
        sink: Callable[[Piece], None] | None = None,
    ) -> None:
        self._store, self._todo, self._threshold, self._name = store, list(todo), threshold, name
        self._sink = sink
        self._open: dict[int, tuple[np.ndarray, np.ndarray, Counts]] = {}

    def take(self, piece: Piece) -> None:
        """One piece; it may reach over several parts."""
        for part in list(self._todo):
            shared = _overlap(part.window, piece.window)
            if shared is None:
                continue
            if part.index not in self._open:
                shape = (part.window.height, part.window.width)
                self._open[part.index] = np.empty(shape, np.uint8), np.empty(shape, np.uint8), Counts()
            prob, reason, counts = self._open[part.index]
            source, target = inside(shared, piece.window), inside(shared, part.window)
            taken = Piece(shared, piece.prob[source], piece.reason[source])
            self._check(taken)
            if self._sink is not None:
                self._sink(taken)
            prob[target] = quantise(taken.prob, taken.reason, self._threshold)
            reason[target] = taken.reason
            counts += _count(prob[target], taken.reason, self._threshold)
            self._open[part.index] = prob, reason, counts
            if sum(counts.reasons) == prob.size:
                self._store.write(part, prob, reason, counts)
                del self._open[part.index]
                self._todo.remove(part)

    def _check(self, piece: Piece) -> None:
        values = piece.prob[piece.reason == Reason.VALID]
        if values.size and not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
            raise ModelInputError(
                self._name,
                f"gave probabilities outside of 0 to 1, or none at all, in {piece.window}",
                "The input may be outside of what it can take; try another --model.",
            )


def _count(prob: np.ndarray, reason: np.ndarray, threshold: float) -> Counts:
    reasons = np.bincount(reason.ravel(), minlength=len(Reason))
    changed = int(((prob >= cut(threshold)) & (prob != NODATA)).sum())
    return Counts(int(reasons[Reason.VALID]), changed, tuple(int(n) for n in reasons))


def _overlap(a: Window, b: Window) -> Window | None:
    y0, x0 = max(a.row, b.row), max(a.col, b.col)
    height = min(a.row + a.height, b.row + b.height) - y0
    width = min(a.col + a.width, b.col + b.width) - x0
    return Window(y0, x0, height, width) if height > 0 and width > 0 else None


# --- the record ------------------------------------------------------------------------------------
def save_record(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Writes `folder/.work/NAME.json`, whole or not at all."""
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    write_whole(folder / WORK / f"{name}.json", json.dumps(record, indent=1, sort_keys=True).encode())


def clear_records(folder: Path) -> None:
    """Removes everything that an earlier run left under `folder/.work`."""
    shutil.rmtree(folder / WORK, ignore_errors=True)


def load_record(folder: Path, name: str) -> dict[str, Any] | None:
    """What `save_record` wrote; None when there is nothing.

    Raises:
        ResumeMismatchError: it cannot be understood.
    """
    path = folder / WORK / f"{name}.json"
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ResumeMismatchError(
            path, "the record of the interrupted run is damaged", "Run again without --resume."
        ) from error


def write_whole(path: Path, *chunks: bytes) -> None:
    """Writes a file that appears under its name only when all of it is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut; not every system lets a folder be opened."""
    if os.name == "nt":  # pragma: no cover - renames are ordered there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
