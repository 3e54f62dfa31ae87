"""Which layers a result has on the map, what their values mean and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio

from terralapse.errors import UnreadableFileError
from terralapse.grid._gdal import GDAL_ERRORS, gdal_env
from terralapse.labels import (
    BINARY_CHANGE,
    DAMAGE,
    NOT_COUNTED,
    SCHEMES,
    SERIES_QUALITY,
    VALIDITY,
    ClassScheme,
)
from terralapse.products.imagery import RAMP, Look, probability_layer, ramp, rgb
from terralapse.products.tally import PROB_STEPS
from terralapse.serve.patterns import PATTERNS, ink, rows_of
from terralapse.serve.shelf import Result

_FALL, _MIDDLE, _RISE = "#b0126f", "#f2f0eb", "#0b7a75"
_EPOCH = date(1970, 1, 1)
_SMALL = 512


@dataclass(frozen=True)
class Scale:
    """How the stored values of a layer become codes 0..n-1, and what a code means.

    `code = (stored - stored_zero) / stored_step`, `value = zero + step * code`, in `unit`.
    """

    stored_zero: float
    stored_step: float
    zero: float
    step: float
    unit: str


@dataclass(frozen=True)
class Layer:
    """One raster as a layer.

    `kind` is `picture` (three bands as they are), `class` or `value`. `table` is uint8 [n, 4], the colour of
    each class value or code. `legend` is what the page shows of it. `patterns` is uint8 [n], which of
    `terralapse.serve.patterns` each class is drawn with, so that classes are told apart without colours.
    `bands`, from 1, and `look` are of a picture whose values are measured ones.
    """

    name: str
    title: str
    path: Path
    kind: Literal["picture", "class", "value"]
    legend: list[dict[str, Any]] = field(default_factory=list)
    table: np.ndarray | None = None
    scale: Scale | None = None
    patterns: np.ndarray | None = None
    bands: tuple[int, ...] | None = None
    look: Look | None = None

    @property
    def stamp(self) -> str:
        """Changes whenever the file does."""
        stat = self.path.stat()
        return f"{stat.st_mtime_ns:x}{stat.st_size:x}"


def layers_of(result: Result) -> dict[str, Layer]:
    """The layers of a result by name, the lowest on the map first; those whose files are missing are not
    there."""
    files = result.files()
    found: dict[str, Layer] = {}
    for name, (file, make) in (_SERIES if result.kind == "series" else _CHANGE).items():
        if file in files:
            found[name] = make(name, files[file], result)
    return found


def _picture(name: str, path: Path, _result: Result) -> Layer:
    return Layer(name, f"Image {name}", path, "picture")


def _classes(scheme: ClassScheme, title: str) -> Callable[[str, Path, Result], Layer]:
    def make(name: str, path: Path, _result: Result) -> Layer:
        table = np.zeros((256, 4), np.uint8)
        for c in scheme.classes:
            table[c.value] = (*rgb(c.colour), 255 if c.value else 0)
        legend = [{"value": c.value, "title": c.title, "colour": c.colour} for c in scheme.classes if c.value]
        return Layer(name, title, path, "class", legend, table)

    return make


def _probability(name: str, path: Path, _result: Result) -> Layer:
    codes = np.arange(PROB_STEPS + 1)[None] / PROB_STEPS
    legend = [
        {"value": i / (len(RAMP) - 1), "title": f"{i / (len(RAMP) - 1):.1f}", "colour": colour}
        for i, colour in enumerate(RAMP)
    ]
    scale = Scale(0.0, 1.0, 0.0, 1 / PROB_STEPS, "1")
    title = "Probability of change" if _result.kind == "change" else "Probability of the break"
    return Layer(name, title, path, "value", legend, probability_layer(codes)[0], scale)


def _break_date(name: str, path: Path, result: Result) -> Layer:
    """From the first to the last date of the series, light to dark."""
    times = [t["time"][:10] for t in result.run["inputs"] if t.get("time")]
    first, last = date.fromisoformat(min(times)), date.fromisoformat(max(times))
    days = max((last - first).days, 1)
    table = np.full((days + 1, 4), 255, np.uint8)
    table[:, :3] = ramp(np.arange(days + 1) / days)
    legend = []
    for i, colour in enumerate(RAMP):
        day = first + timedelta(days=round(days * i / (len(RAMP) - 1)))
        legend.append({"value": (day - _EPOCH).days, "title": day.isoformat(), "colour": colour})
    zero = (first - _EPOCH).days
    return Layer(name, "Date of the break", path, "value", legend, table, Scale(zero, 1, zero, 1, "days"))


def _magnitude(name: str, path: Path, _result: Result) -> Layer:
    """Diverging around no change; the ends are the 98th percentile of the sizes."""
    try:
        with gdal_env(), rasterio.open(path, driver="GTiff") as file:
            step = max(1, -(-max(file.shape) // _SMALL))
            small = file.read(1, out_shape=(max(1, file.height // step), max(1, file.width // step)))
    except GDAL_ERRORS as error:
        raise UnreadableFileError(path, "cannot be read", "Run `terralapse series` again.") from error
    known = np.abs(small[np.isfinite(small) & (small != 0)])
    most = max(float(np.percentile(known, 98)) if known.size else 1.0, 1e-9)
    share = (np.arange(201) - 100)[:, None] / 100
    ends = np.where(share < 0, np.array(rgb(_FALL)), np.array(rgb(_RISE)))
    table = np.full((201, 4), 255, np.uint8)
    table[:, :3] = (np.array(rgb(_MIDDLE)) * (1 - abs(share)) + ends * abs(share)).round()
    table[100, 3] = 0
    legend = [
        {"value": v, "title": f"{v:+.2g}", "colour": c}
        for v, c in ((-most, _FALL), (0.0, _MIDDLE), (most, _RISE))
    ]
    scale = Scale(-most, most / 100, -most, most / 100, "index")
    return Layer(name, "Size of the break", path, "value", legend, table, scale)


def _map_of_classes(name: str, path: Path, result: Result) -> Layer:
    """What the ground was and became, in the scheme that the file names; each class has a pattern of its
    own."""
    if name == "damage":
        scheme, title = DAMAGE, "Damage of buildings"
    else:
        with gdal_env(), rasterio.open(path, driver="GTiff") as file:
            slug = file.tags(1).get("CLASS_SCHEME", "")
        if slug not in SCHEMES:
            raise UnreadableFileError(
                path, "names no scheme of its classes", "Add it with `terralapse facts`."
            )
        scheme, title = SCHEMES[slug], f"Classes {name.removeprefix('classes_')}"
    layer = _classes(scheme, title)(name, path, result)
    empty = {c.value for c in scheme.classes if c.value == 0 and c.name in (*NOT_COUNTED, "background")}
    table, patterns = np.zeros((256, 4), np.uint8), np.zeros(256, np.uint8)
    legend = []
    for number, c in enumerate(c for c in scheme.classes if c.value not in empty):
        table[c.value] = (*rgb(c.colour), 255)
        patterns[c.value] = number % len(PATTERNS)
        shown = ink(np.array(rgb(c.colour), np.float32)).round().astype(int).tolist()
        pattern = {"rows": rows_of(number % len(PATTERNS)), "ink": shown}
        about = {"value": c.value, "name": c.name, "title": c.title, "colour": c.colour}
        legend.append(about | {"pattern": pattern})
    return replace(layer, table=table, legend=legend, patterns=patterns)


_Make = Callable[[str, Path, Result], Layer]
_CHANGE: dict[str, tuple[str, _Make]] = {
    "before": ("before.tif", _picture),
    "after": ("after.tif", _picture),
    "validity": ("valid.tif", _classes(VALIDITY, "Why a pixel was not compared")),
    "probability": ("prob.tif", _probability),
    "classes_before": ("classes_before.tif", _map_of_classes),
    "classes_after": ("classes_after.tif", _map_of_classes),
    "damage": ("damage.tif", _map_of_classes),
    "change": ("change.tif", _classes(BINARY_CHANGE, "Change")),
}
_SERIES: dict[str, tuple[str, _Make]] = {
    "validity": ("valid.tif", _classes(SERIES_QUALITY, "What is known of the series")),
    "probability": ("probability.tif", _probability),
    "magnitude": ("magnitude.tif", _magnitude),
    "break_date": ("break_days.tif", _break_date),
}
