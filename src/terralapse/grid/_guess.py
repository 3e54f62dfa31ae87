"""What a plain image is: its sensor, its bands, its unit and its date, from what the file says of itself.

The order of trust: band descriptions, the product id in the name, colour interpretation, then type and
number of bands. Whatever stays unknown is called `b1`, `b2` ... and keeps its stored numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from terralapse.grid.scene import Note
from terralapse.sensors import (
    LANDSAT_OLI,
    LANDSAT_TM,
    NAIP,
    RGB,
    SENTINEL1,
    SENTINEL2,
    UNKNOWN,
    Band,
    Sensor,
    Unit,
)

_COMMON = {
    "coastal": 443,
    "blue": 480,
    "green": 560,
    "yellow": 605,
    "red": 660,
    "pan": 590,
    "rededge": 705,
    "rededge1": 705,
    "rededge2": 740,
    "rededge3": 783,
    "nir": 840,
    "nir08": 865,
    "nir09": 945,
    "cirrus": 1375,
    "swir16": 1610,
    "swir22": 2200,
    "vv": None,
    "vh": None,
    "hh": None,
    "hv": None,
}
_ALIASES = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "n": "nir",
    "grn": "green",
    "nir1": "nir",
    "near infrared": "nir",
    "near-infrared": "nir",
    "infrared": "nir",
    "narrow nir": "nir08",
    "red edge": "rededge",
    "red edge 1": "rededge1",
    "red edge 2": "rededge2",
    "red edge 3": "rededge3",
    "swir1": "swir16",
    "swir 1": "swir16",
    "swir2": "swir22",
    "swir 2": "swir22",
    "coastal aerosol": "coastal",
    "panchromatic": "pan",
}
_S2_ID = r"B(?:0[1-9]|1[0-2]|8A)"
_S2_NAME = re.compile(r"S2[A-D]_(?:OPER_)?(?:PRD_)?MSI|(?:^|_)T\d{2}[A-Z]{3}_\d{8}T\d{6}", re.I)
_S2_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")
_LANDSAT = re.compile(r"(L[COTEM])0?([4-9])_(L\w{3})_\d{6}_(\d{8})_\d{8}_(\d{2})_\w{2}", re.I)
_LANDSAT_OLD = re.compile(r"(L[COTE])([4-8])\d{6}(\d{4})(\d{3})[A-Z]{3}\d{2}", re.I)
_NAIP_NAME = re.compile(r"(?:^|[/_])[mn]_\d{7}_(?:ne|nw|se|sw)_", re.I)
_BAND_IN_NAME = re.compile(
    rf"(?:^|[_.\-/])({_S2_ID}|VV|VH|HH|HV|(?:SR_)?B\d{{1,2}})(?:_\d\dm)?(?:\.[A-Za-z0-9]+)?$", re.I
)


@dataclass(frozen=True)
class Hints:
    """What a file says of itself. `count` and the tuples are of data bands only; `sample` gives a few stored
    values [count, n] as float64, NaN where nodata, when a rule needs to look."""

    name: str
    dtype: str
    count: int
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str | None, ...]
    gsd: float | None
    tags: Mapping[str, str]
    sample: Callable[[], np.ndarray]

    @property
    def scaled(self) -> bool:
        """Whether the file itself states a scale or an offset."""
        return any(s != 1 for s in self.scales) or any(o != 0 for o in self.offsets)


@dataclass
class Guess:
    """The verdict. `keep` are the positions of the bands that stay; scale and offset are one a kept band."""

    sensor: Sensor
    bands: tuple[Band, ...]
    keep: tuple[int, ...]
    unit: Unit
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    why: str
    notes: list[Note] = field(default_factory=list)


def guess(hints: Hints) -> Guess:
    """Sensor, bands, unit and scaling of a plain image."""
    sensor, why = _sensor(hints)
    names = _names(hints, sensor)
    keep = tuple(range(hints.count))
    notes: list[Note] = []
    known = [sensor.band(n) if n else None for n in names]
    if sensor in (LANDSAT_OLI, LANDSAT_TM, SENTINEL2) and any(known) and not all(known):
        # A thermal or a quality band has no place in a stack of reflectances.
        keep = tuple(i for i, b in enumerate(known) if b is not None)
        left = ", ".join(hints.descriptions[i] or f"band {i + 1}" for i, b in enumerate(known) if b is None)
        notes.append(Note("info", "bands-left-out", f"Not reflectance of {sensor.title}, left out: {left}."))
    bands = _unique([_band(sensor, names[i] or f"b{i + 1}", hints.descriptions[i], i) for i in keep])
    picked = Guess(
        sensor,
        bands,
        keep,
        Unit.RAW,
        tuple(hints.scales[i] for i in keep),
        tuple(hints.offsets[i] for i in keep),
        why,
        notes,
    )
    _scale(hints, picked)
    return picked


def band_of_name(name: str) -> str | None:
    """The band that a single-band file's name ends with (`B04`, `SR_B4`, `VV`), in upper case, or None."""
    found = _BAND_IN_NAME.search(name)
    return found.group(1).upper() if found else None


def time_of(name: str, tags: Mapping[str, str] | None = None) -> tuple[datetime | None, str]:
    """The acquisition date and where it was found; (None, "") when nothing says it."""
    for key, text in (tags or {}).items():
        if key.lower() in (
            "acquisitiondatetime",
            "acquisition_date",
            "date_acquired",
            "datetime",
            "sensing_time",
        ):
            found = parse_time(text)
            if found:
                return found, f"tag {key}"
    old = _LANDSAT_OLD.search(name)
    if old:
        day = datetime(int(old.group(3)), 1, 1, tzinfo=UTC) + timedelta(days=int(old.group(4)) - 1)
        return day, "name"
    for pattern in (r"(\d{8}T\d{6})", r"_(\d{8})_\d{8}_\d{2}_", r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)"):
        found = parse_time(m.group(1)) if (m := re.search(pattern, name)) else None
        if found:
            return found, "name"
    for m in re.finditer(r"(?<!\d)(\d{8})(?!\d)", name):
        found = parse_time(m.group(1))
        if found:
            return found, "name"
    return None, ""


def parse_time(text: str) -> datetime | None:
    """A date or a time in one of the forms that products use, as UTC; None when it is none or implausible."""
    text = text.strip().strip('"').replace("Z", "")
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)
    found = None
    for form in ("%Y%m%dT%H%M%S", "%Y%m%d", "%Y:%m:%d %H:%M:%S", "%Y:%m:%d", "%Y/%m/%d"):
        try:
            found = datetime.strptime(text, form).replace(tzinfo=UTC)
            break
        except ValueError:
            continue
    if found is None:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            return None
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    plausible = 1930 <= found.year <= datetime.now(UTC).year + 1
    return found if plausible else None


def landsat_sensor(letters: str, number: str) -> Sensor:
    """OLI for Landsat 8 and 9, TM for the earlier ones with thematic mappers."""
    return LANDSAT_OLI if number in "89" and letters.upper() in ("LC", "LO") else LANDSAT_TM


def baseline_of(name: str) -> float | None:
    """The processing baseline in a Sentinel-2 product name: 4.0 for `_N0400_`; None when there is none."""
    found = _S2_BASELINE.search(name)
    if not found or found.group(1) == "99":  # N9999 marks a product that was made by somebody else
        return None
    return int(found.group(1)) + int(found.group(2)) / 100


def _sensor(hints: Hints) -> tuple[Sensor, str]:
    texts = [d or "" for d in hints.descriptions]
    single = band_of_name(hints.name) if hints.count == 1 else None
    new, old = _LANDSAT.search(hints.name), _LANDSAT_OLD.search(hints.name)
    if new or old:
        found = new or old
        assert found is not None
        return landsat_sensor(found.group(1), found.group(2)), "the Landsat product id in its name"
    if _S2_NAME.search(hints.name) and (single or hints.count > 1) and "TCI" not in hints.name:
        return SENTINEL2, "the Sentinel-2 product id in its name"
    if sum(bool(re.fullmatch(_S2_ID, t.strip(), re.I)) for t in texts) > hints.count / 2:
        return SENTINEL2, "band descriptions B01..B12"
    if single and re.fullmatch(_S2_ID, single):
        return SENTINEL2, f"the band id {single} in its name"
    if all(_common(t) in ("vv", "vh", "hh", "hv") for t in texts) or single in ("VV", "VH", "HH", "HV"):
        return SENTINEL1, "polarisations as band names"
    if hints.dtype == "uint8" and hints.count == 4 and _looks_naip(hints):
        return NAIP, "four 8-bit bands, red, green, blue and near-infrared, of aerial resolution"
    if hints.dtype == "uint8" and hints.count == 3:
        return RGB, "three 8-bit bands"
    return UNKNOWN, "nothing in the file says which sensor it is from"


def _looks_naip(hints: Hints) -> bool:
    named = bool(_NAIP_NAME.search(hints.name))
    fine = hints.gsd is not None and hints.gsd <= 3
    visible = hints.colours[:3] == ("red", "green", "blue") or _common(hints.descriptions[0] or "") == "red"
    return named or (fine and visible)


def _names(hints: Hints, sensor: Sensor) -> list[str | None]:
    """Common names, None where nothing is known."""
    names: list[str | None] = [_described(d or "", sensor) for d in hints.descriptions]
    if hints.count == 1 and names[0] is None:
        single = band_of_name(hints.name)
        if single:
            names[0] = _described(single, sensor)
    if not any(names):
        colours = [c if c in _COMMON else None for c in hints.colours]
        if sensor in (RGB, NAIP):
            names = [b.name for b in sensor.bands]
        elif sum(c is not None for c in colours) >= min(3, hints.count):
            names = list(colours)
    return names


def _described(text: str, sensor: Sensor) -> str | None:
    """The common name that a band description or id stands for."""
    text = text.strip()
    found = _common(text)
    if found:
        return found
    known = sensor.band(text) if text else None
    if known:
        return known.name
    number = re.fullmatch(
        r"(?:SR_?|TOA_?)?B(?:and)?[ _]?0?(\d{1,2})(?: (?:surface )?reflectance)?", text, re.I
    )
    if number and sensor in (LANDSAT_OLI, LANDSAT_TM):
        known = sensor.band(f"B{int(number.group(1))}")
        return known.name if known else None
    return None


def _common(text: str) -> str | None:
    key = text.strip().lower()
    return key if key in _COMMON else _ALIASES.get(key)


def _band(sensor: Sensor, name: str, description: str | None, position: int) -> Band:
    # A placeholder like `b7` must not be taken for a provider's id.
    known = sensor.band(name) if not re.fullmatch(r"b\d+", name) else None
    return known or Band(name, description or f"band {position + 1}", _COMMON.get(name))


def _unique(bands: list[Band]) -> tuple[Band, ...]:
    """Names that occur twice get a number, so that each can be asked for."""
    seen: dict[str, int] = {}
    out = []
    for b in bands:
        seen[b.name] = seen.get(b.name, 0) + 1
        out.append(b if seen[b.name] == 1 else Band(f"{b.name}_{seen[b.name]}", b.id, b.wavelength_nm, b.gsd))
    return tuple(out)


def _scale(hints: Hints, found: Guess) -> None:
    """Fills unit, scales and offsets of a guess."""
    n = len(found.keep)
    if hints.scaled:
        found.notes.append(
            Note(
                "info",
                "file-scale",
                f"Scale {found.scales} and offset {found.offsets} of the file were applied.",
            )
        )
    said = any((u or "").lower() in ("reflectance", "sr", "toa reflectance") for u in hints.units)
    if found.sensor in (RGB, NAIP) and not hints.scaled:
        found.unit = Unit.RGB255
    elif found.sensor is SENTINEL1:
        found.unit = _sar_unit(hints)
    elif found.sensor in (SENTINEL2, LANDSAT_OLI, LANDSAT_TM):
        _scale_reflectance(hints, found, n)
    elif said:
        found.unit = Unit.REFLECTANCE
    elif (
        hints.dtype == "uint8"
        and not hints.scaled
        and {"red", "green", "blue"} <= {b.name for b in found.bands}
    ):
        found.unit = Unit.RGB255
    if found.unit is Unit.RAW and hints.dtype != "uint8":
        text = f"Stored as {hints.dtype} of unknown meaning; the numbers were kept as they are."
        found.notes.append(Note("warning", "unknown-scale", text))


def _sar_unit(hints: Hints) -> Unit:
    if hints.dtype.startswith("float"):
        values = hints.sample()
        return Unit.DB if values.size and np.nanmin(values, initial=0) < 0 else Unit.POWER
    return Unit.RAW


def _scale_reflectance(hints: Hints, found: Guess, n: int) -> None:
    """Reflectance from the file's own scale, else from what the product id implies, else from the values."""
    if hints.scaled:
        found.unit = Unit.REFLECTANCE
        return
    if hints.dtype == "uint8":
        text = "8-bit values of a reflectance sensor are scaled for display; they were kept as they are."
        found.notes.append(Note("warning", "display-scaled", text))
        return
    scale, offset, why = 1e-4, 0.0, "whole numbers of reflectance x 10000"
    product = _LANDSAT.search(hints.name)
    if hints.dtype.startswith("float"):
        top = np.nanpercentile(values, 98) if (values := hints.sample()).size else 0.0
        scale = 1.0 if top < 5 else 1e-4
        why = f"the 98th percentile of the values is {top:.4g}"
    elif product and product.group(5) == "02" and product.group(3).upper().startswith("L2"):
        scale, offset, why = found.sensor.scale, found.sensor.offset, "Collection 2 Level 2"
    elif product and product.group(3).upper().startswith("L1"):
        text = "Level-1 numbers need the MTL file to become reflectance; give the product's folder."
        found.notes.append(Note("warning", "level-1-numbers", text))
        return
    elif found.sensor is SENTINEL2:
        offset, why = _s2_offset(hints, found)
    found.unit = Unit.REFLECTANCE
    found.scales, found.offsets = (scale,) * n, (offset,) * n
    found.notes.append(
        Note("info", "reflectance-scale", f"Reflectance = stored x {scale:g} + {offset:g} ({why}).")
    )


def _s2_offset(hints: Hints, found: Guess) -> tuple[float, str]:
    """The offset of a Sentinel-2 file without metadata: its baseline, or none. A guess from the values alone
    is only said, never applied: bright ground without shadow looks the same."""
    baseline = baseline_of(hints.name)
    if baseline is not None:
        return (-0.1 if baseline >= 4 else 0.0), f"processing baseline {baseline:05.2f} in the name"
    verdict, dark = dark_verdict(hints.sample())
    if verdict == "raw":
        text = (
            f"The darkest values are {dark:.0f}: it may be Sentinel-2 of baseline 04.00 or later, still with "
            "the offset of 1000. No metadata says so, and it was left in; s2_offset=-0.1 removes it."
        )
        found.notes.append(Note("warning", "s2-offset-unknown", text))
    return 0.0, "no processing baseline is stated"


def dark_verdict(values: np.ndarray) -> tuple[str, float]:
    """Whether Sentinel-2 numbers still hold the offset of 1000 that baseline 04.00 added.

    The first percentile of dark ground is below 200 when it was taken off, above 900 when it was not.

    Args:
        values: stored numbers, one row a band or flat; NaN is not looked at.

    Returns:
        `applied`, `raw` or `unclear`, and the darkest band's first percentile.
    """
    rows = np.atleast_2d(values)
    rows = [r[np.isfinite(r)] for r in rows]
    darkest = min((float(np.percentile(r, 1)) for r in rows if r.size >= 25), default=float("nan"))
    if darkest < 200:
        return "applied", darkest
    return ("raw" if darkest > 900 else "unclear"), darkest
