"""Bands and sensors: wavelengths, ground sampling distances, and how stored numbers become physical ones.

A `Sensor` is data only. The readers in `terralapse.grid` decide which sensor a file is from; the cards of
the models say which sensors they were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """The physical unit of the values that a reader returns."""

    REFLECTANCE = "reflectance"  # 0..1, may be slightly negative or above one
    RGB255 = "rgb255"  # 0..255, display values without a physical scale
    DB = "db"  # decibel, SAR backscatter
    POWER = "power"  # linear SAR backscatter
    KELVIN = "kelvin"
    RAW = "raw"  # stored numbers of unknown meaning


@dataclass(frozen=True)
class Band:
    """One band: `name` is the common name by which two dates are matched (`red`, `nir`, `swir16`, `vv`,
    or `b1`, `b2` ... when nothing is known); `id` is the provider's own (`B04`)."""

    name: str
    id: str
    wavelength_nm: float | None = None
    gsd: float | None = None


@dataclass(frozen=True)
class Sensor:
    """A sensor or a family of products that are read in the same way.

    `scale` and `offset` are the provider's defaults (physical = stored * scale + offset); what a file or its
    metadata state wins over them. `nodata` is the fill value that the provider uses when the file is silent.
    """

    slug: str
    title: str
    unit: Unit
    bands: tuple[Band, ...]
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    sar: bool = False

    def band(self, name_or_id: str) -> Band | None:
        """The band with this common name or provider id (case-insensitive), or None."""
        wanted = name_or_id.lower()
        return next((b for b in self.bands if wanted in (b.name.lower(), b.id.lower())), None)


_S2 = (
    Band("coastal", "B01", 443, 60),
    Band("blue", "B02", 492, 10),
    Band("green", "B03", 560, 10),
    Band("red", "B04", 665, 10),
    Band("rededge1", "B05", 704, 20),
    Band("rededge2", "B06", 741, 20),
    Band("rededge3", "B07", 783, 20),
    Band("nir", "B08", 833, 10),
    Band("nir08", "B8A", 865, 20),
    Band("nir09", "B09", 945, 60),
    Band("cirrus", "B10", 1374, 60),
    Band("swir16", "B11", 1614, 20),
    Band("swir22", "B12", 2202, 20),
)
_OLI = (
    Band("coastal", "B1", 443, 30),
    Band("blue", "B2", 482, 30),
    Band("green", "B3", 561, 30),
    Band("red", "B4", 655, 30),
    Band("nir", "B5", 865, 30),
    Band("swir16", "B6", 1609, 30),
    Band("swir22", "B7", 2201, 30),
)
_TM = (
    Band("blue", "B1", 485, 30),
    Band("green", "B2", 560, 30),
    Band("red", "B3", 660, 30),
    Band("nir", "B4", 830, 30),
    Band("swir16", "B5", 1650, 30),
    Band("swir22", "B7", 2215, 30),
)

SENTINEL2 = Sensor("sentinel2", "Sentinel-2 MSI", Unit.REFLECTANCE, _S2, scale=1e-4, nodata=0)
LANDSAT_OLI = Sensor(
    "landsat-oli", "Landsat 8/9 OLI, Collection 2 Level 2", Unit.REFLECTANCE, _OLI, 2.75e-5, -0.2, 0
)
LANDSAT_TM = Sensor(
    "landsat-tm", "Landsat 4-7 TM/ETM+, Collection 2 Level 2", Unit.REFLECTANCE, _TM, 2.75e-5, -0.2, 0
)
SENTINEL1 = Sensor(
    "sentinel1",
    "Sentinel-1 RTC",
    Unit.POWER,
    (Band("vv", "VV", None, 10), Band("vh", "VH", None, 10)),
    sar=True,
)
NAIP = Sensor(
    "naip",
    "NAIP aerial, red green blue near-infrared",
    Unit.RGB255,
    (Band("red", "R", 635), Band("green", "G", 555), Band("blue", "B", 465), Band("nir", "N", 845)),
)
RGB = Sensor(
    "rgb",
    "RGB image, 8 bit",
    Unit.RGB255,
    (Band("red", "R", 650), Band("green", "G", 550), Band("blue", "B", 460)),
)
UNKNOWN = Sensor("unknown", "Unknown sensor", Unit.RAW, ())

SENSORS: dict[str, Sensor] = {
    s.slug: s for s in (SENTINEL2, LANDSAT_OLI, LANDSAT_TM, SENTINEL1, NAIP, RGB, UNKNOWN)
}
