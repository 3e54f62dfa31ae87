"""PLAN.yaml: what a job over many places is, checked before anything runs.

```yaml
name: valley
source:                    # one of `pairs`, `folder`, `stac`
  pairs:
    - {name: north, before: 2019/north.tif, after: 2023/north.tif}
grid: {crs: "EPSG:32633", resolution: 10, cell: 2048, margin: 64}
area: valley.geojson
settings: {model: ir-mad}
retry: {attempts: 3}
products: [raster, geopackage, stac, pmtiles]
```
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from terralapse.engine.jobs._yaml import Section, read_yaml
from terralapse.engine.jobs.schedule import Retry
from terralapse.errors import SettingError
from terralapse.grid.median import LEAST, MOST_ITEMS

PRODUCTS = ("raster", "geopackage", "geoparquet", "stac", "pmtiles")
_DEFAULT_PRODUCTS = ("raster", "geopackage", "stac")
_REMOTE = ("http://", "https://")
_ITEMS = {"best": 6, "composite": 6, "median": 30}  # the rules over a catalogue, and their `items`


@dataclass(frozen=True)
class PairEntry:
    """One place: a name and what `terralapse change` takes for its two dates."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class PairList:
    """Pairs of images, each of its own place."""

    pairs: tuple[PairEntry, ...]


@dataclass(frozen=True)
class FolderSource:
    """A folder with `before/` and `after/`: entries of one name are a pair."""

    path: str


@dataclass(frozen=True)
class StacSource:
    """A STAC API or a static catalogue.

    Attributes:
        href: of the API's landing page, of a catalogue or of a collection; a path or an address.
        before, after: the two periods, START/END, both days included.
        collections: to search in; empty for all.
        rule: `best` compares one item a date, `composite` fills it from several, the clearest first,
            `median` takes the median of several at each pixel.
        max_cloud: the most `eo:cloud_cover` of an item, per cent.
        cover: the share of a cell that an item must cover to count as whole for `best`, 0..1.
        items: the most items of a composite or median; by default 6, and 30 for a median.
        min_clear: for `median`: clear looks that a pixel needs, else it has no data.
    """

    href: str
    before: str
    after: str
    collections: tuple[str, ...] = ()
    rule: str = "best"
    max_cloud: float = 80.0
    cover: float = 0.99
    items: int = 6
    min_clear: int = LEAST


@dataclass(frozen=True)
class GridSpec:
    """The one grid of a job: north-up, pixel edges at multiples of the pixel, cut into square cells.

    Attributes:
        crs: an authority code, e.g. EPSG:32633.
        resolution: of a pixel, in units of the CRS.
        cell: side of a cell in pixels; multiples of 512 merge fastest.
        margin: pixels that a unit sees beyond its cell, so that cells fit together without seams.
    """

    crs: str
    resolution: float
    cell: int = 2048
    margin: int = 64


@dataclass(frozen=True)
class JobPlan:
    """A checked plan. Paths are absolute. `settings` are those of `terralapse change`."""

    name: str
    source: PairList | FolderSource | StacSource
    grid: GridSpec | None = None
    area: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    retry: Retry = field(default_factory=Retry)
    products: tuple[str, ...] = _DEFAULT_PRODUCTS

    @staticmethod
    def read(path: Path | str) -> JobPlan:
        """A plan from its file.

        Raises:
            FileMissingError: there is no such file.
            SettingError: a key is unknown, missing, of another type or out of range; names it and its line.
        """
        return _plan(read_yaml(Path(path)))

    def digest(self) -> str:
        """A hash of what decides about results: all but `retry`."""
        record = asdict(self) | {"source_kind": type(self.source).__name__}
        del record["retry"]
        return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


_KEYS = ("name", "source", "grid", "area", "settings", "retry", "products")


def _plan(top: Section) -> JobPlan:
    base = top.path.resolve().parent
    name = top.take("name", str, top.path.stem)
    source = _source(top.take("source", Section), base)
    spec = top.take("grid", Section, None)
    grid = None if spec is None else _grid(spec)
    area = top.take("area", str, None)
    if isinstance(source, StacSource) and (grid is None or area is None):
        missing = "grid" if grid is None else "area"
        raise top.error(missing, "is missing", f"A plan over a catalogue needs `{missing}`.")
    settings = top.take("settings", Section, None)
    told = {} if settings is None else _plain_settings(settings, base)
    retry = _retry(top.take("retry", Section, None))
    wanted = top.take("products", list, list(_DEFAULT_PRODUCTS))
    for product in wanted:
        if product not in PRODUCTS:
            raise top.error("products", f"names {product!r}", f"Choose from: {', '.join(PRODUCTS)}.")
    top.finish(_KEYS)
    return JobPlan(
        name, source, grid, None if area is None else _path(area, base), told, retry,
        tuple(p for p in PRODUCTS if p in wanted),
    )  # fmt: skip


def _source(section: Section, base: Path) -> PairList | FolderSource | StacSource:
    kinds = [k for k in ("pairs", "folder", "stac") if k in section.values]
    if len(kinds) != 1:
        fault = "names no images" if not kinds else f"names {' and '.join(kinds)}"
        raise section.error("", fault, "Give one of `pairs`, `folder` and `stac`.")
    if kinds == ["folder"]:
        found: Any = FolderSource(_path(section.take("folder", str), base))
    elif kinds == ["pairs"]:
        found = _pairs(section, base)
    else:
        found = _stac(section.take("stac", Section), base)
    section.finish(("pairs", "folder", "stac"))
    return found


def _pairs(section: Section, base: Path) -> PairList:
    found: list[PairEntry] = []
    for number, entry in enumerate(section.take("pairs", list)):
        if not isinstance(entry, Section):
            raise section.error(f"pairs[{number}]", "is no group of keys", "Write {before: ..., after: ...}.")
        before, after = (_path(entry.take(k, str), base) for k in ("before", "after"))
        name = entry.take("name", str, f"pair-{number + 1:04d}")
        if any(name == other.name for other in found):
            raise entry.error("name", f"{name!r} is there twice", "Give each pair a name of its own.")
        found.append(PairEntry(name, before, after))
        entry.finish(("name", "before", "after"))
    if not found:
        raise section.error("pairs", "is empty", "List at least one pair.")
    return PairList(tuple(found))


def _stac(section: Section, base: Path) -> StacSource:
    before, after = (_period(section, k) for k in ("before", "after"))
    collections = section.take("collections", list, [])
    if not all(isinstance(c, str) for c in collections):
        raise section.error("collections", "is no list of names", "Write [sentinel-2-l2a].")
    found = StacSource(
        _path(section.take("href", str), base),
        before,
        after,
        tuple(collections),
        rule := section.choice("rule", tuple(_ITEMS), "best"),
        section.take("max_cloud", float, 80.0),
        section.take("cover", float, 0.99),
        section.take("items", int, _ITEMS[rule]),
        _min_clear(section, rule),
    )
    if not 0 <= found.max_cloud <= 100:
        raise section.error("max_cloud", f"{found.max_cloud:g} is no percentage", "Give 0 to 100.")
    if not 0 < found.cover <= 1:
        raise section.error("cover", f"{found.cover:g} is no share", "Give a number up to 1.")
    if found.items < 1:
        raise section.error("items", f"{found.items} is not positive", "Give 1 or more.")
    if found.items > MOST_ITEMS:
        raise section.error("items", f"{found.items} are too many", f"At most {MOST_ITEMS} are taken.")
    if found.rule == "median" and found.items < found.min_clear:
        fault = f"{found.items} are fewer than the {found.min_clear} clear looks that a pixel needs"
        raise section.error("items", fault, "Raise `items`, or lower `min_clear`.")
    section.finish(StacSource.__dataclass_fields__)
    return found


def _min_clear(section: Section, rule: str) -> int:
    if "min_clear" in section.values and rule != "median":
        raise section.error("min_clear", f"means nothing with rule: {rule}", "Take rule: median.")
    found = section.take("min_clear", int, LEAST)
    if found < 1:
        raise section.error("min_clear", f"{found} is not positive", "Give 1 or more.")
    return found


def _period(section: Section, key: str) -> str:
    from datetime import date

    text = section.take(key, str)
    start, slash, end = text.partition("/")
    try:
        right = bool(slash) and date.fromisoformat(start) <= date.fromisoformat(end)
    except ValueError:
        right = False
    if not right:
        raise section.error(key, f"{text!r} is no period", "Write it like 2021-06-01/2021-08-31.")
    return text


def _grid(section: Section) -> GridSpec:
    spec = GridSpec(
        section.take("crs", str),
        section.take("resolution", float),
        section.take("cell", int, 2048),
        section.take("margin", int, 64),
    )
    from odc.geo.crs import CRS
    from pyproj.exceptions import CRSError

    try:
        known = CRS(spec.crs).proj.to_authority() is not None
    except (CRSError, ValueError):
        known = False
    if not known:
        raise section.error("crs", f"{spec.crs!r} is no code of a CRS", "Write it like EPSG:32633.")
    if not 0 < spec.resolution < 1e6:
        raise section.error("resolution", f"{spec.resolution:g} is no pixel size", "Give units of the CRS.")
    if not 16 <= spec.cell <= 65536:
        raise section.error("cell", f"{spec.cell} lies outside of 16 to 65536", "2048 suits most models.")
    if not 0 <= spec.margin <= spec.cell:
        raise section.error("margin", f"{spec.margin} lies outside of 0 to the cell", "64 suits most models.")
    section.finish(GridSpec.__dataclass_fields__)
    return spec


def _retry(section: Section | None) -> Retry:
    if section is None:
        return Retry()
    plain = Retry()
    values = {
        "attempts": section.take("attempts", int, plain.attempts),
        "base_s": section.take("base_s", float, plain.base_s),
        "most_s": section.take("most_s", float, plain.most_s),
        "seed": section.take("seed", int, plain.seed),
    }
    section.finish(Retry.__dataclass_fields__)
    try:
        return Retry(**values)
    except SettingError as error:
        key = error.what.split()[0].removeprefix("retry.")
        raise section.error(key, error.fault, error.hint) from error


# Of the settings of a change, those that the plan itself decides, and those that name files.
_DECIDED = {"grid": "the key `grid` of the plan", "aoi": "the key `area` of the plan"}
_FILES = ("weights", "zones", "before_map")


def _plain_settings(section: Section, base: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.values.items():
        if key in _DECIDED:
            raise section.error(key, "is not a setting of a unit", f"Use {_DECIDED[key]}.")
        if isinstance(value, Section):
            raise section.error(key, "is a group of keys", "Write one value.")
        found[key] = _path(value, base) if key in _FILES and isinstance(value, str) else value
    return found


def _path(text: str, base: Path) -> str:
    """Relative to the plan; addresses stay, and so does the one word that stands for a map by rules."""
    if text.lower().startswith(_REMOTE) or text == "rules":
        return text
    return str(base / text)
