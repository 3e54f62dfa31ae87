"""The common grid: the rule, the overlap, the area of interest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from terralapse.errors import (
    FileMissingError,
    NoGeoreferenceError,
    NoOverlapError,
    SettingError,
    UnreadableFileError,
)
from terralapse.grid._positions import compose
from terralapse.grid.aoi import Area
from terralapse.grid.common import cell_text, choose_grid, ground_size, is_plain, local_utm
from terralapse.grid.footprint import lonlat_footprint
from terralapse.grid.scene import ArrayScene, SceneInfo
from terralapse.sensors import UNKNOWN, Band, Unit


def scene(geobox: GeoBox, name: str = "image") -> ArrayScene:
    info = SceneInfo(name, f"memory:{name}", UNKNOWN, (Band("b1", "b1"),), Unit.RAW, geobox)
    return ArrayScene(info, np.zeros((1, geobox.shape.y, geobox.shape.x), np.float32))


def around(crs: str, lon: float, lat: float, size: int, pixel: float, turn: float = 0.0) -> GeoBox:
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    affine = compose(Affine.translation(x, y), compose(Affine.rotation(turn), Affine.scale(pixel, -pixel)))
    return GeoBox((size, size), compose(affine, Affine.translation(-size / 2, -size / 2)), crs)


TEN = GeoBox((100, 120), Affine(10, 0, 600_000, 0, -10, 5_200_000), "EPSG:32632")
THIRTY = GeoBox((60, 60), Affine(30, 0, 599_985, 0, -30, 5_200_015), "EPSG:32632")


def aligned_to(grid: GeoBox, lattice: GeoBox) -> bool:
    step = compose(~lattice.affine, grid.affine)
    return bool(
        np.allclose([step.a, step.b, step.d, step.e], [1, 0, 0, 1])
        and np.allclose([step.c % 1, step.f % 1], 0, atol=1e-6)
    )


# --- the rule --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("one", "two"), [(TEN, THIRTY), (THIRTY, TEN)])
def test_the_grid_of_the_coarser_image_is_kept(one, two):
    choice = choose_grid(scene(one), scene(two))
    assert aligned_to(choice.geobox, THIRTY)
    assert choice.resolution_m == pytest.approx(30, rel=1e-3)
    assert "larger pixels" in choice.rule


def test_alike_grids_keep_the_first():
    shifted = GeoBox((100, 120), compose(TEN.affine, Affine.translation(3.3, 2.2)), TEN.crs)
    choice = choose_grid(scene(TEN), scene(shifted))
    assert aligned_to(choice.geobox, TEN)
    assert choice.geobox.shape == (98, 117)
    assert "before" in choice.rule


def test_the_same_grid_twice_is_the_grid():
    assert choose_grid(scene(TEN), scene(TEN)).geobox == TEN


@pytest.mark.parametrize("rule", ["before", "after"])
@pytest.mark.parametrize(
    "odd",
    [
        around("EPSG:4326", 10.32, 46.94, 100, 1e-4),
        around("EPSG:3857", 10.32, 46.94, 100, 15.0),
        around("EPSG:32632", 10.32, 46.94, 100, 10.0, turn=20),
        GeoBox((100, 100), Affine(10, 0, 600_000, 0, 10, 5_199_000), "EPSG:32632"),
    ],
    ids=["geographic", "web mercator", "rotated", "south-up"],
)
def test_an_odd_grid_is_kept_exactly_when_asked_for_and_not_otherwise(rule, odd):
    other = around("EPSG:32632", 10.32, 46.94, 400, 5.0)
    pair = (odd, other) if rule == "before" else (other, odd)
    kept = choose_grid(scene(pair[0]), scene(pair[1]), rule)
    assert aligned_to(kept.geobox, odd)
    by_default = choose_grid(scene(pair[0]), scene(pair[1]))
    assert is_plain(by_default.geobox)
    assert by_default.geobox.crs == "EPSG:32632"
    assert by_default.resolution_m == pytest.approx(ground_size(odd), rel=0.011)
    # Its pixels start on multiples of their size.
    affine = by_default.geobox.affine
    assert affine.c / affine.a == pytest.approx(round(affine.c / affine.a), abs=1e-6)


def test_two_geographic_images_are_compared_in_the_local_projection():
    a, b = around("EPSG:4326", 10.32, 46.94, 200, 9e-5), around("EPSG:4326", 10.32, 46.94, 200, 8e-5)
    choice = choose_grid(scene(a), scene(b))
    assert choice.geobox.crs == "EPSG:32632"
    assert choice.geobox.affine.a == pytest.approx(8.3, abs=0.1)
    assert "local projection" in choice.rule


def test_a_north_up_projected_image_of_like_size_is_taken_over_a_geographic_one():
    utm, geographic = (
        around("EPSG:32632", 10.32, 46.94, 200, 10.0),
        around("EPSG:4326", 10.32, 46.94, 200, 1.09e-4),
    )
    assert abs(ground_size(geographic) / 10 - 1) < 0.01
    for pair in ((utm, geographic), (geographic, utm)):
        choice = choose_grid(scene(pair[0]), scene(pair[1]))
        assert aligned_to(choice.geobox, utm)
        assert "alike" in choice.rule


@pytest.mark.parametrize("size", [10, "10", 10.0])
def test_a_pixel_size_that_an_image_has_takes_its_grid(size):
    odd = GeoBox((100, 120), compose(TEN.affine, Affine.translation(0.37, 0.81)), TEN.crs)
    assert aligned_to(choose_grid(scene(odd), scene(THIRTY), size).geobox, odd)


def test_a_pixel_size_is_snapped_to_its_multiples():
    choice = choose_grid(scene(TEN), scene(THIRTY), 7.5)
    assert choice.geobox.affine.a == 7.5
    assert choice.geobox.affine.c % 7.5 == 0
    assert choice.geobox.affine.f % 7.5 == 0


def test_metres_are_converted_to_the_unit_of_the_projection():
    feet = around("EPSG:2263", -73.95, 40.72, 300, 3.0)
    choice = choose_grid(scene(feet), scene(feet), 2.0)
    assert choice.geobox.crs == "EPSG:2263"
    assert choice.geobox.affine.a == pytest.approx(2 / 0.3048006096, rel=1e-6)
    assert choice.resolution_m == pytest.approx(2.0, rel=1e-3)
    assert is_plain(feet)


def test_the_grid_of_a_file(tmp_path):
    import rasterio

    path = tmp_path / "grid.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    reference = GeoBox((30, 40), Affine(20, 0, 600_105, 0, -20, 5_199_903), "EPSG:32632")
    with rasterio.open(path, "w", height=30, width=40, transform=reference.affine, **profile) as file:
        file.write(np.zeros((1, 30, 40), np.uint8))
    choice = choose_grid(scene(TEN), scene(THIRTY), str(path))
    assert choice.geobox == reference
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(UnreadableFileError, match="not a raster"):
        choose_grid(scene(TEN), scene(THIRTY), str(tmp_path / "text.tif"))


@pytest.mark.parametrize("rule", ["finer", "no/such.tif", 0, -3, "nan"])
def test_rules_that_are_none(rule):
    with pytest.raises(SettingError, match="grid"):
        choose_grid(scene(TEN), scene(THIRTY), rule)


@pytest.mark.parametrize(("lat", "true"), [(0.0, True), (46.9, False)])
def test_web_mercator_is_never_a_grid_to_count_in(lat, true):
    assert not is_plain(around("EPSG:3857", 10.3, lat, 50, 10.0))
    assert is_plain(around("EPSG:32632", 10.3, lat, 50, 10.0))
    assert is_plain(around("EPSG:3035", 10.3, 46.9, 50, 10.0))


def test_pixels_that_are_not_square_are_not_plain():
    assert not is_plain(GeoBox((10, 10), Affine(10, 0, 6e5, 0, -20, 5.2e6), "EPSG:32632"))


def test_a_window_of_a_known_grid_in_words():
    window = GeoBox((20, 30), Affine(10, 0, 600_100, 0, -10, 5_199_900), "EPSG:32632")
    text = cell_text(window, "EPSG:32632")
    assert text == "cell:EPSG:32632:600100.0:5199900.0:10.0:20x30"
    assert choose_grid(scene(TEN), scene(THIRTY), text).geobox == window
    beyond = cell_text(
        GeoBox((20, 30), Affine(10, 0, 601_100, 0, -10, 5_200_100), "EPSG:32632"), "EPSG:32632"
    )
    cut = choose_grid(scene(TEN), scene(TEN), beyond).geobox  # only what the images cover is left
    assert cut == GeoBox((10, 10), Affine(10, 0, 601_100, 0, -10, 5_200_000), "EPSG:32632")


@pytest.mark.parametrize(
    "text", ["cell:", "cell:EPSG:32632:0:0:10:0x5", "cell:moon:0:0:10:5x5", "cell:EPSG:32632:0:0:10:5"]
)
def test_what_is_no_window(text):
    with pytest.raises(SettingError, match="no window of a grid"):
        choose_grid(scene(TEN), scene(TEN), text)


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"),
    [
        (-179.9, 10, 32601),
        (179.9, 10, 32660),
        (180.1, -10, 32701),
        (9, -1, 32732),
        (20, 86, 32661),
        (20, -85, 32761),
    ],
)
def test_local_projection(lon, lat, epsg):
    assert local_utm(lon, lat).epsg == epsg


# --- overlap ---------------------------------------------------------------------------------------
def test_no_overlap_names_both_places():
    far = around("EPSG:32633", 15.0, 47.0, 50, 10.0)
    with pytest.raises(NoOverlapError) as caught:
        choose_grid(scene(TEN, "first.tif"), scene(far, "second.tif"))
    text = str(caught.value)
    assert "first.tif" in text
    assert "second.tif" in text
    assert "before covers longitude 10.3" in text
    assert "after covers longitude 14.9" in text


def test_images_that_only_touch_do_not_overlap():
    beside = GeoBox((100, 120), compose(TEN.affine, Affine.translation(120, 0)), TEN.crs)
    with pytest.raises(NoOverlapError):
        choose_grid(scene(TEN), scene(beside))


def test_other_side_of_the_earth():
    with pytest.raises(NoOverlapError):
        choose_grid(scene(TEN), scene(around("EPSG:32760", 177.0, -40.0, 50, 10.0)))


def test_two_zones_overlap_where_the_ground_does():
    one, two = around("EPSG:32632", 11.99, 47.0, 200, 10.0), around("EPSG:32633", 12.01, 47.0, 200, 10.0)
    choice = choose_grid(scene(one), scene(two))
    assert aligned_to(choice.geobox, one)
    footprint = lonlat_footprint(scene(two))
    for row in (0.5, choice.geobox.shape.y - 0.5):
        a = choice.geobox.affine
        lon, lat = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True).transform(
            a.c + a.a * choice.geobox.shape.x / 2, a.f + a.e * row
        )
        assert footprint.buffer(1e-3).contains_properly(type(footprint.centroid)(lon, lat))
    assert 0.2 < choice.geobox.shape.x / 200 < 0.35


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (around("EPSG:32660", 180.0, 52.0, 300, 10.0), around("EPSG:32601", 180.0, 52.0, 300, 10.0)),
        (around("EPSG:32601", 180.0, 52.0, 300, 10.0), around("EPSG:32660", 180.0, 52.0, 300, 10.0)),
        (
            around("EPSG:32660", 180.0, 52.0, 300, 10.0),
            GeoBox((200, 400), Affine(1e-4, 0, 179.98, 0, -1e-4, 52.01), "EPSG:4326"),
        ),
        (
            GeoBox((200, 200), Affine(1e-4, 0, -180.0, 0, -1e-4, 52.01), "EPSG:4326"),
            GeoBox((200, 400), Affine(1e-4, 0, 179.98, 0, -1e-4, 52.01), "EPSG:4326"),
        ),
    ],
    ids=["zones 60 and 1", "zones 1 and 60", "zone 60 and degrees", "degrees counted both ways"],
)
def test_the_antimeridian(one, two):
    for rule in ("before", "coarser"):
        choice = choose_grid(scene(one), scene(two), rule)
        assert 150 <= max(choice.geobox.shape) <= 420
        if rule == "before":
            assert aligned_to(choice.geobox, one)


def test_a_global_image_covers_everything():
    world = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    choice = choose_grid(scene(TEN), scene(world), "before")
    assert choice.geobox == TEN


def test_a_polar_image_covers_the_pole():
    pole = GeoBox((100, 100), Affine(10_000, 0, -500_000, 0, -10_000, 500_000), "EPSG:3995")
    band = GeoBox((60, 3600), Affine(0.1, 0, -180, 0, -0.1, 89), "EPSG:4326")
    assert choose_grid(scene(pole), scene(band), "before").geobox.shape == (100, 100)


def test_one_image_without_a_coordinate_system():
    bare = GeoBox((100, 120), Affine.identity(), None)
    with pytest.raises(NoGeoreferenceError, match=r"bare.tif.*assume-crs"):
        choose_grid(scene(TEN), scene(bare, "bare.tif"))
    choice = choose_grid(scene(bare), scene(bare))
    assert choice.geobox == bare
    assert choice.resolution_m is None
    with pytest.raises(SettingError, match="metres mean nothing"):
        choose_grid(scene(bare), scene(bare), 10)


# --- area of interest ------------------------------------------------------------------------------
def write_area(path, *rings, crs="EPSG:4326"):
    geometries = [{"type": "Polygon", "coordinates": [ring]} for ring in rings]
    features = [{"type": "Feature", "properties": {}, "geometry": g} for g in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def triangle_in_ten(tmp_path):
    to_lonlat = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    corners = [(600_200, 5_199_800), (600_700, 5_199_800), (600_200, 5_199_300), (600_200, 5_199_800)]
    return write_area(tmp_path / "area.geojson", [list(to_lonlat.transform(*c)) for c in corners])


def test_an_area_cuts_the_grid_and_masks_what_is_outside(tmp_path):
    area = Area(triangle_in_ten(tmp_path))
    choice = choose_grid(scene(TEN), scene(TEN), area=area)
    assert choice.geobox == TEN[20:70, 20:70]
    outside = area.outside(choice.geobox.affine, choice.geobox.crs, (50, 50))
    row, col = np.mgrid[0:50, 0:50]
    np.testing.assert_array_equal(
        outside[np.abs(row + col - 49) > 1], (row + col > 49)[np.abs(row + col - 49) > 1]
    )
    part = area.outside(compose(choice.geobox.affine, Affine.translation(13, 7)), TEN.crs, (21, 30))
    np.testing.assert_array_equal(part, outside[7:28, 13:43])
    assert area.outside(TEN.affine, TEN.crs, (10, 10)).all()
    assert not area.outside(choice.geobox.affine, TEN.crs, (20, 20)).any()


def test_areas_that_cannot_be_used(tmp_path):
    with pytest.raises(FileMissingError, match="nowhere"):
        Area(tmp_path / "nowhere.geojson")
    (tmp_path / "broken.geojson").write_text("{")
    with pytest.raises(UnreadableFileError, match="broken"):
        Area(tmp_path / "broken.geojson")
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    (tmp_path / "point.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [point]}))
    with pytest.raises(SettingError, match="no polygon"):
        Area(tmp_path / "point.geojson")
    far = write_area(tmp_path / "far.geojson", [[0, 0], [1, 0], [1, 1], [0, 0]])
    with pytest.raises(NoOverlapError, match=r"within .*far\.geojson.*area of interest longitude 0.000"):
        choose_grid(scene(TEN), scene(TEN), area=Area(far))


def test_a_shapefile_without_a_coordinate_system(tmp_path):
    import geopandas
    from shapely.geometry import box

    path = tmp_path / "bare.gpkg"
    with pytest.warns(UserWarning, match="crs"):
        geopandas.GeoSeries([box(0, 0, 1, 1)]).to_file(path, driver="GPKG")
    with pytest.raises(NoGeoreferenceError, match="bare"):
        Area(path)
