"""What an input is and what is wrong with it, for a person who is about to use it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.errors import NoGeoreferenceError
from terralapse.grid import _gdal
from terralapse.grid._gdal import gdal_env
from terralapse.grid._georef import place, resolution_m
from terralapse.grid._remote import holds_json, is_url
from terralapse.grid._stack import StackScene
from terralapse.grid.cube import CubeScene
from terralapse.grid.landsat import mtl_of
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Block, Note, Scene, Window
from terralapse.labels import SceneMask
from terralapse.sensors import Unit

PREVIEW = 512  # longest side of the decimated read
MAX_WITHOUT_OVERVIEWS = 2e8  # values that a decimated read may decode

_HINTS = {
    "pixel-grid": "Give a georeferenced image, or compare with another of equal size (--no-crs).",
    "black-collar": "Write the nodata value into the file (gdal_edit.py -a_nodata 0).",
    "alpha-is-data": "Mark the band as near-infrared or undefined when you write the file.",
    "unknown-scale": "State scale and offset in the file, or use a detector that takes stored numbers.",
    "display-scaled": "Use the original reflectance for anything but looking.",
    "s2-offset-unknown": "Use the product or STAC item, which state the offset, or give it.",
    "s2-offset-contradiction": "Compare with the original product, or give the offset.",
    "level-1-numbers": "Give the product's folder, which holds the MTL file.",
    "no-reflectance-coefficients": "Compare it only with images of the same processing.",
    "no-cloud-mask": "Choose cloud-free dates, or give Level-2 products.",
    "gcp-warp": "Warp it to a map projection with more care if metres matter.",
    "unwritten-blocks": "Write a nodata value into the file.",
    "content-is-not-extension": "Rename the file.",
    "nearest-date": "Name a date that the cube has.",
    "several-dates": "Make sure that the tiles may be mixed.",
    "bands-left-out": "Check that the bands that you need are among those listed.",
    "given-date": "Check which of the two dates is right.",
    "date-from-writing": "Put the acquisition date (yyyymmdd) into the file name.",
}


@dataclass(frozen=True)
class Problem:
    """Something to mind: a stable `code`, what it is, and the next step."""

    code: str
    text: str
    hint: str


@dataclass
class Inspection:
    """All that is known of an input; `as_dict` is its JSON form."""

    source: str
    name: str
    format: str
    layout: str
    parts: int
    sensor: str
    sensor_title: str
    sensor_why: str
    level: str
    time: datetime | None
    bands: list[dict[str, Any]]
    unit: str
    dtype: str
    nodata: str
    cloud_mask: str
    crs: str
    epsg: int | None
    width: int
    height: int
    pixel: tuple[float, float]
    resolution_m: float | None
    bounds_lonlat: tuple[float, float, float, float] | None
    orientation: str
    overviews: list[int]
    compression: str
    statistics_from: str
    valid_share: float
    masked_shares: dict[str, float]
    ranges: dict[str, dict[str, float] | None]
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the date is ISO 8601."""
        out = asdict(self)
        out["time"] = self.time.isoformat() if self.time else None
        return out


def inspect(
    source: str | Path,
    *,
    assume_crs: str | None = None,
    time: str | None = None,
    s2_offset: float | None = None,
) -> Inspection:
    """Describes anything that `open_scene` opens; an image without a georeference is described as well.

    Args:
        source, assume_crs, time, s2_offset: as in `terralapse.grid.open.open_scene`.

    Raises:
        TerralapseError: it cannot be opened or read, with the reason.
    """
    options: dict[str, Any] = {"assume_crs": assume_crs, "time": time, "s2_offset": s2_offset}
    missing: NoGeoreferenceError | None = None
    try:
        scene = open_scene(source, **options)
    except NoGeoreferenceError as e:
        if not Path(str(source)).is_file():
            raise
        missing = e
        scene = open_scene(source, **options, pixel_grid=True)
    with scene:
        return _describe(str(source), scene, missing)


def _describe(source: str, scene: Scene, missing: NoGeoreferenceError | None) -> Inspection:
    info = scene.info
    box = info.geobox
    assert box.crs is not None
    storage = _storage(scene)
    block, how = _look(scene)
    guess = next((n.text for n in info.notes if n.code == "sensor-guess"), "")
    total = block.mask.size
    shares = {
        c.name.lower(): float((block.mask == c).sum() / total) for c in SceneMask if (block.mask == c).any()
    }
    found = Inspection(
        source=source,
        name=info.name,
        format=_format(source, scene, storage),
        layout=storage["layout"],
        parts=len(scene.parts()),
        sensor=info.sensor.slug,
        sensor_title=info.sensor.title,
        sensor_why=guess.partition(": ")[2].rstrip(".") or "the product's metadata",
        level=info.level,
        time=info.time,
        bands=[asdict(b) for b in info.bands],
        unit=info.unit.value,
        dtype=info.dtype,
        nodata=info.nodata,
        cloud_mask=info.cloud_mask,
        crs="none" if missing else box.crs.proj.name,
        epsg=None if missing else box.crs.epsg,
        width=box.shape.x,
        height=box.shape.y,
        pixel=(math.hypot(box.affine.a, box.affine.d), math.hypot(box.affine.b, box.affine.e)),
        resolution_m=None if missing else round(resolution_m(box), 6),
        bounds_lonlat=None if missing else bounds_lonlat(box),
        orientation=_orientation(box),
        overviews=storage["overviews"],
        compression=storage["compression"],
        statistics_from=how,
        valid_share=shares.pop("valid", 0.0),
        masked_shares=shares,
        ranges={b.name: _range(block.data[i]) for i, b in enumerate(info.bands)},
        notes=[n for n in info.notes if n.code != "sensor-guess"],
    )
    found.problems = _problems(found, scene, storage, missing)
    return found


def bounds_lonlat(box: GeoBox) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees of WGS 84; east is less than west across the antimeridian."""
    h, w = box.shape
    lines = np.linspace(0, 1, 21)
    x = np.concatenate([lines * w, lines * w, np.zeros(21), np.full(21, w)])
    y = np.concatenate([np.zeros(21), np.full(21, h), lines * h, lines * h])
    wx, wy = place(box.affine, x, y)
    assert box.crs is not None
    lon, lat = (wx, wy) if box.crs.epsg == 4326 else box.crs.transformer_to_crs("EPSG:4326")(wx, wy)
    good = np.isfinite(lon) & np.isfinite(lat)
    lon, lat = np.asarray(lon)[good], np.asarray(lat)[good]
    if lon.size == 0:
        return (-180.0, -90.0, 180.0, 90.0)
    if not box.crs.geographic and lon.max() - lon.min() > 180:
        lon = np.where(lon < 0, lon + 360, lon)
    west, east = float(lon.min()), float(lon.max())
    if east > 180 and west < 180:
        east -= 360
    return round(west, 7), round(float(lat.min()), 7), round(east, 7), round(float(lat.max()), 7)


def _storage(scene: Scene) -> dict[str, Any]:
    """How the first file is laid out."""
    first = scene.parts()[0]
    if not isinstance(first, StackScene):
        return {
            "layout": "chunks",
            "overviews": [],
            "compression": "",
            "driver": "",
            "tiled": True,
            "lossy": False,
        }
    handle = first.layers[0].handle
    with gdal_env(remote=handle.remote):
        ds = _gdal.dataset(handle)
        structure = ds.tags(ns="IMAGE_STRUCTURE")
        rows, cols = ds.block_shapes[0]
        driver, width, height = handle.driver, ds.width, ds.height
    overviews = list(first.layers[0].overviews)
    small = max(width, height) <= 1024
    tiled = driver == "JP2OpenJPEG" or (cols < width or small)
    cog = structure.get("LAYOUT") == "COG"
    if driver != "GTiff":
        layout = f"blocks of {cols} x {rows}"
    else:
        kind = "tiles" if cols < width or (rows != 1 and cols == rows) else "strips"
        layout = f"{'COG, ' if cog else ''}{kind} of {cols} x {rows}"
    compression = structure.get("COMPRESSION", "none" if driver in ("GTiff", "VRT") else driver)
    lossy = "JPEG" in compression.upper() and driver in ("GTiff", "JPEG")
    lossy |= (
        structure.get("COMPRESSION_REVERSIBILITY", "").upper().startswith("LOSSY") and driver != "JP2OpenJPEG"
    )
    return {
        "layout": layout,
        "overviews": overviews,
        "compression": compression,
        "driver": driver,
        "tiled": tiled,
        "lossy": lossy,
        "large": max(width, height) > 4096,
    }


def _format(source: str, scene: Scene, storage: dict[str, Any]) -> str:
    path = Path(source.rpartition("::")[0] or source)
    if isinstance(scene, CubeScene):
        return "Zarr cube" if path.is_dir() else "NetCDF cube"
    names = {"GTiff": "GeoTIFF", "JP2OpenJPEG": "JPEG 2000", "WEBP": "WebP"}
    driver = str(names.get(storage["driver"], storage["driver"]))
    if holds_json(source) if is_url(source) else source.lower().endswith((".json", ".geojson")):
        return f"STAC item, {driver}"
    if path.suffix.lower() == ".zip" or path.suffix.upper() == ".SAFE":
        return f"Sentinel-2 SAFE, {driver}"
    if path.is_dir() and mtl_of(path) is not None:
        return f"Landsat folder, {driver}"
    if isinstance(scene, MosaicScene):
        return f"{len(scene.parts())} tiles, {driver}"
    return f"single-band files, {driver}" if path.is_dir() else driver


def _look(scene: Scene) -> tuple[Block, str]:
    """A decimated read, or, where that would decode too much, windows spread over the scene."""
    h, w = scene.info.geobox.shape
    d = max(1, math.ceil(max(h, w) / PREVIEW))
    if h * w * len(scene.info.bands) <= MAX_WITHOUT_OVERVIEWS or _has_overviews(scene, d):
        return scene.read(
            Window(0, 0, h, w), decimation=d
        ), f"every pixel, averaged {d} x {d}" if d > 1 else "every pixel"
    side, count = 256, 5
    blocks = []
    for r in range(count):
        for c in range(count):
            row, col = int((h - side) * (r + 0.5) / count), int((w - side) * (c + 0.5) / count)
            blocks.append(scene.read(Window(max(row, 0), max(col, 0), min(side, h), min(side, w))))
    data = np.concatenate([b.data.reshape(b.data.shape[0], -1) for b in blocks], axis=1)
    mask = np.concatenate([b.mask.ravel() for b in blocks])
    return Block(data[:, None, :], mask[None, :]), f"{len(blocks)} windows of {side} x {side}"


def _has_overviews(scene: Scene, d: int) -> bool:
    """Whether every file has an overview that makes a decimated read cheap."""
    parts = scene.parts()
    if not all(isinstance(p, StackScene) for p in parts):
        return False
    layers = [x for p in parts if isinstance(p, StackScene) for x in p.layers]
    return all(any(o * x.factor * 4 >= d and d % (o * x.factor) == 0 for o in x.overviews) for x in layers)


def _range(values: np.ndarray) -> dict[str, float] | None:
    good = values[np.isfinite(values)]
    if not good.size:
        return None
    low, p2, median, p98, high = (float(v) for v in np.percentile(good, [0, 2, 50, 98, 100]))
    return {"min": low, "p2": p2, "median": median, "p98": p98, "max": high}


def _orientation(box: GeoBox) -> str:
    a = box.affine
    if a.b or a.d:
        return f"rotated by {math.degrees(math.atan2(a.d, a.a)):.1f} degrees"
    return "south-up" if a.e > 0 else "north-up"


def _problems(
    found: Inspection, scene: Scene, storage: dict[str, Any], missing: NoGeoreferenceError | None
) -> list[Problem]:
    out = []
    if missing is not None:
        out.append(Problem("no-crs", f"It {missing.fault}.", missing.hint))
    for note in scene.info.notes:
        if note.level == "warning" and not (missing and note.code == "pixel-grid"):
            out.append(
                Problem(
                    note.code, note.text, _HINTS.get(note.code, "Check it before you rely on the result.")
                )
            )
    if found.orientation.startswith("rotated"):
        out.append(
            Problem(
                "rotated", f"Its grid is {found.orientation}.", "It is read as it is; results are warped."
            )
        )
    if not storage["tiled"]:
        hint = "Make a COG of it (rio cogeo create, or gdal_translate -of COG): reading gets faster."
        out.append(Problem("not-tiled", f"It is stored in {storage['layout']}.", hint))
    if storage.get("large") and not found.overviews:
        hint = "Make a COG of it: previews and statistics then need not read everything."
        out.append(Problem("no-overviews", "It has no overviews.", hint))
    if storage["lossy"]:
        text = (
            f"Its compression ({found.compression}) is lossy; edges of 8-pixel blocks can look like change."
        )
        out.append(Problem("lossy", text, "Use the original for measurements."))
    if found.time is None:
        out.append(
            Problem("no-date", "Nothing says when it was acquired.", "Put yyyymmdd into the file name.")
        )
    if found.valid_share == 0:
        out.append(Problem("no-valid-pixels", "No usable pixel was found.", "Check nodata and masks."))
    elif found.valid_share < 0.5:
        text = f"Only {found.valid_share:.0%} of the pixels looked at are usable."
        out.append(Problem("few-valid-pixels", text, "Choose another date or area."))
    if scene.info.unit is Unit.RAW and found.dtype == "uint8" and len(found.bands) < 3:
        out.append(
            Problem("one-band", "It has 8-bit numbers of unknown meaning.", "Is it a class map or a mask?")
        )
    return out
