"""Radiometric normalisation: known gains found through real change, and refused where there is no line."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.grid.pair import ArrayPair
from terralapse.grid.radiometry import fit_lines, fit_radiometry, no_change_probability

BANDS = ["blue", "green", "red", "nir"]
GAINS, OFFSETS = np.array([1.2, 0.8, 1.0, 2.5]), np.array([0.02, -0.01, 0.0, 0.1])


def dates(changed: float, noise: float = 0.003, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated bands of one ground, the second date on another scale, with a share of it changed."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, 4)) * 0.03 + 0.05
    ground = 0.2 + rng.normal(size=(40_000, 4)) @ mix
    other = 0.2 + rng.normal(size=(40_000, 4)) @ (rng.normal(size=(4, 4)) * 0.05)
    hit = rng.random(40_000) < changed
    later = np.where(hit[:, None], other, ground)
    before = ground + rng.normal(0, noise, ground.shape)
    after = (later + rng.normal(0, noise, ground.shape) - OFFSETS) / GAINS
    return before, after, hit


@pytest.mark.parametrize("changed", [0.0, 0.1, 0.4])
def test_known_gains_are_found_through_change(changed):
    before, after, _ = dates(changed)
    result = fit_lines(before, after, BANDS)
    assert result.applied
    np.testing.assert_allclose(result.gains, GAINS, rtol=0.02)
    np.testing.assert_allclose(result.offsets, OFFSETS, atol=0.006)
    assert min(result.r2) > 0.95
    assert result.pixels > 200


def test_the_line_is_that_of_what_did_not_change():
    before, after, hit = dates(0.3)
    probability = no_change_probability(before, after)
    assert (probability[hit] > 0.95).mean() < 0.01
    assert np.median(probability[~hit]) > 0.2
    plain = before.std(axis=0) / after.std(axis=0)
    fitted = np.array(fit_lines(before, after, BANDS).gains)
    assert np.abs(fitted / GAINS - 1).max() < 0.3 * np.abs(plain / GAINS - 1).max()


def test_the_scale_of_the_units_does_not_matter():
    before, after, _ = dates(0.1)
    one, two = fit_lines(before, after, BANDS), fit_lines(before, after * 10_000, BANDS)
    np.testing.assert_allclose(np.array(two.gains) * 10_000, one.gains, rtol=1e-6)


def test_one_band():
    before, after, _ = dates(0.2)
    result = fit_lines(before[:, :1], after[:, :1], ["pan"])
    assert result.gains[0] == pytest.approx(GAINS[0], rel=0.03)


def test_a_band_twice_does_not_break_the_algebra():
    before, after, _ = dates(0.1)
    twice = [0, 1, 2, 3, 3]
    result = fit_lines(before[:, twice], after[:, twice], [*BANDS, "again"])
    assert result.applied
    np.testing.assert_allclose(result.gains[:4], GAINS, rtol=0.05)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("few", "can be compared"),
        ("unrelated", "follow one line|look the same"),
        ("flat", "one value|follow"),
    ],
)
def test_refuses_where_there_is_no_line(case, why):
    rng = np.random.default_rng(0)
    before, after, _ = dates(0.1)
    if case == "few":
        before, after = before[:150], after[:150]
    elif case == "unrelated":
        before, after = rng.normal(size=(5000, 4)), rng.normal(size=(5000, 4))
    else:
        after = np.full_like(after, 0.3)
    with np.errstate(all="raise"):
        result = fit_lines(before, after, BANDS)
    assert not result.applied
    note = result.notes()[0]
    assert note.level == "warning"
    import re

    assert re.search(why, note.text)
    assert result.as_dict()["why_not"]


def test_a_pair_is_sampled_on_valid_pixels_only():
    rng = np.random.default_rng(0)
    ground = rng.uniform(0.05, 0.5, (3, 300, 400)).astype(np.float32)
    after = (ground + rng.normal(0, 0.002, ground.shape) - 0.03) / 1.5
    after[:, :150] = np.nan
    result = fit_radiometry(ArrayPair(np.stack([ground, after]), bands=["red", "green", "blue"]))
    assert result.gains == pytest.approx([1.5] * 3, rel=0.01)
    assert result.offsets == pytest.approx([0.03] * 3, abs=0.003)
    assert result.sampled <= 150 * 400
    np.testing.assert_allclose(result.apply(after[:, 200:210]), ground[:, 200:210], atol=0.02)
    record = result.as_dict()
    assert [b["name"] for b in record["bands"]] == ["red", "green", "blue"]
    assert record["invariant_pixels"] == result.pixels


def test_two_real_summers(shared_data):
    import rasterio

    folder = shared_data / "geo_landsat_pair"
    images = []
    for name in ("LE70220491999322EDC01_stack.tif", "LE70220492002106EDC00_stack.tif"):
        with rasterio.open(folder / name) as file:
            data = file.read(list(range(1, 7))).astype(np.float32)
        data[:, (data <= 0).any(axis=0) | (data > 10_000).any(axis=0)] = np.nan
        images.append(data)
    pair = ArrayPair(np.stack(images))
    result = fit_radiometry(pair)
    block = pair.read(pair.sample().windows[0])
    before, after = block.images[0][:, block.valid], block.images[1][:, block.valid]
    if result.applied:
        fitted = result.apply(after[:, :, None])[:, :, 0]
        apart = np.median(np.abs(after - before), axis=1)
        assert (np.median(np.abs(fitted - before), axis=1) < 1.1 * apart).mean() > 0.5
    else:
        assert result.why
