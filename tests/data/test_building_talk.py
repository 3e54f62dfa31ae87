"""Sentences and questions from masks of changed buildings: rules that a square drawn by hand can check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from terralapse.data import building_talk as m
from terralapse.data.cdvqa import drawn
from terralapse.data.words import UNCHANGED, Vocabulary, tokens_of
from terralapse.labels import BUILDING_ANSWERS


def mask(*placed: tuple[int, int, int], side: int = 90) -> np.ndarray:
    """A mask with squares of (row, column, side)."""
    found = np.zeros((side, side), np.uint8)
    for row, column, size in placed:
        found[row : row + size, column : column + size] = 1
    return found


# 36 pixels in the upper right, 100 in the middle left, and a remnant of four pixels in the lower right.
MASK = mask((3, 70, 6), (40, 5, 10), (80, 80, 2))


def test_facts_leave_remnants_out() -> None:
    facts = m.BuildingFacts.of(MASK)
    assert facts.parts == 2
    assert facts.cells == (0, 0, 36, 100, 0, 0, 0, 0, 0)
    assert facts.halves == (100, 36, 36 + 50, 50), "the square of 100 lies across the middle row"
    assert facts.share == pytest.approx(136 / 8100)
    assert facts.said == ("few", "medium", "middle left")


def test_parts_that_touch_by_a_corner_are_one() -> None:
    assert m.BuildingFacts.of(mask((0, 0, 3), (3, 3, 3))).parts == 1
    assert m.BuildingFacts.of(mask((0, 0, 3), (4, 4, 3))).parts == 2


@pytest.mark.parametrize(
    ("parts", "name"), [(1, "few"), (2, "few"), (3, "several"), (8, "several"), (9, "many")]
)
def test_numbers(parts: int, name: str) -> None:
    squares = [(9 * (i // 5), 9 * (i % 5), 3) for i in range(parts)]
    assert m.BuildingFacts.of(mask(*squares)).number == name


@pytest.mark.parametrize(("side", "name"), [(10, "small"), (11, "medium"), (17, "medium"), (18, "large")])
def test_sizes(side: int, name: str) -> None:
    assert m.BuildingFacts.of(mask((0, 0, side), side=100)).size == name


def test_every_sentence_says_the_facts_in_words_of_levir() -> None:
    known = Vocabulary.own().ids
    for turn in range(m.TURNS):
        facts = m.BuildingFacts.of(m.turned(MASK, turn))
        said = m.sentences_of(facts)
        assert len(set(said)) == 5
        for sentence in said:
            assert m.said_in(sentence) == facts.said
            assert all(word in known for word in tokens_of(sentence))


def test_nothing_changed() -> None:
    facts = m.BuildingFacts.of(mask())
    assert m.sentences_of(facts) == UNCHANGED
    assert {m.said_in(s) for s in UNCHANGED} == {("none", "none", "none")}
    assert facts.said == ("none", "none", "none")
    assert m.said_in("a few houses") == ("few", "", "")


def test_answers_of_every_kind() -> None:
    facts = m.BuildingFacts.of(MASK)
    assert m.answer(facts, "changed") == "yes"
    assert m.answer(m.BuildingFacts.of(mask()), "changed") == "no"
    here = {p: m.answer(facts, "changed_here", p=p) for p in m.PLACES}
    assert {p for p, says in here.items() if says == "yes"} == {"upper right", "middle left"}
    assert (m.answer(facts, "number"), m.answer(facts, "size")) == ("few", "medium")
    assert [m.answer(facts, "more_than", x=x) for x in m.PERCENTS] == ["yes", "no", "no"]
    assert m.answer(facts, "where") == "middle_left"
    assert m.answer(facts, "half", a="left", b="right") == "left"
    assert m.answer(facts, "half", a="upper", b="lower") == "upper"
    assert m.answer(m.BuildingFacts.of(mask()), "half", a="left", b="right") == "none"


def test_what_is_asked() -> None:
    asked = m.questions_of(drawn(0, "a"))
    assert Counter(kind for kind, *_ in asked) == Counter(
        {"changed": 1, "changed_here": 3, "number": 1, "size": 1, "more_than": 2, "where": 1, "half": 2}
    )
    assert asked == m.questions_of(drawn(0, "a")) != m.questions_of(drawn(0, "b"))
    names = {c.name for c in BUILDING_ANSWERS.classes}
    facts = m.BuildingFacts.of(MASK)
    for kind, text, fill in asked:
        assert m.answer(facts, kind, **fill) in names
        assert 1 not in m.words().numbers(text)[: len(text.split())], "a word that is not in the vocabulary"


def test_the_eight_ways_to_lie_are_different() -> None:
    planes = np.arange(9).reshape(1, 3, 3)
    assert len({m.turned(planes, turn).tobytes() for turn in range(m.TURNS)}) == 8
    assert np.array_equal(m.turned(planes, 0), planes)


def test_turned_tiles_are_described_as_they_lie(shared_data: Path) -> None:
    root = shared_data / "cd_mshs_bcd"
    plain, every = m.BuildingCaptions(root, "train"), m.BuildingCaptions(root, "train", turns=True)
    assert len(every) == 9 * len(plain) == 9 * 453
    still, moved, same = plain[7], every[7 * 9 + 3], every[7 * 9 + m.SAME]
    assert moved.name == f"{still.name}-3"
    assert moved.label is not None
    assert still.label is not None
    assert np.array_equal(moved.label, m.turned(still.label, 3))
    assert np.array_equal(moved.images, m.turned(still.images, 3))
    assert moved.captions == m.sentences_of(m.BuildingFacts.of(moved.label == m.BUILDING))
    assert (same.name, same.captions) == (f"{still.name}-same", UNCHANGED)
    assert np.array_equal(same.images[0], same.images[1])
    assert np.array_equal(same.images[0], m.turned(still.images[1], 7))
    assert len(m.BuildingCaptions(root, "val", turns=True)) == 30, "only training tiles are turned"


def test_questions_on_tiles(shared_data: Path) -> None:
    found = m.BuildingQuestions(shared_data / "cd_mshs_bcd", "test")
    assert (len(found), len(set(found.names))) == (110, 10)
    one = found[0]
    assert one.images.shape == (2, 3, 256, 256)
    masks = {p.name: p.label == m.BUILDING for p in m.BuildingCaptions(shared_data / "cd_mshs_bcd", "test")}
    for name, (asked, fill) in zip(found.names, found.asked, strict=True):
        assert m.answer(m.BuildingFacts.of(masks[name]), asked.kind, **fill) == asked.answer
        assert asked.positional == (asked.kind in ("changed_here", "where", "half"))
