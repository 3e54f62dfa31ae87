"""Composites of a series by month, quarter or year: one streamed pass over the blocks of each period."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from terralapse.engine.plan import BLOCK
from terralapse.errors import BandError, SettingError
from terralapse.grid.cog import write_cog
from terralapse.grid.indices import Index, bands_for, parse_index
from terralapse.grid.median import median
from terralapse.grid.scene import Window
from terralapse.grid.series import Series, require_bands

PERIODS = ("monthly", "quarterly", "yearly")
RULES = ("median", "max-ndvi", "least-cloud")


@dataclass(frozen=True)
class Period:
    """`name` sorts in time and is the file's name; `dates` are positions in the series."""

    name: str
    dates: tuple[int, ...]


def periods_of(times: Sequence[datetime], kind: str) -> list[Period]:
    """The periods that hold a date, in order: `2021-06`, `2021-q2`, `2021`.

    Raises:
        SettingError: an unknown kind.
    """
    if kind not in PERIODS:
        raise SettingError(f"period {kind!r}", "is unknown", f"Choose one of {', '.join(PERIODS)}.")
    found: dict[str, list[int]] = {}
    for i, t in enumerate(times):
        tail = {"monthly": f"-{t.month:02d}", "quarterly": f"-q{(t.month + 2) // 3}", "yearly": ""}[kind]
        found.setdefault(f"{t.year:04d}{tail}", []).append(i)
    return [Period(name, tuple(dates)) for name, dates in sorted(found.items())]


@dataclass(frozen=True)
class Compositor:
    """How the dates of a period become one image.

    - `median`: band by band, of the dates at which the pixel can be used.
    - `max-ndvi`: all bands of the date with the largest NDVI (Holben 1986); of equal ones the earliest. Where
      the dates have no red and near-infrared, a series of one ready-made index takes the largest value of it.
    - `least-cloud`: all bands of the first usable date, the dates ordered by the share of each that is clear
      over the whole grid; of equal ones the earliest.
    """

    rule: str
    bands: tuple[str, ...]
    ndvi: Index | None = None
    order: tuple[int, ...] = ()

    def combine(self, data: np.ndarray, dates: Sequence[int]) -> np.ndarray:
        """float32 [C + 1, h, w] of [T, C, h, w]: the bands and the number of dates that could be used."""
        usable = np.asarray(np.isfinite(data).all(axis=1))
        count = usable.sum(axis=0)
        if self.rule == "median":
            out = median(np.where(usable[:, None], data, np.float32(np.nan)))
        else:
            out = np.take_along_axis(data, self._pick(data, usable, dates)[None, None], axis=0)[0]
            out = np.where(count > 0, out, np.nan)
        return np.concatenate([out, count[None]]).astype(np.float32)

    def _pick(self, data: np.ndarray, usable: np.ndarray, dates: Sequence[int]) -> np.ndarray:
        if self.rule == "least-cloud":
            rank = np.array([self.order[d] for d in dates], np.float64)
            worth = np.where(usable, -rank[:, None, None], -np.inf)
        else:
            assert self.ndvi is not None
            at = [self.bands.index(b) for b in self.ndvi.bands]
            with np.errstate(invalid="ignore"):
                worth = np.nan_to_num(self.ndvi.compute(data[:, at]), nan=-1e30)
            worth = np.where(usable, worth, -np.inf)
        return worth.argmax(axis=0)


def compositor(series: Series, rule: str) -> Compositor:
    """The rule, checked against what the dates have.

    Raises:
        SettingError, BandError: an unknown rule, or bands that it needs and the dates lack.
    """
    if rule not in RULES:
        raise SettingError(f"composite {rule!r}", "is unknown", f"Choose one of {', '.join(RULES)}.")
    bands = require_bands(series)
    if rule == "least-cloud":
        rank = np.argsort(np.argsort(-series.clear, kind="stable"), kind="stable")
        return Compositor(rule, bands, order=tuple(int(r) for r in rank))
    if rule == "median":
        return Compositor(rule, bands)
    if len(bands) == 1:
        return Compositor(rule, bands, Index(bands[0], "band", bands))
    ndvi = parse_index("ndvi")
    names = bands_for(ndvi, series.scenes[0])
    if not set(names) <= set(bands):
        raise BandError("the stack", "lacks red or near-infrared at some date", "Take --composite median.")
    return Compositor(rule, bands, Index("ndvi", "difference", names))


def write_composites(
    series: Series,
    kind: str,
    rule: str,
    folder: Path,
    *,
    block: int,
    pool: Executor,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, object]]:
    """Writes `FOLDER/PERIOD.tif` for each period that holds a date; a file that is there already is kept.

    Each is a COG of float32: the bands that all dates have, NaN where no date can be used, and the number of
    usable dates as the last band. Returns name, file and dates of each.
    """
    how = compositor(series, rule)
    periods = periods_of(series.times, kind)
    windows = blocks(series.shape, block)
    folder.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda _done, _total: None)
    unit = str(series.scenes[0].unit)
    for number, period in enumerate(periods):
        path = folder / f"{period.name}.tif"
        if path.exists():
            continue

        def pixels(number: int = number, period: Period = period) -> Iterator[tuple[Window, np.ndarray]]:
            for done, window in enumerate(windows):
                read = series.read(window, period.dates, how.bands, pool)
                yield window, how.combine(read.data, period.dates)
                tell(number * len(windows) + done + 1, len(periods) * len(windows))

        write_cog(
            pixels(),
            path,
            geobox=series.geobox,
            kind="continuous",
            dtype="float32",
            bands=len(how.bands) + 1,
            nodata=float("nan"),
            descriptions=[*how.bands, "usable dates"],
            units=[*[unit] * len(how.bands), "dates"],
            tags={
                "TERRALAPSE_PERIOD": period.name,
                "TERRALAPSE_RULE": rule,
                "TERRALAPSE_DATES": ",".join(f"{series.times[d]:%Y-%m-%d}" for d in period.dates),
            },
            threads=threads,
        )
    return [
        {
            "period": p.name,
            "file": f"composites/{p.name}.tif",
            "dates": [f"{series.times[d]:%Y-%m-%d}" for d in p.dates],
        }
        for p in periods
    ]


def blocks(shape: tuple[int, int], block: int) -> list[Window]:
    """Squares of `block` pixels from the first pixel of the grid, cut at its end; row by row within the rows
    of blocks that are written together."""
    height, width = shape
    out = []
    outer = max(block, BLOCK)
    for top in range(0, height, outer):
        for left in range(0, width, outer):
            for row in range(top, min(top + outer, height), block):
                for col in range(left, min(left + outer, width), block):
                    out.append(Window(row, col, min(block, height - row), min(block, width - col)))
    return out
