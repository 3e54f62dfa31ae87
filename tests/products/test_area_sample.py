"""Samples of a run's map: drawn where they should be, labelled in files, and read as areas."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from product_runs import build_run, squares
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.grid.areas import PixelArea
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.labels import SECOND_MAMBA, Reason
from terralapse.products.area_report import report, write_report
from terralapse.products.area_sample import (
    Plan,
    Sample,
    draw,
    read_labels,
    read_sample,
    write_sample,
)
from terralapse.products.record import write_json

BOX = GeoBox((240, 320), Affine(2.0, 0, 400000, 0, -2.0, 4100000), "EPSG:32615")


def made(folder: Path, box: GeoBox = BOX, **fields: Any) -> Path:
    """A run with what a sample needs of it."""
    run = build_run(folder, box=box, **fields)
    grid = {"crs": None if box.crs is None else str(box.crs), "transform": list(box.affine[:6])}
    shape = {"height": box.shape.y, "width": box.shape.x}
    write_json({"run_id": "0123456789ab", "grid": grid | shape}, run.folder / "run.json")
    return run.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = np.zeros((240, 320), np.uint8)
    reason[:, :20] = Reason.CLOUD_AFTER
    return made(tmp_path_factory.mktemp("area") / "run", reason=reason)


def change_at(run: Path, sample: Sample) -> dict[int, int]:
    with rasterio.open(run / "change.tif") as file:
        data = file.read(1)
    return {p.id: int(data[p.row, p.col]) for p in sample.points}


def test_points_lie_in_their_strata_and_never_where_nothing_was_compared(run):
    sample = draw(run, Plan(size=200, least=60), seed=3)
    assert {s.name: s.points for s in sample.strata} == {"no_change": 140, "change": 60}
    values = change_at(run, sample)
    assert {
        p.stratum: {values[q.id] for q in sample.points if q.stratum == p.stratum} for p in sample.points
    } == {
        "change": {1},
        "no_change": {0},
    }
    assert all(p.col >= 20 for p in sample.points)
    assert len({(p.row, p.col) for p in sample.points}) == 200
    assert [p.id for p in sample.points] == list(range(1, 201))
    first = [p.stratum for p in sample.points[:100]].count("change")
    assert 15 < first < 45  # mixed
    one = sample.points[0]
    assert (one.x, one.y) == (400000 + 2 * (one.col + 0.5), 4100000 - 2 * (one.row + 0.5))
    assert -94.2 < one.lon < -94.1


def test_areas_of_the_strata_are_those_of_the_ground(run):
    sample = draw(run, Plan(size=50), seed=3)
    area = PixelArea(BOX)
    compared = squares((240, 320))[:, 20:].sum() * area.mean
    assert sample.strata[1].area == pytest.approx(compared, rel=1e-5)
    assert sum(s.pixels for s in sample.strata) == 240 * 300


def test_a_seed_draws_the_same_points_and_a_larger_sample_holds_the_smaller(run):
    def places(sample: Sample) -> set[tuple[int, int]]:
        return {(p.row, p.col) for p in sample.points}

    small, again = draw(run, Plan(size=60), seed=5), draw(run, Plan(size=60), seed=5)
    assert small == again
    assert places(small) <= places(draw(run, Plan(size=160), seed=5))
    assert places(small) != places(draw(run, Plan(size=60), seed=6))


def test_a_buffer_is_a_stratum_of_its_own(run):
    sample = draw(run, Plan(size=120), seed=1, buffer=4)
    assert [s.name for s in sample.strata] == ["no_change", "change", "near_change"]
    changed = np.argwhere(squares((240, 320)))
    for p in sample.points:
        near = np.abs(changed - (p.row, p.col)).max(1).min()
        assert (near == 0) == (p.stratum == "change")
        assert (0 < near <= 4) == (p.stratum == "near_change")


def test_large_pixels_are_drawn_more_often(tmp_path):
    """On a grid in degrees up to 60 degrees north, a draw by pixels would see the north too often."""
    box = GeoBox((600, 40), Affine(0.1, 0, 10, 0, -0.1, 60), "EPSG:4326")
    change = np.zeros((600, 40), bool)
    change[:, :20] = True
    folder = made(tmp_path / "run", box=box, change=change)
    sample = draw(folder, Plan(size=4000, allocation="equal"), seed=2)
    area = PixelArea(box).block(Window(0, 0, 600, 40))
    north = float(area[:300].sum() / area.sum())
    share = np.mean([p.row < 300 for p in sample.points])
    assert north < 0.45
    assert share == pytest.approx(north, abs=0.025)


def test_the_size_follows_the_wanted_error(run):
    coarse = draw(run, Plan(error=0.05, expected={"change": 0.7, "no_change": 0.9}))
    fine = draw(run, Plan(error=0.02, expected={"change": 0.7, "no_change": 0.9}))
    # The share of change is 3.9 % of what was compared: (0.961 * 0.3 + 0.039 * 0.458)^2 / 0.02^2.
    assert len(fine.points) == pytest.approx((0.961 * 0.3 + 0.039 * 0.458) ** 2 / 0.02**2, abs=4)
    assert len(coarse.points) < len(fine.points) / 5
    with pytest.raises(SettingError, match="water"):
        draw(run, Plan(expected={"water": 0.5}))


def label(path: Path, names: dict[int, str]) -> None:
    """As a person does: the column `label` of the CSV."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(r | {"label": names.get(int(r["id"]), "")} for r in rows)


def test_from_files_to_areas(run, tmp_path):
    sample = draw(run, Plan(size=200, least=80), seed=3)
    write_sample(sample, tmp_path, BOX.crs)
    assert read_sample(tmp_path) == sample
    text = (tmp_path / "points.csv").read_text()
    assert "stratum" not in text
    assert "change" not in text
    truth = {k: "change" if v else "No change" for k, v in change_at(run, sample).items()}
    wrong = [p.id for p in sample.points if p.stratum == "change"][:8]
    missed = [p.id for p in sample.points if p.stratum == "no_change"][:6]
    for i in wrong:
        truth[i] = "no_change"
    for i in missed:
        truth[i] = "change"
    unsure = [p.id for p in sample.points if p.stratum == "no_change"][10:13]
    for i in unsure:
        truth[i] = "unsure"
    label(tmp_path / "points.csv", truth)
    found = report(sample, read_labels(tmp_path / "points.csv", sample))
    assert found.counts.tolist() == [[111, 6], [8, 72]]
    no, yes = (s.area for s in sample.strata)
    assert found.estimates.area[1].value == pytest.approx(no * 6 / 117 + yes * 72 / 80)
    assert found.estimates.mapped.tolist() == [no, yes]
    assert any(c.startswith("3 of 200 points have no label") for c in found.cautions)
    write_report(found, tmp_path)
    told = json.loads((tmp_path / "areas.json").read_text())
    assert told["classes"][1]["users"]["value"] == pytest.approx(0.9)
    assert told["classes"][1]["text"].startswith("Change: ")
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    assert float(rows[1]["area_low_m2"]) == pytest.approx(found.estimates.area[1].interval[0], abs=0.01)


def test_a_geopackage_is_read_too(run, tmp_path):
    sample = draw(run, Plan(size=40), seed=3)
    write_sample(sample, tmp_path, BOX.crs)
    frame = pyogrio.read_dataframe(tmp_path / "points.gpkg")
    assert frame.crs == BOX.crs
    frame["label"] = [{0: "no_change", 1: "change"}[change_at(run, sample)[i]] for i in frame["id"]]
    pyogrio.write_dataframe(frame, tmp_path / "labelled.gpkg")
    assert len(read_labels(tmp_path / "labelled.gpkg", sample)) == 40


def test_bad_labels_are_named(run, tmp_path):
    sample = draw(run, Plan(size=40), seed=3)
    write_sample(sample, tmp_path, BOX.crs)
    path = tmp_path / "points.csv"
    label(path, {7: "forest"})
    with pytest.raises(SettingError, match=r"point 7: has the label 'forest'.*no_change, change"):
        read_labels(path, sample)
    label(path, {7: "change"})
    with pytest.raises(SettingError, match=r"stratum \w+: has [01] labelled points of 20"):
        report(sample, read_labels(path, sample))
    path.write_text("id,label\n99,change\n")
    with pytest.raises(SettingError, match="point 99: is not in the sample"):
        read_labels(path, sample)
    path.write_text("id,label\n1,change\n1,change\n")
    with pytest.raises(SettingError, match="twice"):
        read_labels(path, sample)
    path.write_text("number,what\n1,change\n")
    with pytest.raises(UnreadableFileError, match="columns id and label"):
        read_labels(path, sample)
    (tmp_path / "sample.json").write_text("{}")
    with pytest.raises(UnreadableFileError, match="no record of a sample"):
        read_sample(tmp_path)


def test_maps_of_classes_are_sampled_by_their_scheme(tmp_path):
    folder = made(tmp_path / "run")
    with pytest.raises(FileMissingError, match="no such map"):
        draw(folder, Plan(size=20), name="classes_after")
    classes = np.zeros((240, 320), np.uint8)
    classes[:100], classes[100:150] = 3, 5
    write_cog(
        classes, folder / "classes_after.tif", geobox=BOX, kind="class", nodata=255, scheme=SECOND_MAMBA
    )
    sample = draw(folder, Plan(size=90, allocation="equal"), name="classes_after")
    assert [(s.name, s.points) for s in sample.strata] == [("unchanged", 30), ("tree", 30), ("building", 30)]
    assert "playground" in sample.classes
    with pytest.raises(SettingError, match="buffer 3"):
        draw(folder, Plan(size=20), name="classes_after", buffer=3)
    with pytest.raises(SettingError, match="map prob"):
        draw(folder, Plan(size=20), name="prob")


def test_a_map_of_one_class_has_nothing_to_stratify(tmp_path):
    folder = made(tmp_path / "run", change=np.zeros((240, 320), bool))
    with pytest.raises(SettingError, match="fewer than two classes"):
        draw(folder, Plan(size=20))
