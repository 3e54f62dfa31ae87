"""Graticule, globe, stretch, layers and charts."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Window
from terralapse.labels import VALIDITY, Reason
from terralapse.products import charts, imagery
from terralapse.products.alignment import view
from terralapse.products.graticule import bar_length, degrees, globe, graticule, metres_per_pixel
from terralapse.sensors import RGB, SENTINEL2, Unit

DEGREES = GeoBox((100, 200), Affine(0.001, 0, 10.0005, 0, -0.001, 50.0005), "EPSG:4326")
UTM = GeoBox((1000, 1000), Affine(10, 0, 300000, 0, -10, 4100000), "EPSG:32615")


def test_the_graticule_of_a_grid_in_degrees_is_straight():
    lines = graticule(DEGREES)
    assert lines is not None
    step = 0.2 / 4
    assert 3 <= len(lines.bottom) <= 8
    assert [t.at for t in lines.bottom] == pytest.approx([t.at for t in lines.top])
    first = lines.bottom[0]
    lon = 10.0005 + 0.001 * first.at
    assert lon * 3600 == pytest.approx(round(lon * 3600), abs=1e-3)
    assert first.text.endswith("E")
    assert lines.left[0].text.endswith("N")
    assert len(lines.crossings) == len(lines.bottom) * len(lines.left)
    assert step > 0


def test_crossings_lie_where_both_coordinates_are_whole():
    from pyproj import Transformer

    lines = graticule(UTM)
    assert lines is not None
    assert len(lines.crossings) >= 4
    x = 300000 + 10 * lines.crossings[:, 0]
    y = 4100000 - 10 * lines.crossings[:, 1]
    lon, lat = Transformer.from_crs(32615, 4326, always_xy=True).transform(x, y)
    for values in (lon, lat):
        assert np.abs(values * 60 - np.round(values * 60)).max() < 1e-4  # whole minutes


def test_no_graticule_and_no_metres_without_a_crs():
    box = GeoBox((10, 10), Affine(1, 0, 0, 0, -1, 0), None)
    assert graticule(box) is None
    assert metres_per_pixel(box) == (1.0, 1.0)


def test_the_graticule_crosses_the_antimeridian():
    box = GeoBox((100, 100), Affine(0.01, 0, 179.5, 0, -0.01, 0.5), "EPSG:4326")
    lines = graticule(box)
    assert lines is not None
    texts = [t.text for t in lines.bottom]
    assert any(t.endswith("E") for t in texts)
    assert any(t.endswith("W") and not t.startswith("180") for t in texts)
    assert [t.at for t in lines.bottom] == sorted(t.at for t in lines.bottom)


def test_scale_is_true_on_the_ground():
    across, down = metres_per_pixel(UTM)
    assert (across, down) == (pytest.approx(10 / 0.99995, rel=5e-4), pytest.approx(10 / 0.99995, rel=5e-4))
    mercator = GeoBox((10, 10), Affine(100, 0, 0, 0, -100, 8399737.9), "EPSG:3857")
    assert metres_per_pixel(mercator)[0] == pytest.approx(50.1, rel=5e-3)


@pytest.mark.parametrize(("most", "length"), [(230, 200), (99, 50), (0.7, 0.5), (1000, 1000)])
def test_bars_have_round_lengths(most, length):
    assert bar_length(most) == pytest.approx(length)


def test_degrees_show_as_much_as_the_step_needs():
    assert degrees(-94.5, "lon", 0.5) == "94°30′ W"
    assert degrees(37 + 4 / 60 + 10 / 3600, "lat", 10 / 3600) == "37°04′10″ N"
    assert degrees(181.0, "lon", 1) == "179° W"
    assert degrees(-0.99999999, "lat", 1 / 60) == "1°00′ S"


def test_the_globe_shows_the_near_side_only():
    shapes, lines = globe(-94.5, 37.0)
    assert len(shapes) > 5
    for shape in [*shapes, *lines]:
        assert np.hypot(*shape.T).max() <= 1 + 1e-9
    assert len(globe(0, 0)[0]) != len(globe(180, 0)[0])


def test_the_ramp_gets_darker_all_the_way():
    colours = imagery.ramp(np.linspace(0, 1, 60)) / 255
    luminance = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) < 0).all()


def test_bands_are_chosen_by_what_both_dates_have():
    def pair(bands):
        return ArrayPair(np.zeros((2, len(bands), 4, 4)), bands=bands, geobox=UTM[:4, :4])

    assert imagery.display_bands(pair(SENTINEL2.bands[1:4])) == ("red", "green", "blue")
    assert imagery.display_bands(pair(["b1", "b2", "b3", "b4"])) == ("b1", "b2", "b3")
    assert imagery.display_bands(pair(["b1", "b2"])) == ("b1",)
    assert imagery.display_bands(pair(["vv", "vh"])) == ("vv", "vh")


def test_radar_is_shown_in_decibels():
    power = np.full((2, 1, 8, 8), 0.01)
    power[:, :, :4] = 0.1
    drawn = imagery.picture(ArrayPair(power, bands=["vv"], unit=Unit.POWER), 8)
    assert drawn.look.low[0] == pytest.approx(-20)
    assert drawn.look.high[0] == pytest.approx(-10)
    assert drawn.before[0, 0].tolist() == [255, 255, 255]
    assert drawn.before[7, 0].tolist() == [0, 0, 0]


def test_nodata_is_transparent():
    images = np.random.default_rng(0).random((2, 3, 10, 10))
    images[0, :, :2] = np.nan
    drawn = imagery.picture(ArrayPair(images, bands=RGB.bands), 10)
    assert (drawn.before_alpha[:2] == 0).all()
    assert (drawn.before_alpha[2:] == 255).all()
    assert (drawn.after_alpha == 255).all()


def test_thumbnails_are_read_sharp_and_stand_on_their_place():
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 255, (1, 3, 400, 400)), 2, axis=0).astype(float)
    pair = ArrayPair(images, bands=RGB.bands, unit=Unit.RGB255)
    pictures = imagery.picture(pair, 100)
    window = Window(380, 100, 40, 40)  # half of it is below the grid
    before, after = imagery.thumbnails(pair, pictures, window, 40)
    assert (before == after).all()
    assert (before[20:, :, 3] == 0).all()
    sharp, _ = pictures.look.draw(images[0][:, 380:400, 100:140])
    assert (before[:20, :, :3] == sharp).all()


def test_the_mask_layer_has_the_colours_of_the_legend():
    drawn = imagery.mask_layer(np.array([[0, int(Reason.CLOUD_AFTER)]]))
    assert drawn[0, 0, 3] == 0
    assert tuple(drawn[0, 1]) == (*imagery.rgb(VALIDITY.by_value(Reason.CLOUD_AFTER).colour), 255)


def test_the_colours_of_reasons_are_not_that_of_change():
    change = np.array(imagery.rgb(imagery.CHANGE_COLOUR))
    for c in VALIDITY.classes:
        assert np.abs(change - imagery.rgb(c.colour)).max() > 60, c.name


def test_a_picture_keeps_to_its_budget():
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    uri = imagery.data_uri(noise, quality=80, most=15_000)
    content = base64.b64decode(uri.split(",")[1])
    assert len(content) <= 15_000
    assert Image.open(io.BytesIO(content)).size == (200, 200)


def test_size_classes_hold_every_object_once():
    areas = np.array([12.0, 99.0, 100.0, 5000.0, 1e5])
    classes = charts.size_classes(areas, "m2")
    assert sum(n for _, n, _ in classes) == 5
    assert sum(a for _, _, a in classes) == pytest.approx(areas.sum())
    assert classes[0][0] == "10 m² – 100 m²"
    assert charts.size_classes(np.array([100.0]), "m2")[0][1] == 1
    assert charts.size_classes(np.array([]), "m2") == []


def test_drawings_are_well_formed_and_escape_names():
    names = ["A1", '<b onclick="x">', "A2", "B2"]
    arrows = view(
        {
            "verdict": "x",
            "coregistration": {
                "blocks": [
                    {"window": [0, 0, 5, 5], "state": "reliable", "shift_px": [0.0, 0.0]},
                    {"window": [5, 5, 5, 5], "state": "reliable", "shift_px": [3.0, -4.0]},
                    {"window": [5, 0, 5, 5], "state": "unknown", "shift_px": None},
                ]
            },
        },
        (10, 10),
    )
    drawn = [
        charts.squares(np.array([0.0, 3.0, np.nan, 9.0]), (2, 2), names),
        charts.bars([(names[1], 1.0, "1", "2")], "Bars"),
        charts.probabilities(np.r_[1e6, np.zeros(199), 5.0], 0.5),
        charts.rose({"north": 0.6, "centre": 0.4}),
        charts.shifts(arrows, (10, 10)),
        charts.sizes(np.array([10.0, 2000.0]), "m2"),
    ]
    for svg in drawn:
        root = ET.fromstring(str(svg))
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert not any(k.startswith("on") for e in root.iter() for k in e.attrib)


def test_arrows_point_where_the_content_went():
    report = {
        "verdict": "x",
        "coregistration": {
            "status": "corrected",
            "residual_median_px": 0.1,
            "blocks": [{"window": [0, 0, 10, 10], "state": "reliable", "shift_px": [-2.0, 1.0]}],
        },
    }
    found = view(report, (10, 10))
    assert found.level == "good"
    arrow = found.arrows[0]
    assert (arrow.x, arrow.y, arrow.dx, arrow.dy) == (0.5, 0.5, 1.0, -2.0)
    line = next(ET.fromstring(str(charts.shifts(found, (10, 10)))).iter("line"))
    assert float(line.get("x2", "")) > float(line.get("x1", ""))
    assert float(line.get("y2", "")) < float(line.get("y1", ""))


@pytest.mark.parametrize(
    ("status", "residual", "misregistered", "level"),
    [
        ("aligned", 0.1, [], "good"),
        ("aligned", 0.7, [], "warning"),
        ("corrected", 0.1, [[0, 0, 1, 1]], "warning"),
        ("inconsistent", 0.1, [], "warning"),
        ("skipped", None, [], "unknown"),
        ("unknown", None, [], "unknown"),
    ],
)
def test_the_level_of_the_alignment(status, residual, misregistered, level):
    found = {"status": status, "residual_median_px": residual, "misregistered": misregistered}
    assert view({"verdict": "x", "coregistration": found}, (10, 10)).level == level
