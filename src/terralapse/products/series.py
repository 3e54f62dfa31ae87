"""The products of a series beside its rasters: polygons, map, statistics by year, facts, report, records."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rasterio.windows import Window as RioWindow

from terralapse._version import __version__
from terralapse.engine.series import NO_DAY, PROB_STEPS, RASTERS, SeriesScene
from terralapse.grid.align import describe_grid
from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import Note, Window
from terralapse.grid.series import Series
from terralapse.labels import SERIES_QUALITY, SERIES_UNUSABLE
from terralapse.products import charts, series_course, series_stac, stac, units
from terralapse.products.facts import Fact, Facts, place_facts, write_facts
from terralapse.products.imagery import data_uri, ramp, rgb
from terralapse.products.polygons import area_unit, smallest_area, write_geopackage, write_geoparquet
from terralapse.products.record import peak_memory, plain, products_of, software, write_json
from terralapse.products.series_map import FALL, RISE, SeriesView, write_series_map
from terralapse.products.series_polygons import LAYER, break_polygons
from terralapse.products.sheet import clip

_STRIP = 512
_PICTURE = 640  # pixels of the longer side
_SHEET = 1500  # the same on the map sheet
_ROWS = 12  # of the table of polygons in the report
_HISTOGRAM = np.linspace(-2, 2, 4001)  # of magnitudes in units of their spread; the median is read from it
_NONE = "#f2f0eb"


@dataclass
class SeriesRun:
    """Everything that is known when the rasters of a series are written and the products are not. `name` is
    that of the area, `min_area_m2` of the smallest polygon kept (None: about four pixels)."""

    run_id: str
    folder: Path
    series: Series
    scene: SeriesScene | None
    composites: list[dict[str, Any]]
    settings: dict[str, Any]
    command: str
    started: datetime
    name: str = "the area"
    min_area_m2: float | None = None
    warnings: list[Note] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass
class SeriesTally:
    """Sums over the rasters, areas in m2 (pixels without a CRS).

    `quality`: area by code; `years`: for each year its area, the falling and the rising part, and the sums of
    magnitude and probability times area; `magnitudes`: area by class of magnitude, with `edges`; `days`: area
    by day of the break, since 1970-01-01.
    """

    quality: dict[int, float]
    years: dict[int, np.ndarray]
    magnitudes: np.ndarray
    edges: np.ndarray
    days: dict[int, float] = field(default_factory=dict)

    @property
    def considered(self) -> float:
        """The area of interest."""
        outside = next(c.value for c in SERIES_QUALITY.classes if c.name == "outside_aoi")
        return sum(a for code, a in self.quality.items() if code != outside)

    @property
    def modelled(self) -> float:
        """Where something is known about breaks."""
        return sum(a for code, a in self.quality.items() if code < SERIES_UNUSABLE)

    @property
    def broken(self) -> float:
        """With at least one break."""
        return float(sum(row[0] for row in self.years.values()))

    @property
    def median(self) -> float:
        """Median magnitude by area."""
        total = self.magnitudes.sum()
        if not total:
            return math.nan
        at = int(np.searchsorted(np.cumsum(self.magnitudes), total / 2))
        return float((self.edges[at] + self.edges[at + 1]) / 2)


def tally(folder: Path, series: Series) -> SeriesTally:
    """One streamed pass over the rasters of a series."""
    area_of = PixelArea(series.geobox)
    quality: dict[int, float] = {}
    years: dict[int, np.ndarray] = {}
    spread = 1.0
    with rasterio.open(folder / "magnitude.tif") as file:
        known = file.read(1, out_shape=_small(file.shape))
        if np.isfinite(known).any():
            spread = max(float(np.nanmax(np.abs(known))), 1e-9)
    edges = _HISTOGRAM * spread
    magnitudes = np.zeros(len(edges) - 1)
    days: dict[int, float] = {}
    names = ("valid", "break_date", "break_days", "magnitude", "probability")
    files = {name: rasterio.open(folder / f"{name}.tif") for name in names}
    try:
        height, width = series.shape
        for row in range(0, height, _STRIP):
            window = Window(row, 0, min(_STRIP, height - row), width)
            box = RioWindow(0, row, width, window.height)  # pyright: ignore[reportCallIssue]
            read = {name: file.read(1, window=box) for name, file in files.items()}
            area = np.broadcast_to(area_of.block(window), read["valid"].shape)
            for code in np.unique(read["valid"]):
                here = float(area[read["valid"] == code].sum())
                quality[int(code)] = quality.get(int(code), 0.0) + here
            broken = read["break_date"] > 0
            size, own = read["magnitude"][broken].astype(np.float64), area[broken]
            chance = read["probability"][broken] / PROB_STEPS
            magnitudes += np.histogram(np.clip(size, edges[0], edges[-1]), edges, weights=own)[0]
            for day, here in zip(*_sums(read["break_days"][broken], own), strict=True):
                days[int(day)] = days.get(int(day), 0.0) + float(here)
            of_year = read["break_date"][broken] // 10000
            for year in np.unique(of_year):
                at = of_year == year
                a, s = own[at], size[at]
                row_of = [a.sum(), a[s < 0].sum(), a[s >= 0].sum(), (a * s).sum(), (a * chance[at]).sum()]
                years[int(year)] = years.get(int(year), np.zeros(5)) + np.array(row_of)
    finally:
        for file in files.values():
            file.close()
    years, days = dict(sorted(years.items())), dict(sorted(days.items()))
    return SeriesTally(dict(sorted(quality.items())), years, magnitudes, edges, days)


def _sums(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each key once, and the sum of its values."""
    unique, which = np.unique(keys, return_inverse=True)
    return unique, np.bincount(which, values, len(unique))


def write_products(run: SeriesRun) -> dict[str, Any]:
    """Writes what is made from the rasters into their folder: `breaks.gpkg` (and `breaks.parquet` where
    `settings["geoparquet"]` asks for it), `stats.csv`, `facts.json`, `map.png`, `map.pdf`, `report.html`,
    `item.json` and `run.json`. Without breaks there are no polygons, no map and no statistics.

    Returns the summary that `--json` prints.
    """
    found, polygons, box = None, None, run.series.geobox
    if run.scene is not None:
        found = tally(run.folder, run.series)
        index = run.series.index.name
        polygons = break_polygons(run.folder, box, index, run.run_id, run.min_area_m2)
    facts = collect(run, found, polygons)
    if found is not None and polygons is not None:
        write_stats(found, _unit(run), run.folder / "stats.csv")
        write_geopackage(polygons, run.folder / "breaks.gpkg", run.started, LAYER, "Polygons of breaks")
        if run.settings.get("geoparquet"):
            write_geoparquet(polygons, run.folder / "breaks.parquet")
        write_series_map(_view(run, found, facts), facts, box, run.started, run.folder)
    write_facts(facts, run.folder / "facts.json")
    _write_report(run, found, facts, polygons)
    files = sorted([p["file"] for p in products_of(run.folder)] + ["run.json"])
    item = series_stac.item(
        run.folder,
        files,
        run.composites,
        geobox=box,
        times=run.series.times,
        run_id=run.run_id,
        name=run.name,
        index=run.series.index.name,
        lineage=run.series.index.formula if run.scene is None else run.scene.model.text,
        started=run.started,
    )
    if item is not None:
        write_json(item, run.folder / stac.FILE)
        files = sorted([*files, stac.FILE])
    said = plain(_summary(run, found, facts, files) | {"polygons": 0 if polygons is None else len(polygons)})
    write_json(_record(run, said), run.folder / "run.json")
    return said


def write_stats(found: SeriesTally, unit: str, path: Path) -> None:
    """One row a year with a break: areas, and means by area."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        names = (f"broken_{unit}", f"falling_{unit}", f"rising_{unit}", "mean_magnitude", "mean_probability")
        table.writerow(("year", *names))
        for year, (area, fall, rise, size, chance) in found.years.items():
            numbers = (area, fall, rise)
            means = (f"{size / area:.6g}", f"{chance / area:.4f}")
            table.writerow((year, *(f"{v:.2f}" for v in numbers), *means))


# --- facts -----------------------------------------------------------------------------------------
def collect(run: SeriesRun, found: SeriesTally | None, polygons: gpd.GeoDataFrame | None) -> Facts:
    """The facts of a run and its summary."""
    facts = Facts(run.run_id, _unit(run))
    made = list(_about(run))
    if found is not None and polygons is not None:
        series, unit = run.series, _unit(run)
        made += [*_breaks(run, found), *_objects(run, polygons)]
        made += series_course.course(found.days, series.times[0], series.times[-1], unit, series.shape)
        made += series_course.largest(polygons, unit)
    facts.extend(made)
    for template in _sentences(run, found):
        text, cites = facts.fill(template)
        facts.summary.append({"text": text, "facts": list(cites)})
    return facts


def _unit(run: SeriesRun) -> str:
    return area_unit(run.series.geobox)


_RUN: dict[str, Any] = {"file": "run.json"}


def _text(key: str, value: Any, display: str, template: str) -> Fact:
    return Fact(key, "text", value, "", display, _RUN, template)


def _about(run: SeriesRun) -> Iterator[Fact]:
    series = run.series
    for which, time in (("first", series.times[0]), ("last", series.times[-1])):
        said = f"The {which} image is of {{date.{which}}}."
        yield Fact(f"date.{which}", "date", time.isoformat(), "UTC", units.date(time), _RUN, said)
    count = len(series)
    said = "The series has {series.dates}."
    yield Fact("series.dates", "count", count, "", units.count(count, "date"), _RUN, said)
    index = series.index
    yield _text("index.name", index.formula, index.name.upper(), "The index is {index.name}.")
    yield from place_facts(series.geobox, _RUN)
    if run.composites:
        many = len(run.composites)
        display = units.count(many, "composite")
        said = "{series.composites} were made, by the rule in run.json."
        yield Fact("series.composites", "count", many, "", display, _RUN, said)
    for i, note in enumerate(run.warnings, start=1):
        yield _text(f"warning.{i}", note.code, note.text, f"{{warning.{i}}}")


def _breaks(run: SeriesRun, found: SeriesTally) -> Iterator[Fact]:
    assert run.scene is not None
    unit = _unit(run)

    def raster(name: str) -> dict[str, Any]:
        return {"raster": name, "window": [0, 0, *run.series.shape]}

    def area(key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "area", float(value), unit, units.area(value, unit), evidence, template)

    def share(key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "share", float(value), "1", units.percent(value), evidence, template)

    model = run.scene.model
    yield _text("model.form", model.as_dict(), model.text, "The model is a {model.form}.")
    needed = units.count(model.needed, "observation")
    said = "A pixel needs {model.needed} to be modelled."
    yield Fact("model.needed", "count", model.needed, "", needed, _RUN, said)
    valid, dates = raster("valid.tif"), raster("break_date.tif")
    whole, known = found.considered, found.modelled
    yield area("area.considered", whole, valid, "{area.considered} were looked at.")
    yield area("area.modelled", known, valid, "{area.modelled} of {area.considered} could be modelled.")
    rest = (whole - known) / whole if whole else math.nan
    yield share("share.unmodelled", rest, valid, "Of {share.unmodelled} of the area nothing can be said.")
    for c in SERIES_QUALITY.classes:
        here = found.quality.get(c.value, 0.0)
        if c.value and here > 0 and c.name != "outside_aoi":
            key = f"quality.{c.name}"
            yield area(key, here, valid, f"{{{key}}}: {c.title.lower()}.")
    yield area(
        "area.broken", found.broken, dates, "{area.broken} broke, {share.broken} of what could be modelled."
    )
    part = found.broken / known if known else math.nan
    yield share("share.broken", part, dates, "{share.broken} of the modelled area broke.")
    for year, (here, fall, _rise, _size, _chance) in found.years.items():
        evidence = {"table": "stats.csv", "id": str(year)}
        key = f"year.{year}"
        yield area(key, here, evidence, f"In {year} {{{key}}} broke.")
        said = f"Of the breaks of {year}, {{{key}.falling}} fell."
        yield share(f"{key}.falling", fall / here, evidence, said)
    if found.broken:
        value, name = found.median, raster("magnitude.tif")
        said = "Half of the area that broke changed by less than {break.median} of the index."
        yield Fact("break.median", "value", value, "", f"{value:+.3g}", name, said)
    yield _text(
        "confidence.calibration",
        None,
        "not calibrated",
        "The probabilities are {confidence.calibration}: they hold for independent normal residuals, and say "
        "nothing about why a pixel broke.",
    )


def _objects(run: SeriesRun, polygons: gpd.GeoDataFrame) -> Iterator[Fact]:
    evidence, unit = {"polygons": "all"}, _unit(run)
    count, least = len(polygons), smallest_area(run.series.geobox, run.min_area_m2)
    said = "The ground that broke is {object.count} of {object.minimum} or more."
    yield Fact("object.count", "count", count, "objects", units.count(count, "polygon"), evidence, said)
    said = "Polygons under {object.minimum} are left out."
    yield Fact("object.minimum", "area", least, unit, units.area(least, unit), _RUN, said)


def _sentences(run: SeriesRun, found: SeriesTally | None) -> Iterator[str]:
    if found is None:
        yield (
            "{series.dates} between {date.first} and {date.last}; {series.composites} were made and no "
            "breaks were looked for."
        )
        return
    head = "In {series.dates} of {index.name} between {date.first} and {date.last}, "
    if found.broken:
        yield head + (
            "{area.broken} broke with their model: {share.broken} of the {area.modelled} that could be "
            "modelled."
        )
        top = max(found.years, key=lambda y: float(found.years[y][0]))
        yield f"Most of it broke in {top} ({{year.{top}}})."
        yield "It is {object.count} of {object.minimum} or more."
    else:
        yield head + "no break was found in the {area.modelled} that could be modelled."
    if found.considered > found.modelled:
        yield "Of {share.unmodelled} of the area nothing can be said."
    yield "The probabilities are {confidence.calibration}."


# --- records ---------------------------------------------------------------------------------------
def _summary(run: SeriesRun, found: SeriesTally | None, facts: Facts, files: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "run_id": run.run_id,
        "summary": facts.text,
        "dates": len(run.series),
        "index": run.series.index.name,
        "area_unit": _unit(run),
        "composites": len(run.composites),
        "warnings": [n.text for n in run.warnings],
        "files": files,
    }
    if found is not None and run.scene is not None:
        said |= {
            "model": run.scene.model.text,
            "broken_area": found.broken,
            "modelled_area": found.modelled,
            "considered_area": found.considered,
        }
    return said


def _record(run: SeriesRun, summary: dict[str, Any]) -> dict[str, Any]:
    series = run.series
    return plain(
        {
            "version": 1,
            "kind": "series",
            "run_id": run.run_id,
            "status": "complete",
            "started": run.started,
            "finished": datetime.now(UTC),
            "summary": summary,
            "command": run.command,
            "inputs": [
                {
                    "name": info.name,
                    "uri": info.uri,
                    "time": info.time,
                    "sensor": info.sensor.slug,
                    "unit": info.unit,
                    "bands": [b.name for b in info.bands],
                    "cloud_mask": info.cloud_mask,
                    "clear_share": round(float(clear), 4),
                    "sources": [asdict(s) for s in info.sources],
                    "notes": [asdict(n) for n in info.notes],
                }
                for info, clear in zip(series.scenes, series.clear, strict=True)
            ],
            "grid": describe_grid(series.geobox) | {"rule": series.choice.rule},
            "index": {"name": series.index.name, "formula": series.index.formula},
            "settings": run.settings,
            "engine": None if run.scene is None else run.scene.as_dict(),
            "composites": run.composites,
            "warnings": [asdict(n) for n in run.warnings],
            "notes": [asdict(n) for n in run.notes],
            "software": software(),
            "seconds": run.timings,
            "peak_memory_bytes": peak_memory(),
            "products": products_of(run.folder),
        }
    )


# --- report ----------------------------------------------------------------------------------------
def _small(shape: tuple[int, int], most: int = _PICTURE) -> tuple[int, int]:
    step = max(1, -(-max(shape) // most))
    return max(1, shape[0] // step), max(1, shape[1] // step)


def _picture(folder: Path, name: str, most: int = _PICTURE) -> np.ndarray:
    with rasterio.open(folder / f"{name}.tif") as file:
        return file.read(1, out_shape=_small(file.shape, most))


def _view(run: SeriesRun, found: SeriesTally, facts: Facts) -> SeriesView:
    """What the map sheet shows."""
    assert run.scene is not None
    series = run.series
    days = _picture(run.folder, "break_days", _SHEET).astype(np.float64)
    days[days <= NO_DAY] = np.nan
    whole = found.considered or 1.0
    lines = ["No break found"]
    if found.broken:
        lines = [
            f"{facts['area.broken'].display} broke",
            f"{facts['share.broken'].display} of the {facts['area.modelled'].display} that could be modelled",
            f"{facts['object.count'].display} of {facts['object.minimum'].display} or more",
        ]
    sensors = ", ".join(dict.fromkeys(info.sensor.title for info in series.scenes))
    return SeriesView(
        name=run.name,
        index=series.index.name.upper(),
        days=days,
        magnitude=_picture(run.folder, "magnitude", _SHEET).astype(np.float64),
        valid=_picture(run.folder, "valid", _SHEET),
        ground=series.latest(_small(series.shape, _SHEET)),
        first=float(series.days[0]),
        last=float(series.days[-1]),
        shares={code: area / whole for code, area in found.quality.items()},
        headline=tuple(lines),
        sources=[
            ("Dates", f"{len(series)}, {series.times[0]:%Y-%m-%d} to {series.times[-1]:%Y-%m-%d}"),
            ("Sensor", clip(sensors, 44)),
            ("Index", clip(series.index.formula, 44)),
            ("Model", clip(run.scene.model.text, 44)),
            ("Run", run.run_id),
        ],
    )


def _largest(polygons: gpd.GeoDataFrame, unit: str) -> list[tuple[str, ...]]:
    """The rows of the largest polygons for the report."""
    return [
        (
            str(row["id"]),
            row["date"],
            units.area(row[f"area_{unit}"], unit),
            f"{row['magnitude']:+.3g}",
            units.probability(row["mean_prob"]),
            row["location"],
            units.coordinates(row["lon"], row["lat"]),
        )
        for row in polygons.head(_ROWS).to_dict("records")
    ]


def _write_report(
    run: SeriesRun, found: SeriesTally | None, facts: Facts, polygons: gpd.GeoDataFrame | None
) -> None:
    environment = Environment(
        loader=PackageLoader("terralapse.products", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = resources.files("terralapse.products").joinpath("templates", "report.css")
    cited = [i for s in facts.summary for i in s["facts"]]
    page = environment.get_template("series.html").render(
        css=Markup(css.read_text(encoding="utf-8")),
        version=__version__,
        run_id=run.run_id,
        made=units.date(run.started),
        facts=facts,
        summary=facts.summary,
        cited={key: i for i, key in enumerate(dict.fromkeys([*cited, *facts.facts]), start=1)},
        warnings=[n.text for n in run.warnings],
        pictures=[] if found is None else _pictures(run),
        years=None if found is None else _years(found, _unit(run)),
        quality=[] if found is None else _quality(found, _unit(run)),
        dates=[
            (f"{t:%Y-%m-%d}", info.sensor.title, info.name, units.percent(float(clear)))
            for t, info, clear in zip(run.series.times, run.series.scenes, run.series.clear, strict=True)
        ],
        largest=[] if polygons is None else _largest(polygons, _unit(run)),
        polygons=0 if polygons is None else len(polygons),
        composites=run.composites,
        formula=run.series.index.formula,
        rule=run.series.choice.rule,
        settings=[(k, str(v)) for k, v in run.settings.items() if v is not None],
        command=run.command,
        files=[] if found is None else [(f"{n}.tif", r.text) for n, r in RASTERS.items()],
    )
    (run.folder / "report.html").write_text(page, encoding="utf-8")


def _pictures(run: SeriesRun) -> list[tuple[str, str, str]]:
    """Title, caption and picture as a data URI."""
    days = _picture(run.folder, "break_days").astype(np.float64)
    valid = _picture(run.folder, "valid")
    size = _picture(run.folder, "magnitude").astype(np.float64)
    broken = days > NO_DAY
    first, last = run.series.days[0], run.series.days[-1]
    colours = {c.value: rgb(c.colour) for c in SERIES_QUALITY.classes}
    base = np.full((*valid.shape, 3), rgb(_NONE), np.uint8)
    reason = base.copy()
    for code, colour in colours.items():
        if code:
            reason[valid == code] = colour
        if code >= SERIES_UNUSABLE:
            base[valid == code] = colour
    when = base.copy()
    when[broken] = ramp((days[broken] - first) / max(last - first, 1))
    known = np.abs(size[np.isfinite(size)])
    most = max(float(np.percentile(known, 98)) if known.size else 1.0, 1e-9)
    how = base.copy()
    share = np.clip(np.nan_to_num(size) / most, -1, 1)[..., None]
    target = np.where(share < 0, np.array(rgb(FALL)), np.array(rgb(RISE)))
    mixed = np.array(rgb(_NONE)) * (1 - np.abs(share)) + target * np.abs(share)
    how[broken] = mixed[broken].round().astype(np.uint8)
    span = f"{run.series.times[0]:%Y-%m-%d} (light) to {run.series.times[-1]:%Y-%m-%d} (dark)"
    sizes = f"-{most:.3g} (purple, falls) to +{most:.3g} (green, rises)"
    return [
        ("When it broke", f"{span}; grey: nothing can be said", data_uri(when, quality=None)),
        ("By how much", f"{sizes}, in units of {run.series.index.name}", data_uri(how, quality=None)),
        ("What is known", "colours as in the table of the quality", data_uri(reason, quality=None)),
    ]


def _years(found: SeriesTally, unit: str) -> Markup | None:
    if not found.years:
        return None
    most = max(float(row[0]) for row in found.years.values())
    rows = [
        (
            str(year),
            float(row[0]) / most,
            units.area(float(row[0]), unit),
            f"{units.percent(float(row[1] / row[0]))} falling",
        )
        for year, row in found.years.items()
    ]
    return charts.bars(rows, "Area that broke, by year")


def _quality(found: SeriesTally, unit: str) -> list[tuple[str, str, str, str]]:
    whole = sum(found.quality.values()) or 1.0
    return [
        (
            c.colour,
            c.title,
            units.area(found.quality[c.value], unit),
            units.percent(found.quality[c.value] / whole),
        )
        for c in SERIES_QUALITY.classes
        if c.value in found.quality
    ]
