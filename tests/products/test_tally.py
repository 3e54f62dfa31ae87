"""The one pass that all numbers come from, checked against whole arrays; zones and squares."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.errors import FileMissingError, NoOverlapError, SettingError, UnreadableFileError
from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.products.findings import find
from terralapse.products.stats import statistics
from terralapse.products.tally import CHANGED, EXPECTED, tally
from terralapse.products.zones import load_zones, regular_cells


def masked_run(make_run, **fields):
    reason = np.zeros((240, 320), np.uint8)
    reason[:50, :60] = Reason.CLOUD_BEFORE
    reason[200:, :] = Reason.OUTSIDE_AFTER
    reason[:, 310:] = Reason.OUTSIDE_AOI
    return make_run(reason=reason, **fields), reason


def test_sums_are_those_of_the_whole_arrays(make_run, monkeypatch):
    monkeypatch.setattr("terralapse.products.tally._STRIP", 37)
    run, reason = masked_run(make_run)
    findings = find(run)
    t = findings.tally
    area = PixelArea(run.pair.geobox).block(Window(0, 0, 240, 320))
    valid = reason == 0
    change = np.zeros((240, 320), bool)
    change[30:90, 200:240] = change[150:170, 40:70] = True
    assert t.observed_area == pytest.approx(area[valid].sum())
    assert t.changed_area == pytest.approx(area[valid & change].sum(), rel=1e-9)
    assert t.changed_pixels == 60 * 40 + 20 * 30
    expected = (area * np.where(change, 0.9, 0.1))[valid].sum()
    assert t.expected_area == pytest.approx(expected, rel=1e-9)
    assert t.expected_changed == pytest.approx(0.9 * t.changed_area)
    assert t.masked_area == pytest.approx(area[(reason > 1)].sum())
    assert t.considered_area == pytest.approx(area[reason != Reason.OUTSIDE_AOI].sum())
    assert t.pixels[Reason.CLOUD_BEFORE] == 50 * 60
    assert t.histogram.sum() == pytest.approx(t.observed_area)
    assert set(np.flatnonzero(t.histogram)) == {20, 180}


def test_the_squares_add_up_to_the_whole(make_run):
    run, _ = masked_run(make_run)
    findings = find(run)
    table = findings.stats
    assert findings.zones.kind == "cell"
    assert table["observed_m2"].sum() == pytest.approx(findings.tally.observed_area, rel=1e-6)
    assert table["changed_m2"].sum() == pytest.approx(findings.tally.changed_area, rel=1e-6)
    assert table["cloud_before_m2"].sum() == pytest.approx(findings.tally.area[Reason.CLOUD_BEFORE], rel=1e-6)
    assert table["polygons"].sum() == len(findings.polygons) == 4 - 1 - 1  # the speck and the masked line
    assert table["changed_percent"].max() <= 100


def test_layers_of_the_preview_are_means(make_run, monkeypatch):
    monkeypatch.setattr("terralapse.products.findings._PREVIEW", 40)
    run, _ = masked_run(make_run)
    layers = find(run).tally.layers
    assert layers.changed.shape == (30, 40)
    assert layers.changed[5, 26] == 1  # rows 40..47, cols 208..215: inside of a block
    assert layers.changed[3, 26] == pytest.approx(2 / 8)  # rows 24..31; the block begins at 30
    assert layers.probability[5, 26] == pytest.approx(0.9)
    assert layers.reason[0, 0] == Reason.CLOUD_BEFORE
    assert np.isnan(layers.changed[0, 0])
    assert layers.reason[28, 20] == Reason.OUTSIDE_AFTER


def write_zones(path, shapes, crs="EPSG:32615", **columns):
    gpd.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def test_zones_count_border_pixels_by_their_share(make_run, tmp_path):
    left, right = (
        shapely.box(400000, 4099520, 400400.5, 4100000),
        shapely.box(400400.5, 4099520, 400640, 4100000),
    )
    far = shapely.box(0, 0, 1, 1)
    path = write_zones(
        tmp_path / "z.gpkg", [left, far, right], NAME_2=["Left", "Far", "Right"], code=[1, 2, 3]
    )
    run = make_run(zones=path)
    findings = find(run)
    table = findings.stats
    assert table["name"].tolist() == ["Left", "Right"]
    assert table["id"].tolist() == ["1", "3"]
    area = PixelArea(run.pair.geobox).block(Window(0, 0, 240, 320))
    share = np.clip(200.25 - np.arange(320), 0, 1)  # the border cuts column 200 at a quarter
    assert table["observed_m2"][0] == pytest.approx((area * share).sum(), rel=1e-6)
    assert table["observed_m2"].sum() == pytest.approx(findings.tally.observed_area, rel=1e-6)
    block = area[30:90, 200].sum() * 0.25 + area[150:170, 40:70].sum() + area[210:212, 100:130].sum()
    assert table["changed_m2"][0] == pytest.approx(block, rel=1e-4)
    assert table["polygons"].tolist() == [2, 1]


def test_zones_in_another_projection_cover_the_same_ground(make_run, tmp_path):
    zone = gpd.GeoSeries([shapely.box(400100, 4099600, 400500, 4099900)], crs="EPSG:32615")
    tables = []
    for name, crs in (("a.gpkg", "EPSG:32615"), ("b.geojson", "EPSG:4326")):
        path = write_zones(tmp_path / name, zone.to_crs(crs).values, crs, name=["Zone"])
        tables.append(find(make_run(zones=path)).stats)
    assert tables[0]["observed_m2"][0] == pytest.approx(tables[1]["observed_m2"][0], rel=1e-4)
    assert tables[0]["changed_m2"][0] == pytest.approx(tables[1]["changed_m2"][0], rel=1e-3)


def test_overlapping_zones_each_count_in_full(make_run, tmp_path):
    whole = shapely.box(400000, 4099520, 400640, 4100000)
    path = write_zones(tmp_path / "z.gpkg", [whole, whole], name=["One", "Two"])
    findings = find(make_run(zones=path))
    assert findings.stats["observed_m2"].tolist() == pytest.approx(
        [findings.tally.observed_area] * 2, rel=1e-6
    )


def test_zones_that_cannot_be_used_are_refused(make_run, tmp_path):
    box = make_run().pair.geobox
    with pytest.raises(FileMissingError, match="does not exist"):
        load_zones(tmp_path / "none.gpkg", box)
    text = tmp_path / "text.gpkg"
    text.write_text("no map")
    with pytest.raises(UnreadableFileError, match="vector"):
        load_zones(text, box)
    points = write_zones(tmp_path / "points.gpkg", [shapely.Point(400100, 4099900)], name=["p"])
    with pytest.raises(SettingError, match="no polygons"):
        load_zones(points, box)
    far = write_zones(tmp_path / "far.gpkg", [shapely.box(0, 0, 1, 1)], name=["far"])
    with pytest.raises(NoOverlapError, match="none of its zones"):
        load_zones(far, box)


@pytest.mark.parametrize(
    ("shape", "pixel", "least", "most"),
    [
        ((10980, 10980), 10.0, 100, 400),
        ((2048, 2048), 0.6, 24, 400),
        ((256, 256), 10.0, 24, 400),
        ((20, 20), 10.0, 1, 400),
        ((300_000, 300_000), 30.0, 24, 400),
    ],
)
def test_there_are_neither_too_many_squares_nor_too_few(shape, pixel, least, most):
    cells = regular_cells(GeoBox(shape, Affine(pixel, 0, 0, 0, -pixel, 0), "EPSG:32615"), pixel)
    assert least <= len(cells) <= most
    assert cells.names[0] == "A1"
    assert len(set(cells.names)) == len(cells)
    assert shapely.area(cells.pixels).sum() == pytest.approx(shape[0] * shape[1])


def test_latitudes_weigh_what_they_are_worth(make_run):
    box = GeoBox((100, 50), Affine(0.01, 0, 10, 0, -0.01, 60.5), "EPSG:4326")
    change = np.zeros((100, 50), bool)
    change[:50] = True  # the northern half, which is the smaller one
    findings = find(make_run(change=change, box=box))
    share = findings.tally.changed_area / findings.tally.observed_area
    assert 0.49 < share < 0.4965


def test_a_run_without_a_crs_is_counted_in_pixels(make_run):
    box = GeoBox((240, 320), Affine(1, 0, 0, 0, -1, 0), None)
    findings = find(make_run(box=box))
    assert findings.unit == "px"
    assert findings.tally.changed_area == 60 * 40 + 20 * 30 + 1 + 60
    assert "area_px" in findings.polygons
    assert findings.polygons["area_px"][0] == 2400
    assert "changed_px" in findings.stats


def test_nothing_changed_gives_zeros_and_not_gaps(make_run):
    run = make_run(change=np.zeros((240, 320), bool))
    findings = find(run)
    table = statistics(findings.tally, findings.zones, findings.polygons)
    assert (table["changed_m2"] == 0).all()
    assert (table["changed_percent"] == 0).all()
    assert (table["polygons"] == 0).all()


def test_what_is_not_compared_never_counts_as_change(make_run):
    """Even when a class raster says so under a mask."""
    run, _ = masked_run(make_run)
    sums = tally(run.folder, run.pair.geobox, run.pair.geobox, regular_cells(run.pair.geobox, 2.0))
    assert sums.zones[:, CHANGED].sum() == pytest.approx(sums.changed_area)
    assert (sums.zones[:, EXPECTED] <= sums.zones[:, Reason.VALID] + 1e-6).all()
