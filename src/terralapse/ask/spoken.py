"""What a language model has said, checked: the same for every answerer that has one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from terralapse.ask.answer import Answer, Fact
from terralapse.ask.book import Book
from terralapse.ask.language import plain
from terralapse.ask.verify import Problem, about_fact, mentions, problems, sentences, supports, verified
from terralapse.tasks.claims import claims

_YES_NO = re.compile(r"^\W*(yes|no)\b", re.I)


def faults(text: str, facts: Iterable[Fact], book: Book, question: str) -> list[Problem]:
    """All that the facts do not support, a yes that is a no included."""
    return problems(text, facts, book, question) + polarity(text, book, question)


def polarity(text: str, book: Book, question: str) -> list[Problem]:
    """A yes that is a no by the facts, or the other way round."""
    said = _YES_NO.match(text)
    if said is None:
        return []
    from terralapse.ask.rules import answer

    own, _ = answer(question, book)
    values = own.value if isinstance(own.value, list) else [own.value]
    truth = next((v for v in values if isinstance(v, bool)), None)
    wrong = own.answered and truth is not None and truth != (said[1].lower() == "yes")
    bare = truth is None and len(plain(sentences(text)[0])) == 1
    unknown = not own.answered and own.reason != "not-understood"
    return [Problem("direction", said[1], sentences(text)[0])] if wrong or bare or unknown else []


def supported(text: str, facts: dict[str, Fact], book: Book, question: str, answerer: str) -> Answer:
    """The answer with what is supported, and the facts that support it."""
    wrong = {p.sentence for p in polarity(text, book, question)}
    kept = " ".join(s for s in sentences(text) if s not in wrong)
    draft = Answer(text=kept, facts=tuple(facts.values()), answerer=answerer, kind=answerer)
    found = verified(draft, book, question)
    if found.reason == "not-supported":
        return found
    cited = _cited(found.text, facts, book, question)
    unknown = bool(re.match(r"i cannot tell", found.text, re.I))
    state = {"understood": None, "evidence": None, "statement": "verified against the facts cited"}
    return replace(
        found,
        facts=cited,
        overlay=overlay(cited),
        answered=not unknown,
        reason="model-cannot-tell" if unknown else None,
        confidence=state | {k: v for k, v in found.confidence.items() if k == "left_out"},
    )


def overlay(facts: Iterable[Fact]) -> tuple[dict[str, Any], ...]:
    """What the facts rest on that can be shown on a map, each once."""
    found: list[dict[str, Any]] = []
    for fact in facts:
        if fact["evidence"] not in found and not {"file", "table"} & set(fact["evidence"]):
            found.append(fact["evidence"])
    return tuple(found)


def _cited(text: str, facts: dict[str, Fact], book: Book, question: str) -> tuple[Fact, ...]:
    """Of the facts that were read those that the text rests on."""
    kept: dict[str, Fact] = {}
    for sentence in sentences(text):
        told = claims(sentence)
        said = mentions(sentence, book)
        named = frozenset().union(*(n for kind in said.values() for n in kind.values()))
        for key, fact in facts.items():
            about = about_fact(fact, book)
            of = about.classes | about.places | about.grades
            if any(supports(fact, c) for c in told) or (not told and of & named):
                kept[key] = fact
    enough = not problems(text, kept.values(), book, question)
    return tuple(kept.values()) if enough else tuple(facts.values())
