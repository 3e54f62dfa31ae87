"""The STAC item of a series: its place, its dates as a dimension of time, its rasters as variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS

from terralapse.engine.series import RASTERS
from terralapse.grid.areas import crs_of, on_ground
from terralapse.labels import SERIES_QUALITY, ClassScheme
from terralapse.products import stac

_DATACUBE = "https://stac-extensions.github.io/datacube/v2.2.0/schema.json"
_FILES = {
    "breaks.gpkg": ("Polygons of breaks", "application/geopackage+sqlite3", ["data"]),
    "breaks.parquet": ("Polygons of breaks", "application/vnd.apache.parquet", ["data"]),
    "stats.csv": ("Areas by year", "text/csv", ["data"]),
    "facts.json": ("Facts with their evidence", "application/json", ["metadata"]),
    "run.json": ("Record of the run", "application/json", ["metadata"]),
    "map.png": ("Map sheet", "image/png", ["overview"]),
    "map.pdf": ("Map sheet for print", "application/pdf", ["overview"]),
    "report.html": ("Report", "text/html", ["overview"]),
}


def item(
    folder: Path,
    files: Sequence[str],
    composites: Sequence[Mapping[str, Any]],
    *,
    geobox: GeoBox,
    times: Sequence[datetime],
    run_id: str,
    name: str,
    index: str,
    lineage: str,
    started: datetime,
) -> dict[str, Any] | None:
    """The item as a dictionary, or None without a CRS.

    Args:
        folder: with the rasters.
        files: the names of the files that the finished folder holds.
        composites: as `terralapse.engine.composites.write_composites` returns them.
        geobox: the grid.
        times: of the dates, in order.
        run_id, name, index, lineage, started: of the run; `name` is that of the area.
    """
    crs = crs_of(geobox)
    if crs is None:
        return None
    known: dict[str, tuple[str, str, list[str]]] = {}
    rasters: dict[str, ClassScheme | None] = {}
    for raster, about in RASTERS.items():
        file = f"{raster}.tif"
        if file in files:
            role = "data-mask" if raster == "valid" else "data"
            known[file] = (about.text[0].upper() + about.text[1:], stac.COG, [role])
            rasters[file] = SERIES_QUALITY if raster == "valid" else None
    fields: dict[str, dict[str, Any]] = {}
    for made in composites:
        known[made["file"]] = (f"Composite of {made['period']}", stac.COG, ["data"])
        days = made["dates"]
        fields[made["file"]] = {
            "start_datetime": f"{days[0]}T00:00:00Z",
            "end_datetime": f"{days[-1]}T23:59:59Z",
        }
    known |= {file: about for file, about in _FILES.items() if file in files}
    return stac.describe(
        folder,
        known,
        rasters,
        geobox=geobox,
        run_id=run_id,
        title=f"Breaks of {index} in {name}" if rasters else f"Composites of {name}",
        lineage=lineage,
        started=started,
        span=(times[0], times[-1]),
        properties={
            "cube:dimensions": _dimensions(geobox, crs, times),
            "cube:variables": _variables([f.removesuffix(".tif") for f in rasters], index),
        },
        extensions=[_DATACUBE],
        fields=fields,
    )


def _dimensions(geobox: GeoBox, crs: CRS, times: Sequence[datetime]) -> dict[str, Any]:
    """`x`, `y` (centres of pixels, in the CRS) and `time`; a turned grid has no steps along its axes."""
    rows, cols = geobox.shape.y, geobox.shape.x
    edge = np.array([0.5, cols - 0.5]), np.array([0.5, rows - 0.5])
    corners = on_ground(geobox.affine, *(a.ravel() for a in np.meshgrid(*edge)))
    upright = not (geobox.affine.b or geobox.affine.d)
    steps = (abs(geobox.affine.a), abs(geobox.affine.e))
    found: dict[str, Any] = {}
    for axis, at, step in zip("xy", corners, steps, strict=True):
        found[axis] = {
            "type": "spatial",
            "axis": axis,
            "extent": [float(np.min(at)), float(np.max(at))],
            "step": float(step) if upright else None,
            "reference_system": crs.to_epsg() or crs.to_json_dict(),
        }
    stamps = [f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in times]
    found["time"] = {"type": "temporal", "extent": [stamps[0], stamps[-1]], "values": stamps}
    return found


def _variables(rasters: Sequence[str], index: str) -> dict[str, Any]:
    """What the rasters hold. They tell of all dates together, so that none has a dimension of time."""
    units = {
        "break_days": "days since 1970-01-01",
        "magnitude": index,
        "deviation": index,
        "probability": "1",
    }
    return {
        name: {
            "type": "auxiliary" if name in ("valid", "observations") else "data",
            "dimensions": ["y", "x"],
            "description": RASTERS[name].text,
            **({"unit": units[name]} if name in units else {}),
        }
        for name in rasters
    }
