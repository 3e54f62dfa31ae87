"""The products of a whole job from those of its units, in memory bounded by a cell and by what was found.

Nothing here reads a clock or the order in which units finished: the same units give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as GdalWindow

from terralapse._version import __version__
from terralapse.engine.stitch import NODATA
from terralapse.errors import SettingError
from terralapse.grid._gdal import gdal_env
from terralapse.grid.areas import PixelArea
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.grid.vectorise import VectoriseSettings, vectorise
from terralapse.labels import BINARY_CHANGE, VALIDITY, Reason
from terralapse.products.collection import write_collection
from terralapse.products.polygons import LAYER, write_geopackage, write_geoparquet

FILE = "merged.json"
NOT_COMPUTED = 255  # in the merged valid.tif: no unit has anything to say here
_STAMP = datetime(2000, 1, 1, tzinfo=UTC)  # files that must hold a time hold this one
_LEAST_PIXELS, _LEAST_M2 = 3.5, 10.0  # as for the polygons of one run
_DESCRIPTIONS = {
    "prob": "probability of change",
    "valid": "why a pixel is masked",
    "change": "change",
}

Core = tuple[int, int, int, int]


@dataclass(frozen=True)
class Part:
    """One finished unit: its folder, and the window of the job's grid that it answers for (None: its own)."""

    id: str
    name: str
    folder: Path
    core: Core | None


def write_merged(
    folder: Path,
    parts: Sequence[Part],
    *,
    name: str,
    grid: tuple[str, float] | None,
    cores: Sequence[Core],
    products: Sequence[str],
    min_area_m2: float | None,
    missing: Sequence[str],
) -> None:
    """Writes the products of a job into an empty folder.

    Args:
        folder: to fill; its parent's `units/` holds the parts.
        parts: in the order of the plan: where two answer for one pixel, the first with a valid one wins.
        name: of the job.
        grid: CRS and pixel size of the job's grid; None when each unit has its own, and then there is no
            raster of the whole, and polygons are joined in WGS 84.
        cores: windows of all units, finished or not: they set the extent of the rasters.
        products: of `terralapse.engine.jobs.plan.PRODUCTS`.
        min_area_m2: the smallest polygon kept; None for about four pixels and at least 10 m2.
        missing: names of units that were given up.

    Raises:
        SettingError: a job on one grid has a part without a window: an image that could not be opened when
            the job was cut into units, and could later.
    """
    made: list[str] = []
    box: GeoBox | None = None
    if grid is not None and (late := [p.name for p in parts if p.core is None]):
        raise SettingError(
            ", ".join(late[:4]), "could be opened only after the job had begun", "Run it in another folder."
        )
    if grid is not None and parts and set(products) != {"stac"}:
        box = _extent(cores, *grid)
        _rasters(folder, parts, cores, box)
        made += ["change.tif", "prob.tif", "valid.tif", "change.vrt", "prob.vrt"]
    if {"geopackage", "geoparquet", "pmtiles"} & set(products):
        frame = _joined(parts) if box is None else _traced(folder, box, min_area_m2)
        made += _vectors(folder, frame, products)
    if "stac" in products:
        made += write_collection(folder, parts, name, made)
    record = {
        "job": name,
        "software": f"terralapse {__version__}",
        "units": len(parts),
        "missing": list(missing),
        "rasters": "one grid"
        if box is not None
        else "none: the plan has no `grid`, so each unit has its own",
        "files": {f: _digest(folder / f) for f in sorted(made)},
    }
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# --- rasters ---------------------------------------------------------------------------------------
def _extent(cores: Sequence[Core], crs: str, size: float) -> GeoBox:
    """The grid over all windows."""
    top, left = min(c[0] for c in cores), min(c[1] for c in cores)
    bottom, right = max(c[0] + c[2] for c in cores), max(c[1] + c[3] for c in cores)
    return GeoBox((bottom - top, right - left), Affine(size, 0, left * size, 0, -size, -top * size), CRS(crs))


def _rasters(folder: Path, parts: Sequence[Part], cores: Sequence[Core], box: GeoBox) -> None:
    top, left = min(c[0] for c in cores), min(c[1] for c in cores)
    cells: dict[Core, list[Part]] = defaultdict(list)
    for part in parts:
        assert part.core is not None
        cells[part.core].append(part)
    with gdal_env():
        for layer in ("prob", "valid", "change"):
            probability = layer == "prob"
            write_cog(
                _windows(cells, layer, (top, left)),
                folder / f"{layer}.tif",
                geobox=box,
                kind="continuous" if probability else "class",
                dtype="uint8",
                nodata=NOT_COMPUTED if layer == "valid" else NODATA,
                scheme={"valid": VALIDITY, "change": BINARY_CHANGE}.get(layer),
                scale=0.005 if probability else 1.0,
                descriptions=[_DESCRIPTIONS[layer]],
                threads=1,
            )
    for layer in ("prob", "change"):
        _write_vrt(folder / f"{layer}.vrt", cells, box, (top, left), layer)


def _windows(
    cells: dict[Core, list[Part]], layer: str, corner: tuple[int, int]
) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows of all cells, row by row."""
    for core in sorted(cells):
        window = Window(core[0] - corner[0], core[1] - corner[1], core[2], core[3])
        yield window, _cell(core, cells[core], layer)


def _cell(core: Core, parts: Sequence[Part], layer: str) -> np.ndarray:
    """One layer of a cell: at each pixel the first part with a valid one; masks of the first elsewhere."""
    values = np.full(core[2:], NOT_COMPUTED if layer == "valid" else NODATA, np.uint8)
    why = np.full(core[2:], NOT_COMPUTED, np.uint8)
    for part in parts:
        reason, (rows, cols) = _read(part, core, "valid")
        mine = reason if layer == "valid" else _read(part, core, layer)[0]
        here = why[rows, cols]
        take = ((here != Reason.VALID) & (reason == Reason.VALID)) | (here == NOT_COMPUTED)
        values[rows, cols][take] = mine[take]
        here[take] = reason[take]
    return values


def _read(part: Part, core: Core, layer: str) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The pixels of a part that lie in a cell, and where in the cell."""
    with rasterio.open(part.folder / f"{layer}.tif") as source:
        row, col = _place(source)
        r0, c0 = max(row, core[0]), max(col, core[1])
        r1, c1 = min(row + source.height, core[0] + core[2]), min(col + source.width, core[1] + core[3])
        rows, cols = slice(r0 - core[0], max(r0, r1) - core[0]), slice(c0 - core[1], max(c0, c1) - core[1])
        if r1 <= r0 or c1 <= c0:
            return np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.uint8), (rows, cols)
        window = GdalWindow(c0 - col, r0 - row, c1 - c0, r1 - r0)  # pyright: ignore[reportCallIssue]
        return source.read(1, window=window), (rows, cols)


def _place(source: Any) -> tuple[int, int]:
    """Row and column of a raster's corner on the job's grid."""
    a = source.transform
    return round(-a.f / a.a), round(a.c / a.a)


def _write_vrt(
    path: Path, cells: dict[Core, list[Part]], box: GeoBox, corner: tuple[int, int], layer: str
) -> None:
    """A mosaic that points at the rasters of the units, for who wants them without a copy."""
    assert box.crs is not None
    a = box.affine
    lines = [
        f'<VRTDataset rasterXSize="{box.shape.x}" rasterYSize="{box.shape.y}">',
        f"<SRS>{escape(box.crs.to_wkt())}</SRS>",
        f"<GeoTransform>{a.c!r}, {a.a!r}, 0.0, {a.f!r}, 0.0, {a.e!r}</GeoTransform>",
        f'<VRTRasterBand dataType="Byte" band="1"><NoDataValue>{NODATA}</NoDataValue>',
    ]
    if layer == "prob":
        lines.append("<Scale>0.005</Scale>")
    for core in sorted(cells):
        for part in reversed(cells[core]):  # the last that is drawn lies on top
            with rasterio.open(part.folder / f"{layer}.tif") as source:
                row, col = _place(source)
                r0, c0 = max(row, core[0]), max(col, core[1])
                r1 = min(row + source.height, core[0] + core[2])
                c1 = min(col + source.width, core[1] + core[3])
            if r1 <= r0 or c1 <= c0:
                continue
            size = f'xSize="{c1 - c0}" ySize="{r1 - r0}"'
            lines += [
                "<ComplexSource>",
                f'<SourceFilename relativeToVRT="1">../units/{part.id}/{layer}.tif</SourceFilename>',
                "<SourceBand>1</SourceBand>",
                f'<SrcRect xOff="{c0 - col}" yOff="{r0 - row}" {size}/>',
                f'<DstRect xOff="{c0 - corner[1]}" yOff="{r0 - corner[0]}" {size}/>',
                f"<NODATA>{NODATA}</NODATA></ComplexSource>",
            ]
    lines += ["</VRTRasterBand>", "</VRTDataset>", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


# --- polygons --------------------------------------------------------------------------------------
def _traced(folder: Path, box: GeoBox, min_area_m2: float | None) -> gpd.GeoDataFrame:
    """Polygons of the merged raster: what crosses the border of two cells is one."""
    least = max(_LEAST_M2, _LEAST_PIXELS * PixelArea(box).mean) if min_area_m2 is None else min_area_m2
    frame = vectorise(folder / "change.tif", folder / "prob.tif", box, VectoriseSettings(min_area_m2=least))
    table = pd.DataFrame(
        {
            "id": np.arange(1, len(frame) + 1, dtype=np.int64),
            "area_m2": frame["area_m2"].round(2),
            "perimeter_m": frame["perimeter_m"].round(2),
            "mean_prob": frame["mean_prob"].round(4),
            "max_prob": frame["max_prob"].round(4),
            "pixels": frame["pixels"],
        }
    )
    return gpd.GeoDataFrame(table, geometry=frame.geometry, crs=frame.crs)


_KEPT = ["area_m2", "perimeter_m", "mean_prob", "max_prob", "pixels"]


def _joined(parts: Sequence[Part]) -> gpd.GeoDataFrame:
    """The polygons of all units in WGS 84, in the order of the plan, with the name of their place."""
    frames = []
    for part in parts:
        frame = pyogrio.read_dataframe(part.folder / "change.gpkg", layer=LAYER)
        if "area_m2" not in frame or not len(frame):  # images without a place have no polygons on a map
            continue
        kept = frame[[*_KEPT, "geometry"]].to_crs("EPSG:4326")
        kept.insert(0, "place", pd.Series([part.name] * len(kept), dtype="str"))
        frames.append(kept)
    if not frames:
        empty = {"id": np.zeros(0, np.int64), "place": pd.Series([], dtype="str")}
        empty |= {k: np.zeros(0) for k in _KEPT}
        return gpd.GeoDataFrame(empty, geometry=gpd.GeoSeries([], crs="EPSG:4326"))
    joined = gpd.GeoDataFrame(pd.concat(frames, ignore_index=True), crs="EPSG:4326")
    joined.insert(0, "id", np.arange(1, len(joined) + 1, dtype=np.int64))
    return joined


def _vectors(folder: Path, frame: gpd.GeoDataFrame, products: Sequence[str]) -> list[str]:
    made = []
    if "geopackage" in products:
        write_geopackage(frame, folder / "change.gpkg", _STAMP)
        made.append("change.gpkg")
    if "geoparquet" in products:
        write_geoparquet(frame, folder / "change.parquet")
        made.append("change.parquet")
    if "pmtiles" in products:
        options = {"NAME": LAYER, "MINZOOM": "0", "MAXZOOM": "12"}
        placed = frame.to_crs("EPSG:4326")
        pyogrio.write_dataframe(
            placed, folder / "change.pmtiles", layer=LAYER, driver="PMTiles", dataset_options=options
        )
        made.append("change.pmtiles")
    return made


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
