"""`ArrayPair` keeps the contract of `Pair`: outside is NaN, reasons are right, previews average."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.errors import BandError
from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Window
from terralapse.labels import Reason


def images(height: int = 21, width: int = 34) -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, height, width), dtype=np.float32)


def test_a_window_inside_is_the_array_itself() -> None:
    array = images()
    block = ArrayPair(array).read(Window(3, 5, 7, 11))
    assert np.array_equal(block.images, array[:, :, 3:10, 5:16])
    assert block.valid.all()


def test_outside_is_nan_with_a_reason() -> None:
    array = images()
    block = ArrayPair(array).read(Window(-2, 30, 6, 8))
    assert block.images.shape == (2, 3, 6, 8)
    assert np.array_equal(block.images[:, :, 2:, :4], array[:, :, :4, 30:])
    outside = np.ones((6, 8), bool)
    outside[2:, :4] = False
    assert np.isnan(block.images).all(axis=(0, 1))[outside].all()
    assert (block.reason[outside] == Reason.OUTSIDE_BEFORE).all()


def test_one_missing_band_masks_its_date_only() -> None:
    array = images()
    array[0, 1, 4, 5] = np.nan
    array[1, 2, 6, 7] = np.nan
    block = ArrayPair(array).sample().pair.read(Window(0, 0, 21, 34))
    assert block.reason[4, 5] == Reason.NODATA_BEFORE
    assert block.reason[6, 7] == Reason.NODATA_AFTER
    assert np.isnan(block.images[0, :, 4, 5]).all()
    assert np.isfinite(block.images[1, :, 4, 5]).all()
    assert (block.reason > 0).sum() == 2


def test_a_given_cloud_hides_the_pixels_of_its_date() -> None:
    reason = np.zeros((21, 34), np.uint8)
    reason[2, 3] = Reason.CLOUD_AFTER
    reason[5, 5] = Reason.MISREGISTERED
    block = ArrayPair(images(), reason=reason).read(Window(0, 0, 21, 34))
    assert np.isnan(block.images[1, :, 2, 3]).all()
    assert np.isfinite(block.images[0, :, 2, 3]).all()
    assert np.isfinite(block.images[:, :, 5, 5]).all()
    assert block.reason[5, 5] == Reason.MISREGISTERED


def test_a_preview_averages_and_keeps_the_ground() -> None:
    array = images(20, 40)
    block, grid = ArrayPair(array, bands=["red", "green", "blue"], gsd=2.0).preview(10, ["blue"])
    assert block.images.shape == (2, 1, 5, 10)
    assert block.images[1, 0, 2, 3] == pytest.approx(array[1, 2, 8:12, 12:16].mean(), rel=1e-6)
    assert grid.resolution.x == pytest.approx(8.0)
    with pytest.raises(BandError, match="nir"):
        ArrayPair(array).preview(10, ["nir"])


def test_what_is_not_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, C, H, W\]"):
        ArrayPair(images()[0])
    with pytest.raises(ValueError, match="named"):
        ArrayPair(images(), bands=["red"])
