"""Scores of answers; the figures of published scorers are in tests/golden/test_metrics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from terralapse.tasks.answer_metrics import (
    GRID,
    choice_scores,
    closed_scores,
    count_scores,
    normal_answer,
    parse_choice,
    parse_counts,
    parse_places,
    place_scores,
    referring_scores,
)


def test_kinds_weigh_alike_in_the_mean_and_by_number_overall() -> None:
    found = closed_scores(["a", "a", "a", "b"], ["yes", "no", "no", "3"], [" Yes ", "no", "yes", "4"])
    assert found["per_type"] == {"a": pytest.approx(2 / 3), "b": 0}
    assert found["counts_per_type"] == {"a": 3, "b": 1}
    assert (found["aa"], found["oa"]) == (pytest.approx(1 / 3), 0.5)
    assert math.isnan(closed_scores([], [], [])["oa"])
    with pytest.raises(ValueError, match="zip"):
        closed_scores(["a"], ["yes"], [])


def test_a_table_spells_answers_alike() -> None:
    assert normal_answer(" Buildings ", {"buildings": "building"}) == "building"
    assert closed_scores(["a"], ["building"], ["Buildings"], {"buildings": "building"})["oa"] == 1


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("B", "B"),
        (" B. ", "B"),
        ("(b)", "B"),
        ("Answer: B", "B"),
        ("The correct answer is C.", "C"),
        ("B. a road is built", "B"),
        ("A, C", "AC"),
        ("A and D", "AD"),
        ("(A); (B); (C)", "ABC"),
        ("Both of them", None),
        ("a road is built", None),
        ("", None),
        ("Z", None),
    ],
)
def test_choices_are_read(text: str, letters: str | None) -> None:
    assert parse_choice(text) == (None if letters is None else frozenset(letters))


def test_strict_choices_are_letters_alone() -> None:
    assert parse_choice(" B ", strict=True) == {"B"}
    assert parse_choice("B.", strict=True) is None


def test_sets_of_choices_must_be_the_same() -> None:
    found = choice_scores(["A", "AB", "C"], [{"A"}, {"A"}, None], options=4)
    assert found == pytest.approx({"accuracy": 1 / 3, "failures": 1 / 3, "chance": 0.25})


def test_counts() -> None:
    assert parse_counts("there are 12 new roads and no new buildings") == {"road": 12, "building": 0}
    assert parse_counts("nothing to see") == {"road": 0, "building": 0}
    assert count_scores([1, 2, 3], [1, 3, 6]) == pytest.approx(
        {"mae": 4 / 3, "rmse": math.sqrt(10 / 3), "exact": 1 / 3, "within_one": 2 / 3}
    )
    assert all(math.isnan(v) for v in count_scores([], []).values())


def test_places() -> None:
    text = "roads ['top-left', 'middle'] buildings []"
    assert parse_places(text) == {"road": ["top-left"], "building": []}
    assert parse_places("none") == {"road": [], "building": []}
    assert len(set(GRID)) == 9
    found = place_scores([["top-left"], []], [["top-left"], []])
    assert found["jaccard_samples"] == 0.5
    assert found["jaccard_samples_empty_equals_one"] == found["subset_accuracy"] == 1
    with pytest.raises(ValueError, match="cannot be scored"):
        place_scores([[]], [])


def test_masks() -> None:
    empty, left, top = np.zeros((2, 2)), np.array([[1, 0], [1, 0]]), np.array([[1, 1], [0, 0]])
    found = referring_scores([empty, left, left], [empty, left, top])
    assert found == pytest.approx({"giou": (1 + 1 + 1 / 3) / 3, "ciou": 3 / 5})
    assert referring_scores([empty], [empty]) == {"giou": 1.0, "ciou": 1.0}
