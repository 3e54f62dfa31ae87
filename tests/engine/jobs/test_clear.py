"""How clear items are over one cell: from the mask where there is one, else from the item."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import box

from item_stacks import CRS, LEFT, PIXEL, SIDE, TOP, flat, put_item, sky
from terralapse.engine.jobs.clear import Candidate, Look, cell_of, look_at
from terralapse.errors import FileMissingError
from terralapse.grid.aoi import Area

CELL = GeoBox((SIDE, SIDE), Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP), CRS)


def candidate(path: Path, cloud: float | None = 10.0, distance: float = 0.0) -> Candidate:
    return Candidate(str(path), path.stem, cloud, distance)


def looks(*candidates: Candidate, area: Area | None = None, cell: GeoBox = CELL) -> list[Look]:
    return look_at(candidates, cell, area, {"s2_offset": 0.0})


def test_the_mask_over_the_cell_counts_and_not_the_figure_of_the_item(tmp_path: Path) -> None:
    """The item that calls itself cloudy has its cloud elsewhere; the clear one has it right here."""
    here = candidate(put_item(tmp_path, "2021-06-01", flat(1000), sky(np.s_[:, :16])), cloud=5)
    away = candidate(put_item(tmp_path, "2021-06-11", flat(1000), sky()), cloud=70)
    found = looks(here, away)
    assert [f.candidate.id for f in found] == ["item-2021-06-11", "item-2021-06-01"]
    assert [f.by for f in found] == ["mask", "mask"]
    assert found[0].clear == 1
    assert found[1].clear == pytest.approx((SIDE - 32 - 10) / SIDE, abs=0.02)  # cloud is grown by 100 m


def test_without_a_mask_the_item_is_asked_and_nodata_is_seen(tmp_path: Path) -> None:
    values = flat(1000)
    values[:, :16] = 0
    holed = candidate(put_item(tmp_path, "2021-06-01", values), cloud=20)
    silent = candidate(put_item(tmp_path, "2021-06-11", flat(1000), cloud=None), cloud=None)
    found = looks(silent, holed)
    assert [(f.candidate.id, f.clear, f.by) for f in found] == [
        ("item-2021-06-01", pytest.approx(0.75 * 0.8), "item"),
        ("item-2021-06-11", 1.0, "unknown"),
    ]


def test_only_what_lies_in_the_cell_and_in_the_area_counts(tmp_path: Path) -> None:
    cloudy_east = candidate(put_item(tmp_path, "2021-06-01", flat(1000), sky(np.s_[:, 24:])))
    west = CELL[:, : SIDE // 2]
    assert looks(cloudy_east, cell=west)[0].clear == 1
    east = gpd.GeoDataFrame(geometry=[box(LEFT + 500, TOP - 640, LEFT + 640, TOP)], crs=CRS)
    east.to_file(tmp_path / "east.geojson")
    assert looks(cloudy_east, area=Area(tmp_path / "east.geojson"))[0].clear == 0


def test_a_large_cell_is_looked_at_in_coarse_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from terralapse.engine.jobs import clear

    monkeypatch.setattr(clear, "LOOK", 16)
    half = candidate(put_item(tmp_path, "2021-06-01", flat(1000), sky(np.s_[:, :11])))
    (found,) = looks(half)
    assert found.clear == pytest.approx((SIDE - 22 - 10) / SIDE, abs=1 / 16)


def test_ties_go_to_the_middle_of_the_period_then_to_the_identifier_then_to_the_address(
    tmp_path: Path,
) -> None:
    paths = [put_item(tmp_path / n, "2021-06-01", flat(1000), sky(), name=n) for n in ("c", "a", "b")]
    found = looks(
        candidate(paths[0], distance=5), candidate(paths[2], distance=9), candidate(paths[1], distance=9)
    )
    assert [f.candidate.id for f in found] == ["c", "a", "b"]
    twins = [Candidate(str(p), "twin", 1.0, 0.0) for p in paths]
    assert [f.candidate.href for f in looks(*twins)] == sorted(str(p) for p in paths)


def test_an_item_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"gone\.json"):
        looks(candidate(tmp_path / "gone.json"))


def test_the_cell_is_what_the_margins_leave() -> None:
    window = GeoBox((80, 80), Affine(PIXEL, 0, LEFT - 80, 0, -PIXEL, TOP + 80), CRS)
    assert cell_of(window, (0, 0, 64, 64)) == CELL
