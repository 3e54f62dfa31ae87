"""Breaks against known truth, against plain least squares, and against what the statistics promise."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.engine.breaks import BreakModel, BreakSettings, choose_model, design, find_breaks
from terralapse.errors import SettingError

START = 16000.0  # days since 1970
YEAR = 365.25


def irregular(count: int, years: float, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).uniform(START, START + years * YEAR, count))


def season(days: np.ndarray, pixels: int, noise: float, seed: int = 1, gaps: float = 0.2) -> np.ndarray:
    """float64 [T, 1, n]: a year's cycle of another phase for each pixel, a weak trend, noise and gaps."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, pixels)
    y = 0.5 + 0.2 * np.cos(2 * np.pi * days[:, None] / YEAR + phase) + 0.01 * (days[:, None] - START) / YEAR
    y += rng.normal(0, noise, y.shape)
    y[rng.random(y.shape) < gaps] = np.nan
    return y[:, None]


DAYS = irregular(120, 5)
PLAIN = BreakSettings(floor=1e-6)


def test_series_without_a_change_are_left_alone() -> None:
    found = find_breaks(season(DAYS, 2000, 0.03), DAYS, PLAIN)
    assert (found.count > 0).mean() < 0.005
    assert (found.code < 10).all()
    assert np.isnan(found.magnitude[found.count == 0]).all()
    assert (found.probability[found.count == 0] == 0).all()
    assert found.error.mean() == pytest.approx(0.03, rel=0.06)


@pytest.mark.parametrize("probability", [0.9, 0.99])
def test_single_exceedances_are_as_frequent_as_asked_for(probability: float) -> None:
    """With runs too long to happen, each exceedance is set aside: their share is one minus the probability.

    Setting them aside makes the standard error a little too small, so that the share is a little larger."""
    settings = BreakSettings(floor=1e-6, probability=probability, consecutive=12)
    found = find_breaks(season(DAYS, 800, 0.03, gaps=0.0), DAYS, settings)
    assert (found.count == 0).mean() > 0.99
    share = found.outliers.sum() / found.observations.sum()
    assert 0.7 * (1 - probability) < share < 1.6 * (1 - probability)


@pytest.mark.parametrize("size", [-0.3, 0.3])
def test_a_step_is_found_dated_and_measured(size: float) -> None:
    at = 70
    y = season(DAYS, 600, 0.03)
    y[at:] += size
    found = find_breaks(y, DAYS, PLAIN)
    hit = found.count == 1
    assert hit.mean() > 0.98
    off = found.day[hit] - np.floor(DAYS[at])
    assert np.median(np.abs(off)) == 0
    # Where the first observation after the step is a gap, the break is dated at the next one.
    gaps = np.diff(DAYS).max()
    assert (np.abs(off) < 4 * gaps).mean() > 0.95
    own = hit & (found.code == 0)
    assert own.sum() > 300
    assert np.median(found.magnitude[own]) == pytest.approx(size, abs=0.01)
    assert found.magnitude[own].std() < 0.05
    assert (found.probability[hit] > 0.99).mean() > 0.99


def test_small_changes_are_missed_rather_than_made_up() -> None:
    y = season(DAYS, 400, 0.03)
    y[70:] += 0.03  # one standard error
    assert (find_breaks(y, DAYS, PLAIN).count > 0).mean() < 0.2


def test_two_breaks_and_which_of_them_is_written() -> None:
    days = irregular(240, 10)
    y = season(days, 60, 0.02)
    y[80:] -= 0.2
    y[170:] += 0.4
    found = {p: find_breaks(y, days, BreakSettings(floor=1e-6, pick=p)) for p in ("largest", "first", "last")}
    assert (found["first"].count == 2).mean() > 0.9
    two = found["first"].count == 2
    assert np.median(found["first"].magnitude[two]) == pytest.approx(-0.2, abs=0.02)
    assert np.median(found["last"].magnitude[two]) == pytest.approx(0.4, abs=0.02)
    assert np.array_equal(found["largest"].day[two], found["last"].day[two])
    since = find_breaks(y, days, BreakSettings(floor=1e-6, since=float(days[120])))
    assert (since.count[two] == 1).all()
    assert np.array_equal(since.day[two], found["last"].day[two])


def test_the_fit_is_plain_least_squares() -> None:
    """Nothing is set aside here, so the last model is the ordinary fit of all observations."""
    y = season(DAYS, 40, 0.03, gaps=0.3)
    settings = BreakSettings(floor=1e-9, probability=1 - 1e-9)
    found = find_breaks(y.astype(np.float32), DAYS, settings)
    assert (found.outliers == 0).all()
    x = design(DAYS)
    for pixel in range(40):
        column = y[:, 0, pixel].astype(np.float32).astype(np.float64)
        known = np.isfinite(column)
        _, squares, rank, _ = np.linalg.lstsq(x[known], column[known], rcond=None)
        assert rank == 8
        error = np.sqrt(squares[0] / (known.sum() - 8))
        assert found.error[0, pixel] == pytest.approx(error, rel=1e-5)


def test_the_magnitude_is_the_difference_of_two_fits() -> None:
    at = 70
    y = season(DAYS, 30, 0.01, gaps=0.0)
    y[at:] -= 0.4
    settings = BreakSettings(floor=1e-9, probability=0.9999)
    found = find_breaks(y.astype(np.float32), DAYS, settings)
    x = design(DAYS)
    compared = 0
    for pixel in range(30):
        if found.code[0, pixel] or found.outliers[0, pixel] or found.day[0, pixel] != int(DAYS[at]):
            continue
        column = y[:, 0, pixel].astype(np.float32).astype(np.float64)
        before = np.linalg.lstsq(x[:at], column[:at], rcond=None)[0]
        after = np.linalg.lstsq(x[at:], column[at:], rcond=None)[0]
        assert found.magnitude[0, pixel] == pytest.approx(x[at] @ (after - before), abs=1e-5)
        compared += 1
    assert compared > 10


def test_a_pixel_depends_on_nothing_around_it() -> None:
    y = season(DAYS, 700, 0.03)
    y[60:, :, ::3] -= 0.25
    whole = find_breaks(y, DAYS, PLAIN)
    threaded = find_breaks(y, DAYS, PLAIN, threads=2)
    part = find_breaks(y[:, :, 333:350], DAYS, PLAIN)
    for name in ("day", "count", "magnitude", "probability", "error", "code", "observations"):
        assert getattr(whole, name).tobytes() == getattr(threaded, name).tobytes()
        assert getattr(whole, name)[:, 333:350].tobytes() == getattr(part, name).tobytes()


def test_what_cannot_be_modelled_is_said() -> None:
    y = season(DAYS, 5, 0.03, gaps=0.0)
    y[:, 0, 0] = np.nan
    y[17:, 0, 1] = np.nan  # one observation less than 12 + 6
    y[:, 0, 2] = np.random.default_rng(3).uniform(-1, 1, len(DAYS)) + np.arange(len(DAYS)) ** 2
    found = find_breaks(y, DAYS, PLAIN)
    assert found.code[0].tolist()[:3] == [10, 11, 12]
    assert found.count[0].tolist()[:3] == [0, 0, 0]
    assert found.observations[0].tolist()[:2] == [0, 17]
    assert (found.code[0, 3:] == 0).all()


def test_a_break_without_time_for_a_model_after_it_is_measured_by_its_residuals() -> None:
    y = season(DAYS, 60, 0.02, gaps=0.0)
    y[-8:] -= 0.3
    found = find_breaks(y, DAYS, PLAIN)
    hit = found.count == 1
    assert hit.mean() > 0.95
    assert (found.code[hit] == 1).all()
    assert np.median(found.magnitude[hit]) == pytest.approx(-0.3, abs=0.02)
    y[-8:] += 0.3
    y[-3:] -= 0.3  # fewer than six
    late = find_breaks(y, DAYS, PLAIN)
    assert (late.count == 0).mean() > 0.95
    assert (late.code == 2).mean() > 0.95


def test_a_break_before_the_first_model_is_found_by_looking_back() -> None:
    y = season(DAYS, 60, 0.02, gaps=0.0)
    y[:9] += 0.4
    found = find_breaks(y, DAYS, PLAIN)
    assert (found.count == 1).mean() > 0.8
    hit = found.count == 1
    assert np.median(found.magnitude[hit]) == pytest.approx(-0.4, abs=0.05)
    assert np.median(np.abs(found.day[hit] - np.floor(DAYS[9]))) < 60


def test_clouds_that_were_not_masked_are_no_breaks() -> None:
    y = season(DAYS, 400, 0.02)
    rng = np.random.default_rng(7)
    y[rng.random(y.shape) < 0.05] -= 0.6
    found = find_breaks(y, DAYS, PLAIN)
    assert (found.count > 0).mean() < 0.03
    assert found.error.mean() < 0.03


def test_a_constant_series_is_no_break_and_the_floor_bounds_its_error() -> None:
    y = np.full((120, 1, 2), 0.5)
    y[60:, 0, 1] += 0.004
    found = find_breaks(y, DAYS, BreakSettings(floor=0.005))
    assert found.count.tolist() == [[0, 0]]
    assert found.error[0] == pytest.approx([0.005, 0.005])


def test_series_of_anniversaries_have_a_trend_and_no_season() -> None:
    days = START + np.arange(20) * YEAR
    assert choose_model(days, BreakSettings()) == BreakModel(2, 2, 3, 0.0)
    rng = np.random.default_rng(0)
    y = 0.6 + rng.normal(0, 0.01, (20, 1, 50))
    y[12:] -= 0.3
    found = find_breaks(y, days, BreakSettings(floor=1e-6))
    hit = found.count == 1
    assert hit.mean() > 0.9
    assert np.median(found.day[hit]) == np.floor(days[12])
    assert np.median(found.magnitude[hit]) == pytest.approx(-0.3, abs=0.03)


@pytest.mark.parametrize(("count", "most"), [(18, 4), (23, 4), (24, 6), (29, 6), (30, 8), (200, 8)])
def test_harmonics_follow_the_number_of_dates(count: int, most: int) -> None:
    model = choose_model(irregular(count, 4), BreakSettings())
    assert (model.least, model.most, model.consecutive, model.needed) == (4, most, 6, 18)


def test_short_series_are_told_how_many_dates_are_needed() -> None:
    with pytest.raises(SettingError, match=r"12 dates over .* needs 18 over more than a year"):
        choose_model(irregular(12, 1), BreakSettings())
    with pytest.raises(SettingError, match="more than a year"):
        choose_model(irregular(40, 0.9), BreakSettings())
    with pytest.raises(SettingError, match="needs 9"):
        choose_model(START + np.arange(8) * YEAR, BreakSettings())
    assert choose_model(irregular(12, 1), BreakSettings(harmonics=0)).needed == 9
    assert choose_model(START + np.arange(8) * YEAR, BreakSettings(consecutive=2)).needed == 8


@pytest.mark.parametrize(
    "bad",
    [
        {"probability": 1.0},
        {"probability": 0.2},
        {"consecutive": 1},
        {"harmonics": 4},
        {"floor": -1.0},
        {"floor": float("nan")},
        {"pick": "best"},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(SettingError):
        BreakSettings(**bad)


def test_dates_out_of_order_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="order"):
        find_breaks(season(DAYS, 2, 0.1), DAYS[::-1], PLAIN)
