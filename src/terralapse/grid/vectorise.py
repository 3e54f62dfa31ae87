"""From a class raster of any size to clean polygons, in memory bounded by a strip and by what is found.

Two passes over strips of rows. The first labels the connected components of each strip, joins them over the
seams as one graph, and learns the size and the neighbours of each. Then it is known which components are
smaller than the minimum mapping unit and which holes are. The second pass labels the same strips again,
translates the labels, adds up the probabilities and traces the outlines; pieces of a component that spans
strips are united. Coordinates are whole pixels until all that is done, so that nothing can slip at a seam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from pyproj import CRS
from rasterio import features
from rasterio.windows import Window as RioWindow
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

from terralapse.errors import SettingError
from terralapse.grid.areas import PixelArea, crs_of, geodesic_measures, on_ground
from terralapse.grid.outline import rectangle_if_it_fits, smooth
from terralapse.grid.scene import Window

_OUTSIDE = 0  # the label of nodata and of everything beyond the raster
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class VectoriseSettings:
    """How outlines are made.

    `classes` are the raster values that become polygons. Components under `min_area_m2` are dropped and
    holes under it are filled (holes that touch nodata are not: what is there is unknown). `connectivity` is
    4, or 8 to join pixels that touch at a corner. `simplify` removes the staircase of pixels (the outline
    stays within about a pixel, the area within 1 %); off, the polygons rasterise back to the same pixels.
    `rectangles` replaces an outline by a rectangle of the same area where one fits well (buildings).
    """

    classes: tuple[int, ...] = (1,)
    min_area_m2: float = 0.0
    connectivity: int = 4
    simplify: bool = True
    rectangles: bool = False
    strip_rows: int = 512

    def __post_init__(self) -> None:
        if self.connectivity not in (4, 8):
            raise SettingError(f"connectivity {self.connectivity}", "is not 4 or 8", "Use 4 or 8.")
        if self.min_area_m2 < 0 or not np.isfinite(self.min_area_m2):
            raise SettingError(f"min area {self.min_area_m2}", "is not zero or more", "Give square metres.")


def vectorise(
    classes: Path,
    probability: Path | None,
    geobox: GeoBox,
    settings: VectoriseSettings,
    progress: Callable[[float], None] | None = None,
    seen: Callable[[int, np.ndarray], None] | None = None,
) -> gpd.GeoDataFrame:
    """Polygons of the classes of a raster, largest first.

    Args:
        classes: a one-band integer raster with its nodata value set.
        probability: a raster of the same grid whose stored values times its scale are 0..1, or None.
        geobox: the grid of both.
        settings: what is kept and how it is drawn.
        progress: called with the share done, 0..1.
        seen: called with the first row of each strip and int32 [rows, width]: the number of the polygon that
            each pixel belongs to, 0 for none. For statistics of other rasters.

    Returns:
        a GeoDataFrame in the CRS of the grid: `number` (that `seen` was told), `class_value`, `pixels`
        (raster pixels inside, filled holes included), `mean_prob`, `max_prob` (NaN without a probability
        raster), `row`, `col`, `height`, `width` (pixel window), `shape` (`outline` or `rectangle`),
        `area_m2`, `perimeter_m` (on the ellipsoid, of the geometry as returned; planar without a place).
        Empty, with the same columns, when nothing is found.
    """
    tell = progress or (lambda _share: None)
    crs = crs_of(geobox)
    pixel_area = PixelArea(geobox)
    with rasterio.open(classes) as source:
        survey = _survey(source, pixel_area, settings, lambda s: tell(0.35 * s))
        keep = _decide(survey, settings)
        if keep.count == 0:
            tell(1.0)
            return _frame(_Traced.empty(), geobox, crs, settings)
        traced = _trace(source, probability, survey, keep, settings, lambda s: tell(0.35 + 0.4 * s), seen)
    frame = _frame(traced, geobox, crs, settings)
    tell(1.0)
    return frame


# --- strips and labels -----------------------------------------------------------------------------
def _strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, height, rows):
        yield start, min(rows, height - start)


def _read(source: rasterio.DatasetReader, start: int, count: int) -> np.ndarray:
    return source.read(1, window=RioWindow(0, start, source.width, count))  # type: ignore[call-arg]


def _kinds(block: np.ndarray, nodata: float | None, classes: Sequence[int]) -> np.ndarray:
    """int16: -1 nodata, 0 background, 1.. the position in `classes` plus one."""
    kinds = np.zeros(block.shape, np.int16)
    for i, value in enumerate(classes, start=1):
        kinds[block == value] = i
    if nodata is not None:
        kinds[block == nodata] = -1
    return kinds


def _label(kinds: np.ndarray, offset: int, count: int, eight: bool) -> tuple[np.ndarray, list[int]]:
    """Component labels from `offset` + 1 on (0 is nodata), and the kind of each new label.

    Background takes the other connectivity than the classes, so that a closed line encloses a hole.
    """
    labels = np.zeros(kinds.shape, np.int64)
    found: list[int] = []
    for kind in range(count + 1):
        joined = _SQUARE if (kind > 0) == eight else _CROSS
        local = np.zeros(kinds.shape, np.int32)
        n = int(ndimage.label(kinds == kind, structure=joined, output=local))  # type: ignore[arg-type]
        labels = np.where(local > 0, local + (offset + len(found)), labels)
        found.extend([kind] * n)
    return labels, found


@dataclass
class _Survey:
    """What the first pass learns. Arrays are indexed by label; `same` and `touch` are pairs of labels."""

    kind: np.ndarray
    area: np.ndarray
    same: np.ndarray
    touch: np.ndarray
    offsets: list[int] = field(default_factory=list)


def _pairs(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """Unique unordered pairs of differing labels, int64 [n, 2]."""
    differ = a != b
    low, high = np.minimum(a[differ], b[differ]), np.maximum(a[differ], b[differ])
    keys = np.unique(low * size + high)
    return np.column_stack([keys // size, keys % size])


def _survey(
    source: rasterio.DatasetReader,
    pixel_area: PixelArea,
    settings: VectoriseSettings,
    tell: Callable[[float], None],
) -> _Survey:
    height, width = source.height, source.width
    eight = settings.connectivity == 8
    kind: list[int] = [-1]
    area: list[np.ndarray] = [np.zeros(1)]
    offsets: list[int] = []
    same: list[np.ndarray] = []
    touch: list[np.ndarray] = []
    limit = height * width + 1  # no label can reach it
    above: tuple[np.ndarray, np.ndarray] | None = None
    for start, rows in _strips(height, settings.strip_rows):
        kinds = _kinds(_read(source, start, rows), source.nodata, settings.classes)
        offset = len(kind) - 1
        offsets.append(offset)
        labels, found = _label(kinds, offset, len(settings.classes), eight)
        kind.extend(found)
        weights = np.broadcast_to(pixel_area.block(Window(start, 0, rows, width)), labels.shape)
        sums = np.bincount(
            np.where(labels > 0, labels - offset, 0).ravel(), weights.ravel(), minlength=len(found) + 1
        )
        area.append(sums[1:])
        touch += [
            _pairs(labels[:, :-1], labels[:, 1:], limit),
            _pairs(labels[:-1], labels[1:], limit),
            *(_pairs(edge, np.zeros_like(edge), limit) for edge in (labels[:, 0], labels[:, -1])),
        ]
        if start == 0:
            touch.append(_pairs(labels[0], np.zeros_like(labels[0]), limit))
        if start + rows == height:
            touch.append(_pairs(labels[-1], np.zeros_like(labels[-1]), limit))
        if above is not None:
            joined, apart = _seam(above, (labels[0], kinds[0]), eight, limit)
            same.append(joined)
            touch.append(apart)
        above = labels[-1], kinds[-1]
        tell((start + rows) / height)
    none = np.empty((0, 2), np.int64)
    return _Survey(
        np.array(kind), np.concatenate(area), np.concatenate([none, *same]), np.concatenate(touch), offsets
    )


def _seam(
    above: tuple[np.ndarray, np.ndarray], below: tuple[np.ndarray, np.ndarray], eight: bool, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs over a seam: of one component, and of touching different ones."""
    joined: list[np.ndarray] = []
    n = len(above[0])
    for step in (0, 1, -1):
        up, down = slice(max(0, step), n + min(0, step)), slice(max(0, -step), n - max(0, step))
        equal = (above[1][up] == below[1][down]) & (above[1][up] >= 0)
        if step:  # corners join background when the classes do not, and the other way round
            equal &= (above[1][up] > 0) if eight else (above[1][up] == 0)
        joined.append(_pairs(above[0][up][equal], below[0][down][equal], limit))
    differ = above[1] != below[1]
    return np.concatenate(joined), _pairs(above[0][differ], below[0][differ], limit)


# --- what is kept ----------------------------------------------------------------------------------
@dataclass
class _Keep:
    """`final` translates a label to its polygon number (0: none); `kind` is by polygon number."""

    final: np.ndarray
    kind: np.ndarray

    @property
    def count(self) -> int:
        return len(self.kind) - 1


def _join(pairs: np.ndarray, size: int) -> np.ndarray:
    """The component number of each node."""
    ones = np.ones(len(pairs), np.int8)
    graph = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _decide(survey: _Survey, settings: VectoriseSettings) -> _Keep:
    """Drops small components; fills small holes, and what was dropped inside of them."""
    component = _join(survey.same, len(survey.kind))
    outside = component[_OUTSIDE]
    n = int(component.max()) + 1
    area = np.bincount(component, survey.area, minlength=n)
    kind = np.zeros(n, np.int64)
    kind[component] = survey.kind
    kept = (kind > 0) & (area >= settings.min_area_m2 * (1 - 1e-9))
    touch = component[survey.touch]
    # Background and dropped components that touch are one hole (or one part of the open background).
    loose = ~kept
    loose[outside] = False
    hole = _join(touch[loose[touch].all(axis=1)], n)
    hole_area = np.bincount(hole, np.where(loose, area, 0.0))
    fill = loose & (hole_area[hole] < settings.min_area_m2)
    a, b = np.concatenate([touch, touch[:, ::-1]]).T
    at_hole = loose[a] & ~loose[b]
    owner = np.full(len(hole_area), -1)
    owner[hole[a[at_hole]]] = b[at_hole]
    # A hole is filled when nothing but one kept component is around it.
    foreign = np.zeros(len(hole_area), bool)
    foreign[hole[a[at_hole]][b[at_hole] != owner[hole[a[at_hole]]]]] = True
    fill &= ~foreign[hole] & (owner[hole] >= 0) & (owner[hole] != outside)

    number = np.zeros(n, np.int64)
    number[kept] = np.arange(1, int(kept.sum()) + 1)
    number[fill] = number[owner[hole[fill]]]
    return _Keep(number[component], np.concatenate([[0], kind[kept]]))


# --- outlines --------------------------------------------------------------------------------------
@dataclass
class _Traced:
    """Polygons in pixel coordinates (x = column, y = row) with their statistics, in order of number."""

    shapes: np.ndarray
    kind: np.ndarray
    pixels: np.ndarray
    mean: np.ndarray
    top: np.ndarray

    @classmethod
    def empty(cls) -> _Traced:
        return cls(np.empty(0, object), *(np.empty(0) for _ in range(4)))


def _trace(
    source: rasterio.DatasetReader,
    probability: Path | None,
    survey: _Survey,
    keep: _Keep,
    settings: VectoriseSettings,
    tell: Callable[[float], None],
    seen: Callable[[int, np.ndarray], None] | None,
) -> _Traced:
    n = keep.count + 1
    pixels, known = np.zeros(n, np.int64), np.zeros(n, np.int64)
    total, top = np.zeros(n), np.full(n, np.nan)
    pieces: dict[int, list[shapely.Polygon]] = defaultdict(list)
    prob = rasterio.open(probability) if probability else None
    try:
        for index, (start, rows) in enumerate(_strips(source.height, settings.strip_rows)):
            kinds = _kinds(_read(source, start, rows), source.nodata, settings.classes)
            labels, _ = _label(
                kinds, survey.offsets[index], len(settings.classes), settings.connectivity == 8
            )
            number = keep.final[labels].astype(np.int32)
            pixels += np.bincount(number.ravel(), minlength=n)
            if seen is not None:
                seen(start, number)
            if prob is not None:
                _add_probability(prob, start, number, known, total, top)
            shapes = features.shapes(number, mask=number > 0, connectivity=settings.connectivity)
            for shape, value in shapes:
                rings = [np.add(r, (0, start)) for r in shape["coordinates"]]
                pieces[int(value)].append(shapely.Polygon(rings[0], rings[1:]))
            tell((start + rows) / source.height)
    finally:
        if prob is not None:
            prob.close()
    whole = np.empty(keep.count, object)
    for i in range(keep.count):
        parts = pieces.pop(i + 1)
        whole[i] = parts[0] if len(parts) == 1 else _unite(parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / known
    return _Traced(whole, keep.kind[1:], pixels[1:], mean[1:], top[1:])


def _add_probability(
    prob: rasterio.DatasetReader,
    start: int,
    number: np.ndarray,
    known: np.ndarray,
    total: np.ndarray,
    top: np.ndarray,
) -> None:
    stored = _read(prob, start, len(number))
    inside = number > 0
    if prob.nodata is not None:
        inside &= stored != prob.nodata
    ids, values = number[inside], stored[inside] * prob.scales[0] + prob.offsets[0]
    known += np.bincount(ids, minlength=len(known))
    total += np.bincount(ids, values, minlength=len(total))
    np.fmax.at(top, ids, values)


def _unite(parts: list[shapely.Polygon]) -> shapely.Geometry:
    """One geometry from the pieces of several strips; the vertices that the seams left are taken out."""
    return shapely.simplify(shapely.normalize(shapely.union_all(parts)), 0, preserve_topology=True)


def _frame(traced: _Traced, geobox: GeoBox, crs: CRS | None, settings: VectoriseSettings) -> gpd.GeoDataFrame:
    """Smooths, places on the ground and measures."""
    raw = shapely.normalize(shapely.make_valid(traced.shapes))
    bounds = shapely.bounds(raw).reshape(-1, 4)
    shape = np.full(len(raw), "outline", object)
    drawn = smooth(raw, shared=len(set(traced.kind)) > 1) if settings.simplify else raw
    if settings.rectangles:
        fits, boxes = rectangle_if_it_fits(raw)
        drawn = np.where(fits, boxes, drawn)
        shape[fits] = "rectangle"
    affine = geobox.affine
    placed = shapely.transform(drawn, lambda c: np.column_stack(on_ground(affine, *c.T)))
    placed = shapely.orient_polygons(placed)
    step = 32 * max(abs(affine.a) + abs(affine.d), abs(affine.b) + abs(affine.e))
    area, perimeter = geodesic_measures(placed, crs, step)
    values = np.array(settings.classes)[traced.kind.astype(int) - 1] if len(raw) else np.empty(0, int)
    table = pd.DataFrame(
        {
            "number": np.arange(1, len(raw) + 1, dtype=np.int64),
            "class_value": values.astype(np.int32),
            "pixels": traced.pixels.astype(np.int64),
            "mean_prob": traced.mean.astype(np.float64),
            "max_prob": traced.top.astype(np.float64),
            "row": bounds[:, 1].astype(np.int64),
            "col": bounds[:, 0].astype(np.int64),
            "height": (bounds[:, 3] - bounds[:, 1]).astype(np.int64),
            "width": (bounds[:, 2] - bounds[:, 0]).astype(np.int64),
            "shape": pd.Series(shape, dtype="str"),
            "area_m2": area,
            "perimeter_m": perimeter,
        }
    )
    frame = gpd.GeoDataFrame(table, geometry=placed, crs=geobox.crs and str(geobox.crs))
    order = np.lexsort((frame["col"], frame["row"], -frame["pixels"]))
    return frame.iloc[order].reset_index(drop=True)
