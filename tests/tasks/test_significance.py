"""The tests find a planted difference and none between equals, and their p is what a count by hand gives."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from terralapse.tasks.metrics import binary_scores, bootstrap_interval, paired_bootstrap
from terralapse.tasks.significance import compare, f1_interval, f1_of, holm


def images(number: int, recall: float, seed: int = 0) -> np.ndarray:
    """Counts of a detector that finds about `recall` of the change in each image."""
    rng = np.random.default_rng(seed)
    change = rng.integers(200, 2000, number)
    tp = (change * np.clip(recall + rng.normal(0, 0.03, number), 0, 1)).astype(int)
    fp = rng.integers(50, 200, number)
    return np.stack([np.stack([60000 - change - fp, fp], 1), np.stack([change - tp, tp], 1)], 1)


def test_f1_is_that_of_the_metrics_and_nan_for_nothing() -> None:
    counts = images(5, 0.7)
    assert f1_of(counts.sum(axis=0)) == pytest.approx(binary_scores(counts.sum(axis=0)).f1)
    assert f1_of(counts).shape == (5,)
    assert np.isnan(f1_of(np.array([[9, 0], [0, 0]])))


def test_the_bootstrap_is_that_of_the_metrics() -> None:
    first, second = images(9, 0.7), images(9, 0.6)
    single = bootstrap_interval(first, lambda m: binary_scores(m).f1, 300, seed=4)
    assert f1_interval(first, 300, seed=4) == pytest.approx(single)
    paired = paired_bootstrap(first, second, lambda m: binary_scores(m).f1, 300, seed=4)
    found = compare(first, second, samples=300, seed=4)
    assert (found.difference, found.low, found.high) == pytest.approx(
        (paired.difference, paired.low, paired.high)
    )


@pytest.mark.parametrize("number", [10, 40])
def test_a_planted_difference_is_found_and_equals_are_not_told_apart(number: int) -> None:
    good, poor = images(number, 0.8), images(number, 0.6)
    found = compare(good, poor)
    assert found.difference > 0.05
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.01
    assert found.exact is (number == 10)
    same = compare(good, good)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    chance = compare(
        images(number, 0.7, 1), images(number, 0.7, 2)[np.random.default_rng(0).permutation(number)]
    )
    assert chance.p > 0.05


def test_turning_the_two_round_turns_the_sign() -> None:
    good, poor = images(8, 0.8), images(8, 0.6)
    one, other = compare(good, poor), compare(poor, good)
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert other.p == one.p


def test_the_exact_p_is_the_count_of_all_exchanges() -> None:
    first, second = images(4, 0.75, 3), images(4, 0.7, 4)
    observed = abs(f1_of(first.sum(axis=0)) - f1_of(second.sum(axis=0)))
    hits = 0
    for exchange in product((False, True), repeat=4):
        swap = np.array(exchange)[:, None, None]
        one, other = np.where(swap, second, first), np.where(swap, first, second)
        hits += abs(f1_of(one.sum(axis=0)) - f1_of(other.sum(axis=0))) >= observed - 1e-12
    assert compare(first, second).p == hits / 16
    assert compare(images(4, 0.95), images(4, 0.3)).p == 2 / 16  # the smallest that four images allow


def test_too_few_images_say_nothing_and_other_images_are_refused() -> None:
    one = compare(images(1, 0.8), images(1, 0.6))
    assert one.difference > 0
    assert np.isnan([one.low, one.high, one.p]).all()
    assert np.isnan(f1_interval(images(1, 0.8))).all()
    with pytest.raises(ValueError, match="same images"):
        compare(images(3, 0.8), images(4, 0.8))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    adjusted = holm([float("nan"), 0.02])
    assert np.isnan(adjusted[0])
    assert adjusted[1] == 0.02
    assert holm([]) == []
