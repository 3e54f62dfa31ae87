"""Scores of rankings by hand; the figures of published scorers are in tests/golden/test_metrics.py."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.tasks.retrieval_metrics import (
    hit_rate,
    mean_average_precision,
    mean_recall,
    median_rank,
    ndcg,
    ndcg_each,
    ranked,
    recall,
)

SCORES = [[3, 2, 1], [1, 2, 3], [3, 2, 1]]
BELONGS = [[1, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_the_example_of_the_sheet() -> None:
    assert ndcg([[3, 2, 1]], [[1, 0, 1]]) == pytest.approx(1.5 / 1.630930, abs=1e-6)


def test_what_a_query_without_an_item_does() -> None:
    """It is left out of everything."""
    assert ndcg_each(SCORES, BELONGS).shape == (2,)
    assert hit_rate(SCORES, BELONGS, 1) == 0.5
    assert recall(SCORES, BELONGS, 1) == 0.25
    assert median_rank(SCORES, BELONGS) == 2
    with pytest.raises(ValueError, match="no query"):
        hit_rate(SCORES, np.zeros((3, 3)), 1)


def test_average_precision_by_hand() -> None:
    assert mean_average_precision(SCORES[:1], BELONGS[:1]) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(SCORES[:1], BELONGS[:1], 1) == 1
    assert mean_average_precision(SCORES[:1], BELONGS[:1], 1, over_all=True) == 0.5


def test_both_directions_count() -> None:
    table = np.array([[2.0, 1.0], [3.0, 0.0]])
    eye = np.eye(2)
    assert hit_rate(table, eye, 1) == 0.5
    assert hit_rate(table.T, eye, 1) == 0
    assert mean_recall(table, eye, (1,)) == 0.25


def test_ties_keep_the_order_of_the_items() -> None:
    assert ranked([[1, 1, 1]], [[0, 1, 2]]).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="one shape"):
        ranked([[1, 2]], [[1]])
