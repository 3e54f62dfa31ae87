"""What a report states: of which things, in which state, how many; which actions, and when.

Both texts of a comparison are read by the same rules, so a report in other words than these patterns know
states nothing here. That is why the judge's name stands beside every mark that comes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from terralapse.data.disaster_words import CAPTION_TAGS, RECOVERY_TAGS

_TAG = re.compile(rf"\**\b({'|'.join((*CAPTION_TAGS, *RECOVERY_TAGS))})\b\**\s*:\**", re.I)
_SUBJECTS = {
    "building": r"buildings?|houses?|homes?|structures?|roofs?|residential",
    "road": r"roads?|streets?|highways?|bridges?",
    "vegetation": r"vegetation|trees?|forests?",
    "water": r"water|rivers?|lakes?|sea|ponds?|coast\w*",
    "farmland": r"agricultur\w*|farm\w*|crops?|fields?",
}
_OF_TAG = {
    "BUILDING": "building",
    "ROAD": "road",
    "VEGETATION": "vegetation",
    "WATER_BODY": "water",
    "AGRICULTURE": "farmland",
}
_STATES = {
    "intact": r"intact|undamaged|unaffected|unchanged|no (?:visible |major )?(?:damage|impact|change)s?",
    "destroyed": r"destroy\w*|destruction|collapsed?|levell?ed|wiped out|gone",
    "flooded": r"flood\w*|inundat\w*|submerg\w*",
    "debris": r"debris[- ]?\w*|rubble|block\w*",
    "burnt": r"burn\w*|char\w*|scorch\w*",
    "damaged": r"damag\w*|affected",
}
_HAZARDS = {
    "flood": r"flood\w*",
    "fire": r"(?:wild|bush)?fires?",
    "earthquake": r"earthquakes?",
    "tornado": r"tornado(?:e?s)?",
    "hurricane": r"hurricanes?|cyclones?|typhoons?",
    "tsunami": r"tsunamis?",
    "landslide": r"landslides?|mudslides?",
    "volcano": r"volcan\w*|lava",
    "explosion": r"explosions?|blast",
    "conflict": r"conflict|war|shelling",
}
_ACTIONS = {
    "rescue": r"rescue|search",
    "shelter": r"shelters?|tents?|evacuat\w*",
    "inspect": r"inspect\w*|assess\w*|prop|shor\w+",
    "clear": r"clear\w*|debris removal",
    "drain": r"pump\w*|drain\w*|dewater\w*",
    "repair": r"repair\w*",
    "rebuild": r"rebuild\w*|reconstruct\w*",
    "roads": r"restore the roads|road (?:repair|restoration|network)|access",
    "replant": r"replant\w*|reforest\w*|revegetat\w*|ecolog\w*",
    "relief": r"medical|food|supplies|aid|drinking water",
}
_NUMBER = re.compile(
    r"(?P<n>\d[\d,]*(?:\.\d+)?)\s*(?P<p>%|per ?cent)?|\b(?P<w>no|none|one|two|three|four|five|six)\b", re.I
)
_WORDS = {"no": 0, "none": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_NONE_NEEDED = re.compile(
    r"\bno recovery\b|\bno discernible impact\b|\brecovery is not (?:needed|necessary)", re.I
)
_TOLERANCE, _POINTS = 0.10, 5.0  # of numbers, and of percentages


@dataclass(frozen=True)
class Stated:
    """One statement; `number` None where it gives none, `percent` where it is a share."""

    subject: str
    state: str
    number: float | None = None
    percent: bool = False

    def agrees(self, other: Stated) -> bool:
        """The same thing in the same state, and numbers of one kind within 10 per cent (shares: 5 points).
        A statement without a number agrees with any number but 0."""
        if (self.subject, self.state) != (other.subject, other.state):
            return False
        if self.number is None or other.number is None:
            return (self.number or other.number) != 0 or self.number == other.number
        if self.percent != other.percent:
            return False
        off = abs(self.number - other.number)
        if self.percent:
            return off <= _POINTS
        return off <= _TOLERANCE * max(abs(self.number), abs(other.number))


def tagged(text: str) -> list[tuple[str, str]]:
    """Pairs of a tag (in capitals; empty before the first one) and the text under it."""
    marks = list(_TAG.finditer(text))
    found = [("", text[: marks[0].start()] if marks else text)]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):  # without a mark all stands before the first one
        found.append((mark[1].upper(), text[mark.end() : end]))
    return [(tag, part.strip()) for tag, part in found if part.strip()]


def statements_of(text: str) -> list[Stated]:
    """Everything that a caption states, once each. The conclusion repeats, so it is not read where there are
    other tags."""
    parts = tagged(text)
    found: list[Stated] = []
    for tag, part in parts:
        if tag == "CONCLUSION" and len(parts) > 1:
            continue
        if tag in ("DISASTER", ""):
            found += [
                Stated("disaster", h) for h, p in _HAZARDS.items() if re.search(rf"\b(?:{p})\b", part, re.I)
            ]
        if tag != "DISASTER":
            found += _of_clauses(part, _OF_TAG.get(tag, ""))
    return list(dict.fromkeys(found))


def _of_clauses(text: str, subject: str) -> list[Stated]:
    found = []
    for clause in re.split(r"[.;](?!\d)|,(?!\d)|\band\b|\bbut\b|\bwhile\b", text):
        named = next((s for s, p in _SUBJECTS.items() if re.search(rf"\b(?:{p})\b", clause, re.I)), subject)
        subject = named or subject
        state = next((s for s, p in _STATES.items() if re.search(rf"\b(?:{p})\b", clause, re.I)), None)
        if not subject or state is None:
            continue
        bare = re.sub(_STATES["intact"], " ", clause, flags=re.I) if state == "intact" else clause
        match = _NUMBER.search(bare)
        if match is None:
            found.append(Stated(subject, state))
        elif match["w"]:
            found.append(Stated(subject, state, float(_WORDS[match["w"].lower()])))
        else:
            found.append(Stated(subject, state, float(match["n"].replace(",", "")), bool(match["p"])))
    return found


@dataclass(frozen=True)
class Advice:
    """What a text advises: whether anything is needed, and the actions at once and later."""

    needed: bool
    immediate: frozenset[str]
    long_term: frozenset[str]

    @property
    def actions(self) -> frozenset[str]:
        """At whichever time."""
        return self.immediate | self.long_term


def advice_of(text: str) -> Advice:
    """The advice of a text; what stands under no tag counts as immediate."""
    if _NONE_NEEDED.search(text) or not text.strip():
        return Advice(False, frozenset(), frozenset())
    parts: dict[bool, str] = {True: "", False: ""}
    for tag, part in tagged(text):
        parts[tag != "LONG_TERM_RECOVERY"] += f" {part}"

    def actions(part: str) -> frozenset[str]:
        return frozenset(a for a, p in _ACTIONS.items() if re.search(rf"\b(?:{p})\b", part, re.I))

    return Advice(True, actions(parts[True]), actions(parts[False]))
