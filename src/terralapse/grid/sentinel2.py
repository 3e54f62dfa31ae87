"""Sentinel-2 products: a SAFE folder or the zip that it is delivered as, Level-1C and Level-2A.

Reflectance = (DN + offset) / quantification, with both from the product's XML. The offset came with
processing baseline 04.00 and with all later reprocessing of older data, so the date never decides.
Source: Sentinel-2 Products Specification Document; SCL classes of the Level-2A algorithm.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from terralapse.errors import BandError, UnreadableFileError
from terralapse.grid import _gdal
from terralapse.grid._gdal import Handle, gdal_env
from terralapse.grid._georef import Raster
from terralapse.grid._guess import baseline_of, parse_time
from terralapse.grid._safety import check_member, check_zip, parse_xml, read_member, read_text
from terralapse.grid._stack import Layer, MaskLayer, StackScene
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.raster import open_raster
from terralapse.grid.scene import Note, Scene, SceneInfo, Source
from terralapse.labels import SceneMask
from terralapse.sensors import SENTINEL2, Unit

CLOUD_MARGIN_M = 100  # how far cloud and shadow are grown: their edges are missed by the classification
_BAND_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_METADATA = re.compile(r"(?:^|/)(?:MTD_MSIL(1C|2A)\.xml|S2\w_OPER_MTD_SAFL(1C|2A)_\w+\.xml)$")
_IMAGE = re.compile(r"_(B(?:0[1-9]|1[0-2]|8A)|SCL)(?:_(\d\d)m)?\.(?:jp2|tif)$")
_SCL = {
    0: SceneMask.NODATA,
    1: SceneMask.SATURATED,
    3: SceneMask.SHADOW,
    8: SceneMask.CLOUD,
    9: SceneMask.CLOUD,
    10: SceneMask.CLOUD,
    11: SceneMask.SNOW,
}


@dataclass(frozen=True)
class Product:
    """What the product's XML says. `offsets` are in DN, one a band id."""

    level: str
    baseline: str
    quantification: float
    offsets: dict[str, float]
    time_text: str
    notes: tuple[Note, ...]


class _Files:
    """The files of a product, in a folder or in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zipped = path.is_file()
        if self.zipped:
            self.names = sorted(m.filename for m in check_zip(path))
        else:
            self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())

    def text(self, name: str) -> str:
        return read_member(self.path, name) if self.zipped else read_text(self.path / name)

    def raster(self, name: str) -> Raster:
        if not self.zipped:
            return open_raster(self.path / name)
        driver = check_member(self.path, name)
        return open_raster(
            f"{self.path}/{name}", member=Handle(f"/vsizip/{self.path.resolve()}/{name}", driver)
        )

    def sources(self, used: list[str]) -> list[Source]:
        if self.zipped:
            return [Source(str(self.path), self.path.stat().st_size)]
        return [Source(str(self.path / n), (self.path / n).stat().st_size) for n in used]


def is_safe(path: Path) -> bool:
    """Whether a folder or a zip is a Sentinel-2 product."""
    if path.is_dir():
        return path.suffix.upper() == ".SAFE" or any(_METADATA.search(p.name) for p in path.glob("*.xml"))
    if path.suffix.lower() != ".zip":
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_METADATA.search(n) for n in archive.namelist())


def open_safe(path: Path) -> Scene:
    """A Sentinel-2 product as a scene of all its reflectance bands on the 10 m grid.

    20 and 60 m bands are brought to 10 m by nearest replication. Clouds come from SCL (Level-2A) or from
    MSK_CLASSI (Level-1C of baseline 04.00 and later), grown by 100 m.

    Raises:
        UnreadableFileError: no metadata or no images.
        HostileFileError, TruncatedFileError: see `terralapse.grid._safety`.
    """
    files = _Files(path)
    found = [n for n in files.names if _METADATA.search(n)]
    if not found:
        hint = "Give the whole product as it was delivered."
        raise UnreadableFileError(path, "has no MTD_MSIL1C.xml or MTD_MSIL2A.xml", hint)
    top = min(found, key=lambda n: n.count("/"))
    product = read_product(f"{path}/{top}", files.text(top), path.name)
    granules: dict[str, list[str]] = {}
    for name in files.names:
        parts = PurePosixPath(name).parts
        if "IMG_DATA" in parts and _IMAGE.search(name):
            granules.setdefault("/".join(parts[: parts.index("IMG_DATA")]), []).append(name)
    if not granules:
        hint = "Give the whole product as it was delivered."
        raise UnreadableFileError(path, "has no images in GRANULE/*/IMG_DATA", hint)
    scenes: list[Scene] = [_granule(files, product, root, names) for root, names in sorted(granules.items())]
    if len(scenes) == 1:
        return scenes[0]
    return MosaicScene(scenes, path.stem, str(path))


def read_product(what: str, text: str, product_name: str = "") -> Product:
    """Level, baseline, quantification, offsets and time of a product's XML.

    Raises:
        UnreadableFileError: it is not the metadata of a Sentinel-2 product.
    """
    root = parse_xml(what, text)
    values: dict[str, str] = {}
    offsets: dict[str, float] = {}
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET"):
            number = _number(what, element)
            position = int(element.get("band_id", "-1"))
            if 0 <= position < len(_BAND_ORDER):
                offsets[_BAND_ORDER[position]] = number
        elif element.text:
            values.setdefault(tag, element.text.strip())
    level = (
        "L2A" if "BOA_QUANTIFICATION_VALUE" in values or "2A" in values.get("PROCESSING_LEVEL", "") else "L1C"
    )
    stored = values.get("BOA_QUANTIFICATION_VALUE") or values.get("QUANTIFICATION_VALUE")
    if stored is None:
        raise UnreadableFileError(
            what, "does not say how to make reflectance", "Give the product as delivered."
        )
    baseline = values.get("PROCESSING_BASELINE", "")
    notes = []
    if offsets:
        shown = ", ".join(f"{o:g}" for o in sorted(set(offsets.values())))
        notes.append(
            Note("info", "s2-offset-applied", f"The offset of {shown} in the metadata was added to the DN.")
        )
    else:
        stated = _baseline_number(baseline) or baseline_of(product_name)
        if stated is not None and stated >= 4:
            offsets = dict.fromkeys(_BAND_ORDER, -1000.0)
            text = f"The metadata lists no offset; -1000 was added as baseline {baseline} prescribes."
            notes.append(Note("warning", "s2-offset-from-baseline", text))
        else:
            text = f"The metadata lists no offset (baseline {baseline or 'not stated'}); none was added."
            notes.append(Note("info", "s2-offset-none", text))
    time = values.get("PRODUCT_START_TIME") or values.get("DATATAKE_SENSING_START") or ""
    return Product(level, baseline, float(stored), offsets, time, tuple(notes))


def scl_codes(stored: np.ndarray) -> np.ndarray:
    """`SceneMask` codes of the scene classification. Dark ground (2) and unclassified (7) stay usable."""
    return _SCL_TABLE[np.minimum(stored, 255).astype(np.uint8)]


def classi_codes(stored: np.ndarray, code: SceneMask) -> np.ndarray:
    """Codes of one band of MSK_CLASSI: opaque cloud, cirrus or snow, where it is 1."""
    return np.where(stored == 1, code, 0).astype(np.uint8)


_SCL_TABLE = np.zeros(256, np.uint8)
for _value, _code in _SCL.items():
    _SCL_TABLE[_value] = _code


def _granule(files: _Files, product: Product, root: str, names: list[str]) -> StackScene:
    """One tile. Of a band that is there in several resolutions, the finest is taken."""
    chosen: dict[str, str] = {}
    for name in names:
        match = _IMAGE.search(name)
        assert match is not None
        band = match.group(1)
        if band not in chosen or _metres(name, band) < _metres(chosen[band], band):
            chosen[band] = name
    rasters = {band: files.raster(name) for band, name in chosen.items()}
    bands = [b for b in SENTINEL2.bands if b.id in rasters]
    if not bands:
        raise BandError(files.path, "has no reflectance bands", "Give the product as it was delivered.")
    finest = max((rasters[b.id] for b in bands), key=lambda r: r.profile["width"])
    layers = []
    for b in bands:
        r = rasters[b.id]
        offset = product.offsets.get(b.id, 0.0) / product.quantification
        layers.append(
            Layer(
                r.handle,
                1,
                1 / product.quantification,
                offset,
                nodata=0,
                saturated=65535,
                factor=replication(r, finest),
                overviews=r.profile["overviews"],
            )
        )
    masks, told = _masks(files, root, rasters, finest)
    coarser = [b.name for b, x in zip(bands, layers, strict=True) if x.factor > 1]
    notes = list(product.notes)
    if coarser:
        text = f"Brought to {abs(finest.geobox.affine.a):g} m by nearest replication: {', '.join(coarser)}."
        notes.append(Note("info", "replicated", text))
    if told == "none":
        text = "The product has no cloud mask that is read here; clouds are not masked."
        notes.append(Note("warning", "no-cloud-mask", text))
    info = SceneInfo(
        name=files.path.stem,
        uri=str(files.path),
        sensor=SENTINEL2,
        bands=tuple(bands),
        unit=Unit.REFLECTANCE,
        geobox=finest.geobox,
        time=parse_time(product.time_text),
        dtype=rasters[bands[0].id].profile["dtypes"][0],
        nodata="value 0",
        cloud_mask=told,
        level=f"{product.level}, baseline {product.baseline or 'not stated'}",
        notes=notes,
        sources=files.sources(sorted(chosen.values())),
    )
    return StackScene(info, layers, masks)


def replication(raster: Raster, finest: Raster) -> int:
    """How many pixels of the finest grid a pixel of `raster` covers on each side.

    Raises:
        BandError: the two grids do not nest.
    """
    p, q = raster.profile, finest.profile
    factor = round(q["width"] / p["width"])
    a, b = raster.geobox.affine, finest.geobox.affine
    nested = p["width"] * factor == q["width"] and p["height"] * factor == q["height"]
    near = max(abs(a.c - b.c), abs(a.f - b.f)) <= 0.01 * abs(b.a) and abs(a.a - b.a * factor) <= 1e-6 * abs(
        a.a
    )
    if not (nested and near and raster.geobox.crs == finest.geobox.crs):
        hint = "Give bands of one scene that share a grid, or resample them first."
        raise BandError(raster.name, f"does not lie on the grid of {finest.name}", hint)
    return factor


def _masks(
    files: _Files, root: str, rasters: dict[str, Raster], finest: Raster
) -> tuple[list[MaskLayer], str]:
    if "SCL" in rasters:
        scl = rasters["SCL"]
        return [MaskLayer(scl.handle, 1, scl_codes, replication(scl, finest), _margin(scl))], "SCL"
    name = next((n for n in files.names if n.startswith(f"{root}/QI_DATA/") and "MSK_CLASSI_B00" in n), None)
    if name is None or not name.endswith((".jp2", ".tif")):
        return [], "none"
    classi = files.raster(name)
    with gdal_env():
        count = _gdal.dataset(classi.handle).count
    codes = (SceneMask.CLOUD, SceneMask.CLOUD, SceneMask.SNOW)
    factor, margin = replication(classi, finest), _margin(classi)
    masks = [
        MaskLayer(classi.handle, i + 1, partial(classi_codes, code=c), factor, margin)
        for i, c in enumerate(codes[:count])
    ]
    return masks, "MSK_CLASSI"


def _margin(raster: Raster) -> int:
    return round(CLOUD_MARGIN_M / abs(raster.geobox.affine.a))


def _metres(name: str, band: str) -> int:
    match = _IMAGE.search(name)
    assert match is not None
    if match.group(2):
        return int(match.group(2))
    known = SENTINEL2.band(band)
    return int(known.gsd or 0) if known else 20


def _number(what: str, element: ET.Element) -> float:
    try:
        return float(element.text or "")
    except ValueError as e:
        raise UnreadableFileError(
            what, f"has an offset {element.text!r}", "Give the product as delivered."
        ) from e


def _baseline_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number >= 99 else number
