"""Scores of the tasks of DisasterM3."""

from __future__ import annotations

import math

import numpy as np
import pytest

from terralapse.data.disasterm3 import CHOICES
from terralapse.tasks.answer_metrics import referring_scores
from terralapse.tasks.disaster import (
    CRITERIA,
    Choice,
    MaskTally,
    choice_table,
    judged_scores,
    letters_of,
    mask_scores,
    read_letters,
)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("B.", "B"),
        ("Answer: B, d", "BD"),
        ("(C)", "C"),
        ("C, D, H", "CDH"),
        ("**B**", "B"),
        ("<answer>A, C</answer>", "AC"),
        ("<think>Is it A? No.</think>\nE", "E"),
        ("The roof is gone.\nAnswer: D", "D"),
        ("The road is flooded", None),
        ("A road is flooded", None),
        ("", None),
    ],
)
def test_letters_of_noisy_answers(response, found) -> None:
    assert read_letters(response, "ABCDEFGH") == (None if found is None else frozenset(found))


def test_a_letter_that_is_no_option_is_read_and_wrong() -> None:
    assert read_letters("A, M", "AB") == frozenset("AM")


def choice(task: str, truth: str, said: str | None, options: int = 5) -> Choice:
    return Choice(task, letters_of(truth), None if said is None else letters_of(said), options)


def test_sets_are_exact_and_tasks_weigh_the_same() -> None:
    table = choice_table(
        [choice("BDC", "A", "A")] * 9
        + [choice("BDC", "A", None)]
        + [choice("BBR", "A, C", "C, A", 12), choice("BBR", "A, C", "A", 12), choice("BBR", "B", "B, C", 12)],
        CHOICES,
    )
    assert table["tasks"]["BDC"] == {
        "accuracy": 0.9,
        "failures": 0.1,
        "questions": 10,
        "chance": pytest.approx(0.2),
    }
    assert table["tasks"]["BBR"]["accuracy"] == pytest.approx(1 / 3)
    assert "chance" not in table["tasks"]["BBR"]
    assert table["average_of_asked"] == pytest.approx((0.9 + 1 / 3) / 2)
    assert table["average"] is None, "four of the six tasks were not asked"


def test_the_average_of_six_tasks() -> None:
    table = choice_table([choice(t, "A", "A" if t != "ORR" else "B") for t in CHOICES], CHOICES)
    assert table["average"] == pytest.approx(5 / 6)
    assert choice_table([], CHOICES)["average_of_asked"] is None


def test_masks_by_sample_and_by_sum() -> None:
    truth = np.zeros((3, 4, 4), bool)
    said = truth.copy()
    truth[0, 0], said[0, 0, :2] = True, True  # 2 of 4
    truth[1, :, :], said[1, 0, 0] = True, True  # 1 of 16
    tallies = [MaskTally.of(t, s) for t, s in zip(truth, said, strict=True)]
    found = mask_scores(tallies)
    assert found["miou"] == pytest.approx((0.5 + 1 / 16 + 1) / 3)
    assert found["ciou"] == pytest.approx(3 / 20)
    assert list(found.values()) == list(referring_scores(list(truth), list(said)).values())
    assert math.isnan(mask_scores([])["miou"])
    with pytest.raises(ValueError, match="compared"):
        MaskTally.of(truth[0], said[0, :2])


def test_missing_marks_are_counted_and_marks_are_cut() -> None:
    found = judged_scores(
        [{"DAP": 4.0, "DDR": 2.0, "FC": 9.0}, {"DAP": 2.0, "DDR": None, "FC": -3.0}], CRITERIA["caption"]
    )
    assert (found["DAP"], found["DDR"], found["FC"]) == (3.0, 1.0, 2.5)
    assert found["average"] == pytest.approx(6.5 / 3)
    assert (found["reports"], found["missing"]) == (2, 1)
