"""Reviewed polygons as a GeoPackage, and as labels that the readers of data sets read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from product_runs import build_run
from terralapse.data.folders import BiTemporal
from terralapse.errors import SettingError
from terralapse.labels import Reason
from terralapse.products.review import Reviewed, polygons_of, write_labels, write_reviewed
from terralapse.products.write import write_products


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of change at rows 30-90, columns 200-240 (polygon 1) and rows 150-170, columns 40-70 (2)."""
    reason = np.zeros((240, 320), np.uint8)
    reason[:, :20] = Reason.NODATA_BEFORE
    folder = tmp_path_factory.mktemp("review") / "run"
    write_products(build_run(folder, reason=reason))
    return folder


def said(polygon: int, verdict: str | None, grade: str | None = None, geometry=None) -> Reviewed:
    return Reviewed(polygon, verdict, grade, "seen", "Ada", "2026-11-29T10:00:00Z", 2, geometry)


def pixels(top: int, left: int, bottom: int, right: int) -> shapely.Polygon:
    """On the ground of the run."""
    return shapely.box(400000 + 2 * left, 4100000 - 2 * bottom, 400000 + 2 * right, 4100000 - 2 * top)


def test_the_reviewed_set_as_a_geopackage(run, tmp_path):
    drawn = pixels(30, 200, 60, 240)
    history = [{"polygon": 1, "version": 1, "by": "Ada"}, {"polygon": 1, "version": 2, "by": "Bob"}]
    write_reviewed(
        run,
        [said(1, "accepted", "major", drawn), said(2, "rejected"), said(99, "accepted")],
        history,
        tmp_path / "r.gpkg",
    )
    frame = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="reviewed").set_index("id")
    assert list(frame.index) == [1, 2]
    assert frame["verdict"].tolist() == ["accepted", "rejected"]
    assert frame["grade"].tolist() == ["major", ""]
    assert (frame["reviewer"] == "Ada").all()
    assert frame["redrawn"].tolist() == [True, False]
    assert frame.loc[1, "area_m2"] == pytest.approx(30 * 40 * 4, rel=0.002)
    assert shapely.equals(frame.loc[1, "geometry"], drawn)
    assert frame.crs == polygons_of(run).crs
    table = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="history", read_geometry=False)
    assert table["by"].tolist() == ["Ada", "Bob"]


def test_labels_are_read_by_the_reader_of_folders(run, tmp_path):
    record = write_labels(run, [said(1, "accepted"), said(2, "rejected")], tmp_path, name="blobs")
    (pair,) = BiTemporal(tmp_path)
    assert pair.name == "blobs"
    assert pair.images.shape == (2, 3, 240, 320)
    with rasterio.open(run / "after.tif") as file:
        assert np.array_equal(pair.images[1], file.read())
    label = pair.label
    assert (label[31:89, 201:239] == 1).all()
    assert (label[151:169, 41:69] == 0).all()
    assert (label[:, :20] == 255).all()
    assert (label[100:140] == 255).all()
    assert label[200, 300] == 255
    assert record["pixels"]["1"] == (label == 1).sum() == pytest.approx(2400, abs=30)
    told = json.loads((tmp_path / "record.json").read_text())
    assert [r["verdict"] for r in told["reviews"]] == ["accepted", "rejected"]
    assert told["reader"] == "terralapse.data.folders.BiTemporal"
    assert str(run) not in json.dumps(told)


def test_the_background_is_unchanged_where_somebody_says_so(run, tmp_path):
    write_labels(run, [said(1, "accepted")], tmp_path, background="unchanged")
    label = BiTemporal(tmp_path)[0].label
    assert (label[100:140, 20:] == 0).all()
    assert (label[:, :20] == 255).all()
    assert (label[151:169, 41:69] == 255).all()  # nobody has looked at polygon 2
    assert label[200, 300] == 255  # change too small for a polygon


def test_what_was_drawn_anew_counts(run, tmp_path):
    write_labels(run, [said(1, "accepted", "destroyed", pixels(30, 200, 60, 250))], tmp_path)
    label = BiTemporal(tmp_path)[0].label
    assert (label[31:59, 201:249] == 1).all()
    assert (label[62:88, 201:239] == 0).all()
    with rasterio.open(tmp_path / "damage/scene.tif") as file:
        damage = file.read(1)
        assert file.tags(1)["CLASS_SCHEME"] == "xbd-damage"
    assert ((damage == 4) == (label == 1)).all()
    assert set(np.unique(damage)) == {4, 255}


def test_labels_without_a_changed_pixel_are_refused(run, tmp_path):
    """The reader would take the 255 of such a file for change."""
    with pytest.raises(SettingError, match="no polygon has been accepted"):
        write_labels(run, [said(1, "rejected"), said(2, None)], tmp_path)


def test_where_the_pictures_are_smaller_both_grids_have_labels(tmp_path):
    box = GeoBox((600, 2600), Affine(2.0, 0, 400000, 0, -2.0, 4100000), "EPSG:32615")
    change = np.zeros((600, 2600), bool)
    change[100:300, 1000:1400] = True
    change[500:590, 40:240] = True
    write_products(build_run(tmp_path / "run", change, box=box))
    record = write_labels(tmp_path / "run", [said(1, "accepted"), said(2, "rejected")], tmp_path / "labels")
    label = BiTemporal(tmp_path / "labels")[0].label
    height, width = label.shape
    assert width < 2600
    assert record["label_grid"] == {"height": height, "width": width}
    assert (label == 1).sum() * (600 / height) * (2600 / width) == pytest.approx(80000, rel=0.02)
    with rasterio.open(tmp_path / "labels/full/label.tif") as file:
        full = file.read(1)
    assert (full[101:299, 1001:1399] == 1).all()
    assert (full[501:589, 41:239] == 0).all()
    assert (full == 1).sum() == pytest.approx(80000, rel=0.01)
