"""The grid on which two dates are compared, by a rule that can be said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, hypot, log10
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod
from pyproj.exceptions import CRSError
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from terralapse.errors import (
    NoGeoreferenceError,
    NoOverlapError,
    SettingError,
    UnreadableFileError,
)
from terralapse.grid._positions import apply, compose
from terralapse.grid.aoi import Area
from terralapse.grid.footprint import WGS84, bounds_text, covered, lonlat_text, overlap, to_lonlat
from terralapse.grid.scene import Scene

_GEOD = Geod(ellps="WGS84")
_TRUE_SCALE = 0.02  # a projection that stretches more than this here is not one to count pixels in
_CELL = "cell:"
_SAME_SIZE = 0.01  # pixels whose sizes differ by less than this count as equal


@dataclass(frozen=True)
class GridChoice:
    """A common grid, the rule that made it (a sentence), and its pixel size on the ground in metres
    (None: without a coordinate system nothing is known about metres)."""

    geobox: GeoBox
    rule: str
    resolution_m: float | None


def choose_grid(
    before: Scene, after: Scene, rule: str | float = "coarser", area: Area | None = None
) -> GridChoice:
    """The grid that both dates are brought to.

    Args:
        before, after: the two scenes.
        rule: `coarser` keeps the grid of the scene with the larger pixels when that is a north-up grid in a
            true-scale projection; else the other scene's projection (or the local UTM zone) at the coarser
            pixel size is used, snapped to multiples of the pixel. `before` and `after` keep that grid
            whatever it is. A path takes the grid of that raster. A number is a pixel size in metres. A text
            of `cell_text` is a window of a grid that is known already.
        area: cuts the grid to its bounding box.

    Raises:
        NoOverlapError: the scenes, or they and the area, share no ground.
        NoGeoreferenceError: one scene has a CRS and the other has none.
        SettingError: a rule that is none of these.
    """
    boxes = (before.info.geobox, after.info.geobox)
    if (boxes[0].crs is None) != (boxes[1].crs is None):
        bare = before if boxes[0].crs is None else after
        raise NoGeoreferenceError(
            bare.info.uri,
            "has no coordinate system, and the other date has one",
            "Say what it is with --assume-crs EPSG:CODE.",
        )
    lattice, sentence = _lattice(before, after, rule)
    footprint = overlap(before, after, lattice.crs)
    name = f"{before.info.uri} and {after.info.uri}"
    if isinstance(rule, str) and rule not in ("coarser", "before", "after") and not _is_number(rule):
        footprint = shapely.intersection(footprint, lattice.extent.geom)
    if area is not None:
        footprint = shapely.intersection(footprint, box(*area.bounds(lattice.crs)))
        name += f" within {area.path}"
    geobox = _cut(lattice, footprint)
    if geobox is None:
        raise NoOverlapError(
            name,
            f"share no ground: before covers {bounds_text(boxes[0])}, after covers {bounds_text(boxes[1])}"
            + ("" if area is None else f", the area of interest {lonlat_text(area.bounds(WGS84))}"),
            "Check that both show the same place; `terralapse inspect` prints what a file covers.",
        )
    return GridChoice(geobox, sentence, ground_size(geobox))


def choose_series_grid(
    scenes: Sequence[Scene], rule: str | float = "coarser", area: Area | None = None
) -> GridChoice:
    """The grid that many dates are brought to. It covers all the ground that any of them shows.

    Args:
        scenes: at least one, in any order.
        rule: `coarser` takes the grid of the scene with the largest pixels, or, where that is not a north-up
            grid in a true-scale projection, a projection of the other scenes or the local UTM zone at that
            pixel size. `first` keeps the grid of the first scene whatever it is. A path takes the grid of
            that raster, a number is a pixel size in metres.
        area: cuts the grid to its bounding box.

    Raises:
        NoOverlapError: a scene shares no ground with the first one, or none with the area.
        NoGeoreferenceError: some scenes have a CRS and some have none.
        SettingError: a rule that is none of these.
    """
    first = scenes[0]
    for scene in scenes:
        if (scene.info.geobox.crs is None) != (first.info.geobox.crs is None):
            bare = scene if scene.info.geobox.crs is None else first
            raise NoGeoreferenceError(
                bare.info.uri,
                "has no coordinate system, and other dates have one",
                "Say what it is with --assume-crs EPSG:CODE.",
            )
    lattice, sentence, cut = _series_lattice(scenes, rule)
    known: dict[object, BaseGeometry] = {}
    for scene in scenes:
        key = scene.info.geobox if len(scene.parts()) == 1 else scene
        if key not in known:
            known[key] = covered(scene, lattice.crs)
            if not shapely.intersection(known[key], next(iter(known.values()))).area > 0:
                raise NoOverlapError(
                    scene.info.uri,
                    f"shares no ground with the first date, which covers {bounds_text(first.info.geobox)}; "
                    f"it covers {bounds_text(scene.info.geobox)}",
                    "Check that all dates show one place; `terralapse inspect` prints what a file covers.",
                )
    footprint = shapely.union_all(list(known.values()))
    if cut:
        footprint = shapely.intersection(footprint, lattice.extent.geom)
    if area is not None:
        footprint = shapely.intersection(footprint, box(*area.bounds(lattice.crs)))
    geobox = _cut(lattice, footprint)
    if geobox is None:
        raise NoOverlapError(
            f"{len(scenes)} dates" + ("" if area is None else f" and {area.path}"),
            "share no ground with the area of interest or the grid asked for",
            "Check both; `terralapse inspect` prints what a file covers.",
        )
    return GridChoice(geobox, sentence, ground_size(geobox))


def _series_lattice(scenes: Sequence[Scene], rule: str | float) -> tuple[GeoBox, str, bool]:
    """The lattice, a sentence about it, and whether its own extent bounds the result."""
    boxes = list(dict.fromkeys(s.info.geobox for s in scenes))
    if rule == "first":
        return boxes[0], "the grid of the first date, as asked", False
    sizes = [ground_size(g) or hypot(g.affine.a, g.affine.d) for g in boxes]
    alike = [g for g, size in zip(boxes, sizes, strict=True) if size > max(sizes) * (1 - _SAME_SIZE)]
    coarse = next((g for g in alike if is_plain(g)), alike[0])
    # The helpers of a pair look through any number of grids, and take `before` for their middle.
    grids = {"before": coarse} | {str(i): g for i, g in enumerate(boxes)}
    if rule == "coarser":
        if is_plain(coarse) or coarse.crs is None:
            return coarse, "the grid of the date with the largest pixels", False
        crs, _ = _projection_of(grids)
        size = _round_size(max(sizes))
        why = "the grid with the largest pixels is not north-up in a true-scale projection"
        return _snapped(crs, size / _metres_per_unit(crs)), f"{crs} at {size:g} m, because {why}", False
    if _is_number(rule):
        return _at_size(grids, float(rule))[0], f"{float(rule):g} m, as asked", False
    return *_grid_of_file(Path(str(rule))), True


# --- the lattice of pixels -------------------------------------------------------------------------
def _lattice(before: Scene, after: Scene, rule: str | float) -> tuple[GeoBox, str]:
    """A grid whose pixels are right and whose extent is not yet."""
    grids = {"before": before.info.geobox, "after": after.info.geobox}
    if _is_number(rule):
        return _at_size(grids, float(rule))
    if rule in grids:
        return grids[str(rule)], f"the grid of the image {rule}, as asked"
    if rule == "coarser":
        return _coarser(grids)
    if str(rule).startswith(_CELL):
        return grid_of_cell(str(rule)), "the window of the grid that was asked for"
    return _grid_of_file(Path(str(rule)))


def _is_number(rule: str | float) -> bool:
    try:
        float(rule)
    except ValueError:
        return False
    return True


def _coarser(grids: dict[str, GeoBox]) -> tuple[GeoBox, str]:
    sizes = {k: ground_size(g) or hypot(g.affine.a, g.affine.d) for k, g in grids.items()}
    date = max(sizes, key=lambda k: sizes[k])
    other = "after" if date == "before" else "before"
    size = sizes[date]
    alike = sizes[other] > size * (1 - _SAME_SIZE)
    if alike:
        date = "before" if is_plain(grids["before"]) >= is_plain(grids["after"]) else "after"
    what = "pixels of both dates are alike" if alike else f"the image {date} has the larger pixels"
    if is_plain(grids[date]) or grids[date].crs is None:
        return grids[date], f"the grid of the image {date}, because {what}"
    crs, named = _projection_of(grids)
    return (
        _snapped(crs, _round_size(size)),
        f"{named} at {_round_size(size):g} m, because {what} but its grid is not north-up in a true-scale "
        "projection",
    )


def _at_size(grids: dict[str, GeoBox], size: float) -> tuple[GeoBox, str]:
    if not 0 < size < 1e6:
        raise SettingError(f"grid {size:g}", "is no pixel size", "Give metres, for example --grid 10.")
    for date, grid in grids.items():
        if is_plain(grid) and abs(grid.affine.a * _metres_per_unit(grid.crs) - size) < 1e-6 * size:
            return grid, f"the grid of the image {date}, which has the pixel size asked for"
    if grids["before"].crs is None:
        raise SettingError(
            f"grid {size:g}", "metres mean nothing without a coordinate system", "Use --grid before or after."
        )
    crs, named = _projection_of(grids)
    return _snapped(crs, size / _metres_per_unit(crs)), f"{named} at {size:g} m, as asked"


def _grid_of_file(path: Path) -> tuple[GeoBox, str]:
    import rasterio
    from rasterio.errors import RasterioIOError

    if not path.exists():
        raise SettingError(
            f"grid {path}",
            "is neither `coarser`, `before`, `after`, a number of metres, nor a file that exists",
            "Check the path.",
        )
    try:
        with rasterio.open(path) as file:
            crs, shape, transform = file.crs, file.shape, file.transform
    except RasterioIOError as error:
        raise UnreadableFileError(path, f"is not a raster ({error})", "Give a GeoTIFF for --grid.") from error
    if crs is None:
        raise NoGeoreferenceError(path, "has no coordinate system", "Give a georeferenced raster for --grid.")
    return GeoBox(shape, transform, CRS(crs.to_wkt())), f"the grid of {path.name}, as asked"


def cell_text(grid: GeoBox, crs: str) -> str:
    """A north-up window with square pixels in words: `cell:CRS:LEFT:TOP:PIXEL:HEIGHTxWIDTH`."""
    a = grid.affine
    return f"{_CELL}{crs}:{a.c!r}:{a.f!r}:{a.a!r}:{grid.shape.y}x{grid.shape.x}"


def grid_of_cell(text: str) -> GeoBox:
    """The window that `cell_text` wrote.

    Raises:
        SettingError: it is none.
    """
    try:
        code, left, top, size, shape = text.removeprefix(_CELL).rsplit(":", 4)
        height, width = (int(n) for n in shape.split("x"))
        if min(height, width, float(size)) <= 0:
            raise ValueError("a size is not positive")
        return GeoBox(
            (height, width), Affine(float(size), 0, float(left), 0, -float(size), float(top)), CRS(code)
        )
    except (ValueError, CRSError) as error:
        raise SettingError(
            f"grid {text}", f"is no window of a grid ({error})", "Write cell:CRS:LEFT:TOP:PIXEL:HEIGHTxWIDTH."
        ) from error


def is_plain(grid: GeoBox) -> bool:
    """Whether pixels of a grid can be counted as they are: projected, north-up, square, and true to scale
    within two per cent (Web Mercator is not, away from the equator)."""
    a = grid.affine
    if grid.crs is None or not grid.crs.projected or a.b or a.d or a.a <= 0 or a.e >= 0:
        return False
    if abs(-a.e / a.a - 1) > _SAME_SIZE or _is_web_mercator(grid.crs):
        return False
    wide, high = _ground_sides(grid)
    unit = _metres_per_unit(grid.crs)
    return all(abs(side / (abs(step) * unit) - 1) < _TRUE_SCALE for side, step in ((wide, a.a), (high, a.e)))


def _is_web_mercator(crs: CRS) -> bool:
    operation = crs.proj.coordinate_operation
    return operation is not None and "pseudo mercator" in operation.method_name.lower()


def _metres_per_unit(crs: CRS | None) -> float:
    return 1.0 if crs is None else float(crs.proj.axis_info[0].unit_conversion_factor)


def ground_size(grid: GeoBox) -> float | None:
    """Side in metres of the square with the ground area of a pixel in the middle of a grid."""
    if grid.crs is None:
        return None
    wide, high = _ground_sides(grid)
    return float((wide * high) ** 0.5)


def _ground_sides(grid: GeoBox) -> tuple[float, float]:
    """Width and height of a pixel in the middle of a grid, in metres on the ellipsoid."""
    x, y = grid.shape.x / 2, grid.shape.y / 2
    n = 4.0
    wx, wy = apply(grid.affine, x + np.array([-n, n, 0, 0]), y + np.array([0, 0, -n, n]))
    lon, lat = to_lonlat(grid.crs, wx, wy)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return abs(grid.affine.a), abs(grid.affine.e)
    return (
        _GEOD.inv(lon[0], lat[0], lon[1], lat[1])[2] / (2 * n),
        _GEOD.inv(lon[2], lat[2], lon[3], lat[3])[2] / (2 * n),
    )


def _projection_of(grids: dict[str, GeoBox]) -> tuple[CRS, str]:
    """The CRS to make a new grid in: that of a scene on a plain grid, else the local UTM zone."""
    for date, grid in grids.items():
        if is_plain(grid) and grid.crs is not None:
            return grid.crs, f"the projection of the image {date}"
    middle = grids["before"]
    wx, wy = apply(middle.affine, np.array([middle.shape.x / 2]), np.array([middle.shape.y / 2]))
    lon, lat = to_lonlat(middle.crs, wx, wy)
    crs = local_utm(float(lon[0]), float(lat[0]))
    return crs, f"the local projection (EPSG:{crs.epsg})"


def local_utm(lon: float, lat: float) -> CRS:
    """The UTM zone of a place (polar stereographic beyond 84 N and 80 S)."""
    if lat > 84:
        return CRS("EPSG:32661")
    if lat < -80:
        return CRS("EPSG:32761")
    zone = int(((lon + 180) % 360) // 6) + 1
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + zone}")


def _round_size(size: float) -> float:
    """A pixel size with two digits where that changes it by less than 1 %, else three."""
    digits = -floor(log10(size))
    rough = round(size, digits + 1)
    return rough if abs(rough / size - 1) < _SAME_SIZE else round(size, digits + 2)


def _snapped(crs: CRS, size: float) -> GeoBox:
    """A north-up grid whose pixel edges are at multiples of the pixel."""
    return GeoBox((1, 1), Affine(size, 0, 0, 0, -size, 0), crs)


def _cut(lattice: GeoBox, footprint: BaseGeometry) -> GeoBox | None:
    """The pixels of a lattice whose centres lie in the bounding box of a footprint."""
    if footprint.is_empty or footprint.area == 0:
        return None
    outline = np.asarray(shapely.get_coordinates(shapely.segmentize(footprint, footprint.length / 512)))
    x, y = outline[:, 0], outline[:, 1]
    if lattice.crs is not None and lattice.crs.geographic:
        middle = apply(lattice.affine, np.array(lattice.shape.x / 2), np.array(lattice.shape.y / 2))[0]
        x = x + 360 * np.round((middle - (x.min() + x.max()) / 2) / 360)
    cols, rows = apply(~lattice.affine, x, y)
    tiny = 1e-4
    col0, col1 = ceil(cols.min() - 0.5 - tiny), floor(cols.max() - 0.5 + tiny) + 1
    row0, row1 = ceil(rows.min() - 0.5 - tiny), floor(rows.max() - 0.5 + tiny) + 1
    if col1 <= col0 or row1 <= row0:
        return None
    return GeoBox(
        (row1 - row0, col1 - col0), compose(lattice.affine, Affine.translation(col0, row0)), lattice.crs
    )
