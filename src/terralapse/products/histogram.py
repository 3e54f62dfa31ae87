"""How much of the compared area has each probability of change, so that any threshold can be counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def histogram(folder: Path) -> Histogram:
    """Reads `prob.tif` and `valid.tif` of a run once, strip by strip, in constant memory."""
    pixels, area = np.zeros(PROB_STEPS + 1, np.int64), np.zeros(PROB_STEPS + 1)
    with (
        gdal_env(),
        rasterio.open(folder / "prob.tif", driver="GTiff") as prob,
        rasterio.open(folder / "valid.tif", driver="GTiff") as valid,
    ):
        height, width = prob.shape
        pixel_area = PixelArea(GeoBox(prob.shape, prob.transform, prob.crs and prob.crs.to_wkt()))
        for start in range(0, height, _STRIP):
            rows = min(_STRIP, height - start)
            window = RioWindow(0, start, width, rows)  # type: ignore[call-arg]
            stored, reason = prob.read(1, window=window), valid.read(1, window=window)
            compared = (reason == Reason.VALID) & (stored <= PROB_STEPS)
            weights = np.broadcast_to(pixel_area.block(Window(start, 0, rows, width)), stored.shape)
            values = stored[compared]
            pixels += np.bincount(values, minlength=PROB_STEPS + 1)
            area += np.bincount(values, weights[compared], minlength=PROB_STEPS + 1)
    return Histogram(pixels, area)
