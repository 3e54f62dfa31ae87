"""Pixels of a scene on any grid, window by window, resampled once.

What comes back depends on the scene and the grid only: any two windows agree on the pixels that they share.
Pixels of a scene that already lies on the grid are copied, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot
from weakref import WeakKeyDictionary

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from terralapse.errors import NoGeoreferenceError
from terralapse.grid._positions import Mapping, Target, compose, linear, same_crs
from terralapse.grid._resample import WHOLE, Kernel, resample
from terralapse.grid.scene import Block, Scene, Window
from terralapse.labels import SceneMask
from terralapse.sensors import Unit

AVERAGE_FROM = 1.5  # destination pixels this many source pixels wide are averaged
_DECIMATE_FROM = 8.0  # ... and from here on, overviews are averaged
_SAME_LATTICE = 1e-3  # pixels: a misfit below this is rounding, not an offset
_BUDGET = 6_000_000  # source pixels x bands read at a time


def read_onto(
    scene: Scene,
    geobox: GeoBox,
    bands: Sequence[str] | None = None,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    resampling: str | None = None,
) -> Block:
    """The pixels of a grid, or of a window of one (`geobox[rows, cols]`), taken from a scene.

    Args:
        scene: with its own grid, or several (a mosaic): the first part with a usable pixel wins.
        geobox: the pixels wanted.
        bands: common names in the order wanted; None for all.
        shift: (dy, dx) in pixels of the grid by which the content is moved, in the same resampling.
        resampling: `nearest`, `bilinear`, `cubic` or `average`; None averages where a pixel of the grid is
            1.5 or more source pixels wide, and is bilinear elsewhere. Decibels are resampled as power.

    Returns:
        float32 [C, H, W] in the scene's unit, NaN where masked, and the `SceneMask` codes.

    Raises:
        NoGeoreferenceError: only one of the scene and the grid has a CRS.
    """
    move = Affine.translation(-shift[1], -shift[0])
    target = Target(compose(geobox.affine, move), geobox.crs, (geobox.shape.y, geobox.shape.x))
    return warp(scene, target, bands, Kernel(resampling) if resampling else None)


def warp(
    scene: Scene,
    target: Target,
    bands: Sequence[str] | None = None,
    kernel: Kernel | None = None,
    share: float = WHOLE,
) -> Block:
    """As `read_onto`, for a target that may be displaced by a field. `share` of the weight of a kernel must
    fall on usable pixels; previews take less than analysis does."""
    names = [scene.info.bands[i].name for i in scene.band_indices(bands)]
    whole: Block | None = None
    for layer in layers(scene, target):
        block = _from_layer(layer, target, names, _how(layer, kernel, scene.info.unit, share))
        if block is not None and whole is not None:
            _fill(whole.data, whole.mask, block)
        whole = whole or block
        if whole is not None and not whole.mask.any():
            break
    return whole or _nothing(len(names), target.shape)


def _nothing(bands: int, shape: tuple[int, int]) -> Block:
    """A block that no part of a scene reaches."""
    return Block(
        np.full((bands, *shape), np.nan, np.float32), np.full(shape, int(SceneMask.OUTSIDE), np.uint8)
    )


def _fill(data: np.ndarray, mask: np.ndarray, block: Block) -> None:
    """Fills the gaps of the first with the second, in place. Of two reasons for a gap the more telling one
    is kept: cloud rather than the empty collar of a neighbour."""
    wins = (mask != SceneMask.VALID) & (block.mask == SceneMask.VALID)
    if wins.any():
        data[:, wins] = block.data[:, wins]
    mask[...] = np.where((mask == 0) | (block.mask == 0), 0, np.maximum(mask, block.mask))


@dataclass(frozen=True)
class Layer:
    """Scenes on one lattice of pixels, read as one image: `members` with the (row, col) of each one's
    origin in it. `copy` is (row, col, row step, col step) when the target's pixels are its pixels."""

    members: tuple[tuple[Scene, int, int], ...]
    geobox: GeoBox
    ratio: float  # source pixels per target pixel, the larger axis
    copy: tuple[int, int, int, int] | None

    def read(self, window: Window, bands: Sequence[str], decimation: int = 1) -> Block:
        """Composed pixels of a window of the lattice."""
        if len(self.members) == 1:
            return _clean(self.members[0][0].read(window, bands, decimation))
        whole = _nothing(len(bands), (window.height, window.width))
        for scene, row, col in self.members:
            shape = scene.info.geobox.shape
            own = Window(window.row - row, window.col - col, window.height, window.width).clip(
                shape.y, shape.x
            )
            if not own.height or not own.width:
                continue
            here = Window(own.row + row - window.row, own.col + col - window.col, own.height, own.width)
            rows, cols = here.slices
            if whole.mask[rows, cols].any():
                _fill(whole.data[:, rows, cols], whole.mask[rows, cols], _clean(scene.read(own, bands)))
        return whole


def _clean(block: Block) -> Block:
    """Masks pixels that are not finite in any band but are not masked by the reader."""
    with np.errstate(invalid="ignore", over="ignore"):
        broken = ~np.isfinite(block.data.sum(axis=0)) & (block.mask == SceneMask.VALID)
    if broken.any():
        block.mask = np.where(broken, int(SceneMask.NODATA), block.mask).astype(np.uint8)
        block.data[:, broken] = np.nan
    return block


def layers(scene: Scene, target: Target) -> Iterator[Layer]:
    """The parts of a scene as layers, those on one lattice that follow each other joined."""
    for part in scene.parts():
        if (part.info.geobox.crs is None) != (target.crs is None):
            raise NoGeoreferenceError(
                part.info.name if part.info.geobox.crs is None else scene.info.name,
                "has a coordinate system and the other image has none, or the other way round",
                "Say what it is with --assume-crs EPSG:CODE.",
            )
    for group in _groups(scene):
        layer = _layer(group, target)
        if len(group) > 1 and layer.ratio >= _DECIMATE_FROM:  # their overviews do not share a lattice
            yield from (_layer([(member, 0, 0)], target) for member, _, _ in group)
        else:
            yield layer


_Group = list[tuple[Scene, int, int]]  # parts with the (row, col) of their origin in the first one
_known_groups: WeakKeyDictionary[Scene, list[_Group]] = WeakKeyDictionary()


def _groups(scene: Scene) -> list[_Group]:
    groups = _known_groups.get(scene)
    if groups is None:
        groups = []
        for part in scene.parts():
            offset = _offset(groups[-1][0][0].info.geobox, part.info.geobox) if groups else None
            if offset is None:
                groups.append([(part, 0, 0)])
            else:
                groups[-1].append((part, *offset))
        _known_groups[scene] = groups
    return groups


def _layer(group: _Group, target: Target) -> Layer:
    """Joins parts on one lattice into a layer whose origin is the upper left of all."""
    row0, col0 = min(r for _, r, _ in group), min(c for _, _, c in group)
    rows = max(r + s.info.geobox.shape.y for s, r, _ in group) - row0
    cols = max(c + s.info.geobox.shape.x for s, _, c in group) - col0
    first = group[0][0].info.geobox
    geobox = GeoBox((rows, cols), compose(first.affine, Affine.translation(col0, row0)), first.crs)
    members = tuple((s, r - row0, c - col0) for s, r, c in group)
    return Layer(members, geobox, _ratio(geobox, target), _copy(geobox, target))


def _offset(a: GeoBox, b: GeoBox) -> tuple[int, int] | None:
    """(row, col) of the origin of `b` in the pixels of `a`, when both are cut from one lattice."""
    if not same_crs(a.crs, b.crs):
        return None
    relative = compose(~a.affine, b.affine)
    drift = max(abs(relative.a - 1), abs(relative.b), abs(relative.d), abs(relative.e - 1))
    row, col = round(relative.f), round(relative.c)
    misfit = max(abs(relative.f - row), abs(relative.c - col))
    reach = max(b.shape.y, b.shape.x)
    return (row, col) if misfit + drift * reach < _SAME_LATTICE else None


def _ratio(source: GeoBox, target: Target) -> float:
    """Source pixels per target pixel along the more crowded axis, at the middle of the source: a property
    of the two lattices, the same for all windows."""
    return _lattice_ratio(source, linear(target.affine), target.crs)


@lru_cache(maxsize=1024)
def _lattice_ratio(source: GeoBox, affine: Affine, crs: CRS | None) -> float:
    plain = Target(affine, crs, (1, 1))
    back = Mapping(GeoBox((1, 1), affine, crs), Target(source.affine, source.crs, (1, 1)))
    x, y = back.exact(np.array(source.shape.x / 2), np.array(source.shape.y / 2))
    step = 8.0
    sx, sy = Mapping(source, plain).exact(
        x + np.array([-step, step, 0, 0]), y + np.array([0, 0, -step, step])
    )
    wide = hypot(sx[1] - sx[0], sx[3] - sx[2]) / (2 * step)
    high = hypot(sy[1] - sy[0], sy[3] - sy[2]) / (2 * step)
    return float(max(wide, high)) if np.isfinite([wide, high]).all() else 1.0


def _copy(source: GeoBox, target: Target) -> tuple[int, int, int, int] | None:
    """(row, col, row step, col step) when target pixel (i, j) is source pixel (row + i * row step, ...)."""
    direct = Mapping(source, target).affine
    if direct is None:
        return None
    step_x, step_y = round(direct.a), round(direct.e)
    if abs(step_x) != 1 or abs(step_y) != 1:
        return None
    drift = max(abs(direct.a - step_x), abs(direct.b), abs(direct.d), abs(direct.e - step_y))
    # Centre to centre: the first pixel of the target, in whole pixels of the source.
    col = direct.c + direct.a / 2 - 0.5
    row = direct.f + direct.e / 2 - 0.5
    misfit = max(abs(col - round(col)), abs(row - round(row)))
    if misfit + drift * max(source.shape.y, source.shape.x) >= _SAME_LATTICE:
        return None
    return round(row), round(col), step_y, step_x


@dataclass(frozen=True)
class _How:
    """How one layer is resampled: the same for all windows of a target."""

    kernel: Kernel
    decimation: int
    share: float
    as_power: bool  # values are decibels, whose mean is that of the powers


def _how(layer: Layer, kernel: Kernel | None, unit: Unit, share: float) -> _How:
    if kernel is None:
        kernel = Kernel.AVERAGE if layer.ratio >= AVERAGE_FROM else Kernel.BILINEAR
    decimation = 1
    if kernel is Kernel.AVERAGE and layer.ratio >= _DECIMATE_FROM:
        decimation = 2 ** int(np.log2(layer.ratio / (_DECIMATE_FROM / 2)))
    return _How(kernel, decimation, share, unit is Unit.DB and kernel is not Kernel.NEAREST)


def _from_layer(layer: Layer, target: Target, bands: Sequence[str], how: _How) -> Block | None:
    """One layer on the target; None when it has no pixel there."""
    if layer.copy is not None:
        return _copied(layer, target.shape, bands)
    if not _may_touch(layer.geobox, target):
        return None
    pieces = _pieces(layer, target, len(bands), how.decimation)
    if len(pieces) == 1:
        return _sampled(layer, target, bands, how)
    whole = _nothing(len(bands), target.shape)
    for window in pieces:
        piece = target.crop(window.row, window.col, window.height, window.width)
        block = _sampled(layer, piece, bands, how)
        if block is not None:
            whole.data[:, window.slices[0], window.slices[1]] = block.data
            whole.mask[window.slices] = block.mask
    return whole


def _may_touch(source: GeoBox, target: Target) -> bool:
    """False when the target lies beside the source, judged by a few of its points with a wide margin."""
    h, w = target.shape
    x, y = np.meshgrid(np.linspace(0, w, 5), np.linspace(0, h, 5))
    sx, sy = Mapping(source, target).exact(x, y)
    if not (np.isfinite(sx).all() and np.isfinite(sy).all()):
        return True
    for at, size in ((sx, source.shape.x), (sy, source.shape.y)):
        margin = 0.25 * np.ptp(at) + 4
        if at.max() + margin < 0 or at.min() - margin > size:
            return False
    return True


def _copied(layer: Layer, shape: tuple[int, int], bands: Sequence[str]) -> Block | None:
    """Source pixels as they are, mirrored where the rows or columns of the source run the other way."""
    row, col, step_y, step_x = layer.copy or (0, 0, 1, 1)
    h, w = shape
    window = Window(row if step_y > 0 else row - h + 1, col if step_x > 0 else col - w + 1, h, w)
    inside = window.clip(layer.geobox.shape.y, layer.geobox.shape.x)
    if not inside.height or not inside.width:
        return None
    block = layer.read(window, bands)
    return Block(block.data[:, ::step_y, ::step_x], block.mask[::step_y, ::step_x])


def _pieces(layer: Layer, target: Target, bands: int, decimation: int) -> list[Window]:
    """The target cut so that the source pixels behind a piece stay within a budget of memory."""
    per_side = (_BUDGET / bands) ** 0.5 * decimation / max(layer.ratio, 1e-3)
    side = max(16, int(per_side))
    h, w = target.shape
    return [
        Window(row, col, min(side, h - row), min(side, w - col))
        for row in range(0, h, side)
        for col in range(0, w, side)
    ]


def _sampled(layer: Layer, target: Target, bands: Sequence[str], how: _How) -> Block | None:
    """One piece: positions, the source window behind them, its pixels, the kernel."""
    mapping = Mapping(layer.geobox, target)
    x, y, size = _boxes(mapping) if how.kernel is Kernel.AVERAGE else (*mapping.centres(), None)
    h, w = layer.geobox.shape.y, layer.geobox.shape.x
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    if not inside.any():
        return None
    reach = (0.0, 0.0) if size is None else tuple(float(s[inside].max()) / 2 for s in size)
    left, right = float(x[inside].min()) - reach[0], float(x[inside].max()) + reach[0]
    top, bottom = float(y[inside].min()) - reach[1], float(y[inside].max()) + reach[1]
    if (right - left) * (bottom - top) * len(bands) > 8 * _BUDGET * how.decimation**2 and min(
        target.shape
    ) > 1:
        return _halved(layer, target, bands, how)  # the piece straddles a seam
    if not inside.all():
        x, y = np.where(inside, x, np.nan), np.where(inside, y, np.nan)
    window = _source_window((left, top, right, bottom), (h, w), how.kernel, how.decimation)
    block = layer.read(window, bands, how.decimation)
    if how.as_power:
        block.data = 10 ** (block.data / 10)
    if size is not None:
        size = (size[0] / how.decimation, size[1] / how.decimation)
    x, y = (x - window.col) / how.decimation, (y - window.row) / how.decimation
    out = resample(block, x, y, how.kernel, size, how.share)
    if how.as_power:
        out.data = 10 * np.log10(out.data)
    return out


def _source_window(
    bounds: tuple[float, float, float, float], shape: tuple[int, int], kernel: Kernel, decimation: int
) -> Window:
    """Whole source pixels around positions, with the kernel's halo. A decimated window stays inside of the
    source and starts on a multiple of the step, so that all windows see the same decimated pixels."""
    left, top, right, bottom = bounds
    halo = kernel.halo + 1
    if decimation == 1:
        row, col = int(np.floor(top)) - halo, int(np.floor(left)) - halo
        return Window(row, col, int(np.ceil(bottom)) + halo - row, int(np.ceil(right)) + halo - col)
    step = decimation
    row, col = int(np.floor(top / step) - halo) * step, int(np.floor(left / step) - halo) * step
    end_row, end_col = int(np.ceil(bottom / step) + halo) * step, int(np.ceil(right / step) + halo) * step
    return Window(row, col, end_row - row, end_col - col).clip(*shape)


def _halved(layer: Layer, target: Target, bands: Sequence[str], how: _How) -> Block | None:
    """The longer side of a piece cut in two, for pieces whose source window is torn apart."""
    h, w = target.shape
    axis = 0 if h >= w else 1
    cut = (h if axis == 0 else w) // 2
    halves = (
        [target.crop(0, 0, cut, w), target.crop(cut, 0, h - cut, w)]
        if axis == 0
        else [target.crop(0, 0, h, cut), target.crop(0, cut, h, w - cut)]
    )
    blocks = [_sampled(layer, half, bands, how) for half in halves]
    if all(b is None for b in blocks):
        return None
    whole = [b or _nothing(len(bands), half.shape) for b, half in zip(blocks, halves, strict=True)]
    return Block(
        np.concatenate([b.data for b in whole], axis=axis + 1),
        np.concatenate([b.mask for b in whole], axis=axis),
    )


def _boxes(mapping: Mapping) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Centres of the target pixels on the source, and the size of the box that each one covers there: for a
    rotated grid the upright box of equal area."""
    x, y = mapping.corners()
    cx, cy = (0.25 * (p[:-1, :-1] + p[1:, :-1] + p[:-1, 1:] + p[1:, 1:]) for p in (x, y))
    size = []
    for p in (x, y):
        across = 0.5 * (p[:-1, 1:] - p[:-1, :-1] + p[1:, 1:] - p[1:, :-1])
        down = 0.5 * (p[1:, :-1] - p[:-1, :-1] + p[1:, 1:] - p[:-1, 1:])
        size.append(np.hypot(across, down))
    return cx, cy, (size[0], size[1])
