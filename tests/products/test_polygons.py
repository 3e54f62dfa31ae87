"""The GeoPackage, the GeoJSON, and their styles."""

from __future__ import annotations

import json
import sqlite3
from xml.etree import ElementTree as ET

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.labels import BINARY_CHANGE
from terralapse.products.findings import find
from terralapse.products.polygons import (
    minimum_mapping_unit,
    split_at_antimeridian,
    write_geojson,
    write_geopackage,
)
from terralapse.products.qgis import class_style, polygon_sld, probability_style


@pytest.fixture
def package(make_run):
    run = make_run()
    path = run.folder / "change.gpkg"
    write_geopackage(find(run).polygons, path, run.started)
    return run, path


def test_the_package_says_everything_about_each_polygon(package):
    run, path = package
    frame = pyogrio.read_dataframe(path, layer="change")
    assert frame.crs == "EPSG:32615"
    assert frame["id"].tolist() == [1, 2, 3]
    assert frame["pixels"].tolist() == [2400, 600, 60]
    first = frame.iloc[0]
    assert first["class"] == "change"
    assert first["area_m2"] == pytest.approx(2400 * 4, rel=2e-3)
    assert (first["mean_prob"], first["max_prob"]) == (0.9, 0.9)
    assert first["date_before"] == "2023-05-10T00:00:00Z"
    assert first["date_after"] == "2024-06-02T10:30:00Z"
    assert (first["sensor_before"], first["model"], first["run_id"]) == ("rgb", "testnet/rgb", run.run_id)
    assert first["location"] == "north-east"
    inside = shapely.Point(first["lon"], first["lat"])
    assert frame.to_crs(4326).geometry[0].buffer(1e-6).contains(inside)
    assert frame.geometry.is_valid.all()


def test_the_package_opens_styled(package):
    _, path = package
    with sqlite3.connect(path) as db:
        row = db.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML, styleSLD FROM layer_styles"
        ).fetchone()
        assert row[:3] == ("change", "geom", 1)
        assert db.execute(
            "SELECT data_type FROM gpkg_contents WHERE table_name = 'layer_styles'"
        ).fetchone() == ("attributes",)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert ET.fromstring(row[3].split("\n", 1)[1]).find("renderer-v2/symbols/symbol") is not None
    assert ET.fromstring(row[4].split("\n", 1)[1]).tag.endswith("StyledLayerDescriptor")
    assert pyogrio.list_layers(path)[:, 0].tolist()[0] == "change"


def test_the_same_content_gives_the_same_bytes(make_run):
    paths = []
    for _ in range(2):
        run = make_run()
        paths.append(run.folder / "change.gpkg")
        write_geopackage(find(run).polygons, paths[-1], run.started)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_nothing_found_is_a_valid_package_without_features(make_run):
    run = make_run(change=np.zeros((240, 320), bool))
    path = run.folder / "change.gpkg"
    write_geopackage(find(run).polygons, path, run.started)
    frame = pyogrio.read_dataframe(path, layer="change")
    assert len(frame) == 0
    assert {"id", "area_m2", "mean_prob", "date_before"} <= set(frame.columns)
    assert frame.crs == "EPSG:32615"
    assert pyogrio.read_info(path, layer="change")["geometry_type"] == "MultiPolygon"


def test_geojson_follows_the_rfc(make_run):
    run = make_run()
    path = run.folder / "change.geojson"
    write_geojson(find(run).polygons, path)
    content = json.loads(path.read_text())
    assert "crs" not in content
    for feature in content["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring[:, 0] < -90).all()  # longitude comes first
        assert shapely.is_ccw(shapely.LinearRing(ring))
        assert all(len(str(v).split(".")[1]) <= 7 for v in ring.ravel())


def test_a_polygon_over_the_antimeridian_becomes_two_parts():
    parts = split_at_antimeridian(shapely.box(-179.9, -1, 179.8, 1))
    assert parts.geom_type == "MultiPolygon"
    assert sorted(p.bounds for p in parts.geoms) == [
        pytest.approx((-180, -1, -179.9, 1)),
        pytest.approx((179.8, -1, 180, 1)),
    ]
    assert split_at_antimeridian(shapely.box(10, 0, 20, 1)).geom_type == "Polygon"


def test_geojson_of_a_utm_zone_at_the_antimeridian(make_run):
    box = GeoBox((240, 320), Affine(50.0, 0, 828000, 0, -50.0, 20000), "EPSG:32660")
    run = make_run(change=np.ones((240, 320), bool), box=box)
    path = run.folder / "change.geojson"
    write_geojson(find(run).polygons, path)
    (feature,) = json.loads(path.read_text())["features"]
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.geom_type == "MultiPolygon"
    assert all(p.bounds[2] - p.bounds[0] < 0.2 for p in shape.geoms)


@pytest.mark.parametrize(("pixel", "least", "most"), [(10.0, 300, 400), (0.5, 10, 10), (2.0, 13, 16)])
def test_the_minimum_is_four_pixels_and_ten_square_metres(make_run, pixel, least, most):
    box = GeoBox((240, 320), Affine(pixel, 0, 400000, 0, -pixel, 4100000), "EPSG:32615")
    assert least <= minimum_mapping_unit(make_run(box=box)) <= most
    assert minimum_mapping_unit(make_run(box=box, min_area_m2=77.0)) == 77


def test_styles_are_well_formed_and_name_every_class():
    root = ET.fromstring(class_style(BINARY_CHANGE, (0,), polygons=True).split("\n", 1)[1])
    entries = {e.get("value"): e for e in root.iter("paletteEntry")}
    assert entries["1"].get("color") == BINARY_CHANGE.by_value(1).colour
    assert (entries["0"].get("alpha"), entries["1"].get("alpha")) == ("0", "255")
    assert root.find("renderer-v2") is not None
    assert root.find("pipe/rasterrenderer") is not None
    items = list(ET.fromstring(probability_style(200).split("\n", 1)[1]).iter("item"))
    assert [float(i.get("value", "")) for i in items] == pytest.approx([0, 40, 80, 120, 160, 200])
    ET.fromstring(polygon_sld("change").split("\n", 1)[1])
