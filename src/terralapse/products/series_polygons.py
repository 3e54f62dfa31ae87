"""Where a series broke, as polygons: ground that hangs together and broke in one year in one direction."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.engine.parts import WORK
from terralapse.engine.series import NO_DAY, PROB_STEPS
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.grid.vectorise import VectoriseSettings, vectorise
from terralapse.labels import SERIES_UNUSABLE
from terralapse.products.polygons import area_unit, constant, smallest_area, whereabouts

LAYER = "breaks"
_STRIP = 512
_UNKNOWN = -32768
_BASE = 200_000  # added to days, so that they are positive from the 15th century on
_DAY_BITS = 20


def break_polygons(
    folder: Path, geobox: GeoBox, index: str, run_id: str, asked: float | None = None
) -> gpd.GeoDataFrame:
    """The polygons of a series from its rasters, the largest first.

    A polygon is ground that hangs together, broke within one calendar year, and fell or rose there. Memory is
    bounded by a strip of the rasters and by what is found.

    Args:
        folder: with `valid.tif`, `break_days.tif`, `break_date.tif`, `magnitude.tif` and `probability.tif`.
        geobox: the grid of these.
        index, run_id: written to each polygon.
        asked: the smallest area, m2 (pixels without a CRS); see `polygons.smallest_area`.

    Returns:
        `id` from 1 on; `date` of the break (ISO, the median over its pixels), `date_first`, `date_last`,
        `year`, `direction` (`falling`, `rising`); area and perimeter; `magnitude` (mean over the pixels,
        in units of the index), `mean_prob` and `max_prob` (the probability of the break, 0..1), `pixels`;
        `location`, `lon`, `lat`; `index`, `run_id`; `row`, `col`, `height`, `width` of its window.
    """
    scratch = folder / WORK / "break-classes.tif"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    classes = _write_classes(folder, geobox, scratch)
    seen = _Seen(folder)
    with seen:
        frame = vectorise(
            scratch, None, geobox, VectoriseSettings(classes, smallest_area(geobox, asked)), seen=seen.strip
        )
    scratch.unlink()
    sums = seen.sums()
    # What lies in a filled hole and broke otherwise is not what the polygon is about.
    year = sums["day"].to_numpy("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970
    sums["class_value"] = np.where(sums["falls"], -year, year)
    own = sums.merge(frame[["number", "class_value"]], on=["number", "class_value"])
    return _described(frame, own, geobox, index, run_id)


def _write_classes(folder: Path, geobox: GeoBox, path: Path) -> tuple[int, ...]:
    """int16 of the year of the break, negative where the index fell, 0 without one; the values found."""
    found: set[int] = set()
    files = {n: rasterio.open(folder / f"{n}.tif") for n in ("valid", "break_date", "magnitude")}
    height, width = geobox.shape.y, geobox.shape.x

    def strips():
        for row in range(0, height, _STRIP):
            window = Window(row, 0, min(_STRIP, height - row), width)
            read = {n: _strip(f, row, window.height) for n, f in files.items()}
            year = np.maximum(read["break_date"], 0) // 10000
            values = np.where(read["magnitude"] < 0, -year, year).astype(np.int16)
            found.update(np.unique(values[values != 0]).tolist())
            values[read["valid"] >= SERIES_UNUSABLE] = _UNKNOWN
            yield window, values

    try:
        write_cog(strips(), path, geobox=geobox, kind="class", dtype="int16", nodata=_UNKNOWN, threads=1)
    finally:
        for file in files.values():
            file.close()
    return tuple(sorted(found, key=lambda v: (abs(v), v)))


def _strip(source: rasterio.DatasetReader, row: int, rows: int) -> np.ndarray:
    return source.read(1, window=RioWindow(0, row, source.width, rows))  # pyright: ignore[reportCallIssue]


class _Seen:
    """Pixels, magnitudes and probabilities of each polygon by the day and direction of the break."""

    def __init__(self, folder: Path) -> None:
        self._names = ("break_days", "magnitude", "probability")
        self._folder = folder
        self._tables: list[pd.DataFrame] = []
        self._files: dict[str, rasterio.DatasetReader] = {}

    def __enter__(self) -> None:
        self._files = {n: rasterio.open(self._folder / f"{n}.tif") for n in self._names}

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def strip(self, row: int, number: np.ndarray) -> None:
        """Adds a strip of the rasters, whose pixels belong to the polygons of these numbers."""
        days, size, chance = (_strip(self._files[n], row, len(number)) for n in self._names)
        at = (number > 0) & (days > NO_DAY)
        falls = size[at] < 0
        key = (number[at].astype(np.int64) << _DAY_BITS | (days[at] + _BASE)) << 1 | falls
        keys, which = np.unique(key, return_inverse=True)
        top = np.zeros(len(keys))
        np.maximum.at(top, which, chance[at] / PROB_STEPS)
        self._tables.append(
            pd.DataFrame(
                {
                    "key": keys,
                    "pixels": np.bincount(which, minlength=len(keys)),
                    "size": np.bincount(which, size[at].astype(np.float64), len(keys)),
                    "chance": np.bincount(which, chance[at] / PROB_STEPS, len(keys)),
                    "top": top,
                }
            )
        )

    def sums(self) -> pd.DataFrame:
        """A row a polygon, day and direction: `number`, `day` (datetime64), `falls`, `pixels`, and the sums
        of `size` and `chance`, the largest probability `top`."""
        empty = pd.DataFrame({n: np.zeros(0, np.int64) for n in ("key", "pixels", "size", "chance", "top")})
        table = pd.concat(self._tables or [empty], ignore_index=True).groupby("key", as_index=False)
        table = table.agg({"pixels": "sum", "size": "sum", "chance": "sum", "top": "max"})
        key = table["key"].to_numpy()
        day = (key >> 1 & (1 << _DAY_BITS) - 1) - _BASE
        table["number"], table["falls"] = key >> 1 + _DAY_BITS, (key & 1).astype(bool)
        table["day"] = day.astype("datetime64[D]").astype("datetime64[s]")
        return table


def _described(
    frame: gpd.GeoDataFrame, own: pd.DataFrame, geobox: GeoBox, index: str, run_id: str
) -> gpd.GeoDataFrame:
    """The columns of `break_polygons`."""
    own = own.sort_values(["number", "day"])
    number, wanted = own["number"].to_numpy(np.int64), frame["number"].to_numpy(np.int64)
    pixels, day = own["pixels"].to_numpy(np.float64), own["day"].to_numpy("datetime64[D]")
    # The rows of each polygon follow each other, its days in order.
    first, last = np.searchsorted(number, wanted), np.searchsorted(number, wanted, side="right") - 1
    so_far = np.cumsum(pixels)
    before = so_far[first] - pixels[first]
    count = so_far[last] - before
    middle = np.searchsorted(so_far, before + count / 2)

    def mean(column: str) -> np.ndarray:
        total = np.bincount(number, own[column].to_numpy(np.float64), minlength=len(frame) + 1)
        return (total[wanted] / count).round(4)

    top = np.zeros(len(frame) + 1)
    np.maximum.at(top, number, own["top"].to_numpy(np.float64))
    n, unit, years = len(frame), area_unit(geobox), frame["class_value"].to_numpy(np.int32)
    days = {"date": middle, "date_first": first, "date_last": last}
    table = pd.DataFrame(
        {
            "id": np.arange(1, n + 1, dtype=np.int64),
            **{k: pd.Series(np.datetime_as_string(day[at]), dtype="str") for k, at in days.items()},
            "year": np.abs(years),
            "direction": pd.Series(np.where(years < 0, "falling", "rising"), dtype="str"),
            f"area_{unit}": frame["area_m2"].round(2),
            f"perimeter_{'px' if unit == 'px' else 'm'}": frame["perimeter_m"].round(2),
            "magnitude": mean("size"),
            "mean_prob": mean("chance"),
            "max_prob": top[wanted].round(4),
            "pixels": count.astype(np.int64),
            **whereabouts(frame, geobox),
            "index": constant(index, n),
            "run_id": constant(run_id, n),
            **{k: frame[k] for k in ("row", "col", "height", "width")},
        }
    )
    return gpd.GeoDataFrame(table, geometry=frame.geometry, crs=frame.crs)
