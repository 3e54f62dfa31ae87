"""From a plan to its units: which pairs there are, and which cells of the job's grid they fall into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from terralapse.engine.jobs.plan import FolderSource, GridSpec, JobPlan, PairEntry, PairList, StacSource
from terralapse.engine.jobs.units import Unit, content_of, content_of_settings
from terralapse.engine.jobs.work import is_lasting
from terralapse.errors import FileMissingError, SettingError, TerralapseError
from terralapse.grid.aoi import Area
from terralapse.grid.common import cell_text
from terralapse.grid.footprint import overlap
from terralapse.grid.open import open_scene

_MAX_CELLS = 50_000_000
_OPENING = ("assume_crs", "pixel_grid", "s2_offset")


def units_of(plan: JobPlan) -> Iterator[Unit]:
    """The units of a plan, in an order that depends on the plan and its inputs alone.

    A pair that cannot be opened is one unit, which will fail and say why.

    Raises:
        FileMissingError, SettingError: the folder or the area cannot be used, or nothing falls into them.
    """
    area = None if plan.area is None else Area(Path(plan.area))
    found = 0
    if isinstance(plan.source, StacSource):
        from terralapse.engine.jobs.catalogue import units_from_catalogue

        assert plan.grid is not None
        assert area is not None
        stream = units_from_catalogue(plan, plan.source, Cells(plan.grid), area)
    else:
        stream = _units_of_pairs(plan, pairs_of(plan.source), area)
    for unit in stream:
        found += 1
        yield unit
    if not found:
        raise SettingError(plan.name, "has no unit of work", "Check that the area and the images meet.")


def pairs_of(source: PairList | FolderSource) -> tuple[PairEntry, ...]:
    """The pairs of a list or of a folder, in order.

    Raises:
        FileMissingError: the folder lacks a date, or both have no name in common.
    """
    if isinstance(source, PairList):
        return source.pairs
    root = Path(source.path)
    dates = [root / "before", root / "after"]
    for folder in dates:
        if not folder.is_dir():
            raise FileMissingError(folder, "is not there", "The folder of a job holds `before` and `after`.")
    before, after = ({p.stem: p for p in sorted(d.iterdir()) if p.name[0] != "."} for d in dates)
    alone = sorted(before.keys() ^ after.keys())
    if alone or not before:
        what = f"have no partner: {', '.join(alone[:4])}" if alone else "hold nothing"
        raise FileMissingError(root, what, "Name both dates of a place alike.")
    return tuple(PairEntry(n, str(before[n]), str(after[n])) for n in sorted(before))


def _units_of_pairs(plan: JobPlan, pairs: tuple[PairEntry, ...], area: Area | None) -> Iterator[Unit]:
    shared = content_of_settings(plan)
    cells = None if plan.grid is None else Cells(plan.grid)
    for pair in pairs:
        common: dict[str, Any] = {
            "before": (pair.before,),
            "after": (pair.after,),
            "area": plan.area,
            "settings": plan.settings,
            "content": (content_of(pair.before), content_of(pair.after), *shared),
        }
        if cells is None:
            yield Unit(pair.name, **common)
            continue
        try:
            ground = _common_ground(pair, cells.crs, plan.settings)
        except TerralapseError as error:
            if not is_lasting(error):
                raise  # with another network there would be other units
            yield Unit(pair.name, **common)  # its worker meets the same fault and reports it
            continue
        if area is not None:
            ground = shapely.intersection(ground, area.geometry(cells.crs))
        for row, col in cells.over(ground):
            yield Unit(
                f"{pair.name} {row} {col}", grid=cells.window(row, col), core=cells.core(row, col), **common
            )


def _common_ground(pair: PairEntry, crs: CRS, settings: dict[str, Any]) -> BaseGeometry:
    """What both dates cover, from their headers."""
    options = {k: v for k, v in settings.items() if k in _OPENING}
    dates = (settings.get("date_before"), settings.get("date_after"))
    first = open_scene(pair.before, time=dates[0], **options)
    try:
        second = open_scene(pair.after, time=dates[1], **options)
        try:
            return overlap(first, second, crs)
        finally:
            second.close()
    finally:
        first.close()


class Cells:
    """The cells of a job's grid. Cell (row, column) begins at that multiple of the cell's side; rows go down
    from the origin of the CRS, so that the cells of a place are the same in every job on that grid."""

    def __init__(self, spec: GridSpec) -> None:
        self.spec = spec
        self.crs = CRS(spec.crs)
        self.side = spec.cell * spec.resolution

    def over(self, ground: BaseGeometry) -> Iterator[tuple[int, int]]:
        """Rows and columns of the cells that share ground with a geometry, row by row."""
        if ground.is_empty:
            return
        west, south, east, north = ground.bounds
        rows = range(math.floor(-north / self.side), math.ceil(-south / self.side))
        cols = range(math.floor(west / self.side), math.ceil(east / self.side))
        if len(rows) * len(cols) > _MAX_CELLS:
            raise SettingError(
                f"grid.cell {self.spec.cell}",
                f"cuts the ground into {len(rows) * len(cols):,} cells",
                "Choose larger cells, or several jobs.",
            )
        shapely.prepare(ground)
        for row in rows:
            for col in cols:
                cell = self.polygon(row, col)
                if shapely.intersects(ground, cell) and shapely.intersection(ground, cell).area > 0:
                    yield row, col

    def polygon(self, row: int, col: int) -> BaseGeometry:
        """A cell's outline in the CRS."""
        x, y = col * self.side, -row * self.side
        return box(x, y - self.side, x + self.side, y)

    def core(self, row: int, col: int) -> tuple[int, int, int, int]:
        """Row, column, height and width of a cell in pixels of the grid."""
        n = self.spec.cell
        return row * n, col * n, n, n

    def window(self, row: int, col: int) -> str:
        """The cell and its margin as a grid, in words."""
        n, m = self.spec.cell, self.spec.margin
        return cell_text(self.grid(row * n - m, col * n - m, n + 2 * m, n + 2 * m), self.spec.crs)

    def grid(self, row: int, col: int, height: int, width: int) -> GeoBox:
        """A window of the job's grid."""
        size = self.spec.resolution
        return GeoBox((height, width), Affine(size, 0, col * size, 0, -size, -row * size), self.crs)
