"""Areas by probability and by day agree with whole arrays, masked pixels left out."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from product_runs import write_rasters
from terralapse.grid.areas import PixelArea
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.products.histogram import break_days, histogram

TALL = GeoBox(
    (1100, 40), Affine(0.001, 0, 10, 0, -0.001, 60), "EPSG:4326"
)  # rows of different size, three strips


def areas(box: GeoBox) -> np.ndarray:
    shape = (box.shape.y, box.shape.x)
    return np.broadcast_to(PixelArea(box).block(Window(0, 0, *shape)), shape)


def test_each_probability_has_its_area(tmp_path):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 201, (1100, 40))
    reason = np.where(rng.random((1100, 40)) < 0.2, Reason.CLOUD_AFTER, Reason.VALID).astype(np.uint8)
    write_rasters(tmp_path, TALL, codes >= 100, codes / 200, reason)
    found = histogram(tmp_path)
    valid = reason == Reason.VALID
    assert found.pixels.tolist() == np.bincount(codes[valid], minlength=201).tolist()
    expected = np.bincount(codes[valid], areas(TALL)[valid], minlength=201)
    assert found.area == pytest.approx(expected, rel=1e-12)


def test_each_day_has_its_area(tmp_path):
    none = -(2**31)
    days = np.full((1100, 40), none, np.int32)
    days[:10], days[600:700, :5], days[-1] = 17000, 18000, 17000
    write_cog(days, tmp_path / "break_days.tif", geobox=TALL, kind="class", dtype="int32", nodata=none)
    found = break_days(tmp_path)
    assert found.days.tolist() == [17000, 18000]
    assert found.area == pytest.approx([areas(TALL)[days == d].sum() for d in (17000, 18000)], rel=1e-12)


def test_nothing_that_broke_is_an_empty_table(tmp_path):
    none = -(2**31)
    write_cog(
        np.full((1100, 40), none, np.int32),
        tmp_path / "break_days.tif",
        geobox=TALL,
        kind="class",
        nodata=none,
    )
    assert len(break_days(tmp_path).days) == 0
