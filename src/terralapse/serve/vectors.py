"""The change polygons as GeoJSON, a page at a time, with a box to look in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError

from terralapse.errors import UnreadableFileError
from terralapse.grid.areas import is_pixel_grid
from terralapse.products.polygons import LAYER, split_at_antimeridian
from terralapse.serve.tiles import flip

_DIGITS = 7  # of a degree: a centimetre
_MAGIC = b"SQLite format 3\0"
_EDGE = 21  # points along each side of a box that is put into another CRS

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Page:
    """Features as GeoJSON, how many match in all, and where the next page starts (None on the last)."""

    features: list[dict[str, Any]]
    matched: int
    next_offset: int | None


class Polygons:
    """The polygons of one result, read from its GeoPackage when they are asked for.

    Args:
        path: `change.gpkg`.
        grid: the transform of the run's grid; it places what has no place on Earth.

    Raises:
        UnreadableFileError: the file is damaged or no GeoPackage.
    """

    def __init__(self, path: Path, grid: Affine) -> None:
        self._path, self._grid = path, grid
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise self._damaged("is no GeoPackage")
        try:
            info = pyogrio.read_info(path, layer=LAYER)
        except (DataSourceError, DataLayerError) as error:
            raise self._damaged("has no layer of changes") from error
        stated = info["crs"] and pyproj.CRS.from_user_input(info["crs"])
        self._crs = None if stated and is_pixel_grid(stated) else stated
        self.total = int(info["features"])

    def _damaged(self, fault: str) -> UnreadableFileError:
        return UnreadableFileError(self._path, fault, "Run `terralapse change` again.")

    def page(self, boxes: list[Box], limit: int, offset: int, vertices: int) -> Page:
        """Features in the order of the file, the largest first.

        Args:
            boxes: in degrees; none for all.
            limit: the most features.
            offset: how many to pass over.
            vertices: a page ends before it holds more than so many, but holds one feature at least.
        """
        numbers = self._matching(boxes)
        wanted = numbers[offset : offset + limit]
        if not len(wanted):
            return Page([], len(numbers), None)
        frame = self._read(fids=wanted)
        sizes = shapely.get_num_coordinates(frame.geometry.values)
        fitting = max(1, int((np.cumsum(sizes) <= vertices).sum()))
        features = self._features(frame.iloc[:fitting])
        end = offset + len(features)
        return Page(features, len(numbers), end if end < len(numbers) else None)

    def one(self, number: int) -> dict[str, Any] | None:
        """The feature of an id, or None."""
        if not 1 <= number < 2**31:
            return None
        frame = self._read(where=f'"id" = {int(number)}')
        return self._features(frame)[0] if len(frame) else None

    def stream(self, step: int, vertices: int) -> Iterator[bytes]:
        """All of them as one GeoJSON text, in pieces."""
        yield b'{"type":"FeatureCollection","features":['
        offset: int | None = 0
        first = True
        while offset is not None:
            page = self.page([], step, offset, vertices)
            for feature in page.features:
                text = json.dumps(feature, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                yield (b"\n" if first else b",\n") + text.encode()
                first = False
            offset = page.next_offset
        yield b"\n]}\n"

    # --- reading ---------------------------------------------------------------------------------------
    def _matching(self, boxes: list[Box]) -> np.ndarray:
        if not boxes:
            return self._bounds(None)
        found = [self._bounds(self._to_file(box)) for box in boxes]
        return np.unique(np.concatenate(found))

    def _bounds(self, box: Box | None) -> np.ndarray:
        try:
            return pyogrio.read_bounds(self._path, layer=LAYER, bbox=box)[0]
        except (DataSourceError, DataLayerError) as error:
            raise self._damaged("cannot be read") from error

    def _read(self, **which: Any) -> gpd.GeoDataFrame:
        try:
            frame = pyogrio.read_dataframe(self._path, layer=LAYER, **which)
        except (DataSourceError, DataLayerError) as error:
            raise self._damaged("cannot be read") from error
        return frame.sort_values("id")

    # --- places ----------------------------------------------------------------------------------------
    def _to_file(self, box: Box) -> Box:
        west, south, east, north = box
        along = np.linspace(0, 1, _EDGE)
        x = np.concatenate([west + (east - west) * along] * 2 + [np.full(_EDGE, west), np.full(_EDGE, east)])
        y = np.concatenate(
            [np.full(_EDGE, south), np.full(_EDGE, north)] + [south + (north - south) * along] * 2
        )
        if self._crs is None:
            x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(x, y)
            back = ~flip(self._grid)
            x, y = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
        else:
            x, y = pyproj.Transformer.from_crs(4326, self._crs, always_xy=True).transform(x, y)
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return (0.0, 0.0, 0.0, 0.0)
        return (float(x[known].min()), float(y[known].min()), float(x[known].max()), float(y[known].max()))

    def place(self, lonlat: np.ndarray) -> np.ndarray:
        """Longitude and latitude [n, 2], as they are given out, in the CRS of the file."""
        x, y = pyproj.Transformer.from_crs(4326, self._crs or 3857, always_xy=True).transform(*lonlat.T)
        if self._crs is None:
            back = ~flip(self._grid)
            x, y = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
        return np.column_stack([x, y])

    def _features(self, frame: gpd.GeoDataFrame) -> list[dict[str, Any]]:
        """In degrees, rounded, wound as RFC 7946 has it and cut at the antimeridian."""
        placed = shapely.transform(frame.geometry.values, self.degrees)
        cut = np.array([split_at_antimeridian(shape) for shape in placed], dtype=object)
        shapes = shapely.orient_polygons(cut)
        boxes = shapely.bounds(shapes).round(_DIGITS).tolist()
        rows = frame.drop(columns=frame.geometry.name).to_dict("records")
        return [
            {
                "type": "Feature",
                "id": _plain(row["id"]),
                "bbox": box,
                "geometry": json.loads(text),
                "properties": {str(k): _plain(v) for k, v in row.items()},
            }
            for row, box, text in zip(rows, boxes, shapely.to_geojson(shapes), strict=True)
        ]

    def degrees(self, xy: np.ndarray) -> np.ndarray:
        """x, y [n, 2] of the CRS of the file as longitude and latitude, rounded; the other way of `place`."""
        x, y = xy[:, 0], xy[:, 1]
        if self._crs is None:
            grid = flip(self._grid)
            x, y = grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f
        turn = pyproj.Transformer.from_crs(self._crs or 3857, 4326, always_xy=True)
        return np.round(np.column_stack(turn.transform(x, y)), _DIGITS)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
