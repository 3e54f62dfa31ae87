"""The area of interest: polygons of a vector file, burned into the windows of a grid."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from terralapse.errors import FileMissingError, NoGeoreferenceError, SettingError, UnreadableFileError

if TYPE_CHECKING:
    from geopandas import GeoSeries


class Area:
    """The union of the polygons in a file.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or no vector file.
        NoGeoreferenceError: it has no coordinate system.
        SettingError: it has no polygon.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._series = _polygons(self.path)
        self._in_crs: dict[str, BaseGeometry] = {}

    def geometry(self, crs: CRS | None) -> BaseGeometry:
        """The polygons in a CRS, edges densified before they are projected."""
        key = str(crs)
        if key not in self._in_crs:
            series = self._series
            if crs is not None and series.crs != crs.proj:
                west, south, east, north = series.total_bounds
                series = series.segmentize(max(east - west, north - south) / 256 or 1.0).to_crs(crs.proj)
            shape = shapely.make_valid(series.union_all())
            shapely.prepare(shape)
            self._in_crs[key] = shape
        return self._in_crs[key]

    def bounds(self, crs: CRS | None) -> tuple[float, float, float, float]:
        """West, south, east, north in a CRS."""
        west, south, east, north = self.geometry(crs).bounds
        return west, south, east, north

    def outside(self, affine: Affine, crs: CRS | None, shape: tuple[int, int]) -> np.ndarray:
        """bool [h, w]: pixels whose centre is not in the area."""
        from rasterio.features import geometry_mask

        h, w = shape
        area = self.geometry(crs)
        corners = [
            (affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f)
            for x, y in ((0, 0), (w, 0), (w, h), (0, h))
        ]
        window = shapely.Polygon(corners)
        if shapely.contains_properly(area, window):
            return np.zeros(shape, bool)
        grown = box(*window.buffer(window.length / (h + w)).bounds)
        near = shapely.make_valid(shapely.clip_by_rect(area, *grown.bounds))
        if near.is_empty or near.area == 0:
            return np.ones(shape, bool)
        return geometry_mask([near], out_shape=shape, transform=affine)

    def digest(self) -> str:
        """A hash of the polygons, for the record of a run."""
        return hashlib.sha256(self._series.union_all().wkb).hexdigest()[:16]


def _polygons(path: Path) -> GeoSeries:
    import geopandas
    from pyogrio.errors import DataSourceError

    if not path.exists():
        raise FileMissingError(path, "the file of the area of interest does not exist", "Check the path.")
    try:
        frame = geopandas.read_file(path)
    except DataSourceError as error:
        raise UnreadableFileError(
            path, f"is not a vector file ({error})", "Give GeoJSON, GeoPackage or a shapefile for --aoi."
        ) from error
    if "geometry" not in frame or not len(frame):
        raise SettingError(path, "holds no polygon", "Give a file with at least one polygon for --aoi.")
    polygons = frame.geometry.geom_type.isin(["Polygon", "MultiPolygon"])
    series = geopandas.GeoSeries(frame.geometry[polygons], crs=frame.crs)
    if not len(series):
        raise SettingError(path, "holds no polygon", "Give a file with at least one polygon for --aoi.")
    if series.crs is None:
        raise NoGeoreferenceError(
            path, "has no coordinate system", "Save it with one (GeoJSON is always EPSG:4326)."
        )
    return series.make_valid()
