"""Spectral indices by name: which bands they need and how they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terralapse.errors import BandError, SettingError
from terralapse.grid.match import find_band
from terralapse.grid.scene import Note, SceneInfo
from terralapse.sensors import Band, Unit

# Normalised differences (a - b) / (a + b), by the common names of their bands.
DIFFERENCES: dict[str, tuple[str, str]] = {
    "ndvi": ("nir", "red"),  # vegetation; Rouse et al. 1974
    "nbr": ("nir", "swir22"),  # burn; Key and Benson 2006
    "ndwi": ("green", "nir"),  # open water; McFeeters 1996
    "mndwi": ("green", "swir16"),  # open water beside buildings; Xu 2006
    "ndmi": ("nir", "swir16"),  # moisture; Wilson and Sader 2002
    "ndbi": ("swir16", "nir"),  # built-up; Zha et al. 2003
}
EVI2 = ("nir", "red")  # 2.5 (nir - red) / (nir + 2.4 red + 1); Jiang et al. 2008
_INSTEAD = {"nir": "nir08"}
# What noise and rounding alone leave of a standard error, at least.
_FLOOR_OF_RATIO = 0.005
_FLOORS = {Unit.REFLECTANCE: 0.002, Unit.RGB255: 0.5, Unit.DB: 0.1, Unit.KELVIN: 0.1}


@dataclass(frozen=True)
class Index:
    """One index: `bands` in the order of its formula; `kind` is `difference`, `evi2` or `band`; `scale` is
    what the values of a band are multiplied by."""

    name: str
    kind: str
    bands: tuple[str, ...]
    scale: float = 1.0

    @property
    def formula(self) -> str:
        """For people."""
        if self.kind == "difference":
            a, b = self.bands
            return f"({a} - {b}) / ({a} + {b})"
        if self.kind == "evi2":
            return "2.5 (nir - red) / (nir + 2.4 red + 1)"
        return self.bands[0] if self.scale == 1 else f"{self.bands[0]} x {self.scale:g}"

    def floor(self, unit: Unit) -> float:
        """The smallest standard error that a series of it can honestly have."""
        if self.name in (*DIFFERENCES, "evi2") or self.kind != "band":
            return _FLOOR_OF_RATIO
        return _FLOORS.get(unit, 0.0) * abs(self.scale)

    def compute(self, bands: np.ndarray) -> np.ndarray:
        """float32 [..., h, w] from [..., C, h, w]; NaN where a band is missing. A difference has no value
        where its sum is not positive, and is cut at -1 and 1 (negative reflectance would leave them)."""
        if self.kind == "band":
            return (bands[..., 0, :, :] * np.float32(self.scale)).astype(np.float32)
        a, b = bands[..., 0, :, :], bands[..., 1, :, :]
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.kind == "evi2":
                return (2.5 * (a - b) / (a + np.float32(2.4) * b + 1)).astype(np.float32)
            total = a + b
            return np.where(total > 0, np.clip((a - b) / total, -1, 1), np.nan).astype(np.float32)


def parse_index(text: str, scale: float = 1.0) -> Index:
    """An index from what a user writes: `ndvi`, `nd:green,swir16`, or the name or number of a band.

    Raises:
        SettingError: a scale with an index that has none, or a pair that is not one.
    """
    name = text.strip().lower()
    if not np.isfinite(scale) or scale == 0:
        raise SettingError(f"scale {scale:g}", "is no factor", "Give one like 0.0001.")
    bands: tuple[str, ...]
    if name in DIFFERENCES:
        kind, bands = "difference", DIFFERENCES[name]
    elif name == "evi2":
        kind, bands = "evi2", EVI2
    elif name.startswith("nd:"):
        kind, bands = "difference", tuple(b.strip() for b in name[3:].split(","))
        if len(bands) != 2 or not all(bands):
            raise SettingError(f"index {text!r}", "does not name two bands", "Write it like nd:green,swir16.")
    elif name:
        kind, bands = "band", (name,)
    else:
        raise SettingError("index", "is empty", f"Choose one of {', '.join(DIFFERENCES)}, evi2, or a band.")
    if kind != "band" and scale != 1:
        raise SettingError(
            f"scale {scale:g}", f"has no meaning for {name}", "Leave --scale out, or name a band."
        )
    return Index(name, kind, bands, scale)


def resolve(index: Index, scenes: Sequence[SceneInfo]) -> Index:
    """The index as these scenes give it: where they lack its bands and all have a band of its name, that one
    is taken as it is."""
    lacking = any(_find(index, s, band) is None for s in scenes for band in index.bands)
    if index.kind != "band" and lacking and all(find_band(s, index.name) for s in scenes):
        return Index(index.name, "band", (index.name,))
    return index


def bands_for(index: Index, scene: SceneInfo) -> tuple[str, ...]:
    """The scene's own names of the bands that an index needs.

    Raises:
        BandError: it lacks one; what it has is named.
    """
    return tuple(_one(index, scene, wanted) for wanted in index.bands)


def _one(index: Index, scene: SceneInfo, wanted: str) -> str:
    band = _find(index, scene, wanted)
    if band is None:
        names = ", ".join(b.name for b in scene.bands) or "none"
        hint = f"Its bands are: {names}. "
        hint += "Name one of them, or two as nd:A,B, with --index."
        raise BandError(scene.uri, f"has no band {wanted!r}, which {index.name} needs", hint)
    return band.name


def _find(index: Index, scene: SceneInfo, wanted: str) -> Band | None:
    instead = wanted if index.kind == "band" else _INSTEAD.get(wanted, wanted)
    return find_band(scene, wanted) or find_band(scene, instead)


def unit_notes(index: Index, scenes: Sequence[SceneInfo]) -> list[Note]:
    """What must be said about units.

    Raises:
        BandError: values of one band in different units.
    """
    units = list(dict.fromkeys(s.unit for s in scenes))
    if index.kind == "band" and len(units) > 1:
        raise BandError(
            f"band {index.name}",
            f"is in different units: {', '.join(units)}",
            "Give dates of one unit, or an index that is a ratio.",
        )
    if index.kind == "band" or set(units) <= {Unit.REFLECTANCE}:
        return []
    text = (
        f"{index.name} is computed from values that are not reflectance ({', '.join(units)}): it orders the "
        "pixels of one date, and differs from date to date where the stretch of the images does."
    )
    return [Note("warning", "index-not-of-reflectance", text)]
