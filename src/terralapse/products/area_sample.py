"""A stratified sample of the pixels of a run's map: drawn, written for people to label, read again.

The strata are the classes of the map; with a buffer the pixels of no change near to change are a stratum of
their own, in which what the map missed is looked for. A point is a pixel. Pixels are drawn without
replacement with a probability in proportion to their area on the ground, by the keys of Efraimidis and
Spirakis (Information Processing Letters 97, 2006): one pass in constant memory, the same points for the same
seed, and a larger sample of one seed holds the smaller one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyogrio.errors import DataSourceError
from rasterio.windows import Window as RioWindow
from scipy import ndimage

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.grid._gdal import gdal_env
from terralapse.grid.areas import Compass, PixelArea, on_ground
from terralapse.grid.scene import Window
from terralapse.labels import BINARY_CHANGE, DAMAGE, SCHEMES, ClassScheme, Reason
from terralapse.products.polygons import area_unit
from terralapse.products.record import write_json
from terralapse.tasks.area import LEAST, RARE, allocate, sample_size

MAPS = ("change", "classes_before", "classes_after", "damage")
UNSURE = "unsure"  # a point of which nobody could tell; it is left out
MOST = 20_000
EXPECTED = 0.8  # of a class of which nothing is said
_RECORD = "sample.json"
_STRIP = 512
_NEAR = 254  # the code of the stratum beside change; no scheme has so many classes
_CHANGE = 1


@dataclass(frozen=True)
class Stratum:
    """A part of the map: `mapped` is its class there, `area` in m2 (pixels without a CRS), `points` drawn."""

    name: str
    title: str
    mapped: str
    pixels: int
    area: float
    points: int = 0


@dataclass(frozen=True)
class Point:
    """A pixel: `row`, `col` on the grid of the run, its middle as `x`, `y` there and in degrees."""

    id: int
    row: int
    col: int
    x: float
    y: float
    lon: float | None
    lat: float | None
    stratum: str


@dataclass(frozen=True)
class Sample:
    """A drawn sample. `classes` are the names that a label may have, with their titles; `points` are in an
    order that tells nothing of their strata."""

    run_id: str
    map: str
    unit: str
    seed: int
    buffer: int
    classes: dict[str, str]
    strata: tuple[Stratum, ...]
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "terralapse-sample", "version": 1, **asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Sample:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        if found["schema"] != "terralapse-sample" or found["version"] != 1:
            raise ValueError("another schema")
        strata = tuple(Stratum(**s) for s in found["strata"])
        points = tuple(Point(**p) for p in found["points"])
        plain = {k: found[k] for k in ("run_id", "map", "unit", "seed", "buffer", "classes")}
        return cls(**plain, strata=strata, points=points)


# --- drawing -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plan:
    """How many points and where. `size` points, or as many as `error` (the standard error of the overall
    accuracy) needs with the accuracies `expected` by stratum; the rest as in
    `terralapse.tasks.area.allocate`."""

    size: int | None = None
    error: float = 0.02
    expected: Mapping[str, float] | None = None
    allocation: str = "rare"
    least: int = RARE


def draw(folder: Path, plan: Plan, *, name: str = "change", seed: int = 0, buffer: int = 0) -> Sample:
    """Draws a sample of the compared pixels of a finished run.

    Args:
        folder: of `terralapse change`.
        plan: how many points.
        name: of the raster whose classes are the strata, one of `MAPS`.
        seed: of the draw.
        buffer: pixels around change that are a stratum `near_change` of their own; only of `change`.

    Raises:
        FileMissingError: no finished run, or it has no such map.
        UnreadableFileError: `run.json` is not that of a run of two dates.
        SettingError: no such map, a buffer of another map, or a map of fewer than two strata.
    """
    if name not in MAPS:
        raise SettingError(f"map {name}", "cannot be sampled", f"Use {', '.join(MAPS)}.")
    if buffer < 0 or buffer > _STRIP or (buffer and name != "change"):
        raise SettingError(
            f"buffer {buffer}", "does not fit", f"Give 0 to {_STRIP} pixels, for the map change."
        )
    run = _run(folder)
    path = folder / f"{name}.tif"
    if not path.is_file():
        raise FileMissingError(
            path, "is missing, so the run has no such map", "Add it with `terralapse facts`, or use change."
        )
    scheme = _scheme(path, name)
    box = _grid(run, folder)
    pixels, areas = np.zeros(256, np.int64), np.zeros(256)
    for codes, area, _ in _strips(path, folder / "valid.tif", box, buffer):
        pixels += np.bincount(codes.ravel(), minlength=256)
        areas += np.bincount(codes.ravel(), area.ravel(), minlength=256)
    strata = _strata(scheme, pixels, areas)
    if len(strata) < 2:
        raise SettingError(
            f"map {name}",
            "has fewer than two classes with pixels to draw from",
            "There is nothing to stratify.",
        )
    planned = _planned(plan, list(strata.values()))
    kept: dict[int, np.ndarray] = {code: np.empty((0, 3)) for code in strata}
    for number, (codes, area, top) in enumerate(_strips(path, folder / "valid.tif", box, buffer)):
        rng = np.random.default_rng((seed, number))
        keys = rng.exponential(size=codes.shape) / area
        for code, wanted in zip(strata, planned, strict=True):
            row, col = np.nonzero(codes == code)
            if len(row):
                found = np.column_stack([keys[row, col], row + top, col])
                both = np.concatenate([kept[code], found])
                kept[code] = both[np.argsort(both[:, 0], kind="stable")[:wanted]]
    drawn = tuple(replace(s, points=len(kept[c])) for c, s in strata.items())
    points = _points(box, {strata[c].name: k[:, 1:].astype(int) for c, k in kept.items()}, seed)
    classes = {c.name: c.title for c in scheme.classes}
    unit = area_unit(box)
    return Sample(str(run.get("run_id", "")), name, unit, seed, buffer, classes, drawn, points)


def _planned(plan: Plan, strata: list[Stratum]) -> list[int]:
    expected = dict(plan.expected or {})
    names = [s.name for s in strata]
    if strange := sorted(expected.keys() - set(names)):
        raise SettingError(
            f"expected accuracy of {strange[0]}", "is of no stratum", f"The strata are {', '.join(names)}."
        )
    total = sum(s.area for s in strata)
    shares = [s.area / total for s in strata]
    users = [expected.get(n, EXPECTED) for n in names]
    pixels = [s.pixels for s in strata]
    size = plan.size if plan.size is not None else sample_size(shares, users, plan.error, sum(pixels))
    if size > MOST:
        raise SettingError(f"size {size}", f"is more than {MOST} points", "Ask for fewer, or a larger error.")
    return allocate(size, shares, pixels, plan.allocation, plan.least, users)


def _run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileMissingError(
            path, "is missing, so this is no finished run", "Give the folder that a run has written."
        ) from error
    except (ValueError, OSError) as error:
        raise UnreadableFileError(path, "is damaged", "Run `terralapse change` again.") from error
    if not isinstance(run, dict) or run.get("kind") == "series":
        raise UnreadableFileError(path, "is of no run of two dates", "Give a folder of `terralapse change`.")
    return run


def _grid(run: Mapping[str, Any], folder: Path) -> GeoBox:
    try:
        grid = run["grid"]
        return GeoBox((grid["height"], grid["width"]), Affine(*grid["transform"][:6]), grid["crs"])
    except (KeyError, TypeError) as error:
        raise UnreadableFileError(
            folder / "run.json", "says nothing of the grid", "Run `terralapse change` again."
        ) from error


def grid_of(folder: Path) -> GeoBox:
    """The grid of a finished run of two dates.

    Raises:
        FileMissingError, UnreadableFileError: there is no such run, or it says nothing of its grid.
    """
    return _grid(_run(folder), folder)


def _scheme(path: Path, name: str) -> ClassScheme:
    """What the values mean: by the slug in the file."""
    if name in ("change", "damage"):
        return BINARY_CHANGE if name == "change" else DAMAGE
    with gdal_env(), rasterio.open(path, driver="GTiff") as file:
        slug = file.tags(1).get("CLASS_SCHEME", "")
    if slug not in SCHEMES:
        raise UnreadableFileError(
            path, f"has classes of {slug or 'no scheme'}", "Add it with `terralapse facts`."
        )
    return SCHEMES[slug]


def _strips(
    path: Path, valid: Path, box: GeoBox, buffer: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Codes of strata uint8 (255 for what was not compared), areas, and the first row, from the top down."""
    measure = PixelArea(box)
    with (
        gdal_env(),
        rasterio.open(path, driver="GTiff") as file,
        rasterio.open(valid, driver="GTiff") as reasons,
    ):
        height, width = file.shape
        for top in range(0, height, _STRIP):
            rows = min(_STRIP, height - top)
            low, high = max(0, top - buffer), min(height, top + rows + buffer)
            wide = RioWindow(0, low, width, high - low)  # type: ignore[call-arg]
            around = file.read(1, window=wide)
            codes = around[top - low : top - low + rows].copy()
            if buffer:
                near = ndimage.maximum_filter(around == _CHANGE, 2 * buffer + 1, mode="constant")
                codes[near[top - low : top - low + rows] & (codes == 0)] = _NEAR
            own = RioWindow(0, top, width, rows)  # type: ignore[call-arg]
            codes[reasons.read(1, window=own) != Reason.VALID] = 255
            area = measure.block(Window(top, 0, rows, width))
            yield codes, np.broadcast_to(area, codes.shape), top


def _strata(scheme: ClassScheme, pixels: np.ndarray, areas: np.ndarray) -> dict[int, Stratum]:
    """By code: classes with at least two pixels, so that each can have a variance. One of a single pixel has
    no place in a sample."""
    found = {
        c.value: Stratum(c.name, c.title, c.name, int(pixels[c.value]), float(areas[c.value]))
        for c in scheme.classes
        if pixels[c.value] >= LEAST
    }
    if pixels[_NEAR] >= LEAST:
        first = scheme.classes[0]
        found[_NEAR] = Stratum(
            "near_change",
            f"{first.title}, near to change",
            first.name,
            int(pixels[_NEAR]),
            float(areas[_NEAR]),
        )
    return found


def _points(box: GeoBox, kept: Mapping[str, np.ndarray], seed: int) -> tuple[Point, ...]:
    names = [n for n, at in kept.items() for _ in range(len(at))]
    at = np.concatenate(list(kept.values()))
    order = np.random.default_rng((seed, 1 << 32)).permutation(len(at))
    x, y = on_ground(box.affine, at[:, 1] + 0.5, at[:, 0] + 0.5)
    lon, lat = Compass(box).lonlat(x, y)
    known = box.crs is not None
    return tuple(
        Point(
            number,
            int(at[i, 0]),
            int(at[i, 1]),
            float(x[i]),
            float(y[i]),
            round(float(lon[i]), 7) if known else None,
            round(float(lat[i]), 7) if known else None,
            names[i],
        )
        for number, i in enumerate(order.tolist(), start=1)
    )


# --- files -------------------------------------------------------------------------------------------
def write_sample(sample: Sample, folder: Path, crs: Any) -> list[Path]:
    """`points.csv` and `points.gpkg`, to be labelled in the column `label`, and `sample.json`.

    The files to label do not say the stratum of a point, so that whoever labels it is not told what the map
    says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = points_table(sample)
    table.to_csv(folder / "points.csv", index=False, lineterminator="\n")
    places = gpd.points_from_xy([p.x for p in sample.points], [p.y for p in sample.points])
    frame = gpd.GeoDataFrame(table, geometry=places, crs=crs)
    target = folder / "points.gpkg"
    target.unlink(missing_ok=True)
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_dataframe(frame, target, layer="points", driver="GPKG", geometry_type="Point")
    write_json(sample.as_dict(), folder / _RECORD)
    return [folder / n for n in ("points.csv", "points.gpkg", _RECORD)]


def points_table(sample: Sample, labels: Mapping[int, str] | None = None) -> pd.DataFrame:
    """The points without their strata, with the columns `label` and `note` to fill."""
    rows = [
        {k: v for k, v in asdict(p).items() if k != "stratum"} | {"label": (labels or {}).get(p.id, "")}
        for p in sample.points
    ]
    return pd.DataFrame(rows).assign(note="")


def read_sample(folder: Path) -> Sample:
    """The sample of a folder that `write_sample` wrote.

    Raises:
        FileMissingError, UnreadableFileError: there is none, or it is damaged.
    """
    path = folder / _RECORD
    try:
        return Sample.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FileMissingError(
            path, "is missing, so this is no sample", "Draw one with `terralapse area sample`."
        ) from error
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UnreadableFileError(path, "is no record of a sample", "Draw it again.") from error


def read_labels(path: Path, sample: Sample) -> dict[int, str]:
    """Labels by point from a CSV (columns `id` and `label`) or a GeoPackage that was filled in.

    Empty labels are left out, and so are those that say `unsure`. A label is the name of a class or its
    title, in any case.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or it lacks the columns.
        SettingError: a label that is no class, a point that the sample has not, or one labelled twice.
    """
    known = {k.lower(): k for k in sample.classes} | {t.lower(): k for k, t in sample.classes.items()}
    ids = {p.id for p in sample.points}
    found: dict[int, str] = {}
    for number, said in _rows(path):
        text = str(said or "").strip().lower()
        if text in ("", "nan", "none", UNSURE) and text not in known:
            continue
        if number not in ids:
            raise SettingError(
                f"{path.name}, point {number}", "is not in the sample", "Give the file of this sample."
            )
        if text not in known:
            raise SettingError(
                f"{path.name}, point {number}",
                f"has the label {said!r}, which is no class",
                f"Use {', '.join(sample.classes)}, or {UNSURE}.",
            )
        if number in found:
            raise SettingError(f"{path.name}, point {number}", "is there twice", "Keep one line a point.")
        found[number] = known[text]
    return found


def _rows(path: Path) -> Sequence[tuple[int, Any]]:
    if not path.is_file():
        raise FileMissingError(path, "does not exist", "Check the path.")
    try:
        if path.suffix.lower() == ".gpkg":
            frame = pyogrio.read_dataframe(path, read_geometry=False)
            return [(int(i), label) for i, label in zip(frame["id"], frame["label"], strict=True)]
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(int(row["id"]), row["label"]) for row in csv.DictReader(file)]
    except (DataSourceError, OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UnreadableFileError(
            path, "is no table of points with the columns id and label", "Fill in points.csv or points.gpkg."
        ) from error
