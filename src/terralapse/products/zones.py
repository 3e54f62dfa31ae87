"""The units that statistics are counted by: polygons of the user, or cells of a regular grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from odc.geo.geobox import GeoBox
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS

from terralapse.errors import FileMissingError, NoOverlapError, SettingError, UnreadableFileError
from terralapse.grid.areas import on_ground

_CELL_M = 500.0
_MOST_CELLS, _FEWEST_CELLS = 400, 24
_SMALLEST_CELL_PX = 16
# exactextract wants to see the same CRS on both sides; these coordinates are pixels and it transforms none.
_ANY_CRS = CRS.from_epsg(3857)
_NAME_COLUMNS = ("name", "shapename", "nom", "nombre", "namn", "navn", "naam", "label", "title")


@dataclass
class Zones:
    """Polygons with names, in pixel coordinates with rows counted downward as negative y.

    `kind` is `zone` or `cell`; `column` is the attribute that the names are from. Cells are squares of
    `side_px` pixels, numbered row by row in a table of `cells` (down, across).
    """

    kind: str
    names: list[str]
    ids: list[str]
    pixels: np.ndarray
    column: str = "name"
    side_px: int = 0
    cells: tuple[int, int] = (0, 0)
    _tree: shapely.STRtree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tree = shapely.STRtree(self.pixels)

    def __len__(self) -> int:
        return len(self.names)

    def cover(self, start: int, rows: int, width: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For each zone in a strip of rows: its number, the pixels (flat index in the strip), their
        covered share 0..1."""
        box = shapely.box(0, -(start + rows), width, -start)
        near = np.sort(self._tree.query(box, predicate="intersects"))
        if not len(near):
            return []
        frame = gpd.GeoDataFrame({"zone": near}, geometry=self.pixels[near], crs=_ANY_CRS)
        nothing = np.broadcast_to(np.uint8(0), (rows, width))
        corners = (0, -(start + rows), width, -start)
        raster = NumPyRasterSource(nothing, *corners, srs_wkt=_ANY_CRS.to_wkt())
        table: Any = exact_extract(
            raster, frame, ["cell_id", "coverage"], include_cols=["zone"], output="pandas"
        )
        found = table[["zone", "cell_id", "coverage"]].itertuples(index=False)
        return [(int(z), np.asarray(c), np.asarray(share)) for z, c, share in found if len(c)]

    def locate(self, cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The first zone that holds each point (pixel coordinates), or -1."""
        points, zone = self._tree.query(shapely.points(cols, -rows), predicate="intersects")
        where = np.full(len(cols), -1)
        where[points[::-1]] = zone[::-1]
        return where


def load_zones(path: Path, geobox: GeoBox) -> Zones:
    """Zones of a vector file that touch the grid, in the order of the file.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or no vector file.
        SettingError: no polygons in it, or no CRS.
        NoOverlapError: none of them touches the grid.
    """
    if not path.exists():
        raise FileMissingError(path, "the file of the zones does not exist", "Check the path.")
    try:
        frame = gpd.read_file(path)
    except (DataSourceError, DataLayerError) as error:
        raise UnreadableFileError(
            path, "cannot be read as a vector file", "Give GeoPackage, GeoJSON or Shapefile."
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame) or not frame.geometry.notna().any():
        raise SettingError(path, "holds no geometry", "Give a file of polygons as --zones.")
    polygonal = frame.geometry.notna() & frame.geom_type.isin(["Polygon", "MultiPolygon"])
    frame = gpd.GeoDataFrame(frame[polygonal])
    if frame.empty:
        raise SettingError(path, "holds no polygons", "Give a file of polygons as --zones.")
    crs = None if geobox.crs is None else CRS.from_user_input(geobox.crs)
    if crs is not None and frame.crs is None:
        raise SettingError(path, "does not state its CRS", "Save it with a CRS (GeoPackage does).")
    column = _name_column(frame)
    inverse = ~geobox.affine
    size = geobox.shape.x, geobox.shape.y
    shapes = shapely.make_valid(frame.geometry.values)
    if crs is not None:
        # Long edges are divided before the change of CRS: a parallel is no straight line in a projection.
        extent = np.ptp(np.reshape(shapely.total_bounds(shapes), (2, 2)), axis=0).max()
        shapes = shapely.segmentize(shapes, max(extent / 500, 1e-9))
        shapes = gpd.GeoSeries(shapes, crs=frame.crs).to_crs(crs).values
    pixels = shapely.transform(
        np.asarray(shapes), lambda c: np.column_stack(on_ground(inverse, *c.T)) * (1, -1)
    )
    pixels = shapely.make_valid(pixels)
    inside = shapely.intersects(pixels, shapely.box(0, -size[1], size[0], 0))
    if not inside.any():
        raise NoOverlapError(path, "none of its zones touches the images", "Check the place and the CRS.")
    names = (
        [str(n) for n in frame[column][inside]]
        if column
        else [f"Zone {i + 1}" for i in np.flatnonzero(inside)]
    )
    return Zones(
        "zone", names, [str(i + 1) for i in np.flatnonzero(inside)], pixels[inside], column or "number"
    )


def _name_column(frame: gpd.GeoDataFrame) -> str | None:
    """`name`, or a column whose name says so (`NAME_2`, `ADM2_EN`), or the most varied text column."""
    texts = [c for c in frame.columns if c != frame.geometry.name and frame[c].dtype.kind not in "iufbMm"]
    for wanted in _NAME_COLUMNS:
        for column in texts:
            if str(column).lower() == wanted:
                return column
    named = [c for c in texts if "name" in str(c).lower() or str(c).lower().startswith("adm")]
    ranked = sorted(named or texts, key=lambda c: -frame[c].nunique())
    return ranked[0] if ranked else None


def regular_cells(geobox: GeoBox, pixel_m: float) -> Zones:
    """Square cells of about 500 m from the first pixel on, named like map squares: `A1` is the first.

    The side is a round number of metres, larger when there would be more than 400 cells, smaller when there
    would be fewer than 24 (but never under 16 pixels).
    """
    height, width = geobox.shape.y, geobox.shape.x
    side = _cell_side(height, width, pixel_m)
    down, across = math.ceil(height / side), math.ceil(width / side)
    boxes, names = [], []
    for r in range(down):
        for c in range(across):
            right, foot = min((c + 1) * side, width), min((r + 1) * side, height)
            boxes.append(shapely.box(c * side, -foot, right, -r * side))
            names.append(f"{_letters(c)}{r + 1}")
    return Zones("cell", names, names, np.array(boxes), "square", side, (down, across))


def _cell_side(height: int, width: int, pixel_m: float) -> int:
    """In pixels."""

    def cells(metres: float) -> int:
        side = max(round(metres / pixel_m), 1)
        return math.ceil(height / side) * math.ceil(width / side)

    ladder = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5)]
    start = ladder.index(_CELL_M)
    chosen = start
    while cells(ladder[chosen]) > _MOST_CELLS and chosen + 1 < len(ladder):
        chosen += 1
    while chosen > 0 and cells(ladder[chosen]) < _FEWEST_CELLS:
        if cells(ladder[chosen - 1]) > _MOST_CELLS or ladder[chosen - 1] < _SMALLEST_CELL_PX * pixel_m:
            break
        chosen -= 1
    return max(round(ladder[chosen] / pixel_m), 1)


def _letters(index: int) -> str:
    """A .. Z, AA .. as columns of a spreadsheet."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text
