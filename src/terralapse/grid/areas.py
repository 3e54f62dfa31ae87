"""True areas, lengths and directions on the ellipsoid, for grids in any CRS.

A pixel of a UTM grid is up to 0.16 % larger or smaller than its planar size, one of Web Mercator at 60
degrees north a quarter of it. Every area and distance that terralapse states goes through this module.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod, Transformer

from terralapse.grid._georef import LOCAL_GRID
from terralapse.grid.scene import Window

_PIXELS = CRS.from_user_input(LOCAL_GRID)
_NODES = 65  # lattice nodes a side; linear between them is good to 1e-7 over a Sentinel-2 tile


def crs_of(geobox: GeoBox) -> CRS | None:
    """The CRS of a grid for pyproj; None for a grid without a place.

    That is one without a CRS, or with the arbitrary one of images without any georeference.
    """
    if geobox.crs is None:
        return None
    found = CRS.from_user_input(geobox.crs)
    return None if is_pixel_grid(found) else found


def is_pixel_grid(crs: CRS) -> bool:
    """Whether a CRS is the one that images without any georeference are put on, a pixel a metre."""
    return crs == _PIXELS


def has_place(geobox: GeoBox) -> bool:
    """Whether a grid lies somewhere on Earth; else areas and distances are in pixels."""
    return crs_of(geobox) is not None


def ellipsoid_of(crs: CRS) -> Geod:
    """The geodesic of the CRS's own ellipsoid (WGS 84 when it names none)."""
    return crs.get_geod() or Geod(ellps="WGS84")


def on_ground(affine: Affine, col: Any, row: Any) -> tuple[Any, Any]:
    """x, y of pixel coordinates (0, 0 is the corner of the first pixel)."""
    return affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f


def to_lonlat(crs: CRS) -> Transformer:
    """From x, y of the CRS to longitude, latitude in degrees on the CRS's own datum.

    The datum is kept, so that areas belong to the ellipsoid that the coordinates are measured on.
    """
    return Transformer.from_crs(crs, crs.geodetic_crs or CRS.from_epsg(4326), always_xy=True)


class PixelArea:
    """Area in m2 of each pixel of a grid.

    Projected grids: the planar area over the areal scale of the projection, on a lattice, linear in between.
    Geographic grids: the closed form of the ellipsoidal cell, row by row. Grids without a place: the
    planar area in whatever unit the grid has (pixels).
    """

    def __init__(self, geobox: GeoBox) -> None:
        crs = crs_of(geobox)
        affine = geobox.affine
        self.shape = (geobox.shape.y, geobox.shape.x)
        if crs is None:
            self._rows: np.ndarray | None = np.full(self.shape[0], abs(affine.determinant))
            return
        if crs.is_geographic:
            edges = np.radians(affine.f + affine.e * np.arange(self.shape[0] + 1.0))
            self._rows = _cells(crs, edges, math.radians(abs(affine.a)))
            return
        self._rows = None
        x, y = on_ground(affine, *np.meshgrid(*(np.linspace(0, n, _NODES) for n in self.shape[::-1])))
        self._lattice = abs(affine.determinant) * _true_area_of_unit(crs, x, y)

    def block(self, window: Window) -> np.ndarray:
        """float64 [h, w], or [h, 1] where the pixels of a row are equal; m2."""
        if self._rows is not None:
            return self._rows[window.slices[0], None]
        # No matrix product: the threads of BLAS go on waiting for more on cores that others need.
        above, down = _between(window.row, window.height, self.shape[0])
        left, across = _between(window.col, window.width, self.shape[1])
        lattice, down = self._lattice, down[:, None]
        rows = lattice[above] * (1 - down) + lattice[above + 1] * down
        return rows[:, left] * (1 - across) + rows[:, left + 1] * across

    @property
    def mean(self) -> float:
        """Area of the pixel in the middle of the grid, m2."""
        return float(self.block(Window(self.shape[0] // 2, self.shape[1] // 2, 1, 1))[0, 0])


def _axes(crs: CRS) -> tuple[float, float]:
    """Semi-major and semi-minor axis of the ellipsoid, metres."""
    geod = ellipsoid_of(crs)
    return geod.a, geod.b


def _between(start: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The node of a lattice over `size` pixels before each pixel centre, and how far on it is, 0 to 1."""
    at = (np.arange(start, start + count) + 0.5) * (_NODES - 1) / size
    before = np.clip(at.astype(np.intp), 0, _NODES - 2)
    return before, at - before


def _true_area_of_unit(crs: CRS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """m2 on the ellipsoid of one square unit of the CRS at each point, by central differences.

    (The areal scale that PROJ gives is not used: for Web Mercator it is that of a sphere.)
    """
    step = 100.0
    lonlat = to_lonlat(crs)
    east = np.radians(np.subtract(lonlat.transform(x + step, y), lonlat.transform(x - step, y)))
    north = np.radians(np.subtract(lonlat.transform(x, y + step), lonlat.transform(x, y - step)))
    for d in (east, north):  # a difference that crosses the antimeridian
        d[0] = (d[0] + np.pi) % (2 * np.pi) - np.pi
    jacobian = np.abs(east[0] * north[1] - east[1] * north[0]) / (2 * step) ** 2
    lat = np.radians(lonlat.transform(x, y)[1])
    a, b = _axes(crs)
    curvature = (a * a * b) ** 2 / ((a * a * np.cos(lat) ** 2) + (b * b * np.sin(lat) ** 2)) ** 2
    return jacobian * np.cos(lat) * curvature


def _cells(crs: CRS, edges: np.ndarray, dlon: float) -> np.ndarray:
    """Areas between successive parallels (radians) and two meridians `dlon` radians apart."""
    a, b = _axes(crs)
    s = np.sin(np.clip(edges, -np.pi / 2, np.pi / 2))
    e = math.sqrt(max(1 - (b / a) ** 2, 0.0))
    upto = s if e < 1e-9 else 0.5 * (s / (1 - (e * s) ** 2) + np.arctanh(e * s) / e)
    return np.abs(np.diff(upto)) * b**2 * dlon


def geodesic_measures(polygons: np.ndarray, crs: CRS | None, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Area (m2) and perimeter (m) of polygons on the ellipsoid; planar ones without a CRS.

    Args:
        polygons: shapely (multi)polygons in the CRS; edges are straight there.
        crs: their CRS.
        step: edges longer than this (CRS units) are divided first, so that straight lines of the
            projection are followed and not replaced by geodesics.

    Returns:
        two float64 arrays of the length of `polygons`. Crossing the antimeridian does no harm: edges are
        taken the short way round.
    """
    if crs is None:
        return shapely.area(polygons), shapely.length(polygons)
    geod = ellipsoid_of(crs)
    dense = shapely.segmentize(polygons, step)
    coords = shapely.get_coordinates(dense)
    if len(coords):
        lon, lat = to_lonlat(crs).transform(coords[:, 0], coords[:, 1])
        dense = shapely.set_coordinates(dense, np.column_stack([lon, lat]))
    measured = [geod.geometry_area_perimeter(shapely.orient_polygons(p)) for p in dense]
    table = np.array(measured, dtype=np.float64).reshape(-1, 2)
    return np.abs(table[:, 0]), table[:, 1]


class Compass:
    """True directions and distances inside a grid: metres east and north of its middle.

    Works on the ellipsoid, so that grid north, south-up rasters, poles of projections and the antimeridian
    make no difference. Without a place the units are those of the grid and up is called north.
    """

    _ROWS = ("south", "", "north")
    _COLS = ("west", "", "east")

    def __init__(self, geobox: GeoBox) -> None:
        self.crs = crs_of(geobox)
        height, width = geobox.shape.y, geobox.shape.x
        self._affine = geobox.affine
        self._centre_xy = on_ground(geobox.affine, width / 2, height / 2)
        if self.crs is not None:
            self._geod = ellipsoid_of(self.crs)
            self._lonlat = to_lonlat(self.crs)
            self._centre = self._lonlat.transform(*self._centre_xy)
        edge = np.array([(c, r) for r in (0, 0.5, 1) for c in (0, 0.5, 1)]) * (width, height)
        east, north = self.offsets(*on_ground(geobox.affine, edge[:, 0], edge[:, 1]))
        self.half = (float(np.abs(east).max()), float(np.abs(north).max()))

    def lonlat(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude in -180..180 and latitude, degrees; NaN without a place."""
        if self.crs is None:
            return np.full(np.shape(x), np.nan), np.full(np.shape(x), np.nan)
        lon, lat = self._lonlat.transform(np.asarray(x), np.asarray(y))
        return (np.asarray(lon) + 180) % 360 - 180, np.asarray(lat)

    def offsets(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres east and north of the middle of the grid, by geodesic azimuth and distance."""
        x, y = np.atleast_1d(x).astype(np.float64), np.atleast_1d(y).astype(np.float64)
        if self.crs is None:
            return x - self._centre_xy[0], y - self._centre_xy[1]
        lon, lat = self._lonlat.transform(x, y)
        azimuth, _, distance = self._geod.inv(
            np.full_like(lon, self._centre[0]), np.full_like(lat, self._centre[1]), lon, lat
        )
        turn = np.radians(azimuth)
        return distance * np.sin(turn), distance * np.cos(turn)

    def names(self, x: np.ndarray, y: np.ndarray) -> list[str]:
        """Which ninth of the grid each point is in: `north-west`, `north` ... `centre`."""
        east, north = self.offsets(x, y)
        down, across = (
            np.clip(np.floor((v / h + 1) * 1.5), 0, 2).astype(int)
            for v, h in zip((north, east), self.half[::-1], strict=True)
        )
        pairs = [(self._ROWS[r], self._COLS[c]) for r, c in zip(down, across, strict=True)]
        return ["-".join(filter(None, p)) or "centre" for p in pairs]

    def picture_north(self) -> float:
        """Degrees clockwise from the top of the picture (row 0) to true north, in the middle of the grid."""
        if self.crs is None:
            return 0.0
        back = Transformer.from_crs(self.crs.geodetic_crs or CRS.from_epsg(4326), self.crs, always_xy=True)
        further = back.transform(*self._geod.fwd(*self._centre, 0.0, 100.0)[:2])
        col0, row0 = on_ground(~self._affine, *self._centre_xy)
        col1, row1 = on_ground(~self._affine, *further)
        return math.degrees(math.atan2(col1 - col0, row0 - row1))
