"""One plain raster file (GeoTIFF, COG, JPEG 2000, PNG, JPEG, WebP, VRT), local or over http, as a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine
from rasterio.windows import Window as RioWindow

from terralapse.errors import (
    HostileFileError,
    TerralapseError,
    UnreadableFileError,
)
from terralapse.grid import _gdal, _remote
from terralapse.grid._gdal import Handle, gdal_env
from terralapse.grid._georef import LOCAL_GRID, Raster, geobox_of, locate, resolution_m
from terralapse.grid._guess import Guess, Hints, guess, parse_time, time_of
from terralapse.grid._safety import check_image
from terralapse.grid._stack import BlockMask, Layer, MaskLayer, StackScene, is_nodata, read_raw
from terralapse.grid._tiff import MAX_BLOCK_BYTES, MAX_SAMPLES, TiffLayout
from terralapse.grid.scene import Note, SceneInfo, Source, Window
from terralapse.labels import SceneMask
from terralapse.sensors import NAIP, RGB, SENTINEL2

MAX_PIXELS = 2**44


def open_file(
    source: str | Path,
    *,
    assume_crs: str | None = None,
    pixel_grid: bool = False,
    s2_offset: float | None = None,
) -> StackScene:
    """A raster file as a scene; `source` is a local path or an http(s) address.

    Args:
        source: the file.
        assume_crs: the CRS of a file that has a transform and no CRS (a PNG with a world file).
        pixel_grid: put an image without any georeference on an arbitrary grid of one metre a pixel.
        s2_offset: for Sentinel-2 files without metadata, the offset in reflectance (0 or -0.1).

    Raises:
        NoGeoreferenceError, UnsupportedGeoreferenceError: it cannot be placed.
        UnreadableFileError, TruncatedFileError, HostileFileError, FileMissingError: it cannot be read.
    """
    raster = open_raster(source, assume_crs=assume_crs, pixel_grid=pixel_grid)
    try:
        return scene_of(raster, s2_offset=s2_offset)
    except TerralapseError:
        _gdal.close([raster.handle])  # a block that was looked at may be broken
        raise


def open_raster(
    source: str | Path,
    *,
    assume_crs: str | None = None,
    pixel_grid: bool = False,
    member: Handle | None = None,
) -> Raster:
    """Judges and opens one raster file and finds its grid.

    Args:
        source: a local path, an http(s) address, or with `member` only a name for messages.
        assume_crs, pixel_grid: as in `open_file`.
        member: a file inside an archive that has been checked (`/vsizip/...`).
    """
    uri = str(source)
    if member is not None:
        raster = _opened(Path(uri).name, uri, member, [], [], None)
    elif _remote.is_url(uri):
        remote = _remote.check_image(uri)
        handle = Handle(uri, remote.driver, stamp=remote.stamp)
        raster = _opened(_remote.file_name(uri), uri, handle, remote.layouts, [], remote.size)
    else:
        checked = check_image(Path(source))
        path = checked.path.resolve()
        handle = Handle(str(path), checked.driver, stamp=path.stat().st_mtime_ns)
        raster = _opened(checked.path.name, uri, handle, checked.layouts, checked.notes, checked.size)
    try:
        locate(raster, assume_crs, pixel_grid)
    except TerralapseError:
        _gdal.close([raster.handle])  # a file that is refused is not held open
        raise
    return raster


def scene_of(raster: Raster, *, s2_offset: float | None = None) -> StackScene:
    """A scene of one raster, with everything guessed from the file itself."""
    p = raster.profile
    data, alpha = _split_alpha(raster)
    if not data:
        hint = "Give an image with data bands."
        raise UnreadableFileError(raster.name, "has an alpha band and nothing else", hint)
    stored = [_layer(raster, i) for i in data]
    found = _palette() if p["palette"] else guess(_hints(raster, data, stored))
    if s2_offset is not None and found.sensor is SENTINEL2:
        _set_offset(found, s2_offset)
    layers = [_palette_layer(raster, c) for c in range(3)] if p["palette"] else _scaled(stored, found)
    collar = _has_collar(raster, layers, alpha)
    if collar:
        layers = [replace(x, nodata=0.0) for x in layers]
        text = "A corner is black in all bands and no nodata value is stated: zeros in all count as nodata."
        raster.notes.append(Note("warning", "black-collar", text))
    masks, told = _masks(raster, alpha, layers)
    time = _time(raster)
    why = Note("info", "sensor-guess", f"{found.sensor.title}: {found.why}.")
    info = SceneInfo(
        name=Path(raster.name).stem,
        uri=raster.uri,
        sensor=found.sensor,
        bands=found.bands,
        unit=found.unit,
        geobox=raster.geobox,
        time=time,
        dtype=p["dtypes"][data[0] - 1],
        nodata=told,
        notes=[*raster.notes, *found.notes, why],
        sources=[Source(raster.uri, raster.size)],
    )
    # In a picture a zero is also a dark red or blue; nodata is what is zero in all bands.
    picture = found.sensor in (RGB, NAIP) or collar
    together = picture and len(layers) > 1 and all(x.nodata is not None for x in layers)
    return StackScene(info, layers, masks, layers if together else None)


def sample(layers: Sequence[Layer], blocks: int = 3) -> np.ndarray:
    """A few stored values [layers, n] as float64, NaN where nodata: from full-resolution squares of 128
    pixels along the diagonal, so that it costs the same for any size of file."""
    out = []
    with ExitStack() as stack:
        for handle in dict.fromkeys(x.handle for x in layers):
            with gdal_env(remote=handle.remote):
                height, width = _gdal.dataset(handle).shape
            bands = [x.index for x in layers if x.handle == handle]
            spans = [((r, r + h), (c, c + w)) for r, c, h, w in _diagonal(height, width, blocks)]
            stack.enter_context(_gdal.fetched(handle, bands, spans))
        for x in layers:
            parts = []
            with _gdal.reading(x.handle, f"band {x.index}") as ds:
                for row, col, height, width in _diagonal(ds.height, ds.width, blocks):
                    stored = ds.read(x.index, window=RioWindow(col, row, width, height))  # pyright: ignore[reportCallIssue]
                    values = stored.astype(np.float64)
                    parts.append(np.where(is_nodata(stored, x.nodata), np.nan, values).ravel())
            out.append(np.concatenate(parts))
    return np.stack(out)


def _diagonal(height: int, width: int, blocks: int) -> list[tuple[int, int, int, int]]:
    """Squares of 128 pixels (row, column, height, width) along the diagonal of an image."""
    h, w = min(128, height), min(128, width)
    places = [(k + 0.5) / blocks for k in range(blocks)]
    return [(int((height - h) * at), int((width - w) * at), h, w) for at in places]


def _opened(
    name: str, uri: str, handle: Handle, layouts: list[TiffLayout], notes: list[Note], size: int | None
) -> Raster:
    """Reads the header through GDAL into a plain dictionary."""
    with gdal_env(remote=handle.remote):
        ds = _gdal.dataset(handle)
        try:
            profile = _header(name, ds)
        except _gdal.GDAL_ERRORS as e:
            raise _remote.failure() or _gdal.open_error(handle.path, e) from e
        if handle.remote and (error := _remote.failure()) is not None:
            raise error
    placeholder = geobox_of(profile["width"], profile["height"], Affine.identity(), LOCAL_GRID)
    return Raster(name, uri, handle, profile, layouts, placeholder, list(notes), size)


def _header(name: str, ds: Any) -> dict[str, Any]:
    if ds.count == 0:
        hint = "Give one of its rasters."
        raise UnreadableFileError(name, "has no bands of its own", hint)
    if ds.count > MAX_SAMPLES or ds.width * ds.height > MAX_PIXELS:
        fault = f"declares {ds.width} x {ds.height} pixels and {ds.count} bands"
        raise HostileFileError(name, fault, "Check where the file comes from.")
    for dtype in ds.dtypes:
        if "complex" in dtype:
            hint = "Make intensity or amplitude of it first (for SAR: calibrate and detect)."
            raise UnreadableFileError(name, f"holds complex numbers ({dtype})", hint)
    rows, cols = ds.block_shapes[0]
    if rows * cols * np.dtype(ds.dtypes[0]).itemsize > MAX_BLOCK_BYTES:
        raise HostileFileError(name, f"is stored in blocks of {cols} x {rows} pixels", "Rewrite it as tiles.")
    gcps, gcp_crs = ds.gcps
    palette = None
    if ds.colorinterp[0] is ColorInterp.palette and ds.dtypes[0] == "uint8":
        # GDAL gives black and white to files of one bit, whose zeros and ones are the data.
        palette = ds.colormap(1) if ds.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") != "1" else None
    return {
        "dtypes": ds.dtypes,
        "count": ds.count,
        "descriptions": ds.descriptions,
        "colours": tuple(c.name for c in ds.colorinterp),
        "scales": ds.scales,
        "offsets": ds.offsets,
        "units": ds.units,
        "nodata": ds.nodatavals,
        "masks": ds.mask_flag_enums,
        "tags": {**ds.tags(ns="IMAGERY"), **ds.tags()},
        "structure": ds.tags(ns="IMAGE_STRUCTURE"),
        "overviews": tuple(ds.overviews(1)),
        "block": (rows, cols),
        "gcps": gcps,
        "gcp_crs": gcp_crs,
        "rpcs": ds.rpcs is not None,
        "crs": ds.crs,
        "transform": ds.transform,
        "width": ds.width,
        "height": ds.height,
        "palette": palette,
    }


def _split_alpha(raster: Raster) -> tuple[list[int], int | None]:
    """Positions (from 1) of data bands, and of the alpha band when there is one.

    GDAL calls the fourth of four 8-bit bands alpha when the writer said nothing, which turns near-infrared
    into a mask. A real alpha band holds almost only 0 and 255.
    """
    p = raster.profile
    if p.get("warped"):
        return list(range(1, p["count"] + 1)), p["count"] + 1
    colours = list(p["colours"])
    alphas = [i + 1 for i, c in enumerate(colours) if c == "alpha"]
    if not alphas:
        return list(range(1, p["count"] + 1)), None
    alpha = alphas[-1]
    values = sample([Layer(raster.handle, alpha)])
    full = float(np.iinfo(p["dtypes"][alpha - 1]).max) if "int" in p["dtypes"][alpha - 1] else 1.0
    between = float(np.mean((values > 0) & (values < full)))
    if between > 0.5:
        text = f"Band {alpha} is marked as alpha but holds data; it was read as a band."
        raster.notes.append(Note("warning", "alpha-is-data", text))
        raster.profile = {
            **p,
            "masks": tuple([MaskFlags.all_valid] for _ in p["masks"]),
            "alpha_is_data": True,
        }
        return list(range(1, p["count"] + 1)), None
    return [i for i in range(1, p["count"] + 1) if i != alpha], alpha


def _layer(raster: Raster, index: int) -> Layer:
    p = raster.profile
    nodata = p["nodata"][index - 1]
    return Layer(
        raster.handle,
        index,
        p["scales"][index - 1],
        p["offsets"][index - 1],
        nodata,
        overviews=p["overviews"],
    )


def _nodata(stated: float | None, found: Guess) -> float | None:
    """The file's own value, or the one that the sensor's provider always uses for reflectance."""
    if stated is None and found.unit == found.sensor.unit and found.sensor.nodata is not None:
        return found.sensor.nodata
    return stated


def _has_collar(raster: Raster, layers: Sequence[Layer], alpha: int | None) -> bool:
    """Whether a corner of an 8-bit colour image is black without saying so, as in NAIP quarter quads."""
    p = raster.profile
    said = alpha is not None or p["palette"] or any(x.nodata is not None for x in layers)
    masked = MaskFlags.per_dataset in p["masks"][0] or not p["masks"][0]
    if said or masked or len(layers) < 3 or p["dtypes"][0] != "uint8":
        return False
    height, width = p["height"], p["width"]
    side = min(16, height, width)
    indexes = [x.index for x in layers]
    corners = [Window(r, c, side, side) for r in (0, height - side) for c in (0, width - side)]
    spans = [((w.row, w.row + side), (w.col, w.col + side)) for w in corners]
    with _gdal.fetched(raster.handle, indexes, spans):
        return any(not read_raw(raster.handle, indexes, w).any() for w in corners)


def _hints(raster: Raster, data: Sequence[int], stored: Sequence[Layer]) -> Hints:
    """What the file says of its data bands."""
    p = raster.profile
    return Hints(
        name=raster.uri if _remote.is_url(raster.uri) else "/".join(Path(raster.uri).parts[-2:]),
        dtype=p["dtypes"][0],
        count=len(data),
        descriptions=tuple(p["descriptions"][i - 1] for i in data),
        colours=tuple(p["colours"][i - 1] for i in data),
        scales=tuple(p["scales"][i - 1] for i in data),
        offsets=tuple(p["offsets"][i - 1] for i in data),
        units=tuple(p["units"][i - 1] for i in data),
        gsd=resolution_m(raster.geobox),
        tags=p["tags"],
        sample=lambda: sample(stored),
    )


def _set_offset(found: Guess, offset: float) -> None:
    found.offsets = (float(offset),) * len(found.offsets)
    found.notes = [n for n in found.notes if n.code != "s2-offset-unknown"]
    found.notes.append(Note("info", "s2-offset", f"The offset {offset:g} was given by the user."))


def _scaled(stored: Sequence[Layer], found: Guess) -> list[Layer]:
    """The layers that stay, with what their numbers mean."""
    return [
        replace(
            stored[k], scale=found.scales[j], offset=found.offsets[j], nodata=_nodata(stored[k].nodata, found)
        )
        for j, k in enumerate(found.keep)
    ]


def _time(raster: Raster) -> datetime | None:
    """By tags and name, then the folder's name, then the tag that is often the time of writing."""
    tags = dict(raster.profile["tags"])
    written = tags.pop("TIFFTAG_DATETIME", "")
    found, _ = time_of(raster.name, tags)
    if found is None:
        folder = Path(raster.uri).parent.name
        found, _ = time_of(folder)
        if found is not None:
            text = f"The date {found:%Y-%m-%d} is from the name of the folder, {folder}."
            raster.notes.append(Note("info", "date-from-folder", text))
    if found is None and written:
        found = parse_time(written)
        if found is not None:
            text = (
                f"The date {found:%Y-%m-%d} is from TIFFTAG_DATETIME, which may be when the file was written."
            )
            raster.notes.append(Note("warning", "date-from-writing", text))
    return found


def _palette() -> Guess:
    why = Note("info", "palette-expanded", "Palette colours were expanded to red, green and blue.")
    scales, offsets = (1.0,) * 3, (0.0,) * 3
    return Guess(RGB, RGB.bands, (0,), RGB.unit, scales, offsets, "a palette of colours", [why])


def _palette_layer(raster: Raster, channel: int) -> Layer:
    colours = raster.profile["palette"]
    lut = tuple(float(colours.get(v, (0, 0, 0, 255))[channel]) for v in range(256))
    return Layer(raster.handle, 1, nodata=raster.profile["nodata"][0], lut=lut)


def _masks(
    raster: Raster, alpha: int | None, layers: Sequence[Layer]
) -> tuple[list[MaskLayer | BlockMask], str]:
    """Masks beyond nodata values, and how nodata is told."""
    p = raster.profile
    masks: list[MaskLayer | BlockMask] = []
    told = []
    values = sorted({x.nodata for x in layers if x.nodata is not None}, key=lambda v: (math.isnan(v), v))
    if values:
        told += ["nan" if math.isnan(v) else f"value {v:g}" for v in values]
    if alpha is not None:
        masks.append(MaskLayer(raster.handle, alpha, opaque))
        told.append("warp" if p.get("warped") else "alpha")
    elif not p.get("warped") and (MaskFlags.per_dataset in p["masks"][0] or not p["masks"][0]):
        masks.append(MaskLayer(raster.handle, 0, opaque))
        told.append("mask band")
    if p["palette"] and any(len(c) > 3 and c[3] == 0 for c in p["palette"].values()):
        clear = tuple(v for v, c in p["palette"].items() if len(c) > 3 and c[3] == 0)
        masks.append(MaskLayer(raster.handle, 1, _Listed(clear)))
        told.append("transparent colours")
    missing = raster.layouts[0].missing() if raster.layouts else None
    if missing is not None and not values and not p.get("warped"):
        masks.append(BlockMask(missing, raster.layouts[0].block_height, raster.layouts[0].block_width))
        told.append("unwritten blocks")
        text = f"{int(missing.sum()):,} of {missing.size:,} blocks were never written; they count as nodata."
        raster.notes.append(Note("warning", "unwritten-blocks", text))
    if not told and p["dtypes"][0].startswith("float"):
        told.append("nan")
    return masks, ", ".join(told) or "none"


def opaque(stored: np.ndarray) -> np.ndarray:
    """Codes of an alpha or mask band: 0 is nodata, anything else usable."""
    return np.where(stored == 0, SceneMask.NODATA, 0).astype(np.uint8)


@dataclass(frozen=True)
class _Listed:
    """Codes of a band where some values mean nodata."""

    values: tuple[int, ...]

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        return np.where(np.isin(stored, self.values), SceneMask.NODATA, 0).astype(np.uint8)
