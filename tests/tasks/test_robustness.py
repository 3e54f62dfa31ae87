"""Each disturbance is what its definition says, on the later date alone, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.errors import SettingError
from terralapse.sensors import Unit
from terralapse.tasks.robustness import AIRLIGHT, PERTURBATIONS, perturb, perturbation, shift

RGB = np.random.default_rng(1).uniform(0, 255, (2, 3, 24, 20)).astype(np.float32)


def made(slug: str, images: np.ndarray = RGB, unit: Unit = Unit.RGB255, **options: object) -> np.ndarray:
    return perturb(images, unit, perturbation(slug), "tile", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("slug", [p.slug for p in PERTURBATIONS if p.apply is not None])
def test_the_earlier_date_stays_and_the_later_one_changes_alike_every_time(slug: str) -> None:
    before = RGB.copy()
    found = made(slug)
    np.testing.assert_array_equal(found[0], RGB[0])
    assert np.abs(found[1] - RGB[1]).mean() > 0.5
    assert found.min() >= 0
    assert found.max() <= 255
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, made(slug))
    np.testing.assert_array_equal(RGB, before)


def test_the_formulas() -> None:
    np.testing.assert_allclose(made("darker")[1], 0.8 * RGB[1], rtol=1e-5)
    np.testing.assert_allclose(made("brighter")[1], np.minimum(1.2 * RGB[1], 255), rtol=1e-5)
    np.testing.assert_allclose(made("haze-40")[1], 0.6 * RGB[1] + 0.4 * AIRLIGHT, rtol=1e-5)
    grey = np.full((2, 3, 128, 128), 128, np.float32)
    assert np.std(made("noise-10", grey)[1] - 128) == pytest.approx(10, rel=0.02)
    np.testing.assert_allclose(made("blur-2", grey), grey, rtol=1e-6)
    point = np.zeros((2, 1, 33, 33), np.float32)
    point[1, 0, 16, 16] = 200
    spread = made("blur-1", point)[1, 0]
    assert spread.sum() == pytest.approx(200, rel=1e-4)
    assert spread[16, 17] / spread[16, 16] == pytest.approx(np.exp(-0.5), rel=1e-4)


def test_noise_depends_on_the_sample_and_on_the_seed() -> None:
    how = perturbation("noise-10")
    other = perturb(RGB, Unit.RGB255, how, "another tile")
    assert np.abs(other - made("noise-10")).mean() > 1
    assert np.abs(made("noise-10", seed=1) - made("noise-10")).mean() > 1


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_whole_shifts_move_pixels_and_repeat_the_edge(pixels: int) -> None:
    found = made(f"shift-{pixels}")[1]
    moved = [
        np.pad(RGB[1], ((0, 0), (pixels, 0), (0, 0)), "edge")[:, :-pixels],
        np.pad(RGB[1], ((0, 0), (0, pixels), (0, 0)), "edge")[:, pixels:],
        np.pad(RGB[1], ((0, 0), (0, 0), (pixels, 0)), "edge")[:, :, :-pixels],
        np.pad(RGB[1], ((0, 0), (0, 0), (0, pixels)), "edge")[:, :, pixels:],
    ]
    assert any(np.allclose(found, m, atol=1e-3) for m in moved)


def test_half_a_pixel_of_a_ramp_is_half_a_step_in_one_of_four_directions() -> None:
    ramp = np.add.outer(10.0 * np.arange(30), np.arange(30.0))[None]
    seen = set()
    for seed in range(40):
        step = shift(0.5)(ramp, np.random.default_rng(seed)) - ramp
        inner = step[0, 3:-3, 3:-3]
        np.testing.assert_allclose(inner, inner[0, 0], atol=1e-9)
        seen.add(round(float(inner[0, 0]), 6))
    assert seen == {-5.0, 5.0, -0.5, 0.5}


def test_only_halves_can_be_shifted() -> None:
    with pytest.raises(ValueError, match="half a pixel"):
        shift(0.3)


def test_swapped_dates_come_back_when_swapped_again() -> None:
    once = made("swapped")
    np.testing.assert_array_equal(once, RGB[::-1])
    np.testing.assert_array_equal(made("swapped", once), RGB)


def test_reflectance_is_disturbed_on_its_own_scale_and_not_clipped() -> None:
    images = (RGB / 2550 + 0.02).astype(np.float32)
    low, high = np.percentile(images.astype(np.float64), (2, 98), axis=(0, 2, 3))
    wanted = low[:, None, None] + 1.2 * (images[1] - low[:, None, None])
    np.testing.assert_allclose(made("brighter", images, Unit.REFLECTANCE)[1], wanted, rtol=1e-4)
    assert wanted.max() > high.max()


@pytest.mark.parametrize("slug", [p.slug for p in PERTURBATIONS])
def test_missing_pixels_stay_missing_and_do_not_spread(slug: str) -> None:
    images = RGB.copy()
    images[1, :, 5:8, 6:9] = np.nan
    for unit in (Unit.RGB255, Unit.RAW):
        found = made(slug, images, unit)
        assert np.isnan(found).any()
        # Half a pixel of cubic convolution reaches two pixels to each side; nothing reaches further.
        assert np.isnan(found).sum() <= 3 * 3 * 6
        flat = made(slug, np.where(np.isnan(images), np.float32(np.nan), np.float32(7)), unit)
        assert np.isfinite(flat[0 if slug == "swapped" else 1]).any()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingError, match="swapped"):
        perturbation("fog")
