"""The STAC item of a run: so that a catalogue finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from terralapse._version import __version__
from terralapse.grid.areas import crs_of, on_ground
from terralapse.labels import BINARY_CHANGE, VALIDITY, ClassScheme
from terralapse.products.polygons import split_at_antimeridian
from terralapse.products.record import plain
from terralapse.products.run import ChangeRun

FILE = "item.json"
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_FILES = {
    "change.tif": ("Change", COG, ["data"]),
    "prob.tif": ("Probability of change", COG, ["data"]),
    "valid.tif": ("Why a pixel is masked", COG, ["data-mask"]),
    "looks.tif": ("Clear looks behind each pixel, of both dates", COG, ["data-mask"]),
    "change.gpkg": ("Change polygons", "application/geopackage+sqlite3", ["data"]),
    "stats.csv": ("Areas by zone", "text/csv", ["data"]),
    "facts.json": ("Facts with their evidence", "application/json", ["metadata"]),
    "alignment.json": ("How the dates align", "application/json", ["metadata"]),
    "run.json": ("Record of the run", "application/json", ["metadata"]),
    "map.png": ("Map sheet", "image/png", ["overview"]),
    "map.pdf": ("Map sheet for print", "application/pdf", ["overview"]),
    "report.html": ("Report", "text/html", ["overview"]),
    "before.tif": ("Picture of the earlier date", "image/tiff; application=geotiff", ["visual"]),
    "after.tif": ("Picture of the later date", "image/tiff; application=geotiff", ["visual"]),
}


def item(run: ChangeRun, files: list[str]) -> dict[str, Any] | None:
    """The item as a dictionary, or None for a run without a CRS, which has no place on Earth.

    Args:
        run: with its three rasters in the folder.
        files: the names of the files that the finished folder holds.
    """
    maps = {} if run.classes is None else run.classes.rasters
    known = _FILES | {name: (title, COG, ["data"]) for name, (_, title) in maps.items()}
    times = [i.time for i in (run.pair.before, run.pair.after) if i.time is not None]
    return describe(
        run.folder,
        {name: known[name] for name in files if name in known},
        _SCHEMES | {name: scheme for name, (scheme, _) in maps.items()},
        geobox=run.pair.geobox,
        run_id=run.run_id,
        title=f"Change between {run.pair.before.name} and {run.pair.after.name}",
        lineage=f"{run.card.slug}, threshold {run.threshold:g}",
        started=run.started,
        span=(min(times), max(times)) if times else None,
    )


def describe(
    folder: Path,
    files: Mapping[str, tuple[str, str, list[str]]],
    rasters: Mapping[str, ClassScheme | None],
    *,
    geobox: GeoBox,
    run_id: str,
    title: str,
    lineage: str,
    started: datetime,
    span: tuple[datetime, datetime] | None,
    properties: Mapping[str, Any] | None = None,
    extensions: Sequence[str] = (),
    fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any] | None:
    """An item over the files of a folder, or None for a grid without a CRS, which has no place on Earth.

    Args:
        folder: that holds the files.
        files: title, media type and roles of each, in the order of the assets.
        rasters: those of the files whose bands are described, with their classes where they have some.
        geobox: the grid of the rasters.
        run_id, title, lineage, started: of the run.
        span: the first and the last time of what was seen; None when no time is known.
        properties, extensions: beyond those of any item.
        fields: of assets, by the name of the file.
    """
    crs = crs_of(geobox)
    if crs is None:
        return None
    footprint = _footprint(geobox, crs)
    start, end = span or (None, None)
    found = pystac.Item(
        id=f"terralapse-{run_id}",
        geometry=json.loads(shapely.to_geojson(footprint)),
        bbox=_bbox(footprint),
        datetime=end or started,
        start_datetime=start,
        end_datetime=end,
        properties={
            "title": title,
            "created": _utc(started),
            "processing:software": {"terralapse": __version__},
            "processing:lineage": lineage,
            "terralapse:run_id": run_id,
            **_projection(crs),
            "proj:shape": [int(geobox.shape.y), int(geobox.shape.x)],
            "proj:transform": list(geobox.affine[:6]),
            **(properties or {}),
        },
        stac_extensions=[*_EXTENSIONS, *extensions],
    )
    for name, (asset_title, media, roles) in files.items():
        extra = _bands(folder / name, rasters[name]) if name in rasters else {}
        extra |= (fields or {}).get(name, {})
        asset = pystac.Asset(
            f"./{name}", title=asset_title, media_type=media, roles=roles, extra_fields=extra
        )
        found.add_asset(name.replace(".", "_").replace("/", "_"), asset)
    return plain(found.to_dict(include_self_link=False))


_SCHEMES: dict[str, ClassScheme | None] = {
    "change.tif": BINARY_CHANGE,
    "prob.tif": None,
    "valid.tif": VALIDITY,
}


def _projection(crs: CRS) -> dict[str, Any]:
    authority = crs.to_authority()
    if authority:
        return {"proj:code": ":".join(authority)}
    return {"proj:code": None, "proj:projjson": crs.to_json_dict()}


def _footprint(box: GeoBox, crs: CRS) -> shapely.Geometry:
    """The outline of the grid in WGS 84, with points along its edges, cut at the antimeridian."""
    frame = shapely.segmentize(shapely.box(0, 0, box.shape.x, box.shape.y), max(box.shape.x, box.shape.y) / 8)
    placed = shapely.transform(frame, lambda c: np.column_stack(on_ground(box.affine, *c.T)))
    to_wgs84 = Transformer.from_crs(crs, CRS.from_epsg(4326), always_xy=True)
    round_world = shapely.transform(
        placed, lambda c: np.column_stack([_wrapped(v, i) for i, v in enumerate(to_wgs84.transform(*c.T))])
    )
    return shapely.orient_polygons(shapely.normalize(split_at_antimeridian(round_world)))


def _wrapped(values: np.ndarray, axis: int) -> np.ndarray:
    """Longitudes beyond 180 come back from the other side; 7 decimals are a centimetre."""
    inside = np.where(np.abs(values) > 180, (values + 180) % 360 - 180, values) if axis == 0 else values
    return np.round(inside, 7)


def _bbox(footprint: shapely.Geometry) -> list[float]:
    """West, south, east, north; west is the larger where the antimeridian is crossed."""
    parts = shapely.get_parts(footprint)
    bounds = shapely.bounds(parts)
    if len(parts) == 1:
        return [float(v) for v in bounds[0]]
    west, east = bounds[bounds[:, 0] >= 0], bounds[bounds[:, 0] < 0]
    return [
        float(west[:, 0].min()),
        float(bounds[:, 1].min()),
        float(east[:, 2].max()),
        float(bounds[:, 3].max()),
    ]


def _bands(path: Path, scheme: ClassScheme | None) -> dict[str, Any]:
    """`raster:bands` as the file states them, and its classes."""
    with rasterio.open(path) as source:
        band: dict[str, Any] = {
            "data_type": source.dtypes[0],
            "nodata": _number(source.nodata),
            "spatial_resolution": abs(source.transform.a),
        }
        if source.scales[0] != 1 or source.offsets[0] != 0:
            band |= {"scale": source.scales[0], "offset": source.offsets[0]}
    extra: dict[str, Any] = {"raster:bands": [{k: v for k, v in band.items() if v is not None}]}
    if scheme is not None:
        extra["classification:classes"] = [
            {"value": c.value, "name": c.name, "title": c.title, "color_hint": c.colour[1:].upper()}
            for c in scheme.classes
        ]
    return extra


def _number(value: float | None) -> float | str | None:
    """Nodata as STAC writes it."""
    return "nan" if value is not None and np.isnan(value) else value


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
