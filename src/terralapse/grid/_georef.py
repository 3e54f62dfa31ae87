"""Where a raster lies: CRS, transform, control points, or the reason why it cannot be placed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod
from pyproj.exceptions import CRSError
from rasterio.transform import Affine

from terralapse.errors import (
    NoGeoreferenceError,
    SettingError,
    UnreadableFileError,
    UnsupportedGeoreferenceError,
)
from terralapse.grid import _gdal
from terralapse.grid._gdal import Handle, gdal_env
from terralapse.grid._safety import read_text
from terralapse.grid._tiff import TiffLayout
from terralapse.grid.scene import Note

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


def resolution_m(geobox: GeoBox) -> float:
    """The ground size of the pixel in the middle of a grid, in metres: the root of its geodesic area."""
    h, w = geobox.shape
    affine, crs = geobox.affine, geobox.crs
    assert crs is not None
    x, y = place(affine, w / 2 + np.array([0, 1, 1, 0]), h / 2 + np.array([0, 0, 1, 1]))
    lon, lat = (x, y) if crs.geographic else crs.transformer_to_crs("EPSG:4326")(x, y)
    area, _ = _GEOD.polygon_area_perimeter(list(lon), list(lat))
    return math.sqrt(abs(area)) if math.isfinite(area) and area else float("nan")


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
    """A grid from a rasterio transform; axis order is always x (longitude), y (latitude).

    A CRS that is exactly a registered one is called by its code, so that people read EPSG:26915 and not a
    paragraph of well-known text.
    """
    return GeoBox((height, width), transform, _registered(crs))


def _registered(crs: CRS | str) -> CRS | str:
    code = None if isinstance(crs, str) else crs.to_epsg(min_confidence=100)
    return crs if code is None else f"EPSG:{code}"


def locate(raster: Raster, assume_crs: str | None, pixel_grid: bool) -> None:
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
