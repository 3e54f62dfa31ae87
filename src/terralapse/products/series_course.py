"""The course of a series as facts: when it began and ended, how fast it went, whether it sped up, what is
largest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from terralapse.products import units
from terralapse.products.facts import Fact

_RUN: dict[str, Any] = {"file": "run.json"}
_YEAR = 365.2425  # days
_ALIKE = 0.1  # halves whose areas differ by less than this share of the larger are called alike
_LARGEST = 10
_ENOUGH = 4  # calendar years from which on a trend over them can be told
PACES = {"faster": "sped up", "slower": "slowed down", "alike": "kept its pace"}


def course(
    days: Mapping[int, float],
    first: datetime,
    last: datetime,
    unit: str,
    shape: tuple[int, int],
) -> Iterator[Fact]:
    """The facts of when and how fast.

    Args:
        days: area that broke by day since 1970-01-01.
        first, last: of the images.
        unit: of the areas, `m2` or `px`.
        shape: of the rasters.
    """
    evidence = {"raster": "break_date.tif", "window": [0, 0, *shape]}
    years_long = (last - first).total_seconds() / 86400 / _YEAR

    def area(key: str, value: float, template: str) -> Fact:
        return Fact(key, "area", float(value), unit, units.area(value, unit), evidence, template)

    span = round((last - first).total_seconds() / 86400)
    said = "The series spans {date.interval}."
    yield Fact("date.interval", "count", span, "days", units.interval(first, last), _RUN, said)
    by_year = dict.fromkeys(range(first.year, last.year + 1), 0.0)
    for day, value in days.items():
        by_year[_date(day).year] = by_year.get(_date(day).year, 0.0) + value
    for year, value in by_year.items():
        if not value:  # those with breaks have their row in stats.csv
            yield area(f"year.{year}", 0.0, f"In {year} {{year.{year}}} broke.")
    if not days:
        return
    for which, day in (("first", min(days)), ("last", max(days))):
        stamp = datetime.combine(_date(day), datetime.min.time(), UTC)
        said = f"The {which} break is of {{break.{which}}}."
        yield Fact(f"break.{which}", "date", stamp.isoformat(), "UTC", units.date(stamp), evidence, said)
    broken = math.fsum(days.values())
    yield area("rate.mean", broken / years_long, "On average {rate.mean} broke a year.")
    yield from _halves(days, first, last, area)
    if len(by_year) >= _ENOUGH:
        found: Any = kendalltau(list(by_year), list(by_year.values()))
        tau, p = float(found.statistic), float(found.pvalue)
        said = "Over the calendar years Kendall's tau of the area that broke is {trend.tau} (p {trend.p})."
        if math.isfinite(tau):
            yield Fact("trend.tau", "value", tau, "", f"{tau:+.2f}", evidence, said)
            yield Fact("trend.p", "probability", p, "1", units.probability(p), evidence, said)


def _halves(days: Mapping[int, float], first: datetime, last: datetime, area: Any) -> Iterator[Fact]:
    """What broke before and after the middle of the period."""
    middle = first + (last - first) / 2
    stamp = datetime(middle.year, middle.month, middle.day, tzinfo=UTC)
    limit = (stamp.date() - date(1970, 1, 1)).days
    early = math.fsum(v for d, v in days.items() if d < limit)
    late = math.fsum(v for d, v in days.items() if d >= limit)
    said = "The middle of the period is {half.date}."
    yield Fact("half.date", "date", stamp.isoformat(), "UTC", units.date(stamp), _RUN, said)
    yield area("half.first", early, "Before {half.date} {half.first} broke.")
    yield area("half.second", late, "From {half.date} on {half.second} broke.")
    near = abs(late - early) <= _ALIKE * max(late, early)
    pace = "alike" if near else "faster" if late > early else "slower"
    said = "From half to half of the period the change {trend.pace}: {half.first}, then {half.second}."
    evidence = {"raster": "break_date.tif", "window": area("half.first", early, "").evidence["window"]}
    yield Fact("trend.pace", "text", pace, "", PACES[pace], evidence, said)


def _date(day: int) -> date:
    return np.datetime64(int(day), "D").astype(object)


def largest(polygons: gpd.GeoDataFrame, unit: str) -> Iterator[Fact]:
    """The largest polygons one by one, the sizes of all, and in which ninths they lie."""
    if not len(polygons):
        return
    areas = polygons[f"area_{unit}"].to_numpy()

    def area(key: str, value: float, evidence: dict[str, Any], template: str) -> Fact:
        return Fact(key, "area", float(value), unit, units.area(value, unit), evidence, template)

    every: dict[str, Any] = {"polygons": "all"}
    yield area("object.mean", areas.mean(), every, "The mean polygon covers {object.mean}.")
    yield area("object.median", np.median(areas), every, "Half of the polygons are under {object.median}.")
    yield area("object.smallest", areas.min(), every, "The smallest polygon covers {object.smallest}.")
    half = int(np.searchsorted(np.cumsum(areas), areas.sum() / 2) + 1)
    said = "Half of their area is in the {object.half} that are largest."
    ids: dict[str, Any] = {"polygons": [int(i) for i in polygons["id"].iloc[:half]]}
    yield Fact("object.half", "count", half, "objects", units.count(half, "polygon"), ids, said)
    for number, row in enumerate(polygons.head(_LARGEST).to_dict("records"), start=1):
        key, own = f"object.{number}", {"polygons": [int(row["id"])]}
        size = row[f"area_{unit}"]
        yield area(f"{key}.area", size, own, f"Object {number} covers {{{key}.area}}.")
        where = units.coordinates(row["lon"], row["lat"])
        value = {k: row[k] for k in ("location", "lon", "lat")}
        place = f"{row['location']} ({where})" if where else row["location"]
        said = f"Object {number} lies in the {{{key}.place}}."
        yield Fact(f"{key}.place", "place", value, "degrees", place, own, said)
        day = datetime.fromisoformat(row["date"]).replace(tzinfo=UTC)
        said = f"Object {number} broke on {{{key}.date}}."
        yield Fact(f"{key}.date", "date", day.isoformat(), "UTC", units.date(day), own, said)
        said = f"Object {number} broke {{{key}.direction}}."
        yield Fact(f"{key}.direction", "text", row["direction"], "", row["direction"], own, said)
        size = float(row["magnitude"])
        said = f"In object {number} the index changed by {{{key}.magnitude}} on average."
        yield Fact(f"{key}.magnitude", "value", size, "", f"{size:+.3g}", own, said)
    sums: Any = pd.Series(areas).groupby(polygons["location"].to_numpy()).sum()
    ranked = sums.sort_values(ascending=False, kind="stable")
    for name, value in ranked.items():
        own = {"polygons": [int(i) for i in polygons.loc[polygons["location"] == name, "id"]]}
        share = float(value / ranked.sum())
        said = f"{{location.{name}}} of the area of the polygons lies in the {name}."
        yield Fact(f"location.{name}", "share", share, "1", units.percent(share), own, said)
    top = str(ranked.index[0])
    own = {"polygons": [int(i) for i in polygons.loc[polygons["location"] == top, "id"]]}
    said = f"The {{location.main}} holds more of the polygons' area than any other ninth: {{location.{top}}}."
    yield Fact("location.main", "text", top, "", top, own, said)
