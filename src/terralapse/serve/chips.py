"""Small pictures of both dates around a pixel, for those who say what it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.windows import Window as RioWindow

from terralapse.grid._gdal import GDAL_ERRORS, gdal_env, read_error
from terralapse.grid._safety import check_image

SIDE = 256  # pixels of a chip
_QUALITY = 88


def chip(path: Path, shape: tuple[int, int], row: int, col: int, across: int) -> bytes:
    """A WebP of `SIDE` x `SIDE` of what lies around the middle of a pixel; grey beyond the picture.

    Args:
        path: a preview of a run, of any size.
        shape: height and width of the run's grid, whose extent the preview has.
        row, col: of the pixel on that grid.
        across: pixels of that grid from one side of the chip to the other.

    Raises:
        TerralapseError: the file is damaged or no GeoTIFF.
    """
    check_image(path)
    try:
        with gdal_env(), rasterio.open(path, driver="GTiff") as file:
            tall, wide = file.height / shape[0], file.width / shape[1]
            top, left = (row + 0.5 - across / 2) * tall, (col + 0.5 - across / 2) * wide
            # A picture of its own pixels first, one more on each side than can be seen.
            first = (int(np.floor(top)) - 1, int(np.floor(left)) - 1)
            size = (int(np.ceil(across * tall)) + 3, int(np.ceil(across * wide)) + 3)
            window = RioWindow(first[1], first[0], size[1], size[0])  # type: ignore[call-arg]
            seen = file.read([1, 2, 3], window=window, boundless=True, fill_value=128)
    except GDAL_ERRORS as error:
        raise read_error(str(path), error, f"chip at {row}, {col}") from error
    box = (left - first[1], top - first[0], left - first[1] + across * wide, top - first[0] + across * tall)
    image = Image.fromarray(np.moveaxis(seen, 0, -1))
    sink = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.NEAREST, box=box).save(sink, "WEBP", quality=_QUALITY)
    return sink.getvalue()
