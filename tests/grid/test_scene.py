"""Scenes in memory keep the contract of scenes from files."""

from __future__ import annotations

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.grid.scene import ArrayScene, SceneInfo, Window
from terralapse.labels import SceneMask
from terralapse.sensors import RGB, Band, Unit


def test_a_decimated_scene_in_memory_is_averaged_and_says_why_the_rest_is_masked() -> None:
    info = SceneInfo(
        "s", "memory", RGB, (Band("red", "R"),), Unit.RGB255, GeoBox((4, 4), Affine.identity(), "EPSG:32633")
    )
    data = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    data[0, 0, 0] = np.nan
    data[0, 2:, 2:] = np.nan
    block = ArrayScene(info, data).read(Window(0, 0, 4, 4), decimation=2)
    assert block.mask.tolist() == [[0, 0], [0, int(SceneMask.NODATA)]]
    np.testing.assert_allclose(block.data[0], [[(1 + 4 + 5) / 3, 4.5], [10.5, np.nan]])
