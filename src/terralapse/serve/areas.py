"""The area of a new analysis: drawn on the map, in degrees or in pixels, checked against the images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pyproj
import shapely
from pydantic import BaseModel, ConfigDict, Field
from shapely.affinity import translate

from terralapse.errors import NoOverlapError, SettingError
from terralapse.grid._georef import LOCAL_GRID
from terralapse.grid.footprint import lonlat_text

_HINT = "Draw it over the outlines of the images."
Number = Annotated[float, Field(ge=-1e7, le=1e7, allow_inf_nan=False)]


class Drawn(BaseModel):
    """A polygon as GeoJSON, in degrees; for images without a place in their columns and rows."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["Polygon"]
    coordinates: Annotated[
        list[Annotated[list[tuple[Number, Number]], Field(min_length=4, max_length=2000)]],
        Field(min_length=1, max_length=1),
    ]


def area_of(drawn: Drawn, images: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The area as GeoJSON in degrees, for `--aoi`.

    Args:
        drawn: what the client sent.
        images: what `Looker.look` says of each, by which one it is (`before`, `after`).

    Raises:
        SettingError: it is no simple polygon, or beyond the range of degrees.
        NoOverlapError: it does not lie in one of the images.
    """
    shape = shapely.Polygon(drawn.coordinates[0])
    if not shape.is_valid or shape.area == 0:
        raise SettingError("area", "has sides that cross, or encloses nothing", "Draw it again.")
    placed = {which: image["footprint"] is not None for which, image in images.items()}
    if len(set(placed.values())) > 1:
        raise SettingError(
            "area",
            "cannot be used: one image has a place on the earth and the other has none",
            "Leave it out.",
        )
    in_degrees = all(placed.values())
    west, south, east, north = shape.bounds
    if in_degrees and not (west >= -360 and east <= 360 and south >= -90 and north <= 90):
        raise SettingError("area", "lies beyond the range of degrees", "Give longitude and latitude.")
    for which, image in images.items():
        if not _meets(shape, image, in_degrees):
            here = _text(shape.bounds, in_degrees)
            covers = _text(_bounds(image), in_degrees)
            raise NoOverlapError(
                "area", f"lies outside of the image {which}: it is {here}, the image {covers}", _HINT
            )
    if not in_degrees:
        shape = shapely.transform(shape, _to_degrees)
    return {"type": "Polygon", "coordinates": [[list(p) for p in shape.exterior.coords]]}


def _meets(shape: shapely.Polygon, image: dict[str, Any], in_degrees: bool) -> bool:
    if not in_degrees:
        return shape.intersection(shapely.box(*_bounds(image))).area > 0
    print_ = shapely.geometry.shape(image["footprint"])
    return any(translate(shape, xoff=turn).intersection(print_).area > 0 for turn in (-360, 0, 360))


def _bounds(image: dict[str, Any]) -> tuple[float, float, float, float]:
    if image["footprint"] is None:
        return 0.0, 0.0, float(image["width"]), float(image["height"])
    west, south, east, north = shapely.geometry.shape(image["footprint"]).bounds
    return west, south, east, north


def _text(bounds: tuple[float, float, float, float], in_degrees: bool) -> str:
    if in_degrees:
        return lonlat_text(bounds)
    return f"columns {bounds[0]:.0f} to {bounds[2]:.0f}, rows {bounds[1]:.0f} to {bounds[3]:.0f}"


def _to_degrees(points: np.ndarray) -> np.ndarray:
    """Columns and rows on the grid that images without a place are put on, as degrees."""
    turn = pyproj.Transformer.from_crs(LOCAL_GRID, 4326, always_xy=True)
    return np.column_stack(turn.transform(points[:, 0], -points[:, 1]))
