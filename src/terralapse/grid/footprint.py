"""What ground a scene covers, and what two scenes share.

Two scenes in one projection are intersected in it; anything else in longitude and latitude, where footprints
are densified and turned by 360 degrees until they meet, so that the antimeridian is a place like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, radians

import numpy as np
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from terralapse.grid._positions import apply, transformer
from terralapse.grid.scene import Scene

WGS84 = CRS("EPSG:4326")
_EDGE = 65  # points along each edge of a footprint


def overlap(before: Scene, after: Scene, crs: CRS | None) -> BaseGeometry:
    """The ground that both scenes cover, as a polygon in a CRS (of the shared one when that is the case)."""
    a, b = before.info.geobox, after.info.geobox
    if a.crs == b.crs == crs and (crs is None or crs.projected):
        return shapely.intersection(_native(before), _native(after))
    one, two = lonlat_footprint(before), lonlat_footprint(after)
    turns = [shapely.intersection(one, translate(two, xoff=turn)) for turn in (-360, 0, 360)]
    shared = from_lonlat(shapely.union_all([t for t in turns if t.area > 0]), crs)
    for scene in (before, after):  # no wider than what is known exactly
        own = scene.info.geobox.crs
        if own is not None and own == crs and own.projected:
            shared = shapely.intersection(shared, _native(scene))
    return shared


def covered(scene: Scene, crs: CRS | None) -> BaseGeometry:
    """The ground that one scene covers, as a polygon in a CRS."""
    own = scene.info.geobox.crs
    if own == crs and (crs is None or crs.projected):
        return _native(scene)
    return from_lonlat(lonlat_footprint(scene), crs)


def _native(scene: Scene) -> BaseGeometry:
    return shapely.union_all([p.info.geobox.extent.geom for p in scene.parts()])


def lonlat_footprint(scene: Scene) -> BaseGeometry:
    """What a scene covers in longitude and latitude; longitudes may exceed 180 where it crosses there."""
    parts = [outline(p.info.geobox) for p in scene.parts()]
    middle = parts[0].centroid.x
    return shapely.union_all([translate(p, xoff=360 * round((middle - p.centroid.x) / 360)) for p in parts])


def outline(grid: GeoBox) -> BaseGeometry:
    """One grid's densified outline in longitude and latitude."""
    t = np.linspace(0, 1, _EDGE)[:-1]
    w, h = grid.shape.x, grid.shape.y
    x = np.concatenate([t * w, np.full_like(t, w), (1 - t) * w, np.zeros_like(t)])
    y = np.concatenate([np.zeros_like(t), t * h, np.full_like(t, h), (1 - t) * h])
    lon, lat = to_lonlat(grid.crs, *apply(grid.affine, x, y))
    known = np.isfinite(lon) & np.isfinite(lat)
    if known.sum() < 3:
        return Polygon()
    lon, lat = lon[known], lat[known]
    pole = _pole_inside(grid)
    if pole is not None:  # everything poleward of the lowest point: a little too much, never too little
        return box(-180, lat.min(), 180, 90) if pole > 0 else box(-180, -90, 180, lat.max())
    if grid.crs is not None and not grid.crs.geographic:
        lon = np.unwrap(lon, period=360)
    return shapely.make_valid(Polygon(np.column_stack([lon, lat])))


def _pole_inside(grid: GeoBox) -> int | None:
    """+1 or -1 when the grid covers the north or south pole, for projections where that is a point."""
    if grid.crs is None or grid.crs.geographic:
        return None
    for sign in (1, -1):
        ends = [transformer(WGS84, grid.crs).transform(lon, 90.0 * sign) for lon in (0.0, 90.0, 180.0)]
        if not np.isfinite(ends).all() or np.ptp(np.array(ends), axis=0).max() > 1.0:
            continue
        x, y = apply(~grid.affine, np.array(ends[0][0]), np.array(ends[0][1]))
        if 0 <= x <= grid.shape.x and 0 <= y <= grid.shape.y:
            return sign
    return None


def to_lonlat(crs: CRS | None, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of coordinates; without a CRS, the coordinates."""
    if crs is None or crs == WGS84:
        return np.asarray(x), np.asarray(y)
    lon, lat = transformer(crs, WGS84).transform(x, y)
    return np.asarray(lon), np.asarray(lat)


def from_lonlat(shape: BaseGeometry, crs: CRS | None) -> BaseGeometry:
    """A polygon in longitude and latitude brought to another CRS, with its edges densified."""
    if crs is None or shape.is_empty:
        return shape
    west, south, east, north = shape.bounds
    shape = shapely.segmentize(shape, max(east - west, north - south) / (_EDGE - 1) or 1.0)
    if crs == WGS84:
        return shape

    def project(points: np.ndarray) -> np.ndarray:
        return np.column_stack(transformer(WGS84, crs).transform(points[:, 0], points[:, 1]))

    return _finite(shape, project)


def _finite(shape: BaseGeometry, project: Callable[[np.ndarray], np.ndarray]) -> BaseGeometry:
    """A projected polygon without the points that the projection cannot show."""
    rings = []
    for part in shapely.get_parts(shape):
        if not isinstance(part, Polygon):
            continue
        points = project(np.asarray(part.exterior.coords))
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) >= 3:
            rings.append(shapely.make_valid(Polygon(points)))
    return shapely.union_all(rings)


def bounds_text(grid: GeoBox) -> str:
    """What a grid covers, for a message."""
    if grid.crs is None:
        return f"{grid.shape.x} x {grid.shape.y} pixels"
    return lonlat_text(outline(grid).bounds)


def lonlat_text(bounds: tuple[float, float, float, float]) -> str:
    """Bounds in longitude and latitude, for a message."""
    if not bounds or not np.isfinite(bounds).all():
        return "no known place"
    west, south, east, north = bounds
    digits = 3 if cos(radians((south + north) / 2)) * (east - west) > 0.01 else 5
    return (
        f"longitude {west:.{digits}f} to {east:.{digits}f}, latitude {south:.{digits}f} to {north:.{digits}f}"
    )
