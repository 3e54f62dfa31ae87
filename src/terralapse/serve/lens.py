"""The common tile, read quickly: a window of one overview, its pixels moved to where the tile wants them.

A warp by GDAL is right for every tile, and costs several times what the decoding of the pixels does. Most
tiles of a map differ from their image by little more than a turn, so that positions can be computed at the
corners of a coarse mesh and interpolated between. What is not of this kind gets None, and
is warped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

from terralapse.grid.areas import is_pixel_grid

_CELLS = 16  # of the mesh, a side
_ERROR = 0.125  # source pixels by which an interpolated position may be wrong, as GDAL's own warp allows
_COARSEST = 2.0  # source pixels a tile pixel from which on they are averaged before: four would skip some
_NEAR = 1.06  # an overview that is coarser than the tile by less than this is taken
_MOST = 4 * 2**20  # source pixels of a window
_EQUATOR = 2 * math.pi * 6378137.0

Open = Callable[[int | None], Any]  # an image, or one of its overviews by number


def read(
    opened: Open, tile: tuple[int, int, int], side: int, smooth: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """[C, side, side] as stored and bool [side, side] of what is there, or None: it has to be warped.

    Args:
        opened: gives the image with a CRS, or one of its overviews.
        tile: zoom, column, row in Web Mercator.
        side: pixels of the tile.
        smooth: bilinear, which needs three bands of bytes; else the nearest pixel.
    """
    whole = opened(None)
    if not placed(whole) or whole.transform.b or whole.transform.d:
        return None
    mesh = _mesh(whole, tile)
    if mesh is None:
        return None
    step = side / _CELLS
    dense = max(np.abs(np.diff(mesh, axis=a)).max() for a in (1, 2)) / step  # source pixels a tile pixel
    factors = whole.overviews(1)
    fitting = [k for k, factor in enumerate(factors) if factor <= dense * _NEAR]
    source = opened(fitting[-1]) if fitting else whole
    scale = np.array([source.width / whole.width, source.height / whole.height])
    mesh = mesh * scale[:, None, None]
    shrink = max(1, int(dense * scale.max())) if smooth and dense * scale.max() > _COARSEST else 1
    low, high = np.floor(mesh.min((1, 2))) - 1, np.ceil(mesh.max((1, 2))) + 1
    low = np.maximum(low, 0).astype(int)
    high = np.minimum(high, (source.width, source.height)).astype(int)
    columns, rows = high - low
    if columns <= 0 or rows <= 0 or columns * rows > _MOST:
        return None
    window = Window(*low, columns, rows)  # type: ignore[call-arg]
    bands = [i + 1 for i, kind in enumerate(source.colorinterp) if kind != ColorInterp.alpha]
    shape = (math.ceil(rows / shrink), math.ceil(columns / shrink))
    how: Any = {"out_shape": shape, "resampling": Resampling.average if shrink > 1 else Resampling.nearest}
    data = source.read(bands, window=window, **how | {"out_shape": (len(bands), *shape)})
    open_to_all = all(MaskFlags.all_valid in flags for flags in source.mask_flag_enums)
    mask = None if open_to_all else source.dataset_mask(window=window, **how) > 127
    mesh = (mesh - low[:, None, None]) * (np.array(shape[::-1]) / (columns, rows))[:, None, None]
    if smooth:
        if len(bands) != 3 or data.dtype != np.uint8:
            return None
        return _soft(data, mask, mesh, side)
    return _hard(data, mask, mesh, side)


def placed(source: Any) -> bool:
    """Whether an image lies somewhere on Earth; what does not is shown a pixel a metre, see `tiles.flip`."""
    return source.crs is not None and not _on_pixels(source.crs.to_wkt())


@lru_cache(64)
def _on_pixels(crs: str) -> bool:
    return is_pixel_grid(pyproj.CRS.from_wkt(crs))


def _mesh(source: Any, tile: tuple[int, int, int]) -> np.ndarray | None:
    """Columns and rows [2, _CELLS + 1, _CELLS + 1] of the corners of the cells of a tile in the pixels of an
    image; None where what lies between cannot be interpolated."""
    z, x, y = tile
    size = _EQUATOR / 2**z
    along = np.linspace(0, size, 2 * _CELLS + 1)
    east, north = np.meshgrid(x * size - _EQUATOR / 2 + along, _EQUATOR / 2 - y * size - along)
    there = np.stack(_turn(source.crs.to_wkt()).transform(east, north))
    if not np.isfinite(there).all():
        return None
    back: Affine = ~source.transform
    fine = np.stack([back.a * there[0] + back.c, back.e * there[1] + back.f])
    mesh = fine[:, ::2, ::2]
    between = (mesh[:, :-1, :-1] + mesh[:, 1:, 1:] + mesh[:, :-1, 1:] + mesh[:, 1:, :-1]) / 4
    # At the middle of a cell an interpolation is at its worst.
    return mesh if np.abs(between - fine[:, 1::2, 1::2]).max() <= _ERROR else None


@lru_cache(64)
def _turn(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(3857, crs, always_xy=True)


def _soft(
    data: np.ndarray, mask: np.ndarray | None, mesh: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [3, side, side], bilinear, a cell of the mesh at a time, and which of them have an image below:
    at least half of what they are mixed of is valid, and nothing else has a part in their colour."""
    edges = [round(i * side / _CELLS) for i in range(_CELLS + 1)]
    cells = []
    for i in range(_CELLS):
        for j in range(_CELLS):
            # Pillow wants the corners of a cell against the clock from the upper left one.
            corners = [mesh[:, i, j], mesh[:, i + 1, j], mesh[:, i + 1, j + 1], mesh[:, i, j + 1]]
            box = (edges[j], edges[i], edges[j + 1], edges[i + 1])
            cells.append((box, [float(v) for corner in corners for v in corner]))
    known = (
        np.full(data.shape[1:], 255, np.uint8) if mask is None else np.where(mask, 255, 0).astype(np.uint8)
    )
    stacked = np.dstack([np.moveaxis(data if mask is None else data * mask, 0, -1), known])
    image = Image.fromarray(stacked, "RGBX")
    drawn = np.asarray(image.transform((side, side), Image.Transform.MESH, cells, Image.Resampling.BILINEAR))
    colours, weight = drawn[..., :3], drawn[..., 3]
    if mask is not None:
        share = np.maximum(weight, 1)[..., None] / np.float32(255)
        colours = np.minimum(np.rint(colours / share), 255).astype(np.uint8)
    return np.moveaxis(colours, -1, 0), weight > 127


def _hard(
    data: np.ndarray, mask: np.ndarray | None, mesh: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest pixel of each position, and whether there is one."""
    where = (np.arange(side) + 0.5) * _CELLS / side
    cell = where.astype(int)
    part = where - cell
    along = mesh[:, :, cell] * (1 - part) + mesh[:, :, cell + 1] * part
    at = along[:, cell] * (1 - part)[:, None] + along[:, cell + 1] * part[:, None]
    column, row = np.floor(at).astype(np.intp)
    rows, columns = data.shape[1:]
    there = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    flat = np.where(there, row * columns + column, 0)
    if mask is not None:
        there &= mask.reshape(-1)[flat]
    return data.reshape(len(data), -1)[:, flat], there
