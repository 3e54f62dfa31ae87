"""Tiles of the layers in Web Mercator, drawn in this process and kept in memory."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT
from rio_tiler.errors import NoOverviewWarning, TileOutsideBounds
from rio_tiler.io import Reader

from terralapse.errors import UnreadableFileError
from terralapse.grid._gdal import GDAL_ERRORS, Handle, dataset, gdal_env, read_error
from terralapse.grid._safety import check_image
from terralapse.serve import lens
from terralapse.serve.layers import Layer
from terralapse.serve.patterns import hatch

TILE = 256
WGS84 = CRS.from_epsg(4326)
_MERCATOR = CRS.from_epsg(3857)
_PICTURE_QUALITY = 82

Form = Literal["png", "webp"]
Style = Literal["drawn", "codes"]


class NoTileError(Exception):
    """A tile beyond the layer or beyond the zooms that it has."""


@dataclass(frozen=True)
class Wanted:
    """One tile: `scale` 2 has twice the pixels. `codes` are the codes of a layer of values as `256 red +
    green`, for a page that colours them itself."""

    z: int
    x: int
    y: int
    scale: int = 1
    form: Form = "png"
    style: Style = "drawn"


@dataclass(frozen=True)
class Extent:
    """Where a layer lies: west, south, east, north in degrees, and the zooms at which it has pixels."""

    bounds: tuple[float, float, float, float]
    minzoom: int
    maxzoom: int


def flip(grid: Affine) -> Affine:
    """From the coordinates of a grid without a place to metres of Web Mercator, one a pixel, rows downwards
    from the equator, so that images without a place have a map as well."""
    return Affine.scale(1, -1) @ ~grid


class Tiler:
    """Draws tiles and keeps the last ones.

    Args:
        cache: bytes of finished tiles to keep.
        underzoom, overzoom: how far beyond the zooms of a layer tiles are drawn.
    """

    def __init__(self, cache: int, underzoom: int, overzoom: int) -> None:
        self._limit, self._under, self._over = cache, underzoom, overzoom
        self._kept: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._size = 0
        self._coming: dict[tuple[Any, ...], Future[bytes]] = {}  # drawn just now; who asks meanwhile waits
        self._extents: dict[tuple[Path, str], Extent] = {}
        self._checked: dict[Path, str] = {}
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """What the finished tiles in memory take."""
        return self._size

    def extent(self, layer: Layer, grid: Affine) -> Extent:
        """Where a layer lies.

        Raises:
            TerralapseError: a file that is damaged or no GeoTIFF.
        """
        key = (layer.path, layer.stamp)
        if key not in self._extents:
            with self._reader(layer, grid) as reader:
                west, south, east, north = reader.get_geographic_bounds(WGS84)
                self._extents[key] = Extent((west, south, east, north), reader.minzoom, reader.maxzoom)
        return self._extents[key]

    def zooms(self, layer: Layer, grid: Affine) -> tuple[int, int]:
        """The lowest and the highest zoom at which tiles of a layer are drawn."""
        extent = self.extent(layer, grid)
        return max(0, extent.minzoom - self._under), min(24, extent.maxzoom + self._over)

    def etag(self, layer: Layer, wanted: Wanted) -> str:
        """Known without drawing."""
        text = f"{layer.path}|{layer.stamp}|{layer.name}|{wanted}"
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:24]}"'

    def tile(self, layer: Layer, grid: Affine, wanted: Wanted) -> bytes:
        """An encoded tile.

        Args:
            layer: what to draw.
            grid: the transform of the run's grid; it places what has no CRS.
            wanted: which tile.

        Raises:
            NoTileError: beyond the layer or its zooms.
            TerralapseError: a file that is damaged or no GeoTIFF.
        """
        low, high = self.zooms(layer, grid)
        side = 2**wanted.z
        if not (low <= wanted.z <= high and 0 <= wanted.x < side and 0 <= wanted.y < side):
            raise NoTileError
        key = (layer.path, layer.stamp, layer.name, wanted)
        mine: Future[bytes] = Future()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            coming = self._coming.setdefault(key, mine)
        if coming is not mine:
            return coming.result()
        try:
            data, mask = self._read(layer, grid, wanted)
            made = _encode(_draw(layer, data, mask, wanted.style), layer, wanted)
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._kept[key] = made
            self._size += len(made)
            while self._size > self._limit:
                self._size -= len(self._kept.popitem(last=False)[1])
        mine.set_result(made)
        return made

    def _read(self, layer: Layer, grid: Affine, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """[C, h, w] as stored and bool [h, w] of what is there."""
        how: Any = "bilinear" if layer.kind == "picture" else "nearest"
        try:
            quick = self._quick(layer, wanted)
            if quick is not None:
                return quick
            with self._reader(layer, grid) as reader:
                image = reader.tile(
                    wanted.x,
                    wanted.y,
                    wanted.z,
                    tilesize=TILE * wanted.scale,
                    resampling_method=how,
                    reproject_method=how,
                    indexes=layer.bands,
                )
        except TileOutsideBounds as error:
            raise NoTileError from error
        except GDAL_ERRORS as error:
            raise read_error(str(layer.path), error, f"tile {wanted.z}/{wanted.x}/{wanted.y}") from error
        return image.data, image.mask > 0

    def _quick(self, layer: Layer, wanted: Wanted) -> tuple[np.ndarray, np.ndarray] | None:
        """What `lens.read` can read, else None."""
        self._check(layer)
        if layer.look is not None:
            return None
        stamp = layer.path.stat().st_mtime_ns

        def opened(overview: int | None) -> Any:
            return dataset(Handle(str(layer.path), "GTiff", overview=overview, stamp=stamp))

        with gdal_env():
            place = (wanted.z, wanted.x, wanted.y)
            return lens.read(opened, place, TILE * wanted.scale, layer.kind == "picture")

    def _check(self, layer: Layer) -> None:
        """Looks once at each state of a file before GDAL does."""
        stamp = layer.stamp
        if self._checked.get(layer.path) != stamp:
            if check_image(layer.path).driver != "GTiff":
                raise UnreadableFileError(layer.path, "is no GeoTIFF", "Run the command again.")
            self._checked[layer.path] = stamp

    @contextmanager
    def _reader(self, layer: Layer, grid: Affine) -> Iterator[Reader]:
        self._check(layer)
        handle = Handle(str(layer.path), "GTiff", stamp=layer.path.stat().st_mtime_ns)
        with gdal_env(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            warnings.simplefilter("ignore", NoOverviewWarning)  # previews are small enough without
            source = dataset(handle)
            if lens.placed(source):
                with Reader(None, dataset=source) as reader:  # pyright: ignore[reportCallIssue]
                    yield reader
                return
            placed = flip(grid) @ source.transform
            # The grid is given whole, else GDAL turns the rows of a file without a transform around. A mask
            # has to become a band: a warp forgets it.
            size = {"width": source.width, "height": source.height, "transform": placed}
            options = {"src_crs": _MERCATOR, "src_transform": placed, "crs": _MERCATOR, **size}
            with (
                WarpedVRT(source, add_alpha=source.nodata is None, **options) as warped,
                Reader(None, dataset=warped) as reader,  # pyright: ignore[reportCallIssue]
            ):
                yield reader


def _draw(layer: Layer, data: np.ndarray, mask: np.ndarray, style: Style) -> np.ndarray:
    """uint8 [h, w, 4]; colours below what is transparent are black, so that they compress."""
    if layer.look is not None:
        picture, opacity = layer.look.draw(np.where(mask, data, np.nan))
        drawn = np.dstack([picture, opacity])
        drawn[opacity == 0] = 0
        return drawn
    if layer.kind == "picture":
        drawn = np.dstack([np.moveaxis(data[:3], 0, -1), np.where(mask, 255, 0)]).astype(np.uint8)
        drawn[~mask] = 0
        return drawn
    assert layer.table is not None
    if layer.scale is None:
        drawn = np.where(mask[..., None], layer.table[data[0]], 0).astype(np.uint8)
        return drawn if layer.patterns is None else hatch(drawn, data[0], layer.patterns)
    stored = data[0].astype(np.float64)
    mask = mask & np.isfinite(stored)
    codes = (
        np.where(mask, stored, layer.scale.stored_zero) - layer.scale.stored_zero
    ) / layer.scale.stored_step
    whole = np.clip(np.rint(codes), 0, len(layer.table) - 1).astype(np.uint16)
    if style == "drawn":
        return np.where(mask[..., None], layer.table[whole], 0).astype(np.uint8)
    parts = np.dstack([whole >> 8, whole & 255, np.zeros_like(whole), np.full_like(whole, 255)])
    return np.where(mask[..., None], parts, 0).astype(np.uint8)


def _encode(drawn: np.ndarray, layer: Layer, wanted: Wanted) -> bytes:
    """Lossy only where a picture is asked for as WebP."""
    image = Image.fromarray(drawn)
    sink = io.BytesIO()
    if wanted.form == "png":
        image.save(sink, "PNG", compress_level=4)
    elif layer.kind == "picture":
        image.save(sink, "WEBP", quality=_PICTURE_QUALITY, method=2)
    else:
        image.save(sink, "WEBP", lossless=True, exact=True, quality=20, method=0)
    return sink.getvalue()
