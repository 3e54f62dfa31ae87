"""Grades of DVL-Bench's texts without a language model: the statements of both texts, compared as sets.

Each criterion of the benchmark is given 5 F1, rounded, of the statements that it is about: ranges of years,
pairs of classes, percentages, directions, places. That finds what is stated and not how well it is said, so
that its grades stand beside those of no other judge; every result names the judge."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from terralapse.errors import SettingError

NAME = "rules"
RELATIVE, POINTS = 0.10, 5.0  # a percentage is right within either
_PERIOD = re.compile(r"\b((?:19|20)\d\d)\s*(?:-|–|—|to|until|and)\s*((?:19|20)\d\d)\b")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:-|–|to)\s*(\d+(?:\.\d+)?)\s*%|(\d+(?:\.\d+)?)\s*%")
_SPEED = re.compile(
    r"(?:(?P<rate>\d+(?:\.\d+)?)\s*%\s*(?P<way>\w+)?|(?P<none>no significant change))\s+from\s+"
    r"(?P<start>\d{4})\s+to\s+(?P<end>\d{4})",
    re.I,
)
_SHRINKS = re.compile(r"shr[iau]nk|decreas|declin|reduc|loss", re.I)
# What a class may be called, the longer names first.
_CLASSES = {
    "non vegetated surface": r"non[- ]vegetated(?: ground)?(?: surfaces?| land| areas?)?"
    r"|bare (?:land|ground|soil)"
    r"|impervious(?: surfaces?)?|roads?|pavement|parking lots?",
    "vegetation": r"vegetation|vegetated(?: areas?| land| surfaces?)?|trees?|forests?|grass(?:land)?"
    r"|farmlands?",
    "water": r"water(?: bod(?:y|ies))?|lakes?|rivers?|ponds?",
    "building": r"buildings?|built[- ]up(?: areas?| land)?|houses?|residential(?: areas?)?",
    "playground": r"playgrounds?|sports fields?|stadiums?|courts?",
}
_CLASS = re.compile("|".join(f"(?P<c{k}>\\b(?:{p})\\b)" for k, p in enumerate(_CLASSES.values())), re.I)
_PLACE = re.compile(
    r"\b(?:(top|upper|center|centre|middle|central|bottom|lower)(?:[- ](left|right|center|centre))?"
    r"|(left|right)|(north|south)(?:ern)?[- ]?(?:(east|west)(?:ern)?)?|(east|west)(?:ern)?)\b",
    re.I,
)
_ROWS = {"upper": "top", "lower": "bottom", "middle": "center", "central": "center", "centre": "center"}


# --- statements ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Speed:
    """The growth of buildings from `start` to `end` in per cent: negative where they shrank, 0 for none."""

    start: int
    end: int
    percent: float

    @property
    def way(self) -> int:
        """1, -1 or 0."""
        return (self.percent > 0) - (self.percent < 0)


def parse_speed(text: str) -> list[Speed]:
    """The statements of a CSE-Report, in order: "1.5% expansion from 2004 to 2007", "... shrinkage ...", "no
    significant change ..."; a rate without a direction is a growth."""
    found = []
    for match in _SPEED.finditer(text):
        rate = float(match["rate"] or 0)
        shrinks = bool(match["way"] and _SHRINKS.match(match["way"]))
        found.append(Speed(int(match["start"]), int(match["end"]), -rate if shrinks else rate))
    return found


def classes_of(text: str) -> list[tuple[int, str]]:
    """The classes of land cover that a text names, with where."""
    names = list(_CLASSES)
    return [(m.start(), names[int(str(m.lastgroup)[1:])]) for m in _CLASS.finditer(text)]


def transitions_of(text: str) -> dict[tuple[str, str], float | None]:
    """From class to class, with the percentage that stands before (or, where none does, after) it in its
    clause."""
    found: dict[tuple[str, str], float | None] = {}
    for clause in re.split(r",(?!\d)|;|\.(?!\d)|\band\b", text):
        named = classes_of(clause)
        for (at, source), (to, target) in pairwise(named):
            between = clause[at:to]
            if source != target and re.search(r"\b(to|into|became|become|by|turned|replaced)\b", between):
                pair = (target, source) if re.search(r"\bfrom\b", between) else (source, target)
                found[pair] = _percent(clause)
    return found


def _percent(text: str) -> float | None:
    match = _PERCENT.search(text)
    if match is None:
        return None
    return float(match[3]) if match[3] else (float(match[1]) + float(match[2])) / 2


def periods_of(text: str) -> set[tuple[int, int]]:
    """Ranges of years."""
    return {(int(m[1]), int(m[2])) for m in _PERIOD.finditer(text)}


def places_of(text: str) -> set[str]:
    """Where things lie: `top-left`, `center`, `right`, `north-east`, ..."""
    found = set()
    for match in _PLACE.finditer(text):
        parts = [p.lower() for p in match.groups() if p]
        found.add("-".join(_ROWS.get(p, p) for p in parts))
    return found


# --- grades ----------------------------------------------------------------------------------------------
def grade(task: str, truth: str, text: str, criteria: Sequence[str]) -> dict[str, int]:
    """The grades 0..5 of a text by the criteria of its task (see `terralapse.data.dvl.TASKS`).

    Raises:
        SettingError: a criterion that is not known.
    """
    found: dict[str, int] = {}
    for name in criteria:
        match name:
            case "land_cover_type_identification_accuracy":
                share = _f1(set(transitions_of(truth)), set(transitions_of(text)))
            case "change_quantification_accuracy":
                share = _near(transitions_of(truth), transitions_of(text))
            case "time_period_accuracy":
                share = _f1(periods_of(truth), periods_of(text))
            case "change_rate_precision":
                rates = ({(s.start, s.end): s.percent for s in parse_speed(t)} for t in (truth, text))
                share = _near(*rates)
            case "change_pattern_accuracy":
                ways = ({(s.start, s.end, s.way) for s in parse_speed(t)} for t in (truth, text))
                share = _f1(*ways)
            case "temporal_coverage":
                share = _f1(*({int(y) for y in _YEAR.findall(t)} for t in (truth, text)))
            case "spatial_accuracy":
                share = _f1(places_of(truth), places_of(text))
            case "process_fidelity":
                share = _f1(set(transitions_of(truth)), set(transitions_of(text)))
            case "region_containment":
                own = places_of(text)
                share = len(own & places_of(truth)) / len(own) if own else float(bool(text.strip()))
            case _:
                raise SettingError(f"criterion {name} of {task}", "is not known", "Use another judge.")
        found[name] = round(5 * share)
    return found


def _f1(truth: set[Hashable] | set, said: set[Hashable] | set) -> float:
    if not truth and not said:
        return 1.0
    return 2 * len(truth & said) / (len(truth) + len(said))


def _near(truth: dict, said: dict) -> float:
    """F1 of statements whose number is right too."""
    if not truth and not said:
        return 1.0
    hits = sum(key in said and _same(value, said[key]) for key, value in truth.items())
    return 2 * hits / (len(truth) + len(said))


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one > 0) != (other > 0):
        return one == other
    return abs(one - other) <= max(RELATIVE * abs(one), POINTS)
