"""Units over a catalogue: for each cell and period, which items are compared.

The rules. An item serves a cell when it covers some of it. `composite` and `median` take the first `items` of
them in the order of cloud cover, distance to the middle of the period, identifier and address: `composite`
then takes at each pixel the first that is clear there, `median` the median of all that are. `best` takes
one: of the items that cover the whole cell (or else most of it) the first `MOST_LOOKED` in that order are
handed to the unit, which measures how clear each is over the cell, see `terralapse.engine.jobs.clear`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import shapely
from odc.geo.crs import CRS
from shapely.geometry.base import BaseGeometry

from terralapse.engine.jobs.clear import Candidate
from terralapse.engine.jobs.plan import JobPlan, StacSource
from terralapse.engine.jobs.units import Unit, content_of_settings
from terralapse.grid.aoi import Area
from terralapse.grid.footprint import outline
from terralapse.grid.search import FoundItem, Period, search

MOST_LOOKED = 50  # items that a unit measures for `best`
_CLOUDY = 101.0  # an item that does not state its cloud comes after all that do
_TIE = 1e-6


def units_from_catalogue(plan: JobPlan, source: StacSource, cells: Any, area: Area) -> Iterator[Unit]:
    """A unit a cell of the area, then one for each link that leads nowhere, which will fail and say so.

    A cell without an image in one period is a unit too: it ends without pixels, and with the reason.
    """
    bounds = area.bounds(CRS("EPSG:4326"))
    periods = [Period.of(source.before), Period.of(source.after)]
    dates, broken = [], set()
    for period in periods:
        items, lost = search(
            source.href, period, bounds, collections=source.collections, max_cloud=source.max_cloud
        )
        dates.append(items)
        broken |= set(lost)
    shared = content_of_settings(plan)
    common: dict[str, Any] = {"area": plan.area, "settings": plan.settings}
    for row, col in cells.over(area.geometry(cells.crs)):
        core = cells.core(row, col)
        cell = outline(cells.grid(*core))
        chosen = [choose(i, cell, p, source) for i, p in zip(dates, periods, strict=True)]
        yield Unit(
            f"cell {row} {col}",
            *(tuple(item.href for item in date) for date in chosen),
            grid=cells.window(row, col),
            core=core,
            content=(*(item.content for date in chosen for item in date), *shared),
            rule=source.rule,
            min_clear=source.min_clear if source.rule == "median" else 0,
            candidates=tuple(
                tuple(_candidate(item, p).as_dict() for item in date)
                for date, p in zip(chosen, periods, strict=True)
            ),
            **common,
        )
    for address in sorted(broken):
        yield Unit(f"link {address}", (address,), (address,), content=shared, **common)


def _candidate(item: FoundItem, period: Period) -> Candidate:
    return Candidate(item.href, item.id, item.cloud, abs((item.time - period.middle).total_seconds()))


def choose(
    items: Sequence[FoundItem], cell: BaseGeometry, period: Period, source: StacSource
) -> list[FoundItem]:
    """The items that may stand for a period in a cell, those with the least cloud first; empty when there is
    none.

    Args:
        items: of the period.
        cell: its outline in longitude and latitude.
        period: see `terralapse.grid.search.Period`.
        source: with `rule`, `cover` and `items`.
    """

    def order(item: FoundItem) -> tuple[float, float, str, str]:
        cloud = _CLOUDY if item.cloud is None else item.cloud
        return cloud, abs((item.time - period.middle).total_seconds()), item.id, item.href

    shares = [(shapely.intersection(item.ground, cell).area / cell.area, item) for item in items]
    shares = [(share, item) for share, item in shares if share > 0]
    if not shares:
        return []
    if source.rule != "best":
        return sorted((item for _, item in shares), key=order)[: source.items]
    most = min(source.cover, max(share for share, _ in shares) - _TIE)
    return sorted((item for share, item in shares if share >= most), key=order)[:MOST_LOOKED]
