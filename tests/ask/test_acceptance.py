"""More than 300 questions over real and made runs, see `ask_questions`, and talks with follow-ups."""

from __future__ import annotations

from collections import Counter

import pytest

from ask_questions import every
from ask_runs import Truth
from terralapse.ask import Conversation
from terralapse.ask.verify import problems

TALKS: dict[str, list[list[tuple[str, str]]]] = {  # follow-up, the same question in full
    "zones": [
        [
            ("How much changed?", ""),
            ("and in the north?", "How much changed in the north?"),
            ("in acres?", "How much changed in the north in acres?"),
            ("what about the south?", "How much changed in the south in acres?"),
        ],
        [
            ("How many objects are there?", ""),
            ("and in the west?", "How many objects are there in the west?"),
            ("larger than 1 ha?", "How many objects larger than 1 ha are there in the west?"),
        ],
        [("Has the north-east changed?", ""), ("and the centre?", "Has the centre changed?")],
        [
            ("What percentage of Harbour changed?", ""),
            ("and Mill?", "What percentage of Mill changed?"),
            ("and in Old Town?", "What percentage of Old Town changed?"),
        ],
        [
            ("What is the largest change?", ""),
            ("Where is it?", "Where is object 1?"),
            ("and the second largest?", "How large is object 2?"),
            ("how big is it?", "How big is object 2?"),
        ],
    ],
    "classes": [
        [("How many trees are new?", ""), ("and buildings?", "How many buildings are new?")],
        [
            ("How much water was lost?", ""),
            ("and trees?", "How much trees was lost?"),
            ("and in the south?", "How much trees was lost in the south?"),
        ],
        [
            ("Did the areas of water increase?", ""),
            ("what about buildings?", "Did the areas of buildings increase?"),
        ],
        [("How many buildings are destroyed?", ""), ("and undamaged?", "How many buildings are undamaged?")],
    ],
}


def test_at_least_95_percent_are_right_and_no_number_is_unsupported(runs: dict[str, Truth]) -> None:
    rows = every(runs)
    assert len(rows) >= 300
    wrong: list[str] = []
    by_type: Counter[str] = Counter()
    for run, kind, ask, check in rows:
        talk = Conversation(runs[run].folder)
        answer = talk.ask(ask)
        assert problems(answer.text, answer.facts, talk.book, f"{ask} {len(ask):,} 1,000") == [], (
            ask,
            answer.text,
        )
        assert "left_out" not in answer.confidence, (ask, answer.text)
        by_type[kind] += 1
        if not check(answer):
            wrong.append(f"{run} {kind}: {ask[:80]} -> {answer.text[:150]} [{answer.reason}] {answer.value}")
    right = 1 - len(wrong) / len(rows)
    assert right >= 0.95, f"{right:.3f} of {len(rows)}\n" + "\n".join(wrong)


@pytest.mark.parametrize("run", sorted(TALKS))
def test_a_follow_up_is_answered_as_the_whole_question(runs: dict[str, Truth], run: str) -> None:
    for turns in TALKS[run]:
        talk = Conversation(runs[run].folder)
        for short, full in turns:
            answer = talk.ask(short)
            if full:
                alone = Conversation(runs[run].folder).ask(full)
                assert alone.answered, (full, alone.text)
                assert (answer.value, answer.unit) == (alone.value, alone.unit), (
                    short,
                    answer.text,
                    alone.text,
                )
