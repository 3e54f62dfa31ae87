"""A stack of dated scenes on one grid, read as blocks of all dates and never as a whole.

Each date is opened by the readers and resampled by the code that a pair of dates uses, so pixels of a date
that lies on the grid are copied bit for bit. Shifts between the dates are not corrected.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from terralapse.errors import BandError, FileMissingError, SettingError, UnreadableFileError
from terralapse.grid import cube
from terralapse.grid._guess import parse_time
from terralapse.grid._positions import Target, compose
from terralapse.grid._safety import format_of
from terralapse.grid.align import describe_grid
from terralapse.grid.aoi import Area
from terralapse.grid.common import GridChoice, choose_series_grid
from terralapse.grid.indices import Index, bands_for, resolve, unit_notes
from terralapse.grid.median import median
from terralapse.grid.open import natural_order, open_scene
from terralapse.grid.scene import Block, Note, Scene, SceneInfo, Window
from terralapse.grid.warp import warp
from terralapse.labels import SceneMask

FEWEST = 3
_IMAGES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".webp", ".vrt", ".nc", ".json", ".zip")
_STRIP = 256  # rows of a picture at once
_PREVIEW = 256  # pixels of the longer side, for the share of a date that is clear
_YEAR = re.compile(r"(?<!\d)(19[3-9]\d|20\d\d)(?!\d)")


@dataclass(frozen=True)
class SeriesBlock:
    """Pixels of one window at some dates: `data` float32 [T, C, h, w], NaN where a date cannot be used;
    `outside` bool [h, w]: not in the area of interest."""

    data: np.ndarray
    outside: np.ndarray


class Series:
    """Dated scenes on one grid, in the order of time. `read` is thread-safe.

    Attributes:
        geobox, choice: the grid, and the rule that made it.
        times, days: of each date: UTC, and float64 days since 1970-01-01.
        scenes: what is known of each date.
        index: what is computed from them.
        notes: what a reader of the result must know.
    """

    def __init__(self, scenes: Sequence[Scene], choice: GridChoice, index: Index, area: Area | None) -> None:
        ordered = sorted(scenes, key=lambda s: _time(s.info))
        self._scenes, self._area = ordered, area
        self.choice, self.geobox = choice, choice.geobox
        self.scenes = [s.info for s in ordered]
        self.index = resolve(index, self.scenes)
        self.times = [_time(info) for info in self.scenes]
        self.days = np.array([t.timestamp() / 86400 for t in self.times])
        self.notes = unit_notes(self.index, self.scenes)
        self._index_bands = [bands_for(self.index, info) for info in self.scenes]
        twice = [d for d, n in Counter(t.date() for t in self.times).items() if n > 1]
        if twice:
            text = (
                f"{len(twice)} of the days have more than one image ({twice[0]} first). Each counts as an "
                "observation of its own, so that one day can look like several; put the tiles of a day into "
                "one folder."
            )
            self.notes.append(Note("warning", "days-twice", text))

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.geobox.shape.y, self.geobox.shape.x

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """The bands that every date has by name, in the order of the first."""
        names = [{b.name for b in info.bands} for info in self.scenes]
        return tuple(b.name for b in self.scenes[0].bands if all(b.name in n for n in names))

    def read(
        self,
        window: Window,
        dates: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        pool: Executor | None = None,
    ) -> SeriesBlock:
        """A window of some dates (all by default).

        Args:
            window: of the grid, inside of it.
            dates: positions in `times`.
            bands: common names that all of these dates have; None for what the index needs.
            pool: reads dates side by side; the result does not depend on it.
        """
        chosen = range(len(self)) if dates is None else dates

        def one(date: int) -> np.ndarray:
            return self._date(date, Affine.translation(window.col, window.row), window, bands).data

        parts = list(map(one, chosen) if pool is None else pool.map(one, chosen))
        outside = self._outside(window)
        data = np.stack(parts)
        data[:, :, outside] = np.nan
        return SeriesBlock(data, outside)

    def values(self, window: Window, pool: Executor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The index at all dates, float32 [T, h, w], and what is outside of the area, bool [h, w]."""
        block = self.read(window, pool=pool)
        return self.index.compute(block.data), block.outside

    def _date(self, date: int, to_grid: Affine, size: Window, bands: Sequence[str] | None) -> Block:
        affine = compose(self.geobox.affine, to_grid)
        target = Target(affine, self.geobox.crs, (size.height, size.width), None, to_grid)
        return warp(self._scenes[date], target, self._index_bands[date] if bands is None else bands)

    def _outside(self, window: Window) -> np.ndarray:
        if self._area is None:
            return np.zeros((window.height, window.width), bool)
        affine = compose(self.geobox.affine, Affine.translation(window.col, window.row))
        return self._area.outside(affine, self.geobox.crs, (window.height, window.width))

    @cached_property
    def clear(self) -> np.ndarray:
        """float64 [T]: the share of each date that can be used, from a decimated picture of the grid."""
        step = max(1, -(-max(self.shape) // _PREVIEW))
        size = Window(0, 0, -(-self.shape[0] // step), -(-self.shape[1] // step))
        shares = [
            np.mean(self._date(date, Affine.scale(step), size, None).mask == SceneMask.VALID)
            for date in range(len(self))
        ]
        return np.array(shares, np.float64)

    def latest(self, shape: tuple[int, int], dates: int = 5) -> np.ndarray:
        """float32 [h, w]: the whole grid in so many pixels, with the median of the index over the last dates;
        NaN where none of them can be used."""
        scale = Affine.scale(self.shape[1] / shape[1], self.shape[0] / shape[0])
        last = range(max(0, len(self) - dates), len(self))
        found = np.empty(shape, np.float32)
        for row in range(0, shape[0], _STRIP):  # all dates of the whole picture would be the peak of a run
            size = Window(0, 0, min(_STRIP, shape[0] - row), shape[1])
            place = compose(scale, Affine.translation(0, row))
            data = np.stack([self._date(d, place, size, None).data for d in last])
            found[row : row + size.height] = median(self.index.compute(data))
        return found

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run compares: sources, dates, grid, index, area."""
        return {
            "sources": [
                [{"path": s.path, "bytes": s.bytes, "sha256": s.sha256} for s in info.sources]
                or [{"path": info.uri}]
                for info in self.scenes
            ],
            "times": [t.isoformat() for t in self.times],
            "grid": describe_grid(self.geobox),
            "index": [self.index.name, self.index.scale],
            "aoi": None if self._area is None else self._area.digest(),
        }

    def close(self) -> None:
        """Lets go of file handles."""
        for scene in self._scenes:
            scene.close()

    def __enter__(self) -> Series:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _time(info: SceneInfo) -> datetime:
    assert info.time is not None, "undated scenes are refused before"
    return info.time


def open_series(
    sources: Sequence[str | Path],
    index: Index,
    *,
    dates: Path | None = None,
    grid: str | float = "coarser",
    aoi: Path | None = None,
    assume_crs: str | None = None,
    s2_offset: float | None = None,
) -> Series:
    """Opens a stack; headers and metadata only.

    Args:
        sources: each one date, as `terralapse.grid.open.open_scene` takes it, or a cube with its dates. A
            single pattern (`stack/*.tif`), or a single folder that is no product, is a stack: each of its
            images or products is one date.
        index: what is read, see `terralapse.grid.indices`.
        dates: a CSV with the columns `file` and `date`, over what the files say.
        grid, aoi: see `terralapse.grid.common.choose_series_grid`.
        assume_crs, s2_offset: see `open_scene`.

    Raises:
        SettingError: fewer than three dates, or dates that are not known.
        BandError: the index needs bands that a date lacks.
        TerralapseError: what `open_scene` and `choose_series_grid` raise.
    """
    given = {} if dates is None else read_dates(dates)
    scenes: list[Scene] = []
    try:
        used: set[str] = set()
        for source in expand(sources):
            named = _given(given, source)
            used.update(named)
            scenes += _open(source, next(iter(named.values()), None), assume_crs, s2_offset)
        _check(scenes, given, used, dates)
        choice = choose_series_grid(scenes, grid, None if aoi is None else Area(aoi))
        series = Series(scenes, choice, index, None if aoi is None else Area(aoi))
    except BaseException:
        for scene in scenes:
            scene.close()
        raise
    return series


def _check(scenes: Sequence[Scene], given: Mapping[str, Any], used: set[str], dates: Path | None) -> None:
    left = sorted(set(given) - used)
    if left:
        raise SettingError(
            dates or "dates", f"names {left[0]}, which is not in the stack", "Write the names of the files."
        )
    undated = [s.info.name for s in scenes if s.info.time is None]
    if undated:
        some = ", ".join(undated[:4]) + (" ..." if len(undated) > 4 else "")
        raise SettingError(
            f"{len(undated)} of {len(scenes)} images",
            f"have no date that is known: {some}",
            "Put yyyymmdd into the file names, or list them with --dates FILE.csv (columns file,date).",
        )
    if len(scenes) < FEWEST:
        raise SettingError(
            f"{len(scenes)} date{'s' if len(scenes) != 1 else ''}",
            f"are no series: at least {FEWEST} are needed",
            "Give more images, one a date; for two dates there is `terralapse change`.",
        )


def expand(sources: Sequence[str | Path]) -> list[str]:
    """What each date is opened from. See `open_series`."""
    if len(sources) != 1:
        return [str(s) for s in sources]
    text = str(sources[0])
    path = Path(text)
    if path.exists():
        return _entries(path) if path.is_dir() and not cube.is_zarr(path) else [text]
    if any(c in text for c in "*?[") and "://" not in text:
        fixed = next(i for i, part in enumerate(path.parts) if any(c in part for c in "*?["))
        root, rest = Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])
        found = sorted(root.glob(rest), key=natural_order)
        if not found:
            raise FileMissingError(text, "matches nothing", "Check the pattern, and put it in quotes.")
        return [str(p) for p in found]
    return [text]


def _entries(folder: Path) -> list[str]:
    """The images and products of a folder; the folder itself where it is one product."""
    if folder.suffix.upper() == ".SAFE" or any(folder.glob("*_MTL.*")):
        return [str(folder)]
    found = [
        p
        for p in sorted(folder.iterdir(), key=natural_order)
        if not p.name.startswith(".") and (p.is_dir() or p.suffix.lower() in _IMAGES)
    ]
    if not found:
        raise FileMissingError(folder, "holds no image", "Name a folder of dated images or products.")
    return [str(p) for p in found]


def _open(source: str, when: str | None, assume_crs: str | None, s2_offset: float | None) -> list[Scene]:
    times: list[str | None] = [when]
    if when is None and "::" not in source and _is_cube(Path(source)):
        times = [f"{t:%Y-%m-%dT%H:%M:%S}" for t in cube.dates_of(Path(source))] or [None]
    scenes = [open_scene(source, assume_crs=assume_crs, time=t, s2_offset=s2_offset) for t in times]
    return [_with_year(s) if s.info.time is None else s for s in scenes]


def _is_cube(path: Path) -> bool:
    if not path.exists():
        return False
    return cube.is_zarr(path) or (path.is_file() and format_of(path) in ("HDF5", "NETCDF3"))


def _with_year(scene: Scene) -> Scene:
    """A scene whose name holds a year and nothing else to date it is placed in the middle of that year."""
    years = set(_YEAR.findall(Path(scene.info.name).stem))
    if len(years) == 1:
        time = datetime(int(years.pop()), 7, 1, tzinfo=UTC)
        note = Note("info", "year-only", f"Its name gives the year {time.year} only; 1 July was taken.")
        scene.info = replace(scene.info, time=time, notes=[*scene.info.notes, note])
    return scene


def read_dates(path: Path) -> dict[str, str]:
    """Dates by file name from a CSV with the columns `file` and `date`.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or not such a table.
        SettingError: a date that is none.
    """
    path = Path(path)
    hint = "Write a CSV with the columns file,date, e.g. a.tif,2021-06-01."
    if not path.is_file():
        raise FileMissingError(path, "the file of dates does not exist", "Check the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(path, f"is not a CSV ({error})", hint) from error
    if not rows or not {"file", "date"} <= set(rows[0]):
        raise UnreadableFileError(path, "has no columns file and date", hint)
    out: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name, text = (row["file"] or "").strip(), (row["date"] or "").strip()
        if not name or parse_time(text) is None:
            raise SettingError(f"{path}, line {number}", f"{text!r} is not a date", hint)
        out[name] = text
    return out


def _given(given: Mapping[str, str], source: str) -> dict[str, str]:
    """The entry of the table for a source, by its whole path, its name, or its name without extension."""
    path = Path(source)
    return next(({k: given[k]} for k in (source, path.name, path.stem) if k in given), {})


def require_bands(series: Series) -> tuple[str, ...]:
    """The bands that composites are made of.

    Raises:
        BandError: the dates have none in common.
    """
    if not series.bands:
        raise BandError("the stack", "has no band that all dates have", "Give dates of one sensor.")
    return series.bands
