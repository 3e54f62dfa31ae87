"""What can be said about a run, one fact at a time, each with the evidence that it rests on.

A sentence is a template whose blanks are the displayed values of facts, so that nothing can be said that is
not a fact, and every sentence knows which facts it cites. The summary is made in the same way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from odc.geo.geobox import GeoBox
from scipy.spatial import KDTree

from terralapse.grid.areas import Compass, PixelArea, has_place, on_ground
from terralapse.labels import VALIDITY, Reason
from terralapse.products import units
from terralapse.products.facts_file import VERSION
from terralapse.products.findings import Findings
from terralapse.products.ninths import NINTHS, PARTS

_BLANK = re.compile(r"\{([a-z0-9_.\-]+)\}")
_LARGEST = 10
_APART = 5  # objects whose distances to each other are told
_ENOUGH = 5  # objects from which on it means something where most of them are


@dataclass(frozen=True)
class Fact:
    """One fact.

    `kind` is `date`, `area`, `length`, `share`, `count`, `probability`, `text` or `place`. `value` is in
    `unit` (shares 0..1), unrounded; `display` is how people read it. `uncertainty` is null where none can be
    told honestly, else what kind it is, its value and a statement. `evidence` names polygons of
    `change.gpkg`, a raster with a pixel window (row, column, height, width), or a file. `template` is the
    sentence with blanks, `cites` the facts whose displays fill them.
    """

    id: str
    kind: str
    value: Any
    unit: str
    display: str
    evidence: dict[str, Any]
    template: str
    uncertainty: dict[str, Any] | None = None
    sentence: str = ""
    cites: tuple[str, ...] = ()


@dataclass
class Facts:
    """All facts of a run in a fixed order, and the summary: sentences with the ids that they cite."""

    run_id: str
    unit: str
    facts: dict[str, Fact] = field(default_factory=dict)
    summary: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, fact_id: str) -> Fact:
        return self.facts[fact_id]

    def __contains__(self, fact_id: str) -> bool:
        return fact_id in self.facts

    @property
    def text(self) -> str:
        """The summary as one paragraph."""
        return " ".join(s["text"] for s in self.summary)

    def fill(self, template: str) -> tuple[str, tuple[str, ...]]:
        """The sentence and the ids that it cites; KeyError for a blank that is no fact."""
        cites = tuple(dict.fromkeys(_BLANK.findall(template)))
        return _BLANK.sub(lambda m: self.facts[m[1]].display, template), cites

    def extend(self, made: Iterable[Fact]) -> None:
        """Adds facts and fills their sentences, which may cite each other and those that are there."""
        new = {fact.id: fact for fact in made}
        self.facts.update(new)
        for fact in new.values():
            sentence, cites = self.fill(fact.template)
            self.facts[fact.id] = replace(fact, sentence=sentence, cites=cites)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Facts:
        """The facts of a `facts.json` as `facts_file.read_facts` returns it."""
        made = [Fact(**(f | {"cites": tuple(f["cites"])})) for f in record["facts"]]
        return cls(record["run_id"], record["area_unit"], {f.id: f for f in made}, record["summary"])

    def as_dict(self) -> dict[str, Any]:
        """The content of `facts.json`."""
        return {
            "schema": "terralapse-facts",
            "version": VERSION,
            "run_id": self.run_id,
            "area_unit": self.unit,
            "summary": self.summary,
            "facts": [_json_ready(asdict(f)) for f in self.facts.values()],
        }


def collect(findings: Findings) -> Facts:
    """The facts of a run."""
    facts = Facts(findings.run.run_id, findings.unit)
    make = _Make(findings)
    facts.extend(fact for group in _GROUPS for fact in group(findings, make))
    facts.extend(_class_facts(findings))
    for template in _summary(facts, findings):
        text, cites = facts.fill(template)
        facts.summary.append({"text": text, "facts": list(cites)})
    return facts


def _class_facts(findings: Findings) -> Iterator[Fact]:
    """Those of the maps of classes and damage of a run that has some."""
    run = findings.run
    if run.classes is not None:
        from terralapse.products.class_facts import class_facts

        yield from class_facts(run.folder, run.pair.geobox, run.classes, findings.zones, findings.mmu)


def write_facts(facts: Facts, path: Path) -> None:
    """JSON, UTF-8, two spaces."""
    path.write_text(json.dumps(facts.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _json_ready(value: Any) -> Any:
    """Tuples to lists, numpy to Python, NaN to null."""
    if isinstance(value, dict):
        return {k: _json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- one kind at a time ------------------------------------------------------------------------------
_RUN: dict[str, Any] = {"file": "run.json"}
_ALIGNMENT: dict[str, Any] = {"file": "alignment.json"}


class _Make:
    """Facts of each kind, with the units and the display of a run."""

    def __init__(self, findings: Findings) -> None:
        self._f = findings

    def raster(self, name: str) -> dict[str, Any]:
        """Evidence: the whole of a raster."""
        return {"raster": name, "window": [0, 0, *self._f.run.pair.shape]}

    @staticmethod
    def polygons(ids: Iterable[int] | str = "all") -> dict[str, Any]:
        """Evidence: polygons of `change.gpkg`."""
        return {"polygons": ids if isinstance(ids, str) else [int(i) for i in ids]}

    def area(self, key: str, value: float, evidence: dict[str, Any], template: str, **more: Any) -> Fact:
        display = units.area(value, self._f.unit)
        return Fact(key, "area", float(value), self._f.unit, display, evidence, template, **more)

    def length(self, key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        unit = self._f.length_unit
        return Fact(key, "length", float(value), unit, units.length(value, unit), evidence, template)

    @staticmethod
    def share(key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "share", float(value), "1", units.percent(value), evidence, template)

    @staticmethod
    def probability(key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "probability", float(value), "1", units.probability(value), evidence, template)

    @staticmethod
    def count(key: str, value: int, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(
            key, "count", int(value), "objects", units.count(int(value), "object"), evidence, template
        )

    @staticmethod
    def text(key: str, value: Any, display: str, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "text", value, "", display, evidence, template)


# --- groups ----------------------------------------------------------------------------------------
def _dates(f: Findings, make: _Make) -> Iterator[Fact]:
    infos = {"before": f.run.pair.before, "after": f.run.pair.after}
    for which, info in infos.items():
        key = f"date.{which}"
        time = None if info.time is None else info.time.isoformat()
        said = f"The image {which} is of {{{key}}}." if time else f"The image {which}: {{{key}}}."
        yield Fact(key, "date", time, "UTC", units.date(info.time), _RUN, said)
        key = f"sensor.{which}"
        yield make.text(
            key, info.sensor.slug, info.sensor.title, _RUN, f"The image {which} is from: {{{key}}}."
        )
    first, second = infos["before"].time, infos["after"].time
    if first and second:
        days = (second - first).total_seconds() / 86400
        text = units.interval(first, second)
        yield Fact(
            "date.interval", "count", days, "days", text, _RUN, "Time between the images: {date.interval}."
        )


def _place(f: Findings, make: _Make) -> Iterator[Fact]:
    return place_facts(f.run.pair.geobox, make.raster("change.tif"))


def place_facts(box: GeoBox, grid: dict[str, Any]) -> Iterator[Fact]:
    """Where a grid lies: `grid.crs`, `grid.resolution`, and with a place `grid.corners`.

    `grid` is their evidence.
    """
    placed = has_place(box)
    crs = str(box.crs) if placed else "none (pixels)"
    yield _Make.text("grid.crs", crs, crs, grid, "The CRS of the common grid is {grid.crs}.")
    unit, side = ("m", float(np.sqrt(PixelArea(box).mean))) if placed else ("px", 1.0)
    said = "A pixel is {grid.resolution} wide."
    yield Fact("grid.resolution", "length", side, unit, units.length(side, unit), grid, said)
    if not placed:
        return
    height, width = box.shape.y, box.shape.x
    points = np.array([(0, 0), (width, 0), (width, height), (0, height), (width / 2, height / 2)])
    lon, lat = Compass(box).lonlat(*on_ground(box.affine, points[:, 0], points[:, 1]))
    corners = [[round(float(x), 7), round(float(y), 7)] for x, y in zip(lon[:4], lat[:4], strict=True)]
    middle = units.coordinates(float(lon[4]), float(lat[4]))
    yield Fact(
        "grid.corners", "place", corners, "degrees", middle, grid, "The grid is around {grid.corners}."
    )


def _areas(f: Findings, make: _Make) -> Iterator[Fact]:
    t = f.tally
    valid, change = make.raster("valid.tif"), make.raster("change.tif")
    yield make.area("area.considered", t.considered_area, valid, "{area.considered} were looked at.")
    yield make.area(
        "area.observed", t.observed_area, valid, "{area.observed} of {area.considered} could be compared."
    )
    uncertainty = None if f.calibration is None else _expected(t.expected_area, f.unit)
    yield make.area(
        "area.changed",
        t.changed_area,
        change,
        "{area.changed} changed, {share.changed} of what could be compared.",
        uncertainty=uncertainty,
    )
    share = t.changed_area / t.observed_area if t.observed_area else math.nan
    yield make.share("share.changed", share, change, "{share.changed} of the compared area changed.")


def _masks(f: Findings, make: _Make) -> Iterator[Fact]:
    t, valid = f.tally, make.raster("valid.tif")
    share = t.masked_area / t.considered_area if t.considered_area else math.nan
    yield make.share("share.masked", share, valid, "{share.masked} of the area could not be compared.")
    for reason in list(Reason)[Reason.OUTSIDE_AOI + 1 :]:
        if t.area[reason] > 0:
            c = VALIDITY.by_value(reason)
            key = f"masked.{c.name}"
            yield make.area(
                key, t.area[reason], valid, f"{{{key}}} could not be compared: {c.title.lower()}."
            )


def _objects(f: Findings, make: _Make) -> Iterator[Fact]:
    areas, every = f.areas, make.polygons()
    yield make.area(
        "object.minimum", f.mmu, _RUN, "Objects under {object.minimum} are not drawn as polygons."
    )
    yield make.count(
        "object.count", len(areas), every, "The change forms {object.count} of {object.minimum} or more."
    )
    if not len(areas):
        return
    yield make.area("object.area", areas.sum(), every, "The objects cover {object.area} together.")
    yield make.area(
        "object.median", np.median(areas), every, "Half of the objects are smaller than {object.median}."
    )
    yield make.area("object.mean", areas.mean(), every, "The mean object covers {object.mean}.")
    yield make.area("object.smallest", areas.min(), every, "The smallest object covers {object.smallest}.")
    half = int(np.searchsorted(np.cumsum(areas), areas.sum() / 2) + 1)
    yield make.count(
        "object.half",
        half,
        make.polygons(f.polygons["id"].iloc[:half]),
        "Half of the area of the objects is in the {object.half} that are largest.",
    )
    if len(areas) > 1:
        yield make.length(
            "object.spacing",
            float(np.median(_nearest(f))),
            every,
            "From one object to the next it is {object.spacing} (median, middle to middle).",
        )


def _nearest(f: Findings) -> np.ndarray:
    """Distance from the middle of each object to the next one's, metres on the ground."""
    middle = f.polygons.geometry.centroid
    offsets = Compass(f.run.pair.geobox).offsets(middle.x.to_numpy(), middle.y.to_numpy())
    points = np.column_stack(offsets)
    return KDTree(points).query(points, k=2)[0][:, 1]


def _locations(f: Findings, make: _Make) -> Iterator[Fact]:
    if not len(f.polygons):
        return
    sums = pd.Series(pd.Series(f.areas).groupby(f.polygons["location"].to_numpy()).sum())
    ranked = sums.sort_values(ascending=False, kind="stable")
    for name, value in ranked.items():
        ids = make.polygons(f.polygons.loc[f.polygons["location"] == name, "id"])
        said = f"{{location.{name}}} of the area of the objects lies in the {name}."
        yield make.share(f"location.{name}", value / ranked.sum(), ids, said)
    top = str(ranked.index[0])
    yield make.text(
        "location.main",
        top,
        top,
        make.polygons(f.polygons.loc[f.polygons["location"] == top, "id"]),
        f"The {{location.main}} of the grid holds more of the area of the objects than any other ninth: "
        f"{{location.{top}}}.",
    )


def _ninths(f: Findings, make: _Make) -> Iterator[Fact]:
    """Areas by ninth and by third of the grid, from pixels; objects by the ninth of a point inside."""
    change, every = make.raster("change.tif"), f.tally.ninths
    where = f.polygons["location"].to_numpy()
    places = [(f"ninth.{n}", f"the {n} of the grid", (n,)) for n in NINTHS]
    places += [(f"part.{p}", f"the {p}ern third of the grid", members) for p, members in PARTS.items()]
    for key, title, members in places:
        observed, changed, expected = every[[NINTHS.index(m) for m in members]].sum(axis=0)
        said = f"In {title}, {{{key}.changed}} changed of {{{key}.observed}} that could be compared."
        yield make.area(f"{key}.observed", observed, make.raster("valid.tif"), said)
        told = None if f.calibration is None else _expected(expected, f.unit)
        yield make.area(f"{key}.changed", changed, change, said, uncertainty=told)
        part = changed / observed if observed else math.nan
        said = f"In {title}, {{{key}.share}} of what could be compared changed."
        yield make.share(f"{key}.share", part, change, said)
        if f.tally.changed_area:
            said = f"{{{key}.part}} of all change lies in {title}."
            yield make.share(f"{key}.part", changed / f.tally.changed_area, change, said)
        ids = f.polygons.loc[np.isin(where, members), "id"]
        said = f"{title[0].upper()}{title[1:]} holds {{{key}.objects}}."
        yield make.count(f"{key}.objects", len(ids), make.polygons(ids), said)


def _expected(area: float, unit: str) -> dict[str, Any]:
    return {
        "kind": "model-based",
        "value": float(area),
        "unit": unit,
        "statement": "Sum of calibrated probability times area over all that was compared: what the "
        "model expects, not an interval from a sample.",
    }


def _distances(f: Findings, make: _Make) -> Iterator[Fact]:
    """Between the middles of the largest objects, pair by pair."""
    few = f.polygons.head(_APART)
    if len(few) < 2:
        return
    middle = few.geometry.centroid
    points = np.column_stack(Compass(f.run.pair.geobox).offsets(middle.x.to_numpy(), middle.y.to_numpy()))
    for i in range(len(few)):
        for j in range(i + 1, len(few)):
            a, b = int(few["id"].iloc[i]), int(few["id"].iloc[j])
            key, apart = f"distance.{a}.{b}", float(np.hypot(*(points[i] - points[j])))
            said = f"Objects {a} and {b} are {{{key}}} apart (middle to middle)."
            yield make.length(key, apart, make.polygons([a, b]), said)


def _largest(f: Findings, make: _Make) -> Iterator[Fact]:
    nearest = _nearest(f) if len(f.polygons) > 1 else None
    boxes = _boxes(f)
    for i, row in enumerate(f.polygons.head(_LARGEST).to_dict("records")):
        number, own = row["id"], make.polygons([row["id"]])
        key = f"object.{number}"
        where = units.coordinates(row["lon"], row["lat"])
        value = {k: row[k] for k in ("location", "lon", "lat")}
        value["rank"] = i + 1
        value["window"] = [int(row[k]) for k in ("row", "col", "height", "width")]
        value["box"] = boxes[i]
        place = f"{row['location']} ({where})" if where else row["location"]
        said = f"Object {number} lies in the {{{key}.place}}."
        yield Fact(f"{key}.place", "place", value, "degrees", place, own, said)
        said = f"Object {number} covers {{{key}.area}}."
        yield make.area(f"{key}.area", float(f.areas[i]), own, said)
        said = f"The mean probability of object {number} is {{{key}.probability}}."
        yield make.probability(f"{key}.probability", row["mean_prob"], own, said)
        if nearest is not None:
            said = f"The object next to object {number} is {{{key}.nearest}} away."
            yield make.length(f"{key}.nearest", float(nearest[i]), own, said)


def _boxes(f: Findings) -> list[list[float] | None]:
    """West, south, east, north in degrees of the windows of the largest objects; None without a place."""
    few = f.polygons.head(_LARGEST)
    box = f.run.pair.geobox
    if not has_place(box):
        return [None] * len(few)
    top, left, height, width = (few[k].to_numpy(float) for k in ("row", "col", "height", "width"))
    cols = np.stack([left, left + width, left + width, left])
    rows = np.stack([top, top, top + height, top + height])
    lon, lat = Compass(box).lonlat(*on_ground(box.affine, cols, rows))
    west, east = lon.min(axis=0), lon.max(axis=0)
    corners = np.stack([west, lat.min(axis=0), east, lat.max(axis=0)], axis=1)
    return [[round(float(v), 7) for v in row] for row in corners]


def _confidence(f: Findings, make: _Make) -> Iterator[Fact]:
    t, prob = f.tally, make.raster("prob.tif")
    yield make.share(
        "confidence.uncertain",
        f.uncertain_share,
        prob,
        "{confidence.uncertain} of the compared area has a probability within 0.15 of the threshold.",
    )
    mean = t.expected_changed / t.changed_area if t.changed_area else math.nan
    if t.changed_area:
        said = "What is marked as changed has a mean probability of {confidence.mean}."
        yield make.probability("confidence.mean", mean, prob, said)
    if f.calibration is None:
        yield make.text(
            "confidence.calibration",
            None,
            "not calibrated",
            _RUN,
            "The probabilities of this method are {confidence.calibration}: they order pixels by how unusual "
            "their change is and are no chance of being right.",
        )
        return
    yield make.share(
        "confidence.calibration",
        f.calibration,
        _RUN,
        "On labelled data that was kept aside, the probabilities were off by {confidence.calibration} on "
        "average.",
    )
    yield make.area(
        "area.expected",
        t.expected_area,
        prob,
        "By its probabilities the model expects {area.expected} of change in all; this is no sample-based "
        "estimate.",
    )
    if t.changed_area:
        said = "By the model's own probabilities, {confidence.false} of what it marks has not changed."
        yield make.share("confidence.false", 1 - mean, prob, said)


def _zones(f: Findings, make: _Make) -> Iterator[Fact]:
    changed, observed = f"changed_{f.unit}", f"observed_{f.unit}"
    seen: pd.DataFrame = f.stats.loc[f.stats[observed] > 0]
    if f.zones.kind == "cell":
        seen = seen.sort_values(changed, ascending=False, kind="stable").head(_LARGEST)
    word = "Zone" if f.zones.kind == "zone" else "Square"
    listed = [{"id": str(r["id"]).lower(), "name": str(r["name"])} for r in seen.to_dict("records")]
    named = units.count(len(listed), word.lower())
    said = "The table of areas has {zones} with something to compare."
    if f.zones.kind == "zone":
        yield make.text("zones", listed, named, {"table": "stats.csv", "id": ""}, said)
    for row in seen.to_dict("records"):
        key = f"{f.zones.kind}.{str(row['id']).lower()}"
        evidence = {"table": "stats.csv", "id": str(row["id"])}
        name = str(row["name"]).replace("{", "(").replace("}", ")")  # a name must not open a blank
        said = f"{word} {name}: {{{key}.changed}} changed, {{{key}.share}} of what was compared."
        yield make.share(f"{key}.share", row[changed] / row[observed], evidence, said)
        yield make.area(f"{key}.changed", row[changed], evidence, said)


def _alignment(f: Findings, make: _Make) -> Iterator[Fact]:
    v = f.alignment
    yield make.text("alignment.verdict", v.level, v.verdict, _ALIGNMENT, "{alignment.verdict}")
    for name, value, said in (
        ("found", v.found_px, "A shift of {alignment.found} was found between the dates."),
        ("residual", v.residual_px, "A shift of {alignment.residual} is left in the comparison."),
    ):
        if value is not None:
            display = f"{units.number(value, 2)} pixels"
            yield Fact(f"alignment.{name}", "length", value, "px", display, _ALIGNMENT, said)


def _model(f: Findings, make: _Make) -> Iterator[Fact]:
    run = f.run
    yield make.text("model.name", run.card.slug, run.card.slug, _RUN, "The model is {model.name}.")
    said = "A pixel counts as changed from a probability of {model.threshold} on."
    yield make.probability("model.threshold", run.threshold, _RUN, said)
    for i, note in enumerate(run.warnings, start=1):
        yield make.text(f"warning.{i}", note.code, note.text, _RUN, f"{{warning.{i}}}")


# --- summary ---------------------------------------------------------------------------------------
def _summary(facts: Facts, f: Findings) -> Iterator[str]:
    """Templates of the sentences, in order."""
    dated = facts["date.before"].value and facts["date.after"].value
    between = "Between {date.before} and {date.after}" if dated else "Between the two images"
    if f.tally.changed_pixels == 0:
        yield f"{between}, no change was found in the {{area.observed}} that could be compared."
    else:
        yield (
            f"{between}, {{area.changed}} changed: {{share.changed}} of the {{area.observed}} that could be "
            "compared."
        )
    if len(f.polygons) == 1:
        yield "It is {object.count}, in the {object.1.place}."
    elif len(f.polygons):
        yield (
            "The change forms {object.count} of {object.minimum} or more; the largest covers {object.1.area} "
            "in the {object.1.place}."
        )
    if len(f.polygons) >= _ENOUGH:
        top = facts["location.main"].value
        yield f"More of it lies in the {{location.main}} than in any other ninth ({{location.{top}}})."
    if f.tally.masked_area > 0:
        yield "{share.masked} of the area could not be compared."
    if f.tally.changed_pixels:
        yield facts["confidence.false" if "confidence.false" in facts else "confidence.calibration"].template
    yield from said_of_classes(facts)
    yield "{alignment.verdict}"


def said_of_classes(facts: Facts) -> Iterator[str]:
    """Templates for the summary: the transition that covers most, and how many buildings are damaged, where
    there are such maps."""
    moved = [f for k, f in facts.facts.items() if k.startswith("transition.") and not k.endswith(".share")]
    if moved:
        yield max(moved, key=lambda f: f.value).template
    if "damage.buildings" in facts and facts["damage.buildings"].value:
        yield facts["damage.any.count"].template


_GROUPS = (
    _dates,
    _place,
    _areas,
    _masks,
    _objects,
    _locations,
    _ninths,
    _largest,
    _distances,
    _confidence,
    _zones,
    _alignment,
    _model,
)
