"""Areas and directions that do not depend on the projection."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS

from terralapse.grid.areas import Compass, PixelArea, geodesic_measures, on_ground
from terralapse.grid.scene import Window

GRIDS = {
    "utm": ("EPSG:32615", Affine(100, 0, 300000, 0, -100, 4100000)),
    "utm-south-up": ("EPSG:32733", Affine(100, 0, 300000, 0, 100, 6000000)),
    "degrees": ("EPSG:4326", Affine(0.001, 0, 10, 0, -0.001, 61)),
    "web-mercator": ("EPSG:3857", Affine(100, 0, 0, 0, -100, 8399737.9)),
    "feet": ("EPSG:2264", Affine(100, 0, 1500000, 0, -100, 500000)),
    "polar": ("EPSG:3413", Affine(100, 0, -300000, 0, -100, -900000)),
    "antimeridian": ("EPSG:3832", Affine(100, 0, 3339000, 0, -100, 2000000)),
    "turned": ("EPSG:32615", Affine(80, 60, 300000, 60, -80, 4100000)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_pixels_add_up_to_the_geodesic_area(name):
    crs, affine = GRIDS[name]
    box = GeoBox((200, 300), affine, crs)
    areas = PixelArea(box)
    total = sum(
        np.broadcast_to(areas.block(w), (w.height, w.width)).sum()
        for w in (Window(0, 0, 130, 300), Window(130, 0, 70, 120), Window(130, 120, 70, 180))
    )
    frame = shapely.transform(shapely.box(0, 0, 300, 200), lambda c: np.column_stack(on_ground(affine, *c.T)))
    expected, _ = geodesic_measures(np.array([frame]), CRS(crs), abs(affine.a) + abs(affine.b))
    assert total == pytest.approx(expected[0], rel=2e-7)


def test_a_web_mercator_pixel_at_sixty_degrees_is_a_quarter():
    crs, affine = GRIDS["web-mercator"]
    assert PixelArea(GeoBox((10, 10), affine, crs)).mean == pytest.approx(100**2 / 3.98, rel=2e-3)


def test_perimeter_is_geodesic():
    box = shapely.box(0, 0, 0.01, 0.01)
    area, length = geodesic_measures(np.array([box]), CRS("EPSG:4326"), 0.001)
    assert length[0] == pytest.approx(2 * (1113.195 + 1105.743), rel=1e-5)
    assert area[0] == pytest.approx(1113.195 * 1105.743, rel=1e-5)


@pytest.mark.parametrize("name", ["utm", "utm-south-up", "degrees", "antimeridian"])
def test_compass_names_are_of_the_ground_and_not_of_the_rows(name):
    crs, affine = GRIDS[name]
    compass = Compass(GeoBox((300, 300), affine, crs))
    top = "south" if affine.e > 0 else "north"
    foot = "north" if affine.e > 0 else "south"
    cols = np.array([30.0, 150, 270, 150, 30, 270])
    rows = np.array([30.0, 30, 30, 150, 270, 270])
    names = compass.names(*on_ground(affine, cols, rows))
    assert names == [f"{top}-west", top, f"{top}-east", "centre", f"{foot}-west", f"{foot}-east"]


def test_in_a_polar_grid_up_is_not_north():
    crs, _ = GRIDS["polar"]
    # Off Alaska in EPSG:3413 (central meridian 45 W): true north points to the right of the sheet.
    compass = Compass(GeoBox((100, 100), Affine(100, 0, -2500000, 0, -100, 600000), crs))
    lon = compass.lonlat(-2495000, 595000)[0]
    assert compass.picture_north() == pytest.approx(-45 - lon, abs=0.05)


def test_without_a_crs_everything_is_planar():
    box = GeoBox((30, 60), Affine(1, 0, 0, 0, -1, 0), None)
    assert PixelArea(box).block(Window(3, 5, 2, 7)).tolist() == [[1.0], [1.0]]
    compass = Compass(box)
    assert compass.names(np.array([2.0, 30]), np.array([-2.0, -15])) == ["north-west", "centre"]
    assert np.isnan(compass.lonlat(np.array([1.0]), np.array([1.0]))[0]).all()
    assert compass.picture_north() == 0
    area, length = geodesic_measures(np.array([shapely.box(0, 0, 2, 3)]), None, 1)
    assert (area[0], length[0]) == (6, 10)


def test_south_up_points_north_down():
    crs, affine = GRIDS["utm-south-up"]
    assert abs(Compass(GeoBox((100, 100), affine, crs)).picture_north()) == pytest.approx(180, abs=3)


def test_utm_convergence_has_the_textbook_value():
    crs, affine = GRIDS["utm"]
    compass = Compass(GeoBox((100, 100), affine, crs))
    lon, lat = np.radians(compass.lonlat(305000, 4095000))
    expected = np.degrees(np.arctan(np.tan(lon - np.radians(-93)) * np.sin(lat)))
    assert compass.picture_north() == pytest.approx(-expected, abs=0.01)
