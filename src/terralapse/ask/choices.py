"""Questions with choices: the stem is answered from the facts, and the letters are those of what agrees
with it.

A number takes the nearest choice in its unit (within a tenth); several choices are taken where they may be,
each that the facts support by itself. Nothing is guessed: where no choice agrees, that is said."""

from __future__ import annotations

import re
from calendar import month_name
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from terralapse.ask.answer import Answer
from terralapse.ask.book import Book
from terralapse.ask.language import language, plain
from terralapse.ask.measure import AREAS, LENGTHS
from terralapse.ask.verify import problems
from terralapse.tasks.claims import claims

_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s+(\S.*?)\s*$", re.M)
_LABEL = re.compile(r"^\s*(questions?|choices|options)\s*:\s*", re.I | re.M)
_SEVERAL = re.compile(
    r"\bletter\(s\)|\bone or more\b|\ball that\b|\bmultiple\b"
    r"|^\W*(which|in which) .*(s|es) (did|were|are|have|took)\b",
    re.I,
)
_ONLY = re.compile(r"\bonly\b.*\bletter", re.I | re.S)
_NEAR = 0.1
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


@dataclass(frozen=True)
class Choice:
    """A question with choices: what is asked, the choices by letter, whether several may be right, and
    whether nothing but letters is wanted."""

    stem: str
    options: dict[str, str]
    several: bool
    bare: bool


def divide(text: str) -> Choice | None:
    """The stem and the choices (`A. ...`, one a line, from A on) of a text; None where it has none."""
    found = list(_OPTION.finditer(text))
    letters = [m[1] for m in found]
    if len(found) < 2 or letters != [chr(ord("A") + k) for k in range(len(found))]:
        return None
    stem = _LABEL.sub("", text[: found[0].start()]).strip()
    rest = text[found[-1].end() :]
    several = bool(_SEVERAL.search(rest) or _SEVERAL.search(stem))
    return Choice(stem, {m[1]: m[2] for m in found}, several, bool(_ONLY.search(rest)))


def choose(choice: Choice, answer: Answer, book: Book) -> Answer:
    """The letters that agree with the answer to the stem; `value` is "B" or "A, C".

    An answer that could not be given stays what it is.
    """
    if not answer.answered:
        return answer
    letters = _letters(choice, answer, book)
    if not letters:
        words = language().sentences
        said = words["cannot"].format(why=words["why.no-choice"])
        return replace(
            answer, text=said, answered=False, reason="no-choice", value=None, unit="", facts=(), overlay=()
        )
    value = ", ".join(letters)
    return replace(answer, text=value if choice.bare else f"{value}: {answer.text}", value=value, unit="")


def _letters(choice: Choice, answer: Answer, book: Book) -> list[str]:
    value = answer.value
    if isinstance(value, bool):
        word = "yes" if value else "no"
        return [k for k, o in choice.options.items() if plain(o)[:1] == [word]][:1]
    if isinstance(value, int | float):
        return _nearest(choice, answer, float(value))
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d.*", value):
        return _day(choice, value)
    if isinstance(value, dict):
        return _keep(choice, lambda o: any(_names(o, k) for k, v in value.items() if v))
    if isinstance(value, str | list):
        wanted = [value] if isinstance(value, str) else value
        found = _keep(choice, lambda o: any(_names(o, w, book) for w in wanted))
        if found:
            return found
    return _keep(choice, lambda o: bool(claims(o)) and not problems(o, answer.facts, book))


def _keep(choice: Choice, fits: Callable[[str], bool]) -> list[str]:
    found = [k for k, o in choice.options.items() if fits(o)]
    return found if choice.several or len(found) == 1 else []


def _names(option: str, value: Any, book: Book | None = None) -> bool:
    """Whether a choice names a thing, a year or a class as the facts do."""
    said = f" {' '.join(plain(option))} "
    titles = {str(value), book.classes.get(str(value), str(value)) if book else str(value)}
    return any(f" {' '.join(plain(t.replace('_', ' ')))} " in said for t in titles)


def _day(choice: Choice, value: str) -> list[str]:
    """The choice with this date or, where none has it, its only choice with the year."""
    year, month, day = value[:10].split("-")
    exact = (value[:10], f"{int(day)} {month_name[int(month)]} {year}")
    found = [k for k, o in choice.options.items() if any(e in o for e in exact)]
    return (found or [k for k, o in choice.options.items() if _YEAR.findall(o) == [year]])[:1]


def _nearest(choice: Choice, answer: Answer, value: float) -> list[str]:
    """The choice whose number is nearest, in the unit of the answer."""
    off: dict[str, float] = {}
    for key, option in choice.options.items():
        for claim in claims(option):
            said = _in_unit(claim.value, claim.unit, answer.unit)
            if claim.kind == "date" and _YEAR.fullmatch(claim.said) and answer.unit == "":
                off[key] = 0.0 if int(claim.said) == value else float("inf")
            elif claim.kind == "number" and said is not None:
                size = max(abs(value), abs(said))
                off[key] = abs(said - value) / size if size else 0.0
    best = sorted(off, key=lambda k: off[k])
    alike = len(best) > 1 and off[best[0]] == off[best[1]]
    return best[:1] if best and off[best[0]] <= _NEAR and not alike else []


def _in_unit(value: float, unit: str, wanted: str) -> float | None:
    if wanted == "1":
        return value / 100 if unit == "%" else value if not unit else None
    for table, base in ((AREAS, "m2"), (LENGTHS, "m")):
        if unit in table and (wanted == base or wanted in table):
            return value * table[unit][0] / (table[wanted][0] if wanted in table else 1.0)
    if unit in (wanted, "", "count"):
        return value
    return None
