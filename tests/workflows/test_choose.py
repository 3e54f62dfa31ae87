"""Which detector a pair gets, and what is said when it does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from terralapse import registry
from terralapse.cards import Inputs, Status, Task
from terralapse.errors import ModelInputError
from terralapse.grid.scene import ArrayScene, SceneInfo
from terralapse.sensors import RGB, SENTINEL1, SENTINEL2, UNKNOWN, Band, Sensor, Unit
from terralapse.workflows.choose import choose, common_bands, misfits


def scene(
    bands: list[str], *, gsd: float = 10.0, unit: Unit = Unit.REFLECTANCE, sensor: Sensor = SENTINEL2
) -> ArrayScene:
    geobox = GeoBox.from_bbox(
        (500000, 4000000, 500000 + 8 * gsd, 4000000 + 8 * gsd), "EPSG:32633", resolution=gsd
    )
    info = SceneInfo("a scene", "memory", sensor, tuple(Band(b, b) for b in bands), unit, geobox)
    return ArrayScene(info, np.ones((len(bands), 8, 8), np.float32))


FOUR = ["blue", "green", "red", "nir"]


def test_ten_metre_reflectance_gets_the_network_trained_on_it() -> None:
    chosen = choose(scene(FOUR), scene(FOUR))
    assert chosen.card.weights
    assert chosen.card.inputs.bands is not None
    assert set(chosen.card.inputs.bands) <= set(FOUR)
    assert chosen.card.slug in chosen.why
    assert "10 m" in chosen.why


def test_fine_rgb_gets_another_network_than_ten_metre_reflectance() -> None:
    rgb = scene(["red", "green", "blue"], gsd=0.6, unit=Unit.RGB255, sensor=RGB)
    chosen = choose(rgb, rgb)
    assert chosen.card.weights
    assert chosen.card.slug != choose(scene(FOUR), scene(FOUR)).card.slug


@pytest.mark.parametrize(
    ("bands", "gsd", "unit", "sensor"),
    [
        (["vv", "vh"], 10.0, Unit.POWER, SENTINEL1),
        (["b1"], 30.0, Unit.RAW, UNKNOWN),
        (["b1", "b2", "b3", "b4", "b5"], 250.0, Unit.RAW, UNKNOWN),
        (["red", "green", "blue"], 60.0, Unit.RGB255, RGB),
    ],
)
def test_what_no_network_was_trained_on_gets_an_unsupervised_method(
    bands: list[str], gsd: float, unit: Unit, sensor: Sensor
) -> None:
    one = scene(bands, gsd=gsd, unit=unit, sensor=sensor)
    chosen = choose(one, one)
    assert not chosen.card.weights
    assert len(bands) >= chosen.card.inputs.min_bands


def test_scenes_without_a_common_band_are_refused() -> None:
    with pytest.raises(ModelInputError, match="share the bands none"):
        choose(scene(["vv"], sensor=SENTINEL1, unit=Unit.POWER), scene(FOUR))


def test_common_bands_keep_the_order_of_the_scene_before() -> None:
    assert common_bands(scene(FOUR).info, scene(["nir", "red", "swir16"]).info) == ["red", "nir"]


def test_each_way_of_not_fitting_is_one_warning() -> None:
    inputs = Inputs(units=(Unit.RGB255,), gsd_range=(0.3, 3.0), sensors=("rgb",))
    notes = misfits(inputs, scene(FOUR).info, scene(FOUR).info, 10.0)
    assert {n.code for n in notes} == {
        "outside-gsd",
        "outside-unit-before",
        "outside-unit-after",
        "outside-sensor-before",
        "outside-sensor-after",
    }
    assert all(n.level == "warning" for n in notes)
    rgb = scene(["red"], gsd=3.0, unit=Unit.RGB255, sensor=RGB).info
    assert misfits(inputs, rgb, rgb, 3.0) == []


def test_every_detector_with_a_rank_runs_and_a_trained_one_comes_first() -> None:
    ranked = [c for c in registry.cards() if c.task is Task.CHANGE and c.default_rank is not None]
    assert {c.status for c in ranked} <= {Status.RUNS, Status.REPRODUCED}
    trained = [c.default_rank or 0 for c in ranked if c.weights]
    others = [c.default_rank or 0 for c in ranked if not c.weights]
    assert max(trained) < min(others)
    # No rank is shared by two detectors that could both fit one pair.
    fields = [(c.default_rank, c.inputs.units, c.inputs.bands) for c in ranked]
    assert len(set(fields)) == len(fields)
