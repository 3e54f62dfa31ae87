"""A job over many places: killed, resumed, with bad inputs, on threads and processes: the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from job_places import make_dates, results, write_plan
from terralapse import cli
from terralapse.engine.jobs.ledger import JOURNAL
from terralapse.engine.jobs.plan import JobPlan
from terralapse.engine.jobs.schedule import Progress
from terralapse.errors import MissingExtraError, OutputExistsError, SettingError
from terralapse.workflows import run as jobs
from terralapse.workflows.cost import estimate
from terralapse.workflows.run import JobResult, run_job

PAIR = "{pairs: [{name: v, before: in/S2_20210601.tif, after: in/S2_20230601.tif}]}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan over two by two cells, and its images."""
    folder = tmp_path_factory.mktemp("place")
    make_dates(folder / "in")
    write_plan(folder / "plan.yaml", PAIR, products="[raster, geopackage, stac, pmtiles]")
    return folder


def run(plan: Path, out: Path, **options: Any) -> JobResult:
    return run_job(JobPlan.read(plan), out, **{"kind": "threads"} | options)


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job, undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "job"
    result = run(place / "plan.yaml", out)
    assert result.complete
    assert (result.units, result.done, result.retries) == (4, 4, 0)
    return out


def test_the_merged_rasters_hold_what_the_cells_hold_on_one_grid(whole: Path) -> None:
    merged = whole / "merged"
    for name in ("change.tif", "prob.tif", "valid.tif"):
        assert cog_validate(merged / name, strict=True)[0]
    with rasterio.open(merged / "change.tif") as change, rasterio.open(merged / "prob.tif") as prob:
        assert (change.width, change.height, str(change.crs)) == (128, 128, "EPSG:32632")
        assert change.transform[:6] == (10, 0, 600_320, 0, -10, 5_199_360)
        found, likely = change.read(1), prob.read(1)
    assert (found[54:74, 49:79] == 1).mean() > 0.95  # the square that lies in four cells
    assert (found[:40] == 1).mean() < 0.05
    for layer, pixels in (("change", found), ("prob", likely)):
        with rasterio.open(merged / f"{layer}.vrt") as mosaic:
            np.testing.assert_array_equal(mosaic.read(1), pixels)


def test_what_crosses_cells_is_one_polygon(whole: Path) -> None:
    polygons = gpd.read_file(whole / "merged" / "change.gpkg", layer="change")
    largest = polygons.iloc[0]
    assert largest["area_m2"] == pytest.approx(20 * 30 * 100, rel=0.1)
    assert (polygons["area_m2"] > 30_000).sum() == 1
    assert gpd.read_file(whole / "merged" / "change.pmtiles", engine="pyogrio").shape[0] >= 1


def test_the_collection_leads_to_every_unit(whole: Path) -> None:
    collection = pystac.Collection.from_file(str(whole / "merged" / "collection.json"))
    items = list(collection.get_items())
    assert len(items) == 4
    assert collection.extent.temporal.intervals[0][0].year == 2021
    for item in items:
        assert item.collection_id == "valley"
        assert Path(item.assets["change_tif"].get_absolute_href()).is_file()
    for asset in collection.assets.values():
        assert (whole / "merged" / asset.href).is_file()


@pytest.mark.slow
def test_units_on_processes_give_the_same_bytes(place: Path, whole: Path, tmp_path: Path) -> None:
    assert run(place / "plan.yaml", tmp_path / "job", kind="processes", workers=2).complete
    assert results(tmp_path / "job") == results(whole)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_and_its_scheduler_gives_the_same_bytes(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    from job_machines import Machines

    steps: list[str] = []
    plan = write_plan(
        tmp_path / "plan.yaml",
        PAIR.replace("in/", f"{place}/in/"),
        products="[raster, geopackage, stac, pmtiles]",
        retry="{attempts: 20, base_s: 0.1, most_s: 1}",
    )
    machines = Machines()

    def tell(counts: Progress) -> None:
        if counts.done == 1 and not steps:
            steps.append("worker")
            workers[0].kill()
        elif counts.done == 2 and len(steps) == 1:
            steps.append("scheduler")
            machines.start_again()

    try:
        machines.scheduler()
        workers = [machines.worker(), machines.worker()]
        result = run(plan, tmp_path / "job", kind="cluster", address=machines.address, tell=tell)
    finally:
        machines.end()
    assert steps == ["worker", "scheduler"]
    assert (result.done, result.dead) == (4, 0)
    assert results(tmp_path / "job") == results(whole)


# --- kills -----------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_job_that_is_killed_again_and_again_leaves_the_bytes_of_one_that_was_not(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    script = Path(__file__).parents[1] / "job_kills.py"
    command = [sys.executable, str(script), str(place / "plan.yaml"), str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["codes"] == [-signal.SIGKILL] * 6 + [0]
    assert said["merged"] == [False] * 6 + [True]
    assert results(tmp_path / "job") == results(whole)


def test_a_finished_unit_is_not_computed_again_unless_its_files_were_touched(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "job"
    shutil.copytree(whole, out)
    computed: list[str] = []
    plain = jobs._change
    monkeypatch.setattr(jobs, "_change", lambda *a: (computed.append(a[2].name), plain(*a))[1])
    run(place / "plan.yaml", out, resume=True)
    assert computed == []
    spoilt = sorted((out / "units").iterdir())[1]
    (spoilt / "prob.tif").write_bytes(b"")
    (out / JOURNAL).unlink()  # without a journal, units are known by their own folders
    run(place / "plan.yaml", out)
    assert computed == [spoilt.name]
    assert results(out) == results(whole)
    with pytest.raises(OutputExistsError, match="--resume"):
        run(place / "plan.yaml", out)


# --- inputs ----------------------------------------------------------------------------------------
def test_a_pair_that_cannot_be_read_is_reported_and_the_others_finish(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "cut"):
        for date, file in (("before", "S2_20210601.tif"), ("after", "S2_20230601.tif")):
            target = tmp_path / "images" / date / f"{name}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            raw = (place / "in" / file).read_bytes()
            target.write_bytes(raw[: len(raw) // 2] if (name, date) == ("cut", "after") else raw)
    plan = write_plan(tmp_path / "plan.yaml", "{folder: images}", grid="")
    arguments = ["run", str(plan), "-o", str(tmp_path / "job"), "--executor", "threads"]
    monkeypatch.setattr(sys, "argv", ["terralapse", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert "1 of 2 units done" in said.out
    assert "dead.jsonl" in said.err
    (letter,) = [json.loads(s) for s in (tmp_path / "job" / "dead.jsonl").read_text().splitlines()]
    assert (letter["name"], letter["failures"]) == ("cut", 1)
    assert "cut.tif" in letter["reason"]
    merged = json.loads((tmp_path / "job" / "merged" / "merged.json").read_text())
    assert (merged["units"], merged["missing"]) == (1, ["cut"])
    places = gpd.read_file(tmp_path / "job" / "merged" / "change.gpkg", layer="change")
    assert set(places["place"]) == {"good"}
    assert places.crs.to_epsg() == 4326


@pytest.mark.parametrize(
    ("settings", "said"),
    [("{colour: red}", "settings.colour"), ("{threshold: 7}", "threshold 7"), ("{model: nobody}", "nobody")],
)
def test_settings_that_no_unit_could_run_with_are_refused_before_anything_is_made(
    place: Path, tmp_path: Path, settings: str, said: str
) -> None:
    from terralapse.errors import TerralapseError

    plan = write_plan(tmp_path / "plan.yaml", PAIR.replace("in/", f"{place}/in/"), settings=settings)
    with pytest.raises(TerralapseError, match=said):
        run(plan, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_geoparquet_without_its_package_is_refused_before_anything_is_made(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    plan = write_plan(tmp_path / "p.yaml", PAIR.replace("in/", f"{place}/in/"), products="[geoparquet]")
    with pytest.raises(MissingExtraError, match=r"terralapse\[scale\]"):
        run(plan, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_geoparquet_holds_the_polygons(place: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    plan = write_plan(
        tmp_path / "p.yaml", PAIR.replace("in/", f"{place}/in/"), products="[geopackage, geoparquet]"
    )
    assert run(plan, tmp_path / "job").complete
    written = gpd.read_parquet(tmp_path / "job" / "merged" / "change.parquet")
    assert written["area_m2"].tolist() == gpd.read_file(
        whole / "merged" / "change.gpkg", layer="change"
    )["area_m2"].tolist()  # fmt: skip


def test_an_area_where_no_image_is(place: Path, tmp_path: Path) -> None:
    area = gpd.GeoDataFrame(geometry=gpd.GeoSeries.from_wkt(["POLYGON((0 0,1 0,1 1,0 0))"]), crs="EPSG:4326")
    area.to_file(tmp_path / "area.geojson")
    plan = write_plan(tmp_path / "plan.yaml", PAIR.replace("in/", f"{place}/in/"), area="area.geojson")
    with pytest.raises(SettingError, match="no unit of work"):
        run(plan, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_images_on_a_mount_that_cannot_be_written(place: Path, whole: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "in"
    mounted.mkdir()
    mount = shutil.which("mount") or "mount"
    bind = [mount, "--bind", str(place / "in"), str(mounted)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(bind, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a folder")
    try:
        subprocess.run([mount, "-o", "remount,ro,bind", str(mounted)], check=True)
        with pytest.raises(OSError, match="ead-only"):
            (mounted / "x").touch()
        plan = write_plan(tmp_path / "plan.yaml", PAIR)
        assert run(plan, tmp_path / "job").complete
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    for name in ("change.tif", "prob.tif", "valid.tif"):
        same = [(d / "merged" / name).read_bytes() for d in (tmp_path / "job", whole)]
        assert same[0] == same[1]


# --- cost ------------------------------------------------------------------------------------------
def test_the_cost_is_counted_and_measured_on_one_unit(place: Path) -> None:
    plan = JobPlan.read(place / "plan.yaml")
    counted = estimate(plan, probe=False)
    assert (counted.units, counted.pixels, counted.hours) == (4, 4 * 80 * 80, None)
    files = sum(p.stat().st_size for p in (place / "in").iterdir())
    assert counted.bytes == round(files * (80 / 64) ** 2)
    measured = estimate(plan, workers=2)
    assert measured.unit_s is not None
    assert measured.hours is not None
    assert measured.worker_bytes is not None
    assert 1.5 * measured.unit_s < measured.hours * 3600 < 100 * measured.unit_s
    assert measured.worker_bytes > 50e6
    assert "Memory a worker" in measured.text()
