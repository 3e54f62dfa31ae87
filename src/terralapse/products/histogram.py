"""How much area has each probability of change, or broke on each day: for counts at any threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.grid._gdal import gdal_env
from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.products.tally import PROB_STEPS

_STRIP = 512


@dataclass(frozen=True)
class Histogram:
    """`pixels` int64 [201] and `area` float64 [201] (m2; pixels without a CRS) by probability x 200."""

    pixels: np.ndarray
    area: np.ndarray


@dataclass(frozen=True)
class BreakDays:
    """`days` int64 [n] since 1970-01-01, rising, and the `area` (m2; pixels without a CRS) that broke on
    each."""

    days: np.ndarray
    area: np.ndarray


def break_days(folder: Path) -> BreakDays:
    """Reads `break_days.tif` of a series once, strip by strip, in constant memory."""
    found: dict[int, float] = {}
    with gdal_env(), rasterio.open(folder / "break_days.tif", driver="GTiff") as file:
        for stored, weights in _strips(file):
            known = stored != file.nodata
            days, at = np.unique(stored[known], return_inverse=True)
            for day, size in zip(days, np.bincount(at, weights[known]), strict=True):
                found[int(day)] = found.get(int(day), 0.0) + float(size)
    days = np.array(sorted(found), np.int64)
    return BreakDays(days, np.array([found[int(d)] for d in days]))


def histogram(folder: Path) -> Histogram:
    """Reads `prob.tif` and `valid.tif` of a run once, strip by strip, in constant memory."""
    pixels, area = np.zeros(PROB_STEPS + 1, np.int64), np.zeros(PROB_STEPS + 1)
    with (
        gdal_env(),
        rasterio.open(folder / "prob.tif", driver="GTiff") as prob,
        rasterio.open(folder / "valid.tif", driver="GTiff") as valid,
    ):
        for (stored, weights), (reason, _) in zip(_strips(prob), _strips(valid), strict=True):
            compared = (reason == Reason.VALID) & (stored <= PROB_STEPS)
            values = stored[compared]
            pixels += np.bincount(values, minlength=PROB_STEPS + 1)
            area += np.bincount(values, weights[compared], minlength=PROB_STEPS + 1)
    return Histogram(pixels, area)


def _strips(file: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The values of an open raster and the area of each pixel, from the top down."""
    height, width = file.shape
    pixel_area = PixelArea(GeoBox(file.shape, file.transform, file.crs and file.crs.to_wkt()))
    for start in range(0, height, _STRIP):
        rows = min(_STRIP, height - start)
        window = RioWindow(0, start, width, rows)  # type: ignore[call-arg]
        area = pixel_area.block(Window(start, 0, rows, width))
        yield file.read(1, window=window), np.broadcast_to(area, (rows, width))
