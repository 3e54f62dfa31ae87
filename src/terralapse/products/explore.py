"""The map of `ChangeResult.explore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from terralapse.products.imagery import CHANGE_COLOUR

if TYPE_CHECKING:
    from terralapse.products.result import ChangeResult


def explore(result: ChangeResult, folium: Any, most: int) -> Any:
    """Both pictures in Web Mercator and the outlines with their attributes.

    Args:
        result: with a CRS.
        folium: the module.
        most: polygons that are drawn, the largest first.
    """
    overlays = {date: _overlay(result, date) for date in ("before", "after")}
    bounds = overlays["after"][1]
    drawn = folium.Map(tiles=None, control_scale=True)
    folium.TileLayer("OpenStreetMap", show=False).add_to(drawn)
    for date, (picture, box) in overlays.items():
        name = f"{date.capitalize()}"
        folium.raster_layers.ImageOverlay(picture, box, name=name, mercator_project=False).add_to(drawn)
    polygons = result.polygons.head(most)
    if len(polygons):
        fields = [c for c in ("id", "area_m2", "mean_prob", "max_prob", "location") if c in polygons]
        style = {"color": CHANGE_COLOUR, "weight": 1.5, "fillOpacity": 0.12}
        shown = polygons[[*fields, polygons.geometry.name]]
        shown.explore(m=drawn, name="Change", style_kwds=style, tooltip=fields, color=CHANGE_COLOUR)
    folium.LayerControl(collapsed=False).add_to(drawn)
    drawn.fit_bounds(bounds)
    return drawn


def _overlay(result: ChangeResult, date: str) -> tuple[np.ndarray, list[list[float]]]:
    """RGBA in Web Mercator, and its corners [[south, west], [north, east]]."""
    with (
        rasterio.open(result.folder / f"{date}.tif") as source,
        WarpedVRT(source, crs="EPSG:3857", add_alpha=True, resampling=Resampling.bilinear) as warped,
    ):
        picture = np.moveaxis(warped.read(), 0, -1)
        west, south, east, north = transform_bounds(warped.crs, "EPSG:4326", *warped.bounds)
    return picture, [[south, west], [north, east]]
