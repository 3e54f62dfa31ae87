"""Scores of DVL-Bench: hand cases beside the golden ones, and the judge that needs no model."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse.data.dvl import TASKS
from terralapse.data.dvl_made import made_scene, report_basic, report_speed
from terralapse.errors import SettingError
from terralapse.tasks.dvl_judge import Speed, grade, parse_speed, places_of, transitions_of
from terralapse.tasks.dvl_metrics import mask_change_scores, mask_scores, parse_grades, right_choice


def test_letters_are_sorted_and_an_empty_piece_spoils_them() -> None:
    assert right_choice("c, a", "A, C", multiple=True)
    assert not right_choice("B,", "B", multiple=True)
    assert right_choice("B.", "B", multiple=False)


def test_grades_from_one_tag_and_outside_of_the_scale() -> None:
    assert parse_grades("<a>7</a>", ("a",)) == {"a": 7}
    assert parse_grades("<a>7</a><b>-2</b>", ("a", "b"), released=False) == {"a": 5, "b": 0}
    assert parse_grades("<a>4", ("a",)) == {"a": 4}
    assert parse_grades("<a>", ("a",)) == {"a": 0}
    assert parse_grades("3.5</a>", ("a",)) == {"a": 5}  # the character beside the tag
    assert parse_grades("<a>3.5</a>", ("a",)) == {"a": 0}


def test_empty_masks_agree() -> None:
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    scores = mask_scores([empty, full], [empty, empty])
    assert scores["giou"] == pytest.approx(0.5)
    assert scores["ciou"] == 0


def test_recall_divides_by_what_there_was() -> None:
    truth, said = np.zeros((1, 10)), np.zeros((1, 10))
    truth[0, :8] = said[0, :4] = 1
    exact = mask_change_scores([truth], [said], [4])
    assert (exact["Precision"], exact["Recall"]) == (1.0, 0.5)
    assert mask_change_scores([truth], [said], [4], released=True)["Recall"] == 1.0


# --- the judge -------------------------------------------------------------------------------------------
def test_a_report_of_speed_there_and_back() -> None:
    said = "The changes were as follows: 1.5% expansion from 2004 to 2007, "
    said += "no significant change from 2007 to 2010, "
    said += "0.8% shrinkage from 2010 to 2012."
    assert parse_speed(said) == [Speed(2004, 2007, 1.5), Speed(2007, 2010, 0), Speed(2010, 2012, -0.8)]
    for seed in range(5):
        scene = made_scene("a/b", (2004, 2007, 2010, 2012), np.random.default_rng(seed))
        found = parse_speed(report_speed(scene))
        assert [(s.start, s.end) for s in found] == scene.periods
        for s in found:
            rate = 100 * scene.speed(s.start, s.end)
            assert s.percent == pytest.approx(rate if abs(rate) >= 1 else 0, abs=0.006)


def test_transitions_with_their_percentages() -> None:
    assert transitions_of(
        "12.5% of the area changed from vegetation to buildings, ~3% of water into bare land"
    ) == {
        ("vegetation", "building"): 12.5,
        ("water", "non vegetated surface"): 3.0,
    }
    assert transitions_of("about 10-20% of trees became houses") == {("vegetation", "building"): 15.0}
    assert places_of("in the upper left and the north-eastern part") == {"top-left", "north-east"}


def test_the_reference_itself_gets_full_marks_and_a_wrong_one_fewer() -> None:
    scene = made_scene("a/b", (2004, 2008, 2012), np.random.default_rng(0))
    for code, text in (("BCA-Report", report_basic(scene)), ("CSE-Report", report_speed(scene))):
        criteria = TASKS[code].criteria
        assert set(grade(code, text, text, criteria).values()) == {5}
        assert set(grade(code, text, "I do not know.", criteria).values()) == {0}
        shifted = grade(code, text, text.replace("2012", "2014"), criteria)
        assert shifted["time_period_accuracy"] < 5
    with pytest.raises(SettingError, match="not known"):
        grade("DTC", "a", "b", ("style",))


def test_a_percentage_is_right_within_a_tenth_or_five_points() -> None:
    truth = "60.0% expansion from 2004 to 2007"
    near, far = ("65.9% expansion from 2004 to 2007", "67% expansion from 2004 to 2007")
    name = ("change_rate_precision",)
    assert grade("CSE-Report", truth, near, name) == {"change_rate_precision": 5}
    assert grade("CSE-Report", truth, far, name) == {"change_rate_precision": 0}
    assert grade("CSE-Report", truth, "60% shrinkage from 2004 to 2007", name) == {"change_rate_precision": 0}
