"""Areas from samples: the worked example of Olofsson et al. (2014), and what intervals hold."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.errors import SettingError
from terralapse.tasks.area import allocate, estimate, sample_size

# Table 8 of the paper: deforestation, forest gain, stable forest, stable non-forest; Landsat pixels of 0.09
# ha.
COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
SHARES = [0.020, 0.015, 0.320, 0.645]
HECTARES = [0.09 * p for p in PIXELS]


def test_the_areas_of_the_paper():
    found = estimate(COUNTS, HECTARES)
    published = [(21_158, 6_158), (11_686, 3_756), (285_770, 15_510), (581_386, 16_282)]
    for measured, (area, half) in zip(found.area, published, strict=True):
        assert measured.value == pytest.approx(area, abs=0.5)
        assert measured.error * 1.96 == pytest.approx(half, abs=0.5)


def test_the_accuracies_of_the_paper():
    found = estimate(COUNTS, HECTARES)

    def said(measured):
        return round(measured.value, 2), round(measured.interval[1] - measured.value, 2)

    assert [said(u) for u in found.users] == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    # The half widths of the producer's accuracies are held by equation 7 itself, below.
    assert [said(p)[0] for p in found.producers] == [0.75, 0.85, 0.93, 0.96]
    assert said(found.producers[0])[1] == 0.21
    assert said(found.overall) == (0.95, 0.02)
    assert found.proportions.sum() == pytest.approx(1)
    assert found.proportions[0] == pytest.approx([0.0176, 0, 0.0013, 0.0011], abs=5e-5)


def test_the_sample_size_of_the_paper():
    assert sample_size(SHARES, [0.70, 0.60, 0.90, 0.95], 0.01) == 641
    assert sample_size(SHARES, [0.70, 0.60, 0.90, 0.95], 0.01, pixels=1000) < 641


def test_the_producers_error_is_equation_seven_where_strata_are_the_classes():
    n, size = np.sum(COUNTS, 1), np.array(PIXELS, float)
    p = np.array(COUNTS) / n[:, None]
    for j, measured in enumerate(estimate(COUNTS, PIXELS).producers):
        whole, own, r = size @ p[:, j], p[j, j], measured.value
        others = [i for i in range(4) if i != j]
        variance = size[j] ** 2 * (1 - r) ** 2 * own * (1 - own) / (n[j] - 1) + r**2 * sum(
            size[i] ** 2 * p[i, j] * (1 - p[i, j]) / (n[i] - 1) for i in others
        )
        assert measured.error == pytest.approx(np.sqrt(variance) / whole, rel=1e-12)


def test_a_stratum_that_is_cut_in_two_alike_parts_changes_no_value():
    whole = estimate([[40, 10], [6, 94]], [100.0, 900.0])
    parts = estimate([[40, 10], [3, 47], [3, 47]], [100.0, 450.0, 450.0], classes=[0, 1, 1])
    pairs = zip((*whole.area, *whole.users), (*parts.area, *parts.users), strict=True)
    for one, other in (*pairs, (whole.overall, parts.overall)):
        assert one.value == pytest.approx(other.value)
    # A point fewer is subtracted twice, so the error is a little larger.
    assert whole.area[0].error < parts.area[0].error < 1.02 * whole.area[0].error


def test_allocation():
    pixels = [10**6] * 4
    assert sum(allocate(640, SHARES, pixels)) == 640
    few = allocate(640, SHARES, pixels, least=75)
    assert few[:2] == [75, 75]
    assert few[2:] == [162, 328]  # 490 in the proportion of 0.320 and 0.645
    assert allocate(640, SHARES, pixels, "equal") == [160] * 4
    assert allocate(640, SHARES, pixels, "proportional") == [13, 9, 205, 413]
    assert allocate(100, [0.5, 0.5], pixels[:2], "neyman", users=[0.5, 0.9]) == [63, 37]
    assert allocate(40, [0.5, 0.5], [3, 100]) == [3, 20]
    with pytest.raises(SettingError, match="2 points for each of 4 strata"):
        allocate(7, SHARES, pixels)
    with pytest.raises(SettingError, match="random"):
        allocate(70, SHARES, pixels, "random")


def test_what_a_sample_does_not_hold_is_not_known():
    found = estimate([[30, 0, 0], [2, 28, 0]], [10.0, 90.0])
    assert found.area[2].value == 0
    assert np.isnan(found.producers[2].value)
    assert np.isnan(found.users[2].value)
    with pytest.raises(SettingError, match="stratum 2"):
        estimate([[30, 0], [1, 0]], [10.0, 90.0])


TRUTH = np.array(
    [[0.88, 0.0, 0.07, 0.05], [0.0, 0.73, 0.11, 0.16], [0.03, 0.01, 0.93, 0.03], [0.01, 0.01, 0.03, 0.95]]
)


def coverage(n: list[int], times: int = 1500) -> dict[str, np.ndarray]:
    """How often the intervals of samples of a map whose errors are known hold the truth."""
    rng, size = np.random.default_rng(7), np.array(SHARES)
    area, users = size @ TRUTH, TRUTH.diagonal()
    right = {"area": area, "users": users, "producers": size * users / area}
    inside = {name: np.zeros(4) for name in right} | {"overall": np.zeros(1)}
    means = np.zeros(4)
    for _ in range(times):
        counts = np.stack([rng.multinomial(k, p) for k, p in zip(n, TRUTH, strict=True)])
        found = estimate(counts, SHARES)
        means += [a.value for a in found.area]
        for name, truth in right.items():
            ends = np.array([m.interval for m in getattr(found, name)])
            inside[name] += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        low, high = found.overall.interval
        inside["overall"] += low <= size @ users <= high
    assert means / times == pytest.approx(area, rel=0.03)  # unbiased
    return {k: v / times for k, v in inside.items()}


def test_intervals_of_a_large_sample_hold_the_truth_as_often_as_they_say():
    for name, share in coverage([300, 300, 660, 1300]).items():
        assert (share >= 0.92).all(), (name, share)
        assert (share <= 0.97).all(), (name, share)


def test_intervals_of_a_small_sample_are_short_for_classes_that_it_hardly_holds():
    """The limit that the documentation states: a class of which one point of the large strata tells is told
    too sure; the others are not."""
    found = coverage([75, 75, 165, 325])
    assert (found["area"][:2] > 0.87).all()
    assert (found["area"][2:] > 0.93).all()
    assert found["overall"] > 0.93
    equal = coverage([50, 50, 50, 50])
    assert 0.5 < equal["area"][1] < 0.75
