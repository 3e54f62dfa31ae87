"""The cuts and the radiometry that the unsupervised detectors share, against known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terralapse.errors import NoValidDataError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window
from terralapse.layers import unsupervised as u


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- pixels ----------------------------------------------------------------------------------------
def test_pixels_are_thinned_evenly_over_all_blocks() -> None:
    images = np.arange(2 * 1 * 40 * 50, dtype=np.float32).reshape(2, 1, 40, 50)
    images[0, 0, :3] = np.nan
    pair = ArrayPair(images)
    sample = PairSample(pair, [Window(0, 0, 20, 50), Window(20, 0, 13, 50), Window(33, 0, 7, 50)], 1.0)
    everything = u.valid_pixels(sample)
    assert everything.shape == (2, 1, 37 * 50)
    assert np.array_equal(everything[1, 0] - everything[0, 0], np.full(37 * 50, 2000.0))
    thinned = u.valid_pixels(sample, limit=500)
    assert thinned.shape[2] <= 500
    assert np.array_equal(thinned, everything[:, :, ::4])  # the cut into blocks leaves no trace


def test_no_pixel_is_an_error() -> None:
    with pytest.raises(NoValidDataError):
        u.valid_pixels(ArrayPair(np.full((2, 1, 4, 4), np.nan)).sample())


# --- radiometry ------------------------------------------------------------------------------------
def test_gain_and_offset_of_either_date_leave_no_trace() -> None:
    pixels = rng().normal(50, 9, (2, 3, 2000))
    moved = pixels.copy()
    moved[1] = moved[1] * np.array([[0.5], [3.0], [40.0]]) + np.array([[-7.0], [1e4], [2.0]])
    images, other = (torch.from_numpy(p)[None, ..., None] for p in (pixels, moved))
    scaled = u.scale_dates(images, u.match_dates(pixels))
    assert torch.allclose(scaled, u.scale_dates(other, u.match_dates(moved)), atol=1e-6)
    difference = (scaled[0, 1] - scaled[0, 0])[..., 0]
    assert difference.std(dim=1).numpy() == pytest.approx(np.ones(3), abs=0.1)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.18])
def test_change_does_not_move_the_scale_of_what_stayed(share: float) -> None:
    ground = rng().normal(0, 1, (1, 2, 8000))
    pixels = np.concatenate([ground, ground]) + 0.1 * rng(1).normal(size=(2, 2, 8000))
    clean = u.match_dates(pixels)
    changed = pixels.copy()
    changed[1, :, : round(8000 * share)] += 12.0
    robust = u.match_dates(changed)
    assert np.ravel(robust["scale"]) == pytest.approx(np.ravel(clean["scale"]), rel=0.03)
    assert robust["noise"] == pytest.approx(clean["noise"], rel=0.3)
    assert changed[1].std() > 2 * clean["scale"][1][0]


def test_fields_of_two_colours_have_one_scale_on_both_dates() -> None:
    """Half dark, half bright: the median sits in a gap, and a scale taken about it would be a coin toss."""
    field = np.sign(rng().normal(size=(1, 3, 9000))) * 10
    pixels = np.concatenate([field, field]) + 0.3 * rng(1).normal(size=(2, 3, 9000))
    scale = np.array(u.match_dates(pixels)["scale"])
    assert scale[1] == pytest.approx(scale[0], rel=0.02)


def test_constant_bands_have_a_finite_scale() -> None:
    pixels = np.zeros((2, 2, 100))
    pixels[:, 1, :10] = 5.0  # more than half of the pixels share one value
    state = u.match_dates(pixels)
    assert np.isfinite([state["centre"], state["scale"]]).all()
    assert min(np.ravel(state["scale"])) > 0
    assert min(state["noise"]) >= u.NOISE_FLOOR


# --- cuts ------------------------------------------------------------------------------------------
def test_otsu_splits_two_groups_and_refuses_one_value() -> None:
    values = np.r_[rng().normal(10, 1, 900), rng(1).normal(30, 1, 100)]
    cut = u.otsu(values)
    assert cut is not None
    assert cut == pytest.approx(20, abs=1.5)  # the middle of the gap
    assert u.otsu(np.full(50, 3.0)) is None


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(4.0, 9.0), st.integers(0, 50))
def test_the_minimum_error_threshold_is_near_the_bayes_threshold(
    share: float, apart: float, seed: int
) -> None:
    n = 40_000
    changed = round(n * share)
    values = np.r_[rng(seed).normal(0, 1, n - changed), rng(seed + 99).normal(apart, 1, changed)]
    cut = u.kittler_illingworth(values)
    assert cut is not None
    bayes = apart / 2 + np.log((1 - share) / share) / apart
    assert cut == pytest.approx(bayes, abs=0.15 * apart)
    truth = np.r_[np.zeros(n - changed, bool), np.ones(changed, bool)]
    error, best = ((values > c) != truth for c in (cut, bayes))
    assert error.mean() <= best.mean() + 0.01


def test_one_class_has_no_minimum_error_threshold() -> None:
    assert u.kittler_illingworth(np.full(100, 2.0)) is None
    u_shaped = rng().uniform(0, 1, 20_000)
    cut = u.kittler_illingworth(u_shaped)
    assert cut is None or 0.2 < cut < 0.8


@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 13])
def test_noise_alone_is_not_split(degrees: int) -> None:
    """The statistic of a scene in which nothing happened raises at most one alarm in a hundred pixels."""
    state = u.change_cut(rng(degrees).chisquare(degrees, 60_000))
    share = (np.cbrt(rng(77).chisquare(degrees, 60_000)) > state["cut"]).mean()
    assert share < 0.012


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_a_clear_change_is_cut_off_whatever_its_share(share: float) -> None:
    still = rng(1).chisquare(4, round(50_000 * (1 - share)))
    moved = rng(2).noncentral_chisquare(4, 120, round(50_000 * share))
    state = u.change_cut(np.r_[still, moved])
    assert (np.cbrt(still) > state["cut"]).mean() < 0.015
    assert (np.cbrt(moved) > state["cut"]).mean() > 0.98
    assert state["slope"] > 0


def test_the_probability_is_one_half_exactly_at_the_cut() -> None:
    state = {"cut": 2.5, "slope": 3.0, "rule": "kittler-illingworth"}
    at = torch.tensor([2.5**3], dtype=torch.float64)
    assert float(u.cut_probability(at, state)) == pytest.approx(0.5, abs=1e-9)
    spread = u.cut_probability(torch.tensor([0.0, 1.0, 15.0, 16.0, 1e9]), state)
    assert (spread.diff() >= 0).all()
    assert spread[2] < 0.5 < spread[3]
    assert 0 <= spread.min() <= spread.max() <= 1


def test_identical_dates_have_no_cut() -> None:
    state = u.change_cut(np.zeros(100))
    assert state["rule"] == "identical"
    assert float(u.cut_probability(torch.tensor([5.0]), state)) == 0


def test_usable_needs_both_dates_and_all_bands() -> None:
    images = torch.zeros(1, 2, 2, 1, 4)
    valid = torch.ones(1, 2, 1, 4, dtype=torch.bool)
    images[0, 1, 1, 0, 0] = torch.nan
    images[0, 0, 0, 0, 1] = torch.inf
    valid[0, 0, 0, 2] = False
    assert u.usable(images, valid).tolist() == [[[False, False, False, True]]]
