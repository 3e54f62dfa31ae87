"""Jobs over a catalogue by each rule: what the units compare, and what their manifests say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from shapely.geometry import box

from item_stacks import CRS, LEFT, SIDE, TOP, put_item, sky
from job_places import results, write_plan
from terralapse.engine.jobs.partition import units_of
from terralapse.engine.jobs.plan import JobPlan
from terralapse.engine.jobs.units import Unit
from terralapse.labels import Reason
from terralapse.workflows.run import run_job

SQUARE = np.s_[20:40, 20:40]
HAZE = np.s_[44:60, 4:20]


def ground(seed: int) -> np.ndarray:
    """Red and near-infrared of one place, a little different at each look."""
    coarse = np.random.default_rng(0).uniform(800, 2400, (2, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    return coarse + np.random.default_rng(seed).normal(0, 15, coarse.shape)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three looks before and three after a change in a square; at one look after, haze that no mask knows
    lies over another square, and that item says that it has the least cloud."""
    names = []
    for year in (2021, 2023):
        for number, day in enumerate((4, 14, 24)):
            values = ground(year + number)
            if year == 2023:
                values[:, *SQUARE] += 3500
                if number == 0:
                    values[:, *HAZE] += 3000
            scl = sky(np.s_[:, 28:]) if number == 1 else sky()
            name = f"{year}-06-{day:02d}"
            put_item(tmp_path / "items", name, values, scl, cloud=(1, 30, 20)[number], name=name)
            names.append(name)
    links = [{"rel": "item", "href": f"./{n}.json"} for n in names]
    (tmp_path / "items" / "catalog.json").write_text(
        json.dumps({"type": "Catalog", "id": "made", "links": links})
    )
    cell = gpd.GeoDataFrame(geometry=[box(LEFT + 5, TOP - 635, LEFT + 635, TOP - 5)], crs=CRS)
    cell.to_file(tmp_path / "area.geojson")
    return tmp_path


def plan(place: Path, rule: str, **more: Any) -> JobPlan:
    keys = "".join(f", {k}: {v}" for k, v in more.items())
    source = (
        f"{{stac: {{href: items/catalog.json, rule: {rule}, before: 2021-06-01/2021-06-30,"
        f" after: 2023-06-01/2023-06-30{keys}}}}}"
    )
    return JobPlan.read(
        write_plan(
            place / f"{rule}.yaml",
            source,
            area="area.geojson",
            settings="{model: cva, coregister: false, device: cpu, s2_offset: 0}",
        )
    )


def done(plan: JobPlan, out: Path) -> tuple[Path, dict[str, Any]]:
    """The one unit of a job, and its manifest."""
    assert run_job(plan, out, kind="threads").complete
    (folder,) = (out / "units").glob("*/")
    return folder, json.loads((folder / "unit.json").read_text())


def layer(folder: Path, name: str, band: int = 1) -> np.ndarray:
    with rasterio.open(folder / f"{name}.tif") as file:
        row, col = file.index(LEFT + 5, TOP - 5)
        return file.read(band, window=((row, row + SIDE), (col, col + SIDE)))


def test_the_median_does_not_see_what_only_one_look_shows(place: Path) -> None:
    folder, manifest = done(plan(place, "median", min_clear=2), place / "job")
    change, valid = layer(folder, "change"), layer(folder, "valid")
    assert (change[SQUARE] == 1).mean() > 0.95
    assert (change[HAZE] == 1).mean() < 0.05
    assert (valid[6:-6, 6:-6] == Reason.VALID).all()
    for band in (1, 2):
        looks = layer(folder, "looks", band)
        assert (looks[8:-8, 8:40] == 3).all()
        assert (looks[8:-8, 58:] == 2).all()  # under the cloud of the second look
    assert manifest["items"]["rule"] == "median"
    assert [i["id"] for i in manifest["items"]["after"]] == ["2023-06-04", "2023-06-24", "2023-06-14"]
    assert "looks.tif" in manifest["files"]
    item = json.loads((folder / "item.json").read_text())
    assert item["assets"]["looks_tif"]["href"] == "./looks.tif"


def test_too_few_looks_have_no_data(place: Path) -> None:
    folder, _ = done(plan(place, "median", min_clear=3), place / "job")
    valid = layer(folder, "valid")
    assert (valid[8:-8, 8:40] == Reason.VALID).all()
    assert (valid[8:-8, 58:] == Reason.NODATA_BEFORE).all()


def test_a_cell_without_enough_looks_ends_without_pixels_and_with_the_reason(place: Path) -> None:
    _, manifest = done(plan(place, "median", items=5, min_clear=4), place / "job")
    assert "no pixel can be compared" in manifest["empty"]
    assert not (place / "job" / "merged" / "change.tif").exists()


def test_the_bytes_of_a_median_do_not_depend_on_threads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from terralapse.grid import median

    done(plan(place, "median", min_clear=2), place / "one")
    monkeypatch.setattr(median, "READERS", 1)
    monkeypatch.setattr(median, "SIDES", (32,))
    done(plan(place, "median", min_clear=2), place / "two")
    one, two = results(place / "one"), results(place / "two")
    assert one.keys() == two.keys()
    assert one == two


def test_best_is_the_clearest_over_the_unit_and_the_manifest_says_why(place: Path) -> None:
    folder, manifest = done(plan(place, "best"), place / "job")
    after = manifest["items"]["after"]
    assert manifest["items"]["rule"] == "best"
    # The first and the third look are clear everywhere; the third is nearer to the middle of June.
    assert [i["id"] for i in after] == ["2023-06-24", "2023-06-04", "2023-06-14"]
    assert [i["clear"] for i in after[:2]] == [1, 1]
    assert 0.6 < after[2]["clear"] < 0.8
    assert {i["by"] for i in after} == {"mask"}
    run = json.loads((folder / "run.json").read_text())
    assert run["inputs"]["after"]["name"] == after[0]["id"]
    assert not (folder / "looks.tif").exists()


def test_a_unit_survives_the_way_to_a_worker(place: Path) -> None:
    for rule in ("best", "composite", "median"):
        (unit,) = units_of(plan(place, rule))
        plain = json.loads(json.dumps(unit.as_dict()))
        again = Unit.of_dict(plain)
        assert again.as_dict() == unit.as_dict()
        assert Unit.of_dict(plain | {"id": ""}).id == unit.id


def test_an_item_whose_mask_is_gone_fails_its_unit_and_is_named(place: Path) -> None:
    (place / "items" / "2023-06-14_scl.tif").unlink()
    result = run_job(plan(place, "median"), place / "job", kind="threads")
    assert (result.done, result.dead, result.retries) == (0, 1, 0)
    (letter,) = [json.loads(s) for s in (place / "job" / "dead.jsonl").read_text().splitlines()]
    assert "2023-06-14_scl.tif" in letter["reason"]
