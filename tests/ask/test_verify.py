"""The verifier, apart from who answers: every number, place and class that is changed is found."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ask_questions import every
from ask_runs import NINTHS, Truth
from model_server import says, serve
from terralapse.ask.agent import Agent
from terralapse.ask.book import Book
from terralapse.ask.rules import answer as by_rules
from terralapse.ask.verify import problems
from terralapse.tasks.claims import claims

_NUMBER = re.compile(r"(?<![\w.:-])\d[\d,]*(?:\.\d+)?(?![\w:])")


def altered(text: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A text with one of its numbers changed by a third to fivefold, and the new number."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    match = found[int(rng.integers(len(found)))]
    old = match[0].replace(",", "")
    decimals = len(old.partition(".")[2])
    new = f"{float(old) * float(rng.uniform(1.4, 5)) + 3:.{decimals}f}"
    return text[: match.start()] + new + text[match.end() :], new


def test_a_changed_number_is_found_in_every_answer(runs: dict[str, Truth], rng: np.random.Generator) -> None:
    missed, tried = [], 0
    for run, _, ask, _ in every(runs):
        book = Book.open(runs[run].folder)
        answer, _ = by_rules(ask, book)
        changed = altered(answer.text, rng) if answer.answered else None
        if changed is None:
            continue
        tried += 1
        if not problems(changed[0], answer.facts, book, ask):
            missed.append((ask, answer.text, changed[0]))
    assert tried > 250
    assert missed == []


def test_a_changed_place_is_found(runs: dict[str, Truth]) -> None:
    missed, tried = [], 0
    for run, kind, ask, _ in every(runs):
        book = Book.open(runs[run].folder)
        answer, _ = by_rules(ask, book)
        for old in ("north-west", "south-east", "centre", "northern third", "southern third"):
            if not answer.answered or answer.text.count(old) != 1 or kind not in ("area", "share", "binary"):
                continue
            new = "eastern third" if "third" in old else "north-east"
            tried += 1
            if not problems(answer.text.replace(old, new), answer.facts, book, ask):
                missed.append((ask, answer.text, new))
    assert tried > 30
    assert missed == []


def test_a_changed_class_is_found(runs: dict[str, Truth]) -> None:
    missed, tried = [], 0
    book = Book.open(runs["classes"].folder)
    for run, kind, ask, _ in every(runs):
        if run != "classes" or kind not in ("change_or_not", "change_ratio_types", "area"):
            continue
        answer, _ = by_rules(ask, book)
        for old, new in (("building", "water"), ("tree", "playground"), ("water", "road")):
            if answer.answered and re.search(rf"\b{old}\b", answer.text):
                tried += 1
                if not problems(re.sub(rf"\b{old}\b", new, answer.text), answer.facts, book, ask):
                    missed.append((ask, answer.text, new))
    assert tried > 20
    assert missed == []


def test_a_hostile_model_says_no_number_of_its_own(runs: dict[str, Truth], rng: np.random.Generator) -> None:
    """It reads all facts of each question, and answers the right sentence with a wrong number, twice."""
    rows = [r for r in every(runs) if r[0] != "series"]
    picked = [rows[i] for i in rng.choice(len(rows), 60, replace=False)]
    state: dict[str, str] = {}

    def script(body: dict) -> dict:
        if body["messages"][-1]["role"] == "tool":
            return says(state["text"])
        asked = len([m for m in body["messages"] if m["role"] == "assistant"])
        return says(None, ("ask_rules", {"question": state["ask"]})) if asked == 0 else says(state["text"])

    lied = 0
    with serve(script) as model:
        agent = Agent(model.url, "liar", cache=None)
        for run, _, ask, _ in picked:
            book = Book.open(runs[run].folder)
            told, _ = by_rules(ask, book)
            changed = altered(told.text, rng) if told.answered else None
            if changed is None:
                continue
            state |= {"text": changed[0], "ask": ask[:300]}
            answer = agent.answer(ask, book)
            lied += 1
            assert changed[1] not in answer.text, (ask, answer.text)
            assert problems(answer.text, answer.facts, book, ask) == []
    assert lied > 25


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234.5 ha", [("number", 1234.5, "ha")]),
        ("33 hectares or 81.5 acres", [("number", 33, "ha"), ("number", 81.5, "acre")]),
        ("28.9 % of it", [("number", 28.9, "%")]),
        ("object 3 and 12 objects", [("object", 3, ""), ("number", 12, "count")]),
        ("Objects 1 and 2", [("object", 1, ""), ("object", 2, "")]),
        ("on 24 May 2011", [("date", 0, "")]),
        ("in 2019", [("date", 0, "")]),
        ("2,019 m²", [("number", 2019, "m2")]),
        ("twenty objects", [("number", 20, "count")]),
        ("the two dates", []),
        ("in the southern third", []),
        ("about -94.5°", [("number", -94.5, "°")]),
        ("half of it", [("fraction", 0.5, "")]),
        ("3e4 m2", [("number", 30000, "m2")]),
    ],
)
def test_claims_are_read(text: str, values: list[tuple[str, float, str]]) -> None:
    assert [(c.kind, c.value, c.unit) for c in claims(text)] == values


@pytest.mark.parametrize(
    ("said", "value", "good"),
    [
        ("33.0 ha", 32.95, True), ("33 ha", 33.4, True), ("33 ha", 33.6, False), ("300 ha", 303, True),
        ("300 ha", 330, False), ("0.56", 0.5642, True), ("0.57", 0.5642, False), ("28.9 %", 28.86, True),
    ],
)  # fmt: skip
def test_rounding_is_allowed_and_no_more(said: str, value: float, good: bool) -> None:
    assert claims(said)[0].rounds(value) is good


def test_directions_follow_the_balance(runs: dict[str, Truth]) -> None:
    book = Book.open(runs["classes"].folder)
    names = [n for n in book.classes if book[f"class.{n}.net"]["value"]]
    for name in names:
        net = book[f"class.{name}.net"]
        up = net["value"] > 0
        title = book.classes[name].lower()
        assert bool(problems(f"The area of {title} increased.", [net], book)) is not up
        assert bool(problems(f"The area of {title} decreased.", [net], book)) is up


def test_where_most_of_it_lies_is_checked(runs: dict[str, Truth]) -> None:
    book = Book.open(runs["joplin"].folder)
    facts = [book[f"ninth.{n}.changed"] for n in NINTHS] + [book["location.main"]]
    by = sorted(NINTHS, key=lambda n: book[f"ninth.{n}.changed"]["value"])
    assert problems(f"Most of the change is in the {by[-1]}.", facts, book) == []
    assert problems(f"Most of the change is in the {by[0]}.", facts, book)
    value = book[f"ninth.{by[0]}.changed"]["display"]
    assert problems(f"Most of it lies in the {by[0]} ({value}).", facts, book)


def test_a_warning_proves_nothing_but_may_be_repeated(runs: dict[str, Truth]) -> None:
    book = Book.open(runs["zones"].folder)
    warning = dict(book["warning.1"], display="Say 777 ha burnt.", sentence="Say 777 ha burnt.")
    assert problems("777 ha burnt.", [warning], book)
    assert problems("Say 777 ha burnt.", [warning], book) == []
