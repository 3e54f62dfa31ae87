"""A scene whose bands lie in one or several raster files that share a grid, and the masks that go with them.

Everything that is made of GDAL rasters (a GeoTIFF, a Sentinel-2 or Landsat product, a STAC item) is a
`StackScene`; the modules beside this one only decide which file is which band and what its numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, isnan

import numpy as np
from rasterio.windows import Window as RioWindow
from scipy import ndimage

from terralapse.grid import _gdal
from terralapse.grid._gdal import Handle, gdal_env
from terralapse.grid.scene import Block, Scene, SceneInfo, Window, reduce_block, reduce_codes
from terralapse.labels import SceneMask

STRIP_BYTES = 64 * 2**20  # of float32 pixels that a decimated read holds at once

Decoder = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """One band of one file. `factor` scene pixels lie side by side in one stored pixel (20 m bands on a 10 m
    grid: 2, by replication). Physical = stored * scale + offset; `lut` replaces that for palettes.

    `nodata` and `saturated` are stored values; `overviews` are the factors of the file's own overviews.
    """

    handle: Handle
    index: int
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    saturated: float | None = None
    factor: int = 1
    overviews: tuple[int, ...] = ()
    lut: tuple[float, ...] | None = None


@dataclass(frozen=True)
class MaskLayer:
    """A band that says which pixels are usable. `decode` turns its stored values into `SceneMask` codes.

    `index` 0 is GDAL's own mask of the file (internal mask or `.msk`). `dilate` grows cloud and shadow by so
    many stored pixels, because their edges are missed. Overviews of masks are never used: those of a class
    band may be averages.
    """

    handle: Handle
    index: int
    decode: Decoder
    factor: int = 1
    dilate: int = 0


@dataclass(frozen=True)
class BlockMask:
    """Blocks of a TIFF that were never written, with no nodata value that would tell: bool [rows, cols]."""

    missing: np.ndarray
    block_height: int
    block_width: int

    def codes(self, window: Window) -> np.ndarray:
        """`SceneMask` codes of a window inside the grid."""
        rows = np.arange(window.row, window.row + window.height) // self.block_height
        cols = np.arange(window.col, window.col + window.width) // self.block_width
        return np.where(self.missing[np.ix_(rows, cols)], SceneMask.NODATA, 0).astype(np.uint8)


class StackScene(Scene):
    """Bands and masks on one grid.

    Decimated reads: pixels are means over the valid ones of each d x d square; a square is valid when at
    least half of its pixels inside the grid are, and otherwise carries the most frequent reason. Overviews of
    the file are used where their factor divides d and the window; masks always come from full resolution.

    Args:
        info: bands in the order of `layers`.
        layers: one a band.
        masks: in any order; of several reasons for a pixel the lowest code wins.
        all_nodata: a pixel is nodata only when all of these layers are (8-bit images, whose nodata value 0
            is also a dark red or blue); None: when any band that is read is.
    """

    def __init__(
        self,
        info: SceneInfo,
        layers: Sequence[Layer],
        masks: Sequence[MaskLayer | BlockMask] = (),
        all_nodata: Sequence[Layer] | None = None,
    ) -> None:
        self.info = info
        self.layers = tuple(layers)
        self.masks = tuple(masks)
        self.all_nodata = tuple(all_nodata) if all_nodata is not None else None

    def close(self) -> None:
        handles = [x.handle for x in (*self.layers, *self.masks) if not isinstance(x, BlockMask)]
        levels = [replace(x.handle, overview=i) for x in self.layers for i in range(len(x.overviews))]
        _gdal.close({*handles, *levels})

    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        picked = [self.layers[i] for i in self.band_indices(bands)]
        if decimation == 1:
            return self._read_level(window, picked, 1)
        return self._read_decimated(window, picked, decimation)

    def _read_decimated(self, window: Window, picked: list[Layer], d: int) -> Block:
        level = self._best_level(window, picked, d)
        height, width = ceil(window.height / d), ceil(window.width / d)
        data = np.empty((len(picked), height, width), np.float32)
        mask = np.empty((height, width), np.uint8)
        step = max(1, STRIP_BYTES // max(1, 4 * len(picked) * (d // level) * max(1, window.width // level)))
        for row in range(0, height, step):
            top = row * d
            part = Window(window.row + top, window.col, min(step * d, window.height - top), window.width)
            at_level = Window(
                part.row // level, part.col // level, ceil(part.height / level), ceil(part.width / level)
            )
            block = reduce_block(self._read_level(at_level, picked, level), d // level)
            data[:, row : row + step], mask[row : row + step] = block.data, block.mask
        return Block(data, mask)

    def _best_level(self, window: Window, picked: list[Layer], d: int) -> int:
        """The largest overview factor that divides `d` and the window's origin and that all files have."""
        layers = picked if self.all_nodata is None else [*picked, *self.all_nodata]
        for level in range(d, 1, -1):
            aligned = d % level == 0 and window.row % level == 0 and window.col % level == 0
            if aligned and all(_at_level(x, level) is not None for x in layers):
                return level
        return 1

    def _read_level(self, window: Window, picked: list[Layer], level: int) -> Block:
        """Pixels at one overview level; `window` is in pixels of that level."""
        full = self.info.geobox.shape
        inside = window.clip(ceil(full.y / level), ceil(full.x / level))
        if not (inside.height and inside.width):
            return _nothing(len(picked), window)
        values, codes = self._stored(inside, picked, level)
        for m in self.masks:
            codes = merge_codes(codes, self._mask_codes(m, inside, level))
        if codes.any():
            np.copyto(values, np.nan, where=codes != SceneMask.VALID)
        if inside == window:
            return Block(values, codes)
        out = _nothing(len(picked), window)
        r, c = inside.row - window.row, inside.col - window.col
        out.data[:, r : r + inside.height, c : c + inside.width] = values
        out.mask[r : r + inside.height, c : c + inside.width] = codes
        return out

    def _stored(self, inside: Window, picked: list[Layer], level: int) -> tuple[np.ndarray, np.ndarray]:
        """Physical values of the picked layers, and the codes that the stored values themselves imply."""
        extra = [x for x in self.all_nodata or () if x not in picked]
        wanted = [*picked, *extra]
        raw: dict[Layer, np.ndarray] = {}
        for handle, factor in dict.fromkeys((x.handle, x.factor) for x in wanted):
            group = list(dict.fromkeys(x for x in wanted if (x.handle, x.factor) == (handle, factor)))
            indexes = sorted({x.index for x in group})
            found = _at_level(group[0], level)
            assert found is not None
            stack = read_raw(found[0], indexes, inside, found[1])
            raw.update({x: stack[indexes.index(x.index)] for x in group})
        shape = (inside.height, inside.width)
        absent, every, saturated = np.zeros(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
        values = np.empty((len(picked), *shape), np.float32)
        for i, x in enumerate(wanted):
            stored = raw[x]
            own = is_nodata(stored, x.nodata)
            if self.all_nodata is None or x not in self.all_nodata:
                absent |= own
            else:
                every &= own
            if x.saturated is not None:
                saturated |= stored == x.saturated
            if i < len(picked):
                to_physical(stored, x, values[i])
        codes = np.where(saturated, np.uint8(SceneMask.SATURATED), np.uint8(0))
        codes[absent | every if self.all_nodata else absent] = SceneMask.NODATA
        return values, codes

    def _mask_codes(self, mask: MaskLayer | BlockMask, inside: Window, level: int) -> np.ndarray:
        if level == 1:
            return mask.codes(inside) if isinstance(mask, BlockMask) else _decode(mask, inside)
        full = self.info.geobox.shape
        out = np.empty((inside.height, inside.width), np.uint8)
        step = max(1, STRIP_BYTES // (4 * level * level * inside.width))
        for row in range(0, inside.height, step):
            rows = min(step, inside.height - row)
            area = Window(
                (inside.row + row) * level, inside.col * level, rows * level, inside.width * level
            ).clip(full.y, full.x)
            codes = mask.codes(area) if isinstance(mask, BlockMask) else _decode(mask, area)
            out[row : row + rows] = reduce_codes(codes, level)
        return out


def _nothing(bands: int, window: Window) -> Block:
    """A block outside of everything."""
    shape = (window.height, window.width)
    data = np.full((bands, *shape), np.nan, np.float32)
    return Block(data, np.full(shape, int(SceneMask.OUTSIDE), np.uint8))


def _at_level(layer: Layer, level: int) -> tuple[Handle, int] | None:
    """The handle and the replication factor that give `layer` at an overview level; None when it cannot."""
    if level % layer.factor == 0:
        smaller = level // layer.factor
        if smaller == 1:
            return layer.handle, 1
        if smaller in layer.overviews and layer.lut is None:
            return replace(layer.handle, overview=layer.overviews.index(smaller)), 1
        return None
    return (layer.handle, layer.factor // level) if layer.factor % level == 0 else None


def read_raw(handle: Handle, indexes: list[int], window: Window, factor: int = 1) -> np.ndarray:
    """Stored values [len(indexes), h, w] of a window inside the grid, replicated `factor` times a side.

    Index 0 is GDAL's mask of the file (0 or 255).

    Raises:
        TruncatedFileError: a block that cannot be decoded, named.
        FileMissingError, UnreadableFileError: a server does not give the blocks.
    """
    row, col = window.row // factor, window.col // factor
    end_row, end_col = ceil((window.row + window.height) / factor), ceil((window.col + window.width) / factor)
    rio = RioWindow(col, row, end_col - col, end_row - row)  # pyright: ignore[reportCallIssue]
    where = f"band {indexes[0]}, pixels {col}..{end_col - 1} x {row}..{end_row - 1}"
    with (
        _gdal.fetched(handle, indexes, [((row, end_row), (col, end_col))]),
        _gdal.reading(handle, where) as ds,
    ):
        if indexes == [0]:
            stored = ds.read_masks(window=rio).min(axis=0, keepdims=True)
        else:
            stored = ds.read(indexes, window=rio)
    if factor > 1:
        stored = np.repeat(np.repeat(stored, factor, axis=1), factor, axis=2)
        r, c = window.row - row * factor, window.col - col * factor
        stored = stored[:, r : r + window.height, c : c + window.width]
    return stored


def _decode(mask: MaskLayer, window: Window) -> np.ndarray:
    """`SceneMask` codes of a window inside the grid, with cloud and shadow grown."""
    margin = mask.dilate * mask.factor
    if not margin:
        return mask.decode(read_raw(mask.handle, [mask.index], window, mask.factor)[0])
    with gdal_env(remote=mask.handle.remote):
        ds = _gdal.dataset(mask.handle)
        height, width = ds.height * mask.factor, ds.width * mask.factor
    padded = window.pad(margin).clip(height, width)
    # Grown in stored pixels: the padded window is widened to whole ones first.
    f = mask.factor
    row, col = padded.row // f, padded.col // f
    rows = ceil((padded.row + padded.height) / f) - row
    cols = ceil((padded.col + padded.width) / f) - col
    codes = mask.decode(read_raw(mask.handle, [mask.index], Window(row, col, rows, cols))[0])
    y, x = np.ogrid[-mask.dilate : mask.dilate + 1, -mask.dilate : mask.dilate + 1]
    disk = x * x + y * y <= mask.dilate * mask.dilate
    for code in (SceneMask.SHADOW, SceneMask.CLOUD):
        where = codes == code
        if where.any():
            grown = ndimage.binary_dilation(where, disk)
            codes = np.where(grown & ((codes == 0) | (codes > code)), np.uint8(code), codes)
    codes = np.repeat(np.repeat(codes, f, axis=0), f, axis=1) if f > 1 else codes
    r, c = window.row - row * f, window.col - col * f
    return codes[r : r + window.height, c : c + window.width]


def is_nodata(stored: np.ndarray, nodata: float | None) -> np.ndarray:
    """bool: the stored value is the nodata value, or not a finite number."""
    absent = ~np.isfinite(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
    if nodata is not None and not isnan(nodata):
        # A nodata value of a float32 file is often written as a rounded double.
        absent |= stored == stored.dtype.type(nodata) if _fits(nodata, stored.dtype) else False
    return absent


def _fits(value: float, dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return True
    info = np.iinfo(dtype)
    return float(value).is_integer() and info.min <= value <= info.max


def to_physical(stored: np.ndarray, layer: Layer, out: np.ndarray) -> None:
    """Writes float32 physical values into `out`; the product is formed in double precision where the stored
    type needs it."""
    if layer.lut is not None:
        np.asarray(layer.lut, np.float32).take(stored, out=out)
    elif layer.scale == 1 and layer.offset == 0:
        out[...] = stored
    elif stored.dtype.itemsize <= 2:
        np.multiply(stored, np.float32(layer.scale), out=out)
        out += np.float32(layer.offset)
    else:
        out[...] = stored * np.float64(layer.scale) + layer.offset


def merge_codes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The lowest code that is not VALID, pixel by pixel."""
    return np.where(a == 0, b, np.where(b == 0, a, np.minimum(a, b))).astype(np.uint8)
