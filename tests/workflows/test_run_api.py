"""Jobs over a STAC API: hundreds of units on a cluster that loses a worker, and real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from fixtures_eo import write_tif
from job_machines import Machines, free_port
from job_places import CRS, LEFT, NAMES, PIXEL, TOP, make_dates, results, write_plan
from terralapse.engine.jobs.plan import JobPlan
from terralapse.engine.jobs.schedule import Progress
from terralapse.workflows.run import run_job

pytest.importorskip("distributed")
pytest.importorskip("stac_fastapi.api")
pytestmark = pytest.mark.slow

ROWS, COLS, SIDE = 15 * 64, 14 * 64, 320
EXAMPLES = Path(__file__).parents[2] / "examples" / "joplin"


def item(path: Path, folder: Path, collection: str, day: str, cloud: float) -> dict[str, Any]:
    """An item of one file, as a catalogue would have it."""
    with rasterio.open(path) as f:
        west, south, east, north = transform_bounds(f.crs, "EPSG:4326", *f.bounds)
        names = [d or ("red", "green", "blue")[k] for k, d in enumerate(f.descriptions)]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": path.stem,
        "collection": collection, "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day}T10:00:00Z", "eo:cloud_cover": cloud},
        "assets": {
            "image": {
                "href": str(path.relative_to(folder)), "type": "image/tiff; application=geotiff",
                "roles": ["data"], "eo:bands": [{"name": n, "common_name": n} for n in names],
            }
        },
    }  # fmt: skip


def tiles_of(path: Path, folder: Path, day: str) -> list[dict[str, Any]]:
    """An image cut into files that overlap by half a cell, and their items."""
    found = []
    with rasterio.open(path) as f:
        for row in range(0, ROWS, SIDE):
            for col in range(0, COLS, SIDE):
                window = Window(max(0, col - 32), max(0, row - 32), SIDE + 64, SIDE + 64).intersection(
                    Window(0, 0, COLS, ROWS)
                )
                part = folder / f"{path.stem}_{row}_{col}.tif"
                write_tif(
                    part, f.read(window=window), descriptions=NAMES, crs=CRS, nodata=0,
                    transform=f.window_transform(window),
                )  # fmt: skip
                found.append(item(part, folder, "made", day, cloud=(row + col) % 7))
    return found


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The address of an API with a made place in 24 items and the real pair of Joplin in 10."""
    from stac_api import serving

    folder = tmp_path_factory.mktemp("api")
    items = []
    for path, day in zip(make_dates(folder, ROWS, COLS), ("2021-06-01", "2023-06-01"), strict=True):
        items += tiles_of(path, folder, day)
    for date, day in (("before", "2010-06-01"), ("after", "2011-06-01")):
        for path in sorted((EXAMPLES / date).glob("*.tif")):
            copy = folder / f"joplin_{date}_{path.name}"
            copy.write_bytes(path.read_bytes())
            items.append(item(copy, folder, "joplin", day, cloud=0))
    (folder / "items.json").write_text(json.dumps(items))
    with serving(folder, free_port()) as address:
        yield address


def area(path: Path, bounds: tuple[float, ...], crs: str) -> Path:
    west, south, east, north = transform_bounds(crs, "EPSG:4326", *bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    feature = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_hundreds_of_units_on_a_cluster_that_loses_a_worker(api: str, tmp_path: Path) -> None:
    inside = (LEFT + 5, TOP - ROWS * PIXEL + 5, LEFT + COLS * PIXEL - 5, TOP - 5)
    plan = JobPlan.read(
        write_plan(
            tmp_path / "plan.yaml",
            f"{{stac: {{href: '{api}', collections: [made], before: 2021-05-01/2021-07-01, "
            "after: 2023-05-01/2023-07-01, rule: composite}}",
            area=str(area(tmp_path / "area.geojson", inside, CRS)),
            retry="{attempts: 20, base_s: 0.1, most_s: 1}",
        )
    )
    steps: list[str] = []
    machines = Machines()

    def tell(counts: Progress) -> None:
        if counts.done == 50 and not steps:
            steps.append("worker")
            workers[0].kill()
            machines.worker()

    try:
        machines.scheduler()
        workers = [machines.worker(), machines.worker()]
        result = run_job(plan, tmp_path / "job", kind="cluster", address=machines.address, tell=tell)
    finally:
        machines.end()
    assert steps == ["worker"]
    assert result.units >= 200
    assert (result.done, result.dead) == (result.units, 0)
    with rasterio.open(tmp_path / "job" / "merged" / "change.tif") as f:
        found = f.read(1)
        row, col = f.index(LEFT + COLS // 2 * PIXEL, TOP - ROWS // 2 * PIXEL)
    square = found[row - 10 : row + 10, col - 15 : col + 15]
    assert (square == 1).mean() > 0.95
    assert (found == 1).sum() < 0.01 * (found != 255).sum()  # each cell has a threshold of its own
    assert (found != 255).sum() > 0.99 * ROWS * COLS
    undisturbed = run_job(plan, tmp_path / "again", kind="processes", workers=2)
    assert undisturbed.complete
    assert results(tmp_path / "again") == results(tmp_path / "job")


def test_real_images_of_two_projections_through_an_api(api: str, tmp_path: Path) -> None:
    inside = (366_700.0, 4_103_400.0, 367_800.0, 4_104_400.0)
    plan = JobPlan.read(
        write_plan(
            tmp_path / "plan.yaml",
            f"{{stac: {{href: '{api}', collections: [joplin], before: 2010-01-01/2010-12-31, "
            "after: 2011-01-01/2011-12-31, rule: composite, items: 6}}",
            area=str(area(tmp_path / "area.geojson", inside, "EPSG:26915")),
            grid='{crs: "EPSG:26915", resolution: 1, cell: 512, margin: 64}',
            settings="{model: lapsenet/rgb, device: cpu}",
        )
    )
    result = run_job(plan, tmp_path / "job", kind="processes", workers=2)
    assert result.complete
    assert result.units >= 4
    with rasterio.open(tmp_path / "job" / "merged" / "change.tif") as f:
        found = f.read(1)
        assert f.res == (1, 1)
    compared = found != 255
    assert compared.sum() > 0.85 * 1100 * 1000  # the rest is without data at one date
    assert 0.02 < (found[compared] == 1).mean() < 0.4  # the path of the tornado lies in it
    assert np.isin(found, (0, 1, 255)).all()
