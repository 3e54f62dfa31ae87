"""Landsat folders as delivered: Collection 2 Level 2 (surface reflectance) and Level 1, also older ones.

Level 2: reflectance = DN x 2.75e-5 - 0.2. Level 1: reflectance = (DN x mult + add) / sin(sun elevation). The
numbers are taken from the MTL file. Source: Landsat 8-9 Collection 2 Level 2 Science Product Guide.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from terralapse.errors import BandError, UnreadableFileError
from terralapse.grid._georef import Raster
from terralapse.grid._guess import parse_time
from terralapse.grid._safety import read_text
from terralapse.grid._stack import Layer, MaskLayer, StackScene
from terralapse.grid.raster import open_raster
from terralapse.grid.scene import Note, SceneInfo, Source
from terralapse.grid.sentinel2 import replication
from terralapse.labels import SceneMask
from terralapse.sensors import LANDSAT_OLI, LANDSAT_TM, Band, Sensor, Unit

_HINT = "Give the product's folder as it was delivered."


@dataclass(frozen=True)
class Metadata:
    """The MTL file, flat: `groups` maps a group's name to its keys."""

    path: Path
    groups: dict[str, dict[str, str]]

    def find(self, key: str, *groups: str) -> str | None:
        """A value by key: from the first of the named groups that has it, or, without any, from any."""
        places = [self.groups.get(g, {}) for g in groups] if groups else list(self.groups.values())
        return next((p[key] for p in places if key in p), None)

    def number(self, key: str, *groups: str) -> float | None:
        """A value as a number.

        Raises:
            UnreadableFileError: it is something else.
        """
        text = self.find(key, *groups)
        if text is None or text.upper() == "NULL":
            return None
        try:
            return float(text)
        except ValueError as e:
            raise UnreadableFileError(self.path, f"says {key} = {text!r}", _HINT) from e


def mtl_of(folder: Path) -> Path | None:
    """The MTL file of a folder: the text form if it is there, else the JSON form."""
    for pattern in ("*_MTL.txt", "*_MTL.json"):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    return None


def read_mtl(path: Path) -> Metadata:
    """The MTL file in either form.

    Raises:
        UnreadableFileError: it is neither.
    """
    text = read_text(path)
    groups: dict[str, dict[str, str]] = {}
    if path.suffix.lower() == ".json":
        try:
            tree = json.loads(text)
        except ValueError as e:
            raise UnreadableFileError(path, f"is not JSON ({e})", _HINT) from e
        if not isinstance(tree, dict):
            raise UnreadableFileError(path, "is not a Landsat MTL file", _HINT)
        _flatten(tree, "", groups)
    else:
        stack: list[str] = []
        for line in text.splitlines():
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals:
                continue
            if key == "GROUP":
                stack.append(value)
            elif key == "END_GROUP":
                stack = stack[:-1]
            elif stack:
                groups.setdefault(stack[-1], {})[key] = value.strip('"')
    if not groups:
        raise UnreadableFileError(path, "is not a Landsat MTL file", _HINT)
    return Metadata(path, groups)


def open_landsat(folder: Path) -> StackScene:
    """A Landsat folder as a scene of its reflectance bands, masked by QA_PIXEL and QA_RADSAT.

    Raises:
        UnreadableFileError, BandError: it is not a whole product.
    """
    path = mtl_of(folder)
    if path is None:
        raise UnreadableFileError(folder, "has no *_MTL.txt or *_MTL.json", _HINT)
    mtl = read_mtl(path)
    sensor = sensor_of(mtl)
    level = (mtl.find("PROCESSING_LEVEL") or mtl.find("DATA_TYPE") or "").upper()
    rasters: dict[str, Raster] = {}
    for band in sensor.bands:
        file = _band_file(folder, mtl, band, level)
        if file is not None:
            rasters[band.id] = open_raster(file)
    bands = tuple(b for b in sensor.bands if b.id in rasters)
    if not bands:
        raise BandError(folder, "has none of the reflectance bands that its MTL file names", _HINT)
    first = rasters[bands[0].id]
    notes: list[Note] = []
    scaling = {b.id: _scaling(mtl, b, level) for b in bands}
    unit = Unit.REFLECTANCE
    if any(s is None for s in scaling.values()):
        unit = Unit.RAW
        scaling = {b.id: (1.0, 0.0) for b in bands}
        text = "The MTL file has no reflectance coefficients (before Collection 1); stored numbers were kept."
        notes.append(Note("warning", "no-reflectance-coefficients", text))
    else:
        notes.append(_scale_note(level, scaling))
    layers = []
    for b in bands:
        p = rasters[b.id].profile
        scale, offset = scaling[b.id] or (1.0, 0.0)
        nodata = p["nodata"][0] if p["nodata"][0] is not None else 0.0
        factor = replication(rasters[b.id], first)
        layers.append(Layer(rasters[b.id].handle, 1, scale, offset, nodata, None, factor, p["overviews"]))
    masks, told = _masks(folder, first, sensor, bands)
    if told == "none":
        notes.append(Note("warning", "no-cloud-mask", "No QA_PIXEL file is there; clouds are not masked."))
    used = [r.handle.path for r in rasters.values()]
    info = SceneInfo(
        name=mtl.find("LANDSAT_PRODUCT_ID") or mtl.find("LANDSAT_SCENE_ID") or folder.name,
        uri=str(folder),
        sensor=sensor,
        bands=bands,
        unit=unit,
        geobox=first.geobox,
        time=_time(mtl),
        dtype=first.profile["dtypes"][0],
        nodata=f"value {layers[0].nodata:g}",
        cloud_mask=told,
        level=level,
        notes=notes,
        sources=[Source(p, Path(p).stat().st_size) for p in used],
    )
    return StackScene(info, layers, masks)


def sensor_of(mtl: Metadata) -> Sensor:
    """OLI or TM, from the spacecraft.

    Raises:
        UnreadableFileError: another instrument (MSS) or none.
    """
    craft, instrument = mtl.find("SPACECRAFT_ID") or "", (mtl.find("SENSOR_ID") or "").upper()
    number = re.sub(r"\D", "", craft)
    if number in ("8", "9") and "OLI" in instrument:
        return LANDSAT_OLI
    if number in ("4", "5", "7") and ("TM" in instrument or "ETM" in instrument):
        return LANDSAT_TM
    hint = "Landsat 4, 5, 7 (TM, ETM+), 8 and 9 (OLI) are read."
    raise UnreadableFileError(mtl.path, f"is of {craft or 'an unknown craft'} {instrument}", hint)


def qa_codes(stored: np.ndarray, cirrus: bool) -> np.ndarray:
    """`SceneMask` codes of QA_PIXEL (Collection 2): the lowest code of the bits that are set.

    Bits: 0 fill, 1 dilated cloud, 2 cirrus (Landsat 8 and 9 only), 3 cloud, 4 cloud shadow, 5 snow.
    """
    bits = stored.astype(np.uint16)
    codes = np.zeros(bits.shape, np.uint8)
    cloud = 0b1010 | (0b100 if cirrus else 0)
    # The lowest code is written last, so that it wins.
    codes[bits & (1 << 5) != 0] = SceneMask.SNOW
    codes[bits & (1 << 4) != 0] = SceneMask.SHADOW
    codes[bits & cloud != 0] = SceneMask.CLOUD
    codes[bits & 1 != 0] = SceneMask.NODATA
    return codes


def radsat_codes(stored: np.ndarray, bits: int) -> np.ndarray:
    """Codes of QA_RADSAT: SATURATED where any of `bits` is set, NODATA for dropped pixels (bit 9)."""
    values = stored.astype(np.uint16)
    codes = np.where(values & bits != 0, SceneMask.SATURATED, 0).astype(np.uint8)
    codes[values & (1 << 9) != 0] = SceneMask.NODATA
    return codes


def _flatten(tree: dict, name: str, groups: dict[str, dict[str, str]]) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _flatten(value, key, groups)
        else:
            groups.setdefault(name, {})[key] = str(value)


def _band_file(folder: Path, mtl: Metadata, band: Band, level: str) -> Path | None:
    """The file of a band; names in the MTL count only as names inside of the folder."""
    number = band.id[1:]
    named = mtl.find(f"FILE_NAME_BAND_{number}", "PRODUCT_CONTENTS", "PRODUCT_METADATA")
    patterns = [f"*_SR_B{number}.TIF"] if level.startswith("L2") else [f"*_B{number}.TIF"]
    candidates = [folder / Path(named.replace("\\", "/")).name] if named else []
    for pattern in patterns:
        candidates += sorted(folder.glob(pattern)) + sorted(folder.glob(pattern[:-4] + ".tif"))
    return next((c for c in candidates if c.is_file()), None)


def _scaling(mtl: Metadata, band: Band, level: str) -> tuple[float, float] | None:
    number = band.id[1:]
    if level.startswith("L2"):
        group = "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"
        mult = mtl.number(f"REFLECTANCE_MULT_BAND_{number}", group)
        add = mtl.number(f"REFLECTANCE_ADD_BAND_{number}", group)
        return (2.75e-5, -0.2) if mult is None or add is None else (mult, add)
    groups = ("LEVEL1_RADIOMETRIC_RESCALING", "RADIOMETRIC_RESCALING")
    mult = mtl.number(f"REFLECTANCE_MULT_BAND_{number}", *groups)
    add = mtl.number(f"REFLECTANCE_ADD_BAND_{number}", *groups)
    elevation = mtl.number("SUN_ELEVATION")
    if mult is None or add is None or elevation is None:
        return None
    if elevation <= 0:
        raise UnreadableFileError(
            mtl.path, f"says that the sun stood at {elevation:g} degrees", "Use a day scene."
        )
    sine = math.sin(math.radians(elevation))
    return mult / sine, add / sine


def _scale_note(level: str, scaling: dict[str, tuple[float, float] | None]) -> Note:
    pairs = sorted({s for s in scaling.values() if s})
    shown = "; ".join(f"x {a:.6g} {b:+.6g}" for a, b in pairs)
    how = (
        "surface reflectance"
        if level.startswith("L2")
        else "top-of-atmosphere reflectance, sun elevation divided out"
    )
    return Note("info", "reflectance-scale", f"Stored {shown} = {how}.")


def _masks(
    folder: Path, first: Raster, sensor: Sensor, bands: tuple[Band, ...]
) -> tuple[list[MaskLayer], str]:
    masks, told = [], "none"
    for name in ("QA_PIXEL", "QA_RADSAT"):
        found = sorted([*folder.glob(f"*_{name}.TIF"), *folder.glob(f"*_{name}.tif")])
        if not found:
            continue
        raster = open_raster(found[0])
        factor = replication(raster, first)
        if name == "QA_PIXEL":
            told = name
            decode = partial(qa_codes, cirrus=sensor is LANDSAT_OLI)
        else:
            decode = partial(radsat_codes, bits=sum(1 << (int(b.id[1:]) - 1) for b in bands))
        masks.append(MaskLayer(raster.handle, 1, decode, factor))
    return masks, told


def _time(mtl: Metadata):
    day = mtl.find("DATE_ACQUIRED") or ""
    clock = mtl.find("SCENE_CENTER_TIME") or ""
    return parse_time(f"{day}T{clock}") or parse_time(day)
