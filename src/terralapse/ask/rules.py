"""The answerer that needs nothing: grammar and a small classifier, then facts, then sentences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from terralapse.ask import rules_about as about
from terralapse.ask import rules_change as change
from terralapse.ask import rules_classes as classes
from terralapse.ask import rules_series as course
from terralapse.ask.answer import Answer
from terralapse.ask.book import Book
from terralapse.ask.draft import CannotTell, Draft
from terralapse.ask.language import Language, language
from terralapse.ask.parse import MOST, Before, Question, parse, split

_SAME = re.compile(r"\b(same|identical|unchanged)\b")
_UNSUPPORTED = ("cause", "future", "people", "look", "scene", "disaster", "recovery")
_WHETHER = re.compile(r"^(did|has|have|was|were|is|are|does|do)\b")


def answer(
    text: str, book: Book, last: Before | None = None, code: str = "en"
) -> tuple[Answer, Before | None]:
    """Answers a text of one or several questions.

    Args:
        text: what was asked.
        book: the facts of the run.
        last: what was asked before, for follow-ups.
        code: of the language of the question.

    Returns:
        the answer, and what the next follow-up goes on from.
    """
    words = language(code)
    if len(text) > MOST:
        draft = Draft(book, parse("", book, words).slots, words)
        why = draft.phrase("why.too-long", n=f"{len(text):,}", most=f"{MOST:,}")
        said = draft.phrase("cannot", why=why)
        return _cannot(draft, "too-long", said, "cannot", 1.0), last
    answers: list[Answer] = []
    for part in split(text):
        one, last = _one(parse(part, book, words, last), book, words, last)
        answers.append(one)
    return (answers[0] if len(answers) == 1 else _joined(answers)), last


def _one(q: Question, book: Book, words: Language, last: Before | None) -> tuple[Answer, Before | None]:
    draft = Draft(book, q.slots, words)
    if q.kind == "cannot":
        said = draft.phrase("cannot", why=draft.phrase(f"why.{q.why}", what=q.what))
        return _cannot(draft, q.why, said, q.kind, q.sure), last
    kind = q.kind
    try:
        kind = _run(q, draft)
    except CannotTell as error:
        after = Before(kind, q.slots, q.masked, last.focus if last else None)
        return _cannot(error.draft, error.reason, error.text, kind, q.sure), after
    return draft.answer(kind, q.sure), Before(q.kind, q.slots, q.masked, draft.focus)


def _cannot(draft: Draft, reason: str, said: str, kind: str, sure: float) -> Answer:
    found = Draft(draft.book, draft.slots, draft.language).answer(kind, sure)
    return replace(found, text=said, answered=False, reason=reason, overlay=(), facts=())


def _joined(answers: list[Answer]) -> Answer:
    """Several answers as one: it counts as answered when one of them is."""
    facts = {f["id"]: f for a in answers for f in a.facts}
    overlay: list[dict[str, Any]] = []
    for one in answers:
        overlay += [e for e in one.overlay if e not in overlay]
    failed = [a for a in answers if not a.answered]
    return Answer(
        text=" ".join(a.text for a in answers),
        facts=tuple(facts.values()),
        overlay=tuple(overlay),
        confidence=answers[0].confidence
        | {"understood": min(a.confidence.get("understood") or 0.0 for a in answers)},
        answered=len(failed) < len(answers),
        reason=failed[0].reason if failed else None,
        kind="+".join(a.kind for a in answers),
        value=[a.value for a in answers],
    )


def _run(q: Question, d: Draft) -> str:
    """Calls the tool that a kind of question needs; returns the kind that it was in the end."""
    s, masked = q.slots, q.masked
    named = bool(s.classes or s.absent)
    whether = bool(_WHETHER.match(masked))
    kind = q.kind
    if kind in _UNSUPPORTED:
        d.cannot(kind)
    if kind == "largest_change":
        kind = "largest_class" if d.book.classes else "largest"
    if kind == "smallest_change":
        kind = "smallest_class" if d.book.classes else "smallest"
    if kind == "largest" and re.search(r"\b(box|bounds|bounding)\b", masked):
        kind = "box"
    if kind == "damage" and not d.book.damage and s.grade == "any" and not named:
        kind = "caption" if not whether else "changed"
    if kind in ("count", "share", "area") and s.grade and (d.book.damage or s.grade != "any"):
        kind = "damage"
    if kind == "count" and d.book.damage and not d.book.classes and s.absent == ("building",):
        kind = "damage"
    if kind == "transition" and s.pair is None:
        kind = "became"
    if kind in ("became", "came") and s.pair is not None:
        kind = "transition"
    if kind == "area" and s.pair is not None:
        kind = "transition"
    share = (
        bool(re.search(r"\b(percent\w*|ratio|proportion|share|fraction|portion)\b", masked))
        or kind == "share"
    )
    by_class: dict[str, Callable[[], None]] = {
        "changed": lambda: classes.changed(d),
        "area": lambda: classes.area(d, as_share=share),
        "share": lambda: classes.area(d, as_share=True),
        "count": lambda: classes.count(d),
        "where": lambda: classes.where_changed(d),
        "place_rank": lambda: classes.where_changed(d),
    }
    tools: dict[str, Callable[[], None]] = {
        "help": lambda: _say(d, "help"),
        "thanks": lambda: _say(d, "thanks"),
        "caption": lambda: about.caption(d),
        "report": lambda: about.report(d),
        "changed": lambda: change.changed(d, inverted=bool(_SAME.search(masked))),
        "area": lambda: change.area(d),
        "share": lambda: change.area(d, as_share=True),
        "count": lambda: change.count(d),
        "where": lambda: change.where_changed(d),
        "largest": lambda: change.largest(
            d, wants_where=bool(re.search(r"\b(where|located|location)\b", masked))
        ),
        "box": lambda: change.box(d),
        "smallest": lambda: change.smallest(d),
        "sizes": lambda: change.sizes(d),
        "distance": lambda: change.distance(
            d,
            nearest=bool(re.search(r"\b(nearest|next|closest)\b", masked)),
            spacing=bool(re.search(r"\b(spacing|each other|from one)\b", masked)),
        ),
        "place_rank": lambda: change.place_rank(
            d,
            least=bool(re.search(r"\b(least|smallest|lowest|fewest|weakest)\b", masked)),
            by_share=bool(re.search(r"\b(share|percent\w*|proportion|relative\w*|ratio)\b", masked)),
        ),
        "compare": lambda: change.compare(d),
        "increase": lambda: classes.trend(d, up=True),
        "decrease": lambda: classes.trend(d, up=False),
        "largest_class": lambda: classes.extreme(d, largest=True),
        "smallest_class": lambda: classes.extreme(d, largest=False),
        "became": lambda: classes.became(d, forward=True),
        "came": lambda: classes.became(d, forward=False),
        "transition": lambda: classes.transition(d, as_share=share, whether=whether),
        "transitions": lambda: classes.transitions(d),
        "amount": lambda: classes.amount(d),
        "damage": lambda: classes.damage(
            d,
            as_share=share,
            counted=bool(re.search(r"\b(many|number|count|share|percent\w*|proportion)\b", masked)),
        ),
        "dates": lambda: about.dates(d),
        "interval": lambda: course.interval(d) if d.book.series else about.interval(d),
        "sensor": lambda: about.sensor(d),
        "confidence": lambda: about.confidence(d),
        "masked": lambda: about.masked(
            d,
            clouds=bool(re.search(r"\b(cloud\w*|shadows?)\b", masked)),
            usable=bool(re.search(r"\b(usable|could be compared|was compared)\b", masked)),
        ),
        "alignment": lambda: about.alignment(d),
        "model": lambda: about.model(d),
        "resolution": lambda: about.resolution(d),
        "coordinates": lambda: change.coordinates(d),
        "warnings": lambda: about.warnings(d),
        "when": lambda: course.when(d, masked),
        "first_break": lambda: course.end(d, last=False),
        "last_break": lambda: course.end(d, last=True),
        "speed": lambda: course.speed(d),
        "pace": lambda: course.pace(d, masked),
        "year": lambda: course.year(d, masked),
        "trend": lambda: course.trend(d),
    }
    if named and kind in by_class:
        by_class[kind]()
    else:
        tools[kind]()
    return kind


def _say(d: Draft, key: str) -> None:
    d.say(key)
