"""The change polygons as files: GeoPackage always, GeoJSON on request."""

from __future__ import annotations

import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from odc.geo.geobox import GeoBox

from terralapse.errors import MissingExtraError
from terralapse.grid.areas import Compass, PixelArea, has_place, is_pixel_grid
from terralapse.grid.scene import SceneInfo
from terralapse.grid.vectorise import VectoriseSettings
from terralapse.labels import BINARY_CHANGE, ClassScheme
from terralapse.products.qgis import store_style
from terralapse.products.run import ChangeRun

LAYER = "change"
_LEAST_PIXELS = 4
_LEAST_M2 = 10.0
_GEOJSON_DIGITS = 7


def minimum_mapping_unit(run: ChangeRun) -> float:
    """Square metres (pixels without a CRS): what the user set, else 4 pixels and at least 10 m2.

    Under 10 m2 a change in an aerial picture is a car or the shadow of a tree.
    """
    return smallest_area(run.pair.geobox, run.min_area_m2)


def smallest_area(geobox: GeoBox, asked: float | None) -> float:
    """The smallest polygon that is kept on a grid: what was asked for, else as `minimum_mapping_unit`."""
    if asked is not None:
        return asked
    # Half a pixel less than four whole ones, for pixels that are a little smaller at one side of the grid.
    pixels = (_LEAST_PIXELS - 0.5) * PixelArea(geobox).mean
    return pixels if geobox.crs is None else max(pixels, _LEAST_M2)


def settings_for(run: ChangeRun) -> VectoriseSettings:
    """How the polygons of a run are made."""
    return VectoriseSettings(
        min_area_m2=minimum_mapping_unit(run), rectangles=bool(run.settings.get("rectangles", False))
    )


def describe(
    frame: gpd.GeoDataFrame, run: ChangeRun, scheme: ClassScheme = BINARY_CHANGE
) -> gpd.GeoDataFrame:
    """Adds what a reader of one polygon needs, in the order of the file.

    `id` counts from 1, the largest first. `lon`, `lat` are of a point inside; `location` is the ninth of the
    grid that it lies in.
    """
    geobox: GeoBox = run.pair.geobox
    titles = {c.value: c.name for c in scheme.classes}
    n = len(frame)
    table = pd.DataFrame(
        {
            "id": np.arange(1, n + 1, dtype=np.int64),
            "class": pd.Series([titles[v] for v in frame["class_value"]], dtype="str"),
            f"area_{area_unit(geobox)}": frame["area_m2"].round(2),
            f"perimeter_{'m' if has_place(geobox) else 'px'}": frame["perimeter_m"].round(2),
            "mean_prob": frame["mean_prob"].round(4),
            "max_prob": frame["max_prob"].round(4),
            "pixels": frame["pixels"],
            **whereabouts(frame, geobox),
            "date_before": constant(_stamp(run.pair.before), n),
            "date_after": constant(_stamp(run.pair.after), n),
            "sensor_before": constant(run.pair.before.sensor.slug, n),
            "sensor_after": constant(run.pair.after.sensor.slug, n),
            "model": constant(run.card.slug, n),
            "run_id": constant(run.run_id, n),
            "shape": frame["shape"],
            "row": frame["row"],
            "col": frame["col"],
            "height": frame["height"],
            "width": frame["width"],
        }
    )
    return gpd.GeoDataFrame(table, geometry=frame.geometry, crs=frame.crs)


def area_unit(geobox: GeoBox) -> str:
    """`m2`, or `px` for a grid without a place."""
    return "m2" if has_place(geobox) else "px"


def whereabouts(frame: gpd.GeoDataFrame, geobox: GeoBox) -> dict[str, Any]:
    """The columns `location`, `lon` and `lat` of polygons, see `describe`."""
    inside = shapely.point_on_surface(frame.geometry.values)
    x, y = shapely.get_x(inside), shapely.get_y(inside)
    compass = Compass(geobox)
    lon, lat = compass.lonlat(x, y)
    names = compass.names(x, y) if len(frame) else []
    return {"location": pd.Series(names, dtype="str"), "lon": np.round(lon, 7), "lat": np.round(lat, 7)}


def constant(value: str | None, n: int) -> pd.Series:
    """A column of one text."""
    return pd.Series([value] * n, dtype="str")


def _stamp(info: SceneInfo) -> str | None:
    return None if info.time is None else f"{info.time:%Y-%m-%dT%H:%M:%SZ}"


def write_geopackage(
    frame: gpd.GeoDataFrame, path: Path, when: datetime, layer: str = LAYER, title: str = "Change polygons"
) -> None:
    """One layer with its style; the same content gives the same bytes. `when` is stamped."""
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.000Z"
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": stamp})
    try:
        with warnings.catch_warnings():
            # A run without a CRS has been asked for by the user and is said to be one in its record.
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            pyogrio.write_dataframe(
                frame,
                path,
                layer=layer,
                driver="GPKG",
                geometry_type="MultiPolygon",
                promote_to_multi=True,
                layer_options={"GEOMETRY_NAME": "geom", "FID": "fid", "IDENTIFIER": title},
            )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    store_style(path, layer, when)


def check_geoparquet(what: str) -> None:
    """Refuses GeoParquet where it cannot be written, before anything runs.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            what,
            "needs pyarrow, which is not installed",
            "Install it with pip install 'terralapse[scale]', or ask for geopackage.",
        ) from error


def write_geoparquet(frame: gpd.GeoDataFrame, path: Path) -> None:
    """The polygons with the bounding box of each, by which readers skip what they do not need."""
    frame.to_parquet(path, index=False, write_covering_bbox=True)


def write_geojson(frame: gpd.GeoDataFrame, path: Path) -> None:
    """RFC 7946: WGS 84, longitude first, counter-clockwise shells, cut at the antimeridian, 7 decimals.

    Raises:
        ValueError: the polygons have no place that could be written.
    """
    if frame.crs is None or is_pixel_grid(frame.crs):
        raise ValueError("polygons without a place have no longitude and latitude")
    placed = frame.to_crs("EPSG:4326")
    shapes = np.array([split_at_antimeridian(g) for g in placed.geometry.values], dtype=object)
    placed = placed.set_geometry(gpd.GeoSeries(shapely.orient_polygons(shapes), crs="EPSG:4326"))
    pyogrio.write_dataframe(
        placed,
        path,
        driver="GeoJSON",
        layer_options={"RFC7946": "YES", "COORDINATE_PRECISION": str(_GEOJSON_DIGITS)},
    )


def split_at_antimeridian(shape: shapely.Geometry) -> shapely.Geometry:
    """A polygon in degrees whose vertices jump over 180 degrees, as the two parts that are meant."""
    west, _, east, _ = shapely.bounds(shape)
    if east - west <= 180:
        return shape
    unrolled = shapely.make_valid(
        shapely.transform(
            shape, lambda c: np.column_stack([np.where(c[:, 0] < 0, c[:, 0] + 360, c[:, 0]), c[:, 1]])
        )
    )
    near = shapely.intersection(unrolled, shapely.box(0, -90, 180, 90))
    far = shapely.intersection(unrolled, shapely.box(180, -90, 360, 90))
    far = shapely.transform(far, lambda c: c - (360, 0))
    parts = shapely.get_parts(np.array([near, far], dtype=object))
    return shapely.MultiPolygon([p for p in parts if p.geom_type == "Polygon"])
