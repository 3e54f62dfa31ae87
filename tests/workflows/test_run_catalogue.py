"""A job over a static catalogue whose images a server of this machine hands out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import rasterio
from rasterio.warp import transform_bounds
from shapely.geometry import box, mapping

from fixtures_eo import serve
from job_places import CRS, LEFT, TOP, make_dates, write_plan
from terralapse.engine.jobs.partition import units_of
from terralapse.engine.jobs.plan import JobPlan
from terralapse.labels import Reason
from terralapse.workflows.run import run_job

NORTH_WEST = (LEFT, TOP - 640, LEFT + 640, TOP)
ALL = (LEFT, TOP - 1280, LEFT + 1280, TOP)


def put(folder: Path, name: str, image: str, day: str, cloud: float, where: Any = ALL) -> None:
    """An item with one image."""
    ground = box(*transform_bounds(CRS, "EPSG:4326", *where)).buffer(1e-5)
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": mapping(ground), "links": [],
        "bbox": list(ground.bounds),
        "properties": {"datetime": f"{day}T10:00:00Z", "eo:cloud_cover": cloud},
        "assets": {"image": {"href": f"./{image}", "type": "image/tiff; application=geotiff"}},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(item))


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A catalogue: `first` lacks the north-east (nodata), `second` is whole and cloudier, `lost` is an item
    of the north-west whose image is gone, `nowhere` a link that leads nowhere."""
    folder = tmp_path / "served"
    before, _ = make_dates(folder)
    with rasterio.open(before) as source:
        profile, pixels = source.profile, source.read()
        names = source.descriptions
    pixels[:, :64, 64:] = 0
    with rasterio.open(folder / "holed.tif", "w", **profile) as holed:
        holed.write(pixels)
        holed.descriptions = names
    put(folder, "first", "holed.tif", "2021-06-10", 1)
    put(folder, "second", "S2_20210601.tif", "2021-06-01", 20)
    put(folder, "later", "S2_20230601.tif", "2023-06-01", 5)
    put(folder, "lost", "gone.tif", "2021-06-02", 0, NORTH_WEST)
    area = gpd.GeoDataFrame(geometry=[box(*ALL).buffer(-15)], crs=CRS)
    area.to_file(tmp_path / "area.geojson")
    return folder


def catalogue(folder: Path, *names: str) -> None:
    links = [{"rel": "item", "href": f"./{n}.json"} for n in names]
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "made", "links": links}))


def plan(folder: Path, address: str, rule: str) -> JobPlan:
    source = (
        f"{{stac: {{href: {address}/catalog.json, rule: {rule}, before: 2021-05-01/2021-07-31,"
        " after: 2023-05-01/2023-07-31}}"
    )
    return JobPlan.read(write_plan(folder / f"{rule}.yaml", source, area="area.geojson"))


def test_dead_links_are_reported_and_the_others_finish(served: Path, tmp_path: Path) -> None:
    catalogue(served, "first", "second", "later", "lost", "nowhere")
    with serve(served) as address:
        result = run_job(plan(tmp_path, address, "best"), tmp_path / "job", kind="threads")
    letters = [json.loads(s) for s in (tmp_path / "job" / "dead.jsonl").read_text().splitlines()]
    assert (result.units, result.done, result.dead, result.retries) == (5, 3, 2, 0)
    assert "gone.tif: does not exist" in letters[0]["reason"]
    assert letters[1]["name"].endswith("nowhere.json")
    with rasterio.open(tmp_path / "job" / "merged" / "valid.tif") as merged:
        valid = merged.read(1)
    assert valid.shape == (128, 128)
    assert (valid[:64, :64] == 255).all()  # the cell of the lost image
    # Where the clearest image has nothing, the other one stands for the period.
    assert (valid[2:64, 66:-2] == Reason.VALID).mean() > 0.95
    assert (valid[66:] == Reason.VALID).mean() > 0.95
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "job" / "units").glob("*/unit.json")]
    taken = {m["name"]: m["items"]["before"][0] for m in manifests}
    assert sorted((i["id"], i["clear"], i["by"]) for i in taken.values()) == [
        ("first", 0.99, "item"),
        ("first", 0.99, "item"),
        ("second", 0.8, "item"),
    ]


def test_a_composite_fills_what_the_clearest_image_lacks(served: Path, tmp_path: Path) -> None:
    catalogue(served, "first", "second", "later")
    with serve(served) as address:
        chosen = plan(tmp_path, address, "composite")
        units = list(units_of(chosen))
        assert [[Path(s).stem for s in u.before] for u in units] == [["first", "second"]] * 4
        assert run_job(chosen, tmp_path / "job", kind="threads").complete
    with rasterio.open(tmp_path / "job" / "merged" / "valid.tif") as merged:
        valid = merged.read(1)
    assert (valid[2:-2, 2:-2] == Reason.VALID).mean() > 0.99
