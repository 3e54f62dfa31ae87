"""One plain raster file (GeoTIFF, COG, JPEG 2000, PNG, JPEG, WebP, VRT), local or over http, as a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine
from rasterio.windows import Window as RioWindow

from terralapse.errors import (
    HostileFileError,
    NoGeoreferenceError,
    SettingError,
    TerralapseError,
    UnreadableFileError,
    UnsupportedGeoreferenceError,
)
from terralapse.grid import _gdal, _remote
from terralapse.grid._gdal import Handle, gdal_env
from terralapse.grid._guess import Guess, Hints, guess, time_of
from terralapse.grid._safety import check_image, read_text
from terralapse.grid._stack import BlockMask, Layer, MaskLayer, StackScene, is_nodata, read_raw
from terralapse.grid._tiff import MAX_BLOCK_BYTES, MAX_SAMPLES, TiffLayout
from terralapse.grid.scene import Note, SceneInfo, Source, Window
from terralapse.labels import SceneMask
from terralapse.sensors import NAIP, RGB

MAX_PIXELS = 2**44
LOCAL_GRID = "+proj=aeqd +lat_0=0 +lon_0=0 +datum=WGS84 +units=m +no_defs"
_GEOD = Geod(ellps="WGS84")


@dataclass
class Raster:
    """An opened and judged raster file: what its header says, before anybody decides what it means."""

    name: str
    uri: str
    handle: Handle
    profile: dict[str, Any]
    layouts: list[TiffLayout]
    geobox: GeoBox
    notes: list[Note] = field(default_factory=list)
    size: int | None = None


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
    return scene_of(raster, s2_offset=s2_offset)


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
        handle = Handle(f"/vsicurl/{uri}", remote.driver)
        raster = _opened(_remote.file_name(uri), uri, handle, remote.layouts, [], remote.size)
    else:
        checked = check_image(Path(source))
        path = checked.path.resolve()
        handle = Handle(str(path), checked.driver, stamp=path.stat().st_mtime_ns)
        raster = _opened(checked.path.name, uri, handle, checked.layouts, checked.notes, checked.size)
    try:
        _locate(raster, assume_crs, pixel_grid)
    except TerralapseError:
        _gdal.close([raster.handle])  # a file that is refused is not held open
        raise
    return raster


def scene_of(raster: Raster, *, s2_offset: float | None = None) -> StackScene:
    """A scene of one raster, with everything guessed from the file itself."""
    p = raster.profile
    data, alpha = _split_alpha(raster)
    if not data:
        raise UnreadableFileError(
            raster.name, "has an alpha band and nothing else", "Give an image with data bands."
        )
    layers = [_layer(raster, i) for i in data]
    hints = Hints(
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
        sample=lambda: sample(layers),
    )
    found = _palette(raster) if p["palette"] else guess(hints)
    if s2_offset is not None and found.sensor.slug == "sentinel2":
        found.offsets = (float(s2_offset),) * len(found.offsets)
        text = f"The offset {s2_offset:g} was given by the user."
        found.notes = [n for n in found.notes if n.code != "s2-offset-unknown"] + [
            Note("info", "s2-offset", text)
        ]
    if p["palette"]:
        layers = [_palette_layer(raster, c) for c in range(3)]
    else:
        layers = [
            Layer(
                layers[k].handle,
                layers[k].index,
                found.scales[j],
                found.offsets[j],
                _nodata(layers[k].nodata, found),
                overviews=layers[k].overviews,
            )
            for j, k in enumerate(found.keep)
        ]
    collar = _has_collar(raster, layers, alpha)
    if collar:
        layers = [replace(x, nodata=0.0) for x in layers]
        text = (
            "A corner is black in all bands and no nodata value is stated: pixels of zeros count as nodata."
        )
        raster.notes.append(Note("warning", "black-collar", text))
    masks, told = _masks(raster, alpha, layers)
    time, where = time_of(f"{Path(raster.uri).parent.name}/{raster.name}", p["tags"])
    if where == "TIFFTAG_DATETIME":
        text = f"The date {time:%Y-%m-%d} is from TIFFTAG_DATETIME, which may be when the file was written."
        raster.notes.append(Note("warning", "date-from-writing", text))
    one_value = {x.nodata for x in layers}
    display = found.sensor in (RGB, NAIP) or collar
    all_nodata = layers if display and len(layers) > 1 and one_value != {None} else None
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
        notes=[
            *raster.notes,
            *found.notes,
            Note("info", "sensor-guess", f"{found.sensor.title}: {found.why}."),
        ],
        sources=[Source(raster.uri, raster.size)],
    )
    if p["palette"]:
        info.notes.append(
            Note("info", "palette-expanded", "Palette colours were expanded to red, green and blue.")
        )
    return StackScene(info, layers, masks, all_nodata)


def resolution_m(geobox: GeoBox) -> float:
    """The ground size of the pixel in the middle of a grid, in metres: the root of its geodesic area."""
    h, w = geobox.shape
    affine, crs = geobox.affine, geobox.crs
    assert crs is not None
    x, y = place(affine, w / 2 + np.array([0, 1, 1, 0]), h / 2 + np.array([0, 0, 1, 1]))
    lon, lat = (x, y) if crs.geographic else crs.transformer_to_crs("EPSG:4326")(x, y)
    area, _ = _GEOD.polygon_area_perimeter(list(lon), list(lat))
    return math.sqrt(abs(area)) if math.isfinite(area) and area else float("nan")


def sample(layers: Sequence[Layer], blocks: int = 3) -> np.ndarray:
    """A few stored values [layers, n] as float64, NaN where nodata: from full-resolution squares of 128
    pixels along the diagonal, so that it costs the same for any size of file."""
    out = []
    for x in layers:
        with gdal_env(remote=x.handle.remote):
            ds = _gdal.dataset(x.handle)
            side_y, side_x = min(128, ds.height), min(128, ds.width)
            parts = []
            for k in range(blocks):
                row = int((ds.height - side_y) * (k + 0.5) / blocks)
                col = int((ds.width - side_x) * (k + 0.5) / blocks)
                try:
                    stored = ds.read(x.index, window=RioWindow(col, row, side_x, side_y))  # pyright: ignore[reportCallIssue]
                except _gdal.GDAL_ERRORS as e:
                    raise _gdal.read_error(x.handle.path, e, f"band {x.index}") from e
                parts.append(np.where(is_nodata(stored, x.nodata), np.nan, stored.astype(np.float64)).ravel())
            out.append(np.concatenate(parts))
    return np.stack(out)


def to_crs(text: str) -> CRS:
    """A CRS from what a user wrote.

    Raises:
        SettingError: PROJ does not know it.
    """
    try:
        return CRS.from_user_input(text)
    except CRSError as e:
        raise SettingError(
            f"CRS {text!r}", "is not a coordinate reference system", "Give one like EPSG:32633."
        ) from e


def place(affine: Affine, col: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates of pixel coordinates (corners are whole numbers)."""
    return affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f


def geobox_of(width: int, height: int, transform: Affine, crs: CRS | str) -> GeoBox:
    """A grid from a rasterio transform; axis order is always x (longitude), y (latitude)."""
    return GeoBox((height, width), transform, crs)


def _opened(
    name: str, uri: str, handle: Handle, layouts: list[TiffLayout], notes: list[Note], size: int | None
) -> Raster:
    """Reads the header through GDAL into a plain dictionary."""
    with gdal_env(remote=handle.remote):
        ds = _gdal.dataset(handle)
        try:
            profile = _header(name, ds)
        except _gdal.GDAL_ERRORS as e:
            raise _gdal.open_error(handle.path, e) from e
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


def _locate(raster: Raster, assume_crs: str | None, pixel_grid: bool) -> None:
    """Finds the grid of a raster and sets `raster.geobox`."""
    p = raster.profile
    width, height, transform = p["width"], p["height"], p["transform"]
    # GDAL gives the identity to an image without a position; a world of 1 m pixels at (0, 0) states a CRS.
    placed = transform != Affine.identity() and (p["crs"] is not None or transform != Affine.scale(1, -1))
    if not placed and p["gcps"]:
        _locate_gcps(raster, assume_crs)
        return
    if not placed and p["rpcs"]:
        raise UnsupportedGeoreferenceError(
            raster.name,
            "is in sensor geometry with rational polynomials (RPC)",
            "Orthorectify it with a terrain model first (gdalwarp -rpc -to RPC_DEM=dem.tif).",
        )
    crs = _stated_crs(raster.name, p["crs"]) if p["crs"] else _prj_beside(raster)
    if placed and crs is None and assume_crs is not None:
        crs = to_crs(assume_crs)
        raster.notes.append(
            Note("info", "assumed-crs", f"The CRS {crs.name} is not in the file; it was given.")
        )
    if placed and crs is not None:
        _check_affine(raster.name, transform)
        raster.geobox = geobox_of(width, height, transform, crs)
        _note_grid(raster, transform)
        return
    if pixel_grid:
        raster.geobox = geobox_of(width, height, Affine.scale(1, -1), LOCAL_GRID)
        text = "It has no georeference: an arbitrary grid of one metre a pixel was used; areas are in pixels."
        raster.notes.append(Note("warning", "pixel-grid", text))
        return
    missing = (
        "neither a CRS nor a position"
        if not placed and crs is None
        else "no CRS"
        if placed
        else "no position"
    )
    hint = (
        "Name its CRS (--assume-crs EPSG:...)."
        if placed
        else "Give a georeferenced image or a world file beside it, or compare pixel by pixel (--no-crs)."
    )
    raise NoGeoreferenceError(raster.name, f"has {missing}", hint)


def _locate_gcps(raster: Raster, assume_crs: str | None) -> None:
    """A north-up grid through the ground control points; reading then goes through a warp."""
    p = raster.profile
    if p["gcp_crs"] is None and assume_crs is None:
        hint = "Name it (--assume-crs EPSG:4326)."
        raise NoGeoreferenceError(raster.name, "has ground control points and no CRS for them", hint)
    crs = _stated_crs(raster.name, p["gcp_crs"]) if p["gcp_crs"] else to_crs(assume_crs or "")
    raster.handle = replace(raster.handle, gcps=crs.to_wkt())
    try:
        with gdal_env():
            warped = _gdal.dataset(raster.handle)
            transform, width, height = warped.transform, warped.width, warped.height
    except UnreadableFileError as e:
        hint = "Warp it to a map projection first."
        fault = f"has unusable ground control points ({e.fault})"
        raise UnsupportedGeoreferenceError(raster.name, fault, hint) from e
    raster.profile = {**p, "overviews": (), "warped": True}
    raster.geobox = geobox_of(width, height, transform, crs)
    text = f"{len(p['gcps'])} control points place it; it is read through a bilinear warp to a north-up grid."
    raster.notes.append(Note("warning", "gcp-warp", text))


def _stated_crs(name: str, stated: Any) -> CRS:
    """A file's own CRS, when it is one that has a place on Earth."""
    hint = "Write a known CRS into the file."
    try:
        crs = CRS.from_wkt(stated.to_wkt())
    except CRSError as e:
        raise NoGeoreferenceError(name, f"has a CRS that PROJ does not know ({e})", hint) from e
    if crs.is_engineering:
        raise NoGeoreferenceError(name, f"has a local CRS ({crs.name}) that has no place on Earth", hint)
    return crs


def _check_affine(name: str, t: Affine) -> None:
    if not all(map(math.isfinite, tuple(t)[:6])) or t.determinant == 0:
        raise NoGeoreferenceError(name, "has a transform that no grid has", "Write its georeference again.")


def _note_grid(raster: Raster, t: Affine) -> None:
    if t.b or t.d:
        raster.notes.append(Note("info", "rotated", "Its grid is rotated or sheared against its CRS."))
    elif t.e > 0:
        raster.notes.append(Note("info", "south-up", "Its rows run from south to north."))
    if raster.profile["tags"].get("AREA_OR_POINT") == "Point":
        text = "It is pixel-is-point; positions were moved by half a pixel to the corners of pixels."
        raster.notes.append(Note("info", "pixel-is-point", text))


def _prj_beside(raster: Raster) -> CRS | None:
    """The CRS of a `.prj` file beside an image that has only a world file."""
    if raster.handle.remote or raster.handle.path.startswith("/vsi"):
        return None
    path = Path(raster.handle.path).with_suffix(".prj")
    if not path.is_file():
        return None
    try:
        crs = CRS.from_wkt(read_text(path))
    except CRSError as e:
        raise NoGeoreferenceError(
            path, "is not a CRS", "Mend the .prj file or name the CRS (--assume-crs)."
        ) from e
    raster.notes.append(Note("info", "prj-file", f"The CRS {crs.name} is from {path.name}."))
    return crs


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
    return any(not read_raw(raster.handle, indexes, w).any() for w in corners)


def _palette(raster: Raster) -> Guess:
    return Guess(RGB, RGB.bands, (0,), RGB.unit, (1.0,) * 3, (0.0,) * 3, "a palette of colours")


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
