"""Several scenes of one date beside each other, in one or several projections, as one scene."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from terralapse.errors import BandError, SettingError
from terralapse.grid._gdal import gdal_env
from terralapse.grid._georef import place, resolution_m
from terralapse.grid._stack import merge_codes
from terralapse.grid.scene import Block, Note, Scene, SceneInfo, Source, Window
from terralapse.labels import SceneMask

_ALIGNED = 1e-3  # of a pixel: tiles cut from one grid differ by rounding only
_SAME_PLACE = 0.9  # share of common ground above which two members are two images of one place


@dataclass(frozen=True)
class _Member:
    """A part and the grid on which the mosaic sees it (moved by 360 degrees beyond the antimeridian)."""

    scene: Scene
    geobox: GeoBox


class MosaicScene(Scene):
    """The first member that is usable at a pixel gives it; members come in the order given.

    `info.geobox` is nominal: the CRS of most members, at their finest resolution, over the union of all.
    Tiles cut from that grid are copied; others are put on it bilinearly (masks by nearest neighbour).
    Warping to another grid should go through `parts`, so that pixels are resampled once.

    `several_dates` says that members of one place and different dates are meant: a composite.

    Raises:
        BandError: the members have no band in common, or different units.
        SettingError: members of different dates show the same place (a time series, not a mosaic).
    """

    def __init__(self, scenes: Sequence[Scene], name: str, uri: str, *, several_dates: bool = False) -> None:
        if not scenes:
            raise ValueError("a mosaic needs members")
        self._scenes = list(scenes)
        infos = [s.info for s in scenes]
        if not several_dates:
            _check_dates(infos)
        bands, notes = _common_bands(infos)
        geobox, boxes = nominal_grid([i.geobox for i in infos])
        self._members = [_Member(s, b) for s, b in zip(scenes, boxes, strict=True)]
        first = infos[0]
        crs_names = sorted({str(i.geobox.crs) for i in infos})
        if len(crs_names) > 1:
            count = f"{len(infos)} tiles in {len(crs_names)} projections"
            text = f"{count}; the nominal grid is in {_title(geobox)}."
            notes.append(Note("info", "several-projections", text))
        self.info = replace(
            first,
            name=name,
            uri=uri,
            bands=bands,
            geobox=geobox,
            time=_time(infos, notes),
            notes=[*notes, *_member_notes(infos)],
            sources=_sources(infos),
            nodata=", ".join(dict.fromkeys(i.nodata for i in infos)),
            cloud_mask=", ".join(dict.fromkeys(i.cloud_mask for i in infos)),
        )

    def parts(self) -> list[Scene]:
        return [p for s in self._scenes for p in s.parts()]

    def close(self) -> None:
        for s in self._scenes:
            s.close()

    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        names = [self.info.bands[i].name for i in self.band_indices(bands)]
        target = _window_grid(self.info.geobox, window, decimation)
        h, w = target.shape
        data = np.full((len(names), h, w), np.nan, np.float32)
        mask = np.full((h, w), int(SceneMask.OUTSIDE), np.uint8)
        for member in self._members:
            placed = _on(member, target, names, window, decimation)
            if placed is None:
                continue
            block, (rows, cols) = placed
            here, there = mask[rows, cols], data[:, rows, cols]
            fresh = (here != SceneMask.VALID) & (block.mask == SceneMask.VALID)
            there[:, fresh] = block.data[:, fresh]
            # Where nobody has a usable pixel, the reason of the first member that covers it stays.
            reason = fresh | (here == SceneMask.OUTSIDE)
            here[reason] = block.mask[reason]
            if not mask.any():
                break
        data[:, mask != SceneMask.VALID] = np.nan
        return Block(data, mask)


def nominal_grid(boxes: Sequence[GeoBox]) -> tuple[GeoBox, list[GeoBox]]:
    """The grid over the union of several, and each of them as seen from it.

    North-up, in the most frequent CRS (the first of several), at the finest pixel size of the members in that
    CRS, anchored on the first of these. Members west of the antimeridian of a union that crosses it are moved
    by 360 degrees.
    """
    counts = Counter(str(b.crs) for b in boxes)
    wanted = max(counts, key=lambda c: counts[c])  # the first of equals: a Counter keeps the order of arrival
    crs = next(b.crs for b in boxes if str(b.crs) == wanted)
    assert crs is not None
    own = [b for b in boxes if str(b.crs) == wanted]
    step = min(_pixel_size(b) for b in own)
    spans = [_span(b, crs) for b in boxes]
    seen = list(boxes)
    if crs.geographic:
        west, east = min(s[0] for s in spans), max(s[2] for s in spans)
        moved = [_moved(s) for s in spans]
        if east - west > 180 and max(s[2] for s in moved) - min(s[0] for s in moved) < east - west:
            shifts = [a[0] - b[0] for a, b in zip(moved, spans, strict=True)]
            spans = moved
            seen = [_shift(b, d) if d and b.crs == crs else b for b, d in zip(boxes, shifts, strict=True)]
    anchor_box = next(b for b in seen if str(b.crs) == wanted)
    anchor = anchor_box.affine.c, anchor_box.affine.f
    left, bottom = min(s[0] for s in spans), min(s[1] for s in spans)
    right, top = max(s[2] for s in spans), max(s[3] for s in spans)
    col0 = _floor((left - anchor[0]) / step)
    row0 = _floor((anchor[1] - top) / step)
    cols = -_floor(-(right - anchor[0]) / step) - col0
    rows = -_floor(-(anchor[1] - bottom) / step) - row0
    affine = Affine(step, 0, anchor[0] + col0 * step, 0, -step, anchor[1] - row0 * step)
    return GeoBox((max(rows, 1), max(cols, 1)), affine, crs), seen


def _title(box: GeoBox) -> str:
    assert box.crs is not None
    return box.crs.proj.name


def _floor(value: float) -> int:
    """Floor that takes a value a thousandth below a whole number for that number."""
    return math.floor(value + _ALIGNED)


def _pixel_size(box: GeoBox) -> float:
    a = box.affine
    return min(math.hypot(a.a, a.d), math.hypot(a.b, a.e))


def _span(box: GeoBox, crs: object) -> tuple[float, float, float, float]:
    edge = box.extent if box.crs == crs else box.extent.to_crs(crs, resolution="auto")  # pyright: ignore[reportArgumentType]
    b = edge.boundingbox
    return b.left, b.bottom, b.right, b.top


def _moved(span: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    shift = 360 if span[0] < 0 else 0
    return span[0] + shift, span[1], span[2] + shift, span[3]


def _shift(box: GeoBox, degrees: float) -> GeoBox:
    a = box.affine
    return GeoBox(box.shape, Affine(a.a, a.b, a.c + degrees, a.d, a.e, a.f), box.crs)


def _window_grid(box: GeoBox, window: Window, d: int) -> GeoBox:
    """The grid of a window, decimated; the window may lie outside."""
    a = box.affine
    x, y = place(a, np.array(window.col), np.array(window.row))
    affine = Affine(a.a * d, a.b * d, float(x), a.d * d, a.e * d, float(y))
    return GeoBox((math.ceil(window.height / d), math.ceil(window.width / d)), affine, box.crs)


def _on(
    member: _Member, target: GeoBox, names: list[str], wanted: Window, d: int
) -> tuple[Block, tuple[slice, slice]] | None:
    """A member's pixels on a target grid, which is that of a decimated window, and where they belong in it.

    None when it has none there.
    """
    offset = _offset(member.geobox, target, d)
    if offset is not None:
        return _copied(member, offset, names, wanted, d)
    window = _source_window(member.geobox, target)
    if window is None:
        return None
    k = max(1, math.floor(resolution_m(target) / max(resolution_m(member.geobox), 1e-9) + 1e-3))
    window = Window(window.row // k * k, window.col // k * k, window.height + k, window.width + k)
    block = member.scene.read(window, names, k)
    h, w = target.shape
    return _warp(block, _window_grid(member.geobox, window, k), target), (slice(0, h), slice(0, w))


def _copied(
    member: _Member, offset: tuple[int, int], names: list[str], wanted: Window, d: int
) -> tuple[Block, tuple[slice, slice]] | None:
    """The part of a window that a member on the same grid has, in whole target pixels."""
    row, col = offset
    inside = Window(row, col, wanted.height, wanted.width).clip(*member.geobox.shape)
    if not (inside.height and inside.width):
        return None
    r0, c0 = (inside.row - row) // d, (inside.col - col) // d
    r1 = math.ceil((inside.row + inside.height - row) / d)
    c1 = math.ceil((inside.col + inside.width - col) / d)
    window = Window(
        row + r0 * d, col + c0 * d, min(r1 * d, wanted.height) - r0 * d, min(c1 * d, wanted.width) - c0 * d
    )
    return member.scene.read(window, names, d), (slice(r0, r1), slice(c0, c1))


def _offset(box: GeoBox, target: GeoBox, d: int) -> tuple[int, int] | None:
    """Where a target grid begins in a member's pixels, when the two differ by whole pixels only."""
    if box.crs != target.crs:
        return None
    h, w = target.shape
    x, y = place(~box.affine, *place(target.affine, np.array([0, w, 0]), np.array([0, 0, h])))
    col, row = round(x[0]), round(y[0])
    off = np.abs([x - col - np.array([0, w * d, 0]), y - row - np.array([0, 0, h * d])]).max()
    return (row, col) if off <= _ALIGNED * d else None


def _source_window(box: GeoBox, target: GeoBox) -> Window | None:
    """The pixels of `box` that can matter to a target grid: its outline and inner lines, carried over."""
    h, w = target.shape
    lines = np.linspace(0, 1, 17)
    x, y = np.meshgrid(lines * w, lines * h)
    wx, wy = place(target.affine, x.ravel(), y.ravel())
    if target.crs != box.crs:
        assert target.crs is not None
        wx, wy = target.crs.transformer_to_crs(box.crs)(wx, wy)  # pyright: ignore[reportArgumentType]
    px, py = place(~box.affine, np.asarray(wx), np.asarray(wy))
    good = np.isfinite(px) & np.isfinite(py)
    if not good.any():
        return None
    px, py = px[good], py[good]
    row, col = math.floor(py.min()), math.floor(px.min())
    window = Window(row, col, math.ceil(py.max()) - row, math.ceil(px.max()) - col).pad(3).clip(*box.shape)
    return window if window.height and window.width else None


def _warp(block: Block, source: GeoBox, target: GeoBox) -> Block:
    data = np.full((block.data.shape[0], *target.shape), np.nan, np.float32)
    mask = np.full(target.shape, int(SceneMask.OUTSIDE), np.uint8)
    grids = {
        "src_transform": source.affine,
        "src_crs": str(source.crs),
        "dst_transform": target.affine,
        "dst_crs": str(target.crs),
    }
    with gdal_env():
        reproject(
            block.data, data, src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.bilinear, **grids
        )
        # Codes move up by one, because 0 would be read as nothing.
        moved = np.zeros(target.shape, np.uint8)
        reproject(block.mask + 1, moved, src_nodata=0, dst_nodata=0, resampling=Resampling.nearest, **grids)
    mask[moved > 0] = moved[moved > 0] - 1
    lost = np.where(
        np.isnan(data).any(axis=0) & (mask == SceneMask.VALID), np.uint8(SceneMask.NODATA), np.uint8(0)
    )
    mask = merge_codes(mask, lost)
    data[:, mask != SceneMask.VALID] = np.nan
    return Block(data, mask)


def _common_bands(infos: Sequence[SceneInfo]) -> tuple[tuple, list[Note]]:
    first = infos[0]
    for i in infos[1:]:
        if i.unit != first.unit:
            raise BandError(
                i.name,
                f"is in {i.unit.value}, and {first.name} in {first.unit.value}",
                "Give tiles of one product in one folder.",
            )
    common = [b for b in first.bands if all(b.name in {x.name for x in i.bands} for i in infos)]
    if not common:
        raise BandError(
            first.name, "shares no band with the other tiles", "Give tiles of one product in one folder."
        )
    every = dict.fromkeys(b.name for i in infos for b in i.bands)
    left = [n for n in every if n not in {b.name for b in common}]
    notes = []
    if left:
        text = f"Bands that not all tiles have were left out: {', '.join(left)}."
        notes.append(Note("warning", "bands-left-out", text))
    return tuple(common), notes


def _check_dates(infos: Sequence[SceneInfo]) -> None:
    """A folder of several dates of one place is not a mosaic."""
    placed = [(i, *_span(i.geobox, "EPSG:4326")) for i in infos if i.time is not None]
    for k, (a, *box_a) in enumerate(placed):
        for b, *box_b in placed[k + 1 :]:
            assert a.time is not None
            assert b.time is not None
            if a.time.date() != b.time.date() and _shared(box_a, box_b) > _SAME_PLACE:
                raise SettingError(
                    f"{a.name} and {b.name}",
                    f"show the same place on {a.time:%Y-%m-%d} and {b.time:%Y-%m-%d}, in one folder of tiles",
                    "Name the one image that is meant.",
                )


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def _time(infos: Sequence[SceneInfo], notes: list[Note]):
    times = sorted(i.time for i in infos if i.time is not None)
    if not times:
        return None
    if times[0].date() != times[-1].date():
        text = f"Tiles are from {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}; the middle one dates the mosaic."
        notes.append(Note("warning", "several-dates", text))
    return times[len(times) // 2]


def _member_notes(infos: Sequence[SceneInfo]) -> list[Note]:
    """What was noted of members, each once, with how many it is true of."""
    counted = Counter(n for i in infos for n in i.notes)
    return [
        n if k == len(infos) else replace(n, text=f"{n.text} ({k} of {len(infos)} tiles)")
        for n, k in counted.items()
    ]


def _sources(infos: Sequence[SceneInfo]) -> list[Source]:
    return list(dict.fromkeys(s for i in infos for s in i.sources))
