"""What a run keeps on disk while it goes: finished parts, and the record that says whose they are.

A part is one file that holds uint8 layers: stored probability, reason, and where a system gives maps of
classes what its rule keeps of them. It appears under its name only when it is whole and on the disk, so that
the name itself is the marker of a finished part. Nothing in it depends on when it was written: a run that was
killed and went on leaves the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.engine.plan import Part, ScenePlan
from terralapse.engine.stitch import NODATA, Piece, cut, inside, quantise
from terralapse.engine.stitch_classes import ClassPiece
from terralapse.errors import ModelInputError, ResumeMismatchError
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.tasks.class_maps import ClassRule

WORK = ".work"  # in the staging folder; `OutputFolder` leaves it out of what it publishes
LAYERS = ("prob", "valid", "change")  # the rasters of a run, as NAME.tif
CLASS_LAYERS = ("classes_before", "classes_after", "damage")  # those that some systems add
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
    """The parts of one run under `folder/.work`; `rule` is that of its maps of classes, if it has some."""

    def __init__(self, folder: Path, plan: ScenePlan, rule: ClassRule | None = None) -> None:
        self.rule = rule
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

    def write(self, part: Part, layers: Sequence[np.ndarray], counts: Counts) -> None:
        """Stores a part: when this returns it is on the disk, whole. `layers` uint8 [h, w] are probability,
        reason, and those that the rule keeps."""
        packed = [zlib.compress(layer.tobytes(), _LEVEL) for layer in layers]
        head = {"shape": list(layers[0].shape), "sizes": [len(b) for b in packed], "counts": asdict(counts)}
        write_whole(self._path(part.index), json.dumps(head).encode() + b"\n", *packed)

    def read(self, part: Part, number: int) -> np.ndarray:
        """One layer of a part as it was stored: 0 the probability, 1 the reason, from 2 on the classes."""
        with self._path(part.index).open("rb") as file:
            head = json.loads(file.readline())
            file.seek(sum(head["sizes"][:number]), os.SEEK_CUR)
            pixels = zlib.decompress(file.read(head["sizes"][number]))
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
        """One raster (of `LAYERS` or of the rule), part after part."""
        for part in self.plan.parts():
            if layer == "valid":
                yield part.window, self.read(part, 1)
                continue
            prob = self.read(part, 0)
            found: np.ndarray = prob
            if layer != "prob":
                found = prob >= cut(threshold)
            if layer in CLASS_LAYERS:
                assert self.rule is not None
                ids = np.stack([self.read(part, 2 + i) for i in range(self.rule.kept)])
                found = self.rule.raster(layer, ids, found)
            yield part.window, np.where(prob == NODATA, NODATA, found).astype(np.uint8)

    def clear(self) -> None:
        """Removes all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}"


@dataclass
class _Open:
    """A part in the making. `decided` counts the pixels whose classes are there."""

    prob: np.ndarray
    reason: np.ndarray
    ids: np.ndarray  # [kept, h, w]
    counts: Counts = field(default_factory=Counts)
    decided: int = 0

    @property
    def whole(self) -> bool:
        """Whether every pixel of every layer is there."""
        size = self.prob.size
        return sum(self.counts.reasons) == size and (self.decided == size or not len(self.ids))


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
        self._open: dict[int, _Open] = {}

    def take(self, piece: Piece) -> None:
        """One piece; it may reach over several parts."""
        for part in list(self._todo):
            shared = _overlap(part.window, piece.window)
            if shared is None:
                continue
            own = self._own(part)
            source, target = inside(shared, piece.window), inside(shared, part.window)
            taken = Piece(shared, piece.prob[source], piece.reason[source])
            self._check(taken)
            if self._sink is not None:
                self._sink(taken)
            own.prob[target] = quantise(taken.prob, taken.reason, self._threshold)
            own.reason[target] = taken.reason
            own.counts += _count(own.prob[target], taken.reason, self._threshold)
            self._store_if_whole(part, own)

    def take_classes(self, piece: ClassPiece) -> None:
        """The classes of one piece, which may come before or after its probabilities."""
        for part in list(self._todo):
            shared = _overlap(part.window, piece.window)
            if shared is not None:
                own = self._own(part)
                own.ids[:, *inside(shared, part.window)] = piece.ids[:, *inside(shared, piece.window)]
                own.decided += shared.height * shared.width
                self._store_if_whole(part, own)

    def _own(self, part: Part) -> _Open:
        if part.index not in self._open:
            shape = (part.window.height, part.window.width)
            kept = 0 if self._store.rule is None else self._store.rule.kept
            layers = np.empty((2 + kept, *shape), np.uint8)
            self._open[part.index] = _Open(layers[0], layers[1], layers[2:])
        return self._open[part.index]

    def _store_if_whole(self, part: Part, own: _Open) -> None:
        if own.whole:
            self._store.write(part, (own.prob, own.reason, *own.ids), own.counts)
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
