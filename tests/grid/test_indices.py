"""Spectral indices: formulas, the bands that they take, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.errors import BandError, SettingError
from terralapse.grid.indices import DIFFERENCES, Index, bands_for, parse_index, resolve, unit_notes
from terralapse.grid.scene import SceneInfo
from terralapse.sensors import LANDSAT_OLI, SENTINEL2, UNKNOWN, Band, Unit

BOX = GeoBox((2, 2), Affine(10, 0, 0, 0, -10, 0), "EPSG:32633")


def info(*names: str, unit: Unit = Unit.REFLECTANCE, ids: tuple[str, ...] | None = None) -> SceneInfo:
    bands = tuple(Band(n, i) for n, i in zip(names, ids or names, strict=True))
    return SceneInfo("a", "memory:a", UNKNOWN, bands, unit, BOX)


def test_every_index_is_computable_for_the_sensors_that_have_its_bands() -> None:
    for sensor in (SENTINEL2, LANDSAT_OLI):
        scene = SceneInfo("a", "memory:a", sensor, sensor.bands, sensor.unit, BOX)
        for name in (*DIFFERENCES, "evi2"):
            index = parse_index(name)
            assert bands_for(index, scene) == index.bands


def test_a_difference_is_cut_and_has_no_value_without_light() -> None:
    bands = np.array([[[0.4, 0.1, np.nan, -0.2]], [[0.1, -0.02, 0.1, 0.1]]], np.float32)
    got = parse_index("NDVI").compute(bands)
    assert got.dtype == np.float32
    assert got[0, :2] == pytest.approx([0.6, 1.0])
    assert np.isnan(got[0, 2:]).all()


def test_evi2_and_a_scaled_band() -> None:
    bands = np.array([[[0.4]], [[0.1]]], np.float32)
    assert parse_index("evi2").compute(bands)[0, 0] == pytest.approx(2.5 * 0.3 / 1.64)
    assert parse_index("b1", 0.0001).compute(np.array([[[6084.0]]], np.float32))[0, 0] == pytest.approx(
        0.6084
    )


def test_a_stack_of_dates_is_computed_at_once() -> None:
    bands = np.random.default_rng(0).uniform(0, 1, (3, 2, 4, 5)).astype(np.float32)
    both = parse_index("nbr").compute(bands)
    assert np.array_equal(both[1], parse_index("nbr").compute(bands[1]))


def test_the_narrow_infrared_stands_in_and_numbers_name_bands() -> None:
    assert bands_for(parse_index("ndvi"), info("red", "nir08")) == ("nir08", "red")
    assert bands_for(parse_index("nd:2,1"), info("b1", "b2")) == ("b2", "b1")
    with pytest.raises(BandError, match="nir08"):
        bands_for(parse_index("nir"), info("red", "nir08"))  # a band asked for by name is that band


def test_a_ready_made_index_is_taken_by_its_name() -> None:
    ready = [info("b1", ids=("ndvi",)), info("b1", ids=("NDVI",))]
    assert resolve(parse_index("ndvi"), ready) == Index("ndvi", "band", ("ndvi",))
    mixed = [*ready, info("b1", ids=("other",))]
    assert resolve(parse_index("ndvi"), mixed).kind == "difference"
    with pytest.raises(BandError, match="which ndvi needs"):
        bands_for(parse_index("ndvi"), mixed[-1])


def test_units_are_watched() -> None:
    assert unit_notes(parse_index("ndvi"), [info("red", "nir")]) == []
    display = info("red", "nir", unit=Unit.RGB255)
    assert unit_notes(parse_index("ndvi"), [display])[0].code == "index-not-of-reflectance"
    with pytest.raises(BandError, match="different units"):
        unit_notes(parse_index("red"), [display, info("red", "nir")])


def test_floors_follow_the_unit() -> None:
    assert parse_index("ndvi").floor(Unit.REFLECTANCE) == 0.005
    assert parse_index("red").floor(Unit.RGB255) == 0.5
    assert parse_index("b1", 0.01).floor(Unit.RGB255) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("text", "scale"), [("", 1.0), ("nd:red", 1.0), ("nd:a,b,c", 1.0), ("ndvi", 0.1), ("b1", 0.0)]
)
def test_what_is_no_index_is_refused(text: str, scale: float) -> None:
    with pytest.raises(SettingError):
        parse_index(text, scale)
