"""Break detection over a series, block by block: constant memory, resumable, the same bytes for any block.

A block of all dates (T, block, block) is read, its breaks are found, and what was found is kept on disk as
one part. When all parts are there, each layer of them is written as one COG.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.engine.breaks import BreakModel, BreakSettings, find_breaks
from terralapse.engine.composites import blocks
from terralapse.engine.parts import WORK, clear_records, load_record, save_record, write_whole
from terralapse.errors import ResumeMismatchError, SettingError
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.grid.series import Series
from terralapse.labels import SERIES_QUALITY, SERIES_UNUSABLE, ClassScheme

BLOCK_SIDES = (512, 256, 128, 64, 32)
BUDGET = 512 << 20  # bytes of one block of all dates and bands, before it is halved
NO_DAY = -(2**31)
PROB_STEPS = 200
_OUTSIDE_AOI = 13
_RECORD = "series"
_PART = re.compile(r"part-(\d{6})\.npz")


@dataclass(frozen=True)
class _Raster:
    """A file of the result: `kind`, `dtype` and `nodata` as `write_cog` takes them."""

    text: str
    kind: str
    dtype: str
    nodata: float | None
    scheme: ClassScheme | None = None
    scale: float = 1.0


RASTERS = {
    "break_date": _Raster("date of the break as yyyymmdd, 0 where none was found", "class", "int32", -1),
    "break_days": _Raster("date of the break in days since 1970-01-01", "class", "int32", NO_DAY),
    "magnitude": _Raster("fitted after minus before", "continuous", "float32", float("nan")),
    "probability": _Raster("probability of the break", "continuous", "uint8", 255, None, 1 / PROB_STEPS),
    "breaks": _Raster("number of breaks", "class", "uint8", 255),
    "valid": _Raster("what is known of the series", "class", "uint8", None, SERIES_QUALITY),
    "observations": _Raster("usable observations", "class", "uint16", None),
    "deviation": _Raster("residual standard error of the last model", "continuous", "float32", float("nan")),
}


@dataclass
class SeriesScene:
    """What was done: the model, the cut, counts of pixels by quality, seconds."""

    model: BreakModel
    block: int
    blocks: int
    resumed: int
    quality: dict[str, int]
    broken: int
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"model": self.model.as_dict()}


def choose_block(dates: int, bands: int, asked: int | None) -> int:
    """The side of a block: 256, or what keeps all its dates within the budget of memory.

    Raises:
        SettingError: a side that does not fit the blocks of the files.
    """
    if asked is not None:
        if asked not in BLOCK_SIDES:
            sides = ", ".join(map(str, BLOCK_SIDES))
            raise SettingError(f"block {asked}", "is no side of a block", f"Choose one of {sides}.")
        return asked
    fitting = [s for s in BLOCK_SIDES[1:] if s * s * dates * bands * 8 <= BUDGET]
    return fitting[0] if fitting else BLOCK_SIDES[-1]


def detect_breaks(
    series: Series,
    folder: Path,
    model: BreakModel,
    settings: BreakSettings,
    *,
    block: int,
    pool: Executor,
    threads: int = 1,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> SeriesScene:
    """Finds the breaks of all pixels and writes the rasters of `RASTERS` into a folder.

    Args:
        series: the stack.
        folder: the staging folder of a run.
        model, settings: see `terralapse.engine.breaks`.
        block: side of a block, see `choose_block`; it does not change the result.
        pool: reads the dates of a block.
        threads: of the fit and of compression.
        resume: take over the parts that an interrupted run of the same inputs and settings left.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ResumeMismatchError: what was left is of other inputs or settings.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    store = _Parts(folder)
    identity = {
        "series": series.fingerprint(),
        "settings": asdict(settings),
        "model": model.as_dict(),
        "block": block,
    }
    done = _take_over(folder, identity, store) if resume else set()
    if not done:
        clear_records(folder)
        store.folder.mkdir(parents=True, exist_ok=True)
        save_record(folder, _RECORD, identity)
    windows = blocks(series.shape, block)
    seconds = {"read": 0.0, "fit": 0.0}
    for number, window in enumerate(windows):
        tell("fit-series", number, len(windows))
        if number in done:
            continue
        clock = time.perf_counter()
        values, outside = series.values(window, pool)
        seconds["read"] += time.perf_counter() - clock
        clock = time.perf_counter()
        found = find_breaks(values, series.days, settings, model, threads)
        store.write(number, _layers(found, outside))
        seconds["fit"] += time.perf_counter() - clock
    tell("fit-series", len(windows), len(windows))
    clock = time.perf_counter()
    counts, broken = np.zeros(256, np.int64), 0
    for i, (name, raster) in enumerate(RASTERS.items()):
        tell("write", i, len(RASTERS))
        write_cog(
            store.windows(name, windows),
            folder / f"{name}.tif",
            geobox=series.geobox,
            kind=raster.kind,  # pyright: ignore[reportArgumentType]
            dtype=raster.dtype,
            nodata=raster.nodata,
            scheme=raster.scheme,
            scale=raster.scale,
            descriptions=[raster.text],
            units=[series.index.name if name in ("magnitude", "deviation") else ""],
            tags={"TERRALAPSE_INDEX": series.index.formula, "TERRALAPSE_MODEL": model.text},
            threads=threads,
        )
    for number in range(len(windows)):
        with store.read(number) as part:
            counts += np.bincount(part["valid"].ravel(), minlength=256)
            broken += int(((part["breaks"] > 0) & (part["breaks"] != 255)).sum())
    tell("write", len(RASTERS), len(RASTERS))
    seconds["write"] = time.perf_counter() - clock
    quality = {c.name: int(counts[c.value]) for c in SERIES_QUALITY.classes if counts[c.value]}
    rounded = {k: round(v, 3) for k, v in seconds.items()}
    return SeriesScene(model, block, len(windows), len(done), quality, broken, rounded)


def _take_over(folder: Path, identity: dict[str, Any], store: _Parts) -> set[int]:
    record = load_record(folder, _RECORD)
    if record is None:
        return set()
    if record != json.loads(json.dumps(identity, sort_keys=True)):
        raise ResumeMismatchError(
            folder,
            "the interrupted run had other inputs or settings",
            "Give the same ones, or run again without --resume.",
        )
    return store.done()


def _layers(found: Any, outside: np.ndarray) -> dict[str, np.ndarray]:
    """The stored layers of a block, by the name of their file."""
    code = np.where(outside, _OUTSIDE_AOI, found.code).astype(np.uint8)
    unknown = code >= SERIES_UNUSABLE
    broken = (found.count > 0) & ~unknown
    probability = np.rint(found.probability * PROB_STEPS)
    # A break that was found never reads as none.
    probability = np.where(broken, np.clip(probability, 1, PROB_STEPS), 0)
    return {
        "break_date": np.where(unknown, -1, np.where(broken, yyyymmdd(found.day), 0)).astype(np.int32),
        "break_days": np.where(broken, found.day, NO_DAY).astype(np.int32),
        "magnitude": np.where(broken, found.magnitude, np.nan).astype(np.float32),
        "probability": np.where(unknown, 255, probability).astype(np.uint8),
        "breaks": np.where(unknown, 255, found.count).astype(np.uint8),
        "valid": code,
        "observations": np.minimum(found.observations, 65535).astype(np.uint16),
        "deviation": np.where(unknown, np.nan, found.error).astype(np.float32),
    }


def yyyymmdd(days: np.ndarray) -> np.ndarray:
    """int64 20210601 of days since 1970-01-01."""
    day = np.asarray(days, np.int64).astype("datetime64[D]")
    month = day.astype("datetime64[M]")
    year = day.astype("datetime64[Y]")
    return (
        (year.astype(np.int64) + 1970) * 10000
        + ((month - year).astype(np.int64) + 1) * 100
        + (day - month).astype(np.int64)
        + 1
    )


class _Parts:
    """The finished blocks of a run, one file each; a name stands for a whole file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / WORK / "series"

    def done(self) -> set[int]:
        """Numbers of the finished blocks."""
        return {int(m[1]) for p in self.folder.glob("part-*") if (m := _PART.fullmatch(p.name))}

    def write(self, number: int, layers: dict[str, np.ndarray]) -> None:
        """Stores a block, whole."""
        sink = io.BytesIO()
        np.savez_compressed(sink, **layers)  # pyright: ignore[reportArgumentType]
        write_whole(self._path(number), sink.getvalue())

    def read(self, number: int) -> Any:
        """The layers of a block by name, each decoded when it is asked for."""
        return np.load(self._path(number), allow_pickle=False)

    def windows(self, name: str, windows: list[Window]) -> Iterator[tuple[Window, np.ndarray]]:
        """One layer, block after block."""
        for number, window in enumerate(windows):
            with self.read(number) as part:
                yield window, part[name]

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npz"
