"""A STAC item as a scene: its data assets by common name, scaled as its metadata says, once.

Sentinel-2 needs care: mirrors differ in whether the offset of baseline 04.00 has been taken off the stored
numbers, and their metadata has been wrong. The rule of the metadata is therefore checked against the darkest
pixels, and the decision is written into the notes.
Source: STAC 1.0 and 1.1, extensions eo, raster and projection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np

from terralapse.errors import BandError, HostileFileError, UnreadableFileError
from terralapse.grid import _remote
from terralapse.grid._georef import Raster
from terralapse.grid._guess import dark_verdict, parse_time
from terralapse.grid._safety import read_text
from terralapse.grid._stack import Layer, MaskLayer, StackScene, is_nodata, read_raw
from terralapse.grid.landsat import qa_codes
from terralapse.grid.raster import open_raster, scene_of
from terralapse.grid.scene import Note, SceneInfo, Source, Window
from terralapse.grid.sentinel2 import CLOUD_MARGIN_M, replication, scl_codes
from terralapse.sensors import (
    LANDSAT_OLI,
    LANDSAT_TM,
    NAIP,
    SENTINEL1,
    SENTINEL2,
    UNKNOWN,
    Band,
    Sensor,
    Unit,
)

_NOT_DATA = {"thumbnail", "overview", "visual", "metadata", "index", "cloud", "cloud-optimized-preview"}
_DARK_BANDS = ("swir22", "swir16", "nir", "nir08")  # water is darkest in these
_IMAGE_TYPES = ("image/tiff", "image/jp2", "image/x.geotiff", "image/vnd.stac.geotiff")
_IMAGE_NAMES = (".tif", ".tiff", ".jp2")


@dataclass(frozen=True)
class _AssetBand:
    """One band of one asset, as the item describes it; None where it is silent."""

    asset: str
    href: str
    index: int
    name: str
    id: str
    scale: float | None
    offset: float | None
    nodata: float | None
    preferred: bool


def is_item(text: str) -> bool:
    """Whether a JSON text is a STAC item."""
    try:
        tree = json.loads(text)
    except ValueError:
        return False
    return isinstance(tree, dict) and tree.get("type") == "Feature" and isinstance(tree.get("assets"), dict)


def open_item(source: str | Path, *, s2_offset: float | None = None) -> StackScene:
    """A STAC item, by path or http(s) address, as a scene.

    Args:
        source: the item.
        s2_offset: the offset of Sentinel-2 in reflectance (0 or -0.1), over what metadata and pixels say.

    Raises:
        UnreadableFileError: it is not an item, or has no image asset.
        BandError: its assets do not share a grid.
        HostileFileError: a remote item that names files of this machine.
    """
    uri = str(source)
    item = _load(uri)
    sensor = _sensor(item)
    rows = _pick(list(_asset_bands(item, uri, sensor)), sensor, uri)
    properties = item.get("properties") or {}
    rasters = {href: open_raster(href) for href in dict.fromkeys(r.href for r in rows)}
    known = all(r.name for r in rows)
    if len(rasters) == 1 and (len(rows) == 1 or not known):
        scene = scene_of(next(iter(rasters.values())), s2_offset=s2_offset)
        return _named(scene, item, uri, properties)
    finest = min(rasters.values(), key=lambda r: abs(r.geobox.affine.a))
    layers, notes = [], []
    for r in rows:
        raster = rasters[r.href]
        p = raster.profile
        if r.index > p["count"]:
            raise BandError(
                r.href, f"has {p['count']} bands, and the item names band {r.index}", "Mend the item."
            )
        layers.append(
            Layer(
                raster.handle,
                r.index,
                _first(r.scale, p["scales"][r.index - 1], sensor.scale if p["dtypes"][0] != "uint8" else 1.0),
                _first(
                    r.offset,
                    p["offsets"][r.index - 1],
                    0.0 if sensor is SENTINEL2 else sensor.offset,
                    zero=0.0,
                ),
                _first_nodata(p["nodata"][r.index - 1], r.nodata, sensor.nodata),
                65535 if sensor is SENTINEL2 else None,
                replication(raster, finest),
                p["overviews"],
            )
        )
    masks, told = _masks(item, uri, sensor, finest)
    if sensor is SENTINEL2:
        layers, note = _decide_offset(
            layers, rows, masks, (finest.geobox.shape.y, finest.geobox.shape.x), properties, s2_offset
        )
        notes.append(note)
    bands = tuple(_band(sensor, r) for r in rows)
    coarser = [b.name for b, x in zip(bands, layers, strict=True) if x.factor > 1]
    if coarser:
        text = f"Brought to {abs(finest.geobox.affine.a):g} by nearest replication: {', '.join(coarser)}."
        notes.append(Note("info", "replicated", text))
    unit = sensor.unit if sensor is not UNKNOWN else Unit.RAW
    info = SceneInfo(
        name=str(item.get("id", Path(uri).stem)),
        uri=uri,
        sensor=sensor,
        bands=bands,
        unit=unit,
        geobox=finest.geobox,
        dtype=finest.profile["dtypes"][0],
        nodata=", ".join(
            dict.fromkeys("none" if x.nodata is None else f"value {x.nodata:g}" for x in layers)
        ),
        cloud_mask=told,
        level=_level(properties),
        notes=[*notes, *(n for r in rasters.values() for n in r.notes)],
        sources=[Source(r.uri, r.size) for r in rasters.values()],
    )
    return _named(StackScene(info, layers, masks), item, uri, properties)


def _load(uri: str) -> dict[str, Any]:
    text = _remote.read_text(uri) if _remote.is_url(uri) else read_text(Path(uri))
    try:
        item = json.loads(text)
    except ValueError as e:
        raise UnreadableFileError(uri, f"is not JSON ({e})", "Give a STAC item.") from e
    if not is_item(text):
        kind = item.get("type", "something else") if isinstance(item, dict) else "something else"
        raise UnreadableFileError(
            uri, f"is not a STAC item ({kind})", "Give one item, not a collection or catalog."
        )
    return item


def _sensor(item: dict[str, Any]) -> Sensor:
    p = item.get("properties") or {}
    texts = " ".join(
        str(x) for x in (p.get("platform"), p.get("constellation"), item.get("collection"))
    ).lower()
    if "sentinel-2" in texts:
        return SENTINEL2
    if "sentinel-1" in texts:
        return SENTINEL1
    if "naip" in texts:
        return NAIP
    if "landsat" in texts:
        number = next((n for n in "98754" if f"landsat-{n}" in texts or f"landsat_{n}" in texts), "")
        return LANDSAT_OLI if number in ("8", "9") else LANDSAT_TM if number else UNKNOWN
    return UNKNOWN


def _asset_bands(item: dict[str, Any], uri: str, sensor: Sensor) -> Iterator[_AssetBand]:
    """All bands of all image assets that may be data."""
    for key, asset in item["assets"].items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str) or not _is_image(asset):
            continue
        roles = {str(r).lower() for r in asset.get("roles") or ()}
        if roles & _NOT_DATA or key.lower() in ("thumbnail", "overview", "visual", "preview", "scl", "tci"):
            continue
        if key.lower().startswith(("qa", "scl", "aot", "wvp", "cld", "snw")) or "mask" in key.lower():
            continue
        href = resolve(uri, asset["href"])
        described = asset.get("bands") or asset.get("eo:bands") or [{}]
        raster = asset.get("raster:bands") or []
        cog = "cloud-optimized" in str(asset.get("type", "")) or href.lower().split("?")[0].endswith(
            (".tif", ".tiff")
        )
        for i, b in enumerate(described):
            r = {**asset, **(raster[i] if i < len(raster) else {}), **b}
            common = b.get("eo:common_name") or b.get("common_name") or ""
            name = _name(sensor, key, str(b.get("name", "")), str(common), len(described))
            yield _AssetBand(
                key,
                href,
                i + 1,
                name,
                str(b.get("name") or key),
                _float(r.get("raster:scale", r.get("scale"))),
                _float(r.get("raster:offset", r.get("offset"))),
                _float(r.get("nodata", r.get("raster:nodata"))),
                cog,
            )


def _name(sensor: Sensor, key: str, band: str, common: str, count: int) -> str:
    """The common name: the sensor's own by band id or asset key (which tells the three red edges apart)."""
    for text in (band, key if count == 1 else "", common):
        found = sensor.band(text.replace("-jp2", "")) if text else None
        if found:
            return found.name
    return common


def _pick(rows: list[_AssetBand], sensor: Sensor, uri: str) -> list[_AssetBand]:
    """One asset a band, in the sensor's order; cloud-optimized ones win over others."""
    if not rows:
        raise UnreadableFileError(
            uri, "has no image asset with data", "Give an item with GeoTIFF or JPEG 2000 assets."
        )
    named = [r for r in rows if r.name]
    if not named:
        first = [r for r in rows if r.asset == rows[0].asset]
        if len({r.asset for r in rows}) > 1:
            names = ", ".join(dict.fromkeys(r.asset for r in rows))
            raise BandError(
                uri, f"has several images and no band names ({names})", "Give the image that is meant."
            )
        return first
    best: dict[str, _AssetBand] = {}
    for r in named:
        if r.name not in best or (r.preferred and not best[r.name].preferred):
            best[r.name] = r
    order = [b.name for b in sensor.bands]
    if sensor is not UNKNOWN and any(n in order for n in best):
        best = {n: r for n, r in best.items() if n in order}
    return sorted(best.values(), key=lambda r: order.index(r.name) if r.name in order else len(order))


def resolve(item: str, href: str) -> str:
    """An asset's address, relative to its item.

    Raises:
        HostileFileError: a remote item that names a local file.
        UnreadableFileError: an address that is not read (s3, for example).
    """
    scheme = urlsplit(href).scheme.lower()
    if _remote.is_url(item):
        joined = urljoin(item, href)
        if not _remote.is_url(joined):
            raise HostileFileError(item, f"names {href!r}", "A remote item may only name http(s) addresses.")
        return joined
    if _remote.is_url(href):
        return href
    if scheme == "file":
        return urlsplit(href).path
    if len(scheme) > 1 or href.startswith("/vsi"):
        raise UnreadableFileError(item, f"names {href!r}", "Only local files and http(s) addresses are read.")
    return str((Path(item).parent / href).resolve())


def _masks(item: dict[str, Any], uri: str, sensor: Sensor, finest: Raster) -> tuple[list[MaskLayer], str]:
    for key, asset in item["assets"].items():
        if not isinstance(asset, dict) or not _is_image(asset):
            continue
        if sensor is SENTINEL2 and key.lower() == "scl":
            raster = open_raster(resolve(uri, asset["href"]))
            margin = round(CLOUD_MARGIN_M / abs(raster.geobox.affine.a))
            return [MaskLayer(raster.handle, 1, scl_codes, replication(raster, finest), margin)], "SCL"
        if sensor in (LANDSAT_OLI, LANDSAT_TM) and key.lower() in ("qa_pixel", "qa"):
            raster = open_raster(resolve(uri, asset["href"]))
            decode = partial(qa_codes, cirrus=sensor is LANDSAT_OLI)
            return [MaskLayer(raster.handle, 1, decode, replication(raster, finest))], "QA_PIXEL"
    return [], "none"


def _decide_offset(
    layers: list[Layer],
    rows: list[_AssetBand],
    masks: list[MaskLayer],
    shape: tuple[int, int],
    properties: dict[str, Any],
    given: float | None,
) -> tuple[list[Layer], Note]:
    """The offset of Sentinel-2 by the metadata, checked against the darkest pixels, unless it is given.

    Only the difference that matters is decided: 0 or -0.1 (1000 stored units).
    """
    if given is not None:
        note = Note("info", "s2-offset", f"The offset {given:g} was given by the user.")
        return [replace(x, offset=given) for x in layers], note
    flag = properties.get("earthsearch:boa_offset_applied")
    stated = [r.offset for r in rows if r.offset is not None]
    baseline = _baseline(properties)
    if flag is True:
        rule, why = 0.0, "earthsearch:boa_offset_applied says that it was taken off"
    elif stated:
        rule, why = min(stated), f"raster:bands states {min(stated):g}"
    elif baseline is not None and baseline >= 4:
        rule, why = -0.1, f"processing baseline {baseline:05.2f}"
    else:
        rule, why = 0.0, f"processing baseline {'not stated' if baseline is None else f'{baseline:05.2f}'}"
    if flag is not True and rule == 0 and (baseline is None or baseline < 4):
        return [replace(x, offset=0.0) for x in layers], Note("info", "s2-offset", f"No offset ({why}).")
    verdict, dark = _verdict(layers, rows, masks, shape)
    seen = {"applied": 0.0, "raw": -0.1}.get(verdict, rule)
    shown = f"the darkest pixels are {dark:.0f}"
    if (seen == 0) != (rule == 0):
        text = (
            f"Offset {seen:g}: {why}, but {shown}, which only fits the other case; the pixels were believed."
        )
        return [replace(x, offset=seen) for x in layers], Note("warning", "s2-offset-contradiction", text)
    agrees = "agrees" if verdict != "unclear" else "decides nothing"
    text = f"Offset {rule:g}: {why}; {shown}, which {agrees}."
    return [replace(x, offset=rule) for x in layers], Note("info", "s2-offset", text)


def _verdict(
    layers: list[Layer], rows: list[_AssetBand], masks: list[MaskLayer], shape: tuple[int, int]
) -> tuple[str, float]:
    """What the darkest pixels say: `applied`, `raw` or `unclear`, with their first percentile.

    That the offset is still in can only be seen over water and shadow (SCL 2, 3, 6): desert, snow and cloud
    are bright without it. That it was taken off shows wherever a pixel is dark. Looked at are 16 squares of
    256 pixels along both diagonals.
    """
    picked = [x for x, r in zip(layers, rows, strict=True) if r.name in _DARK_BANDS] or layers
    every: list[list[np.ndarray]] = [[] for _ in picked]
    dark: list[list[np.ndarray]] = [[] for _ in picked]
    for window in _squares(shape):
        known = bool(masks)
        scl = read_raw(masks[0].handle, [1], window, masks[0].factor)[0] if known else None
        for k, x in enumerate(picked):
            stored = read_raw(x.handle, [x.index], window, x.factor)[0]
            good = ~is_nodata(stored, x.nodata)
            every[k].append(stored[good].astype(np.float64))
            if scl is not None:
                dark[k].append(stored[good & np.isin(scl, (2, 3, 6))].astype(np.float64))
    found = [dark_verdict(np.concatenate(v)) for v in every]
    lowest = min(found, key=lambda f: f[1] if f[1] == f[1] else np.inf)
    if lowest[0] == "applied":
        return lowest
    shaded = [dark_verdict(v) for v in map(np.concatenate, dark) if v.size >= 100] if masks else []
    if shaded:
        return min(shaded, key=lambda f: f[1])
    return "unclear", lowest[1]


def _squares(shape: tuple[int, int], count: int = 8, side: int = 256) -> list[Window]:
    height, width = min(side, shape[0]), min(side, shape[1])
    out = []
    for k in range(count):
        share = (k + 0.5) / count
        row = int((shape[0] - height) * share)
        for across in (share, 1 - share):
            out.append(Window(row, int((shape[1] - width) * across), height, width))
    return list(dict.fromkeys(out))


def _baseline(properties: dict[str, Any]) -> float | None:
    for key in ("s2:processing_baseline", "sentinel2:processing_baseline", "processing:version"):
        found = _float(properties.get(key))
        if found is not None and found < 99:
            return found
    return None


def _level(properties: dict[str, Any]) -> str:
    baseline = _baseline(properties)
    parts = [str(properties.get(k)) for k in ("processing:level", "landsat:correction") if properties.get(k)]
    return ", ".join([*parts, *([f"baseline {baseline:05.2f}"] if baseline is not None else [])])


def _named(scene: StackScene, item: dict[str, Any], uri: str, properties: dict[str, Any]) -> StackScene:
    """Name and date of the item over those that the file implies."""
    text = properties.get("datetime") or properties.get("start_datetime") or ""
    scene.info = replace(
        scene.info,
        name=str(item.get("id", scene.info.name)),
        uri=uri,
        time=parse_time(str(text)) or scene.info.time,
    )
    return scene


def _band(sensor: Sensor, row: _AssetBand) -> Band:
    return sensor.band(row.name) or Band(row.name, row.id)


def _is_image(asset: dict[str, Any]) -> bool:
    kind, href = str(asset.get("type", "")).lower(), str(asset.get("href", "")).lower().split("?")[0]
    return kind.startswith(_IMAGE_TYPES) or href.endswith(_IMAGE_NAMES)


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _first(stated: float | None, stored: float, default: float, *, zero: float = 1.0) -> float:
    """What the item states, else what the file states, else the provider's default."""
    if stated is not None:
        return stated
    return stored if stored != zero else default


def _first_nodata(stored: float | None, stated: float | None, default: float | None) -> float | None:
    return stored if stored is not None else stated if stated is not None else default
