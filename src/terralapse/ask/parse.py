"""From a text to what is asked: the kind of question and what it names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from terralapse.ask.book import Book
from terralapse.ask.classifier import classifier
from terralapse.ask.language import Language, plain
from terralapse.ask.slots import Read, Slots, read, vocabulary

MOST = 1000  # characters of a question
_SURE = 0.45  # of the classifier, below which a question is not understood
_STRANGE = 0.5  # share of words that nobody knows, from which on a question is not understood
_NOUN = re.compile(
    r"(^|\b(how many|how much|largest|biggest|smallest|the|a|an|of|which|what|new|and|in)|<[cpz]>) $"
)
_PARTS = re.compile(
    r"[?\n;]+|(?:,? and |, )(?=(?:how|where|when|what|which|who|why|is|are|did|has|have)\b)"
    r"(?!(?:how (?:large|big)|where)\W*$)",
    re.I,
)


@dataclass(frozen=True)
class Question:
    """One question. `kind` is an intent of the grammar, or `cannot` with the reason in `why`; `sure` is 1
    where the grammar knew it, else the probability of the classifier; `masked` has marks for names."""

    text: str
    kind: str
    slots: Slots
    masked: str
    sure: float
    why: str = ""
    what: str = ""


@dataclass(frozen=True)
class Before:
    """What was asked last: what a follow-up goes on from. `focus` is the object spoken of."""

    kind: str
    slots: Slots
    masked: str
    focus: int | None = None


def split(text: str) -> list[str]:
    """The questions in a text."""
    parts = [p.strip(" ,.") for p in _PARTS.split(text)]
    found: list[str] = []
    for part in filter(None, parts):
        if found and len(plain(part)) < 2 and not part.lower().startswith(("why", "where", "when", "how")):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found or [text]


def parse(text: str, book: Book, language: Language, last: Before | None = None) -> Question:
    """What one question asks of a run."""
    words = plain(text)
    if not any(c.isalnum() for c in text):
        return Question(text, "cannot", Slots(), "", 1.0, "empty")
    known = vocabulary(book, language)
    foreign = language.foreign(words, known)
    if foreign is not None:
        return Question(text, "cannot", Slots(), "", 1.0, "other-language", foreign)
    found = read(text, book, language)
    followed = _follow(text, found, language, last)
    if followed is not None:
        return followed
    stranger = _stranger(found)
    if stranger is not None:
        return Question(text, "cannot", found.slots, found.masked, 1.0, "unknown-word", stranger)
    for kind, pattern in language.rules:
        if pattern.search(found.masked):
            return _checked(text, kind, found, 1.0)
    kind, sure = classifier(language.code)(found.masked)[0]
    named = len(found.masked.split())
    if kind == "other" or sure < _SURE or len(found.unknown) > _STRANGE * max(named, 1):
        return Question(text, "cannot", found.slots, found.masked, sure, "not-understood")
    return _checked(text, kind, found, sure)


def _stranger(found: Read) -> str | None:
    """A word that nobody knows where a thing is named: to answer about another thing would be wrong."""
    if found.slots.missing_zone:
        return None
    for word in found.unknown:
        before = found.masked.partition(word)[0]
        if len(word) > 2 and _NOUN.search(before):
            return word
    return None


def _checked(text: str, kind: str, found: Read, sure: float) -> Question:
    if len(found.unknown) > _STRANGE * max(len(found.masked.split()), 1):
        return Question(text, "cannot", found.slots, found.masked, sure, "not-understood")
    return Question(text, kind, found.slots, found.masked, sure)


_POINTING = re.compile(r"\b(it|that|this one|that one)\b")
_BARE = re.compile(
    r"^((<[cpzuygno]>|n|the|in|of|for|to|at|a|an|on|as|and|or|only|largest|biggest|object|one|ones|image|part"
    r"|percent|percentage|unchanged|images|<before>|<after>|new|lost|gained|instead|that|is|area|third|larger|bigger|more|greater|than|smaller|less|fewer"
    r"|under|over|above|below|least) ?)+$"
)


def _follow(text: str, found: Read, language: Language, last: Before | None) -> Question | None:
    """The question that a fragment ("and in the north?") is, read with the one before it."""
    masked, opened = found.masked, False
    for lead in sorted(language.words["follow"], key=len, reverse=True):
        if masked == lead or masked.startswith(lead + " "):
            masked, opened = masked[len(lead) :].strip(), True
            break
    if not masked or not _BARE.match(masked):
        if last is not None and last.focus and _POINTING.search(masked) and not found.slots.objects:
            return _about_object(text, found, last)
        return None
    if masked in ("image", "area", "part", "one", "new", "percentage") and not opened:
        return None
    if last is None:
        if opened or len(masked.split()) <= 3:
            return Question(text, "cannot", found.slots, masked, 1.0, "alone")
        return None
    kind = last.kind
    if re.search(r"largest|biggest|<o>|\bobject\b", masked) and kind not in ("distance", "confidence"):
        kind = "largest"
    if "percent" in masked and kind in ("area", "changed", "caption"):
        kind = "share"
    if found.slots.unit and kind in ("changed", "share", "caption", "where", "place_rank"):
        kind = "area"
    if found.slots.grade:
        kind = "damage"
    slots = found.slots.over(last.slots)
    whole = masked if kind == "largest" else f"{last.masked} | {masked}"
    return Question(text, kind, slots, whole, 1.0)


def _about_object(text: str, found: Read, last: Before) -> Question | None:
    """ "Where is it", "how big is it", "how sure is that" about the object that was spoken of."""
    from dataclasses import replace

    masked = found.masked
    slots = replace(found.slots, objects=(last.focus,) if last.focus else ())
    for kind, pattern in (
        ("box", r"\b(box|bounds|bounding)\b"),
        ("confidence", r"\b(sure|confident|certain|probability|reliable|likely)\b"),
        ("distance", r"\b(near|nearest|next|closest|far)\b"),
        ("largest", r"\b(where|big|large|size|coordinates|located)\b"),
    ):
        if re.search(pattern, masked):
            return Question(text, kind, slots, masked, 1.0)
    return None
