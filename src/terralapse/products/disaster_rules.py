"""The rules by which a disaster report advises: each has a condition on facts, in words and as a test, and a
sentence whose numbers are those of the facts.

They are ours: the order of work is that of search and rescue, access, shelter, water, land that responders
keep, and no rule says more than its facts. A rule whose facts a run has not is silent, and the report says
which facts these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from terralapse.products.facts import Fact

Known = Mapping[str, Fact]

MANY = 0.5  # of the graded buildings: a neighbourhood, not single houses
_LEAST = 0.01  # share of a cover whose loss or gain is spoken of


@dataclass(frozen=True)
class Rule:
    """One rule. `needs` are the ids of facts without which it cannot be tried; `holds` is asked when they are
    there and have values; `text` is a template of facts."""

    id: str
    term: Literal["immediate", "long-term"]
    when: str
    needs: tuple[str, ...]
    holds: Callable[[Known], bool]
    text: str


def number(known: Known, key: str) -> float:
    """The value of a fact that is a number."""
    return float(known[key].value)


def _over(key: str, least: float = 0.0) -> Callable[[Known], bool]:
    return lambda known: number(known, key) > least


def _both(one: Callable[[Known], bool], two: Callable[[Known], bool]) -> Callable[[Known], bool]:
    return lambda known: one(known) and two(known)


_GRADED = ("damage.buildings", "damage.any.count")

RULES: tuple[Rule, ...] = (
    Rule(
        "search",
        "immediate",
        "A building is graded as destroyed.",
        ("damage.destroyed.count", "damage.destroyed.share"),
        _over("damage.destroyed.count"),
        "Search and rescue comes first where buildings are destroyed: {damage.destroyed.count}, "
        "{damage.destroyed.share} of those that were graded.",
    ),
    Rule(
        "start",
        "immediate",
        "Damaged buildings were found; the ninth of the grid with the most destroyed ones, then the most "
        "damaged ones, is named.",
        ("priority.place", "priority.damaged"),
        _over("priority.damaged"),
        "Start in the {priority.place}: {priority.damaged} there are damaged in some grade.",
    ),
    Rule(
        "shore",
        "immediate",
        "A building is graded as of major damage.",
        ("damage.major.count",),
        _over("damage.major.count"),
        "Keep people out of the buildings of major damage until they are propped and inspected: "
        "{damage.major.count}.",
    ),
    Rule(
        "shelter",
        "immediate",
        "A building is destroyed or of major damage.",
        ("homes.unfit",),
        _over("homes.unfit"),
        "Plan shelter for those who lived in {homes.unfit}: destroyed or of major damage. How many people "
        "that is, and which of the buildings are homes, the images do not tell.",
    ),
    Rule(
        "verify-change",
        "immediate",
        "There are no grades of damage, and objects of change were found.",
        ("object.count", "object.half", "location.main", "no.damage"),
        _over("object.count"),
        "Have somebody grade the changes before crews are sent: {object.count} were found, the "
        "{object.half} that are largest hold half of their area, and the {location.main} holds the most.",
    ),
    Rule(
        "roads",
        "immediate",
        "A class of roads lost area.",
        ("roads.lost",),
        _over("roads.lost"),
        "Look at the access roads before heavy vehicles are sent: {roads.lost} of roads can no longer be "
        "seen as such (debris, water or a broken surface).",
    ),
    Rule(
        "water",
        "immediate",
        "Open water grew by more than one per cent of what was compared.",
        ("water.gained", "water.gained.share"),
        _over("water.gained.share", _LEAST),
        "Pump, sandbag or evacuate where water is new: {water.gained}, {water.gained.share} of what was "
        "compared. Its depth is not known.",
    ),
    Rule(
        "burnt",
        "immediate",
        "More than one per cent of what was compared is burnt.",
        ("cover.burnt.gained", "cover.burnt.gained.share"),
        _over("cover.burnt.gained.share", _LEAST),
        "Watch the burnt ground for embers and slides: {cover.burnt.gained}.",
    ),
    Rule(
        "masked",
        "immediate",
        "Part of the area could not be compared.",
        ("share.masked",),
        _over("share.masked"),
        "Send other eyes to what was not seen: {share.masked} of the area could not be compared, and "
        "nothing is said about it.",
    ),
    Rule(
        "rebuild",
        "long-term",
        "A building is graded as destroyed, and those damaged are less than half.",
        ("damage.destroyed.count", "damage.any.share"),
        _both(
            _over("damage.destroyed.count"),
            lambda known: number(known, "damage.any.share") < MANY,
        ),
        "Rebuild building by building: {damage.destroyed.count} are destroyed, and most around them stand "
        "({damage.any.share} are damaged in some grade).",
    ),
    Rule(
        "replan",
        "long-term",
        "Half or more of the graded buildings are damaged in some grade.",
        ("damage.any.share", *_GRADED),
        lambda known: number(known, "damage.any.share") >= MANY,
        "Plan the rebuilding as a whole, with its streets and pipes: {damage.any.count}, {damage.any.share} "
        "of those that were graded, are damaged in some grade.",
    ),
    Rule(
        "repair",
        "long-term",
        "A building is graded as of minor damage.",
        ("damage.minor.count",),
        _over("damage.minor.count"),
        "Repair what can be kept: {damage.minor.count} of minor damage.",
    ),
    Rule(
        "road-works",
        "long-term",
        "A class of roads lost area.",
        ("roads.lost",),
        _over("roads.lost"),
        "Budget the repair of roads from a survey on the ground of {roads.lost}.",
    ),
    Rule(
        "drainage",
        "long-term",
        "Open water grew by more than one per cent of what was compared.",
        ("water.gained", "water.gained.share"),
        _over("water.gained.share", _LEAST),
        "Review drainage and flood walls where {water.gained} of water is new, and image the place again "
        "to see what drains.",
    ),
    Rule(
        "replant",
        "long-term",
        "Vegetation was lost on more than one per cent of what was compared.",
        ("vegetation.lost", "vegetation.lost.share"),
        _over("vegetation.lost.share", _LEAST),
        "Hold the soil and replant: {vegetation.lost} of vegetation is gone, {vegetation.lost.share} of what "
        "was compared. Part of it can be the season.",
    ),
    Rule(
        "monitor",
        "long-term",
        "There are no grades of damage, and objects of change were found.",
        ("object.count", "area.changed", "no.damage"),
        _over("object.count"),
        "Grade the buildings on better images or on site, and add the grades to this run, before money is "
        "planned on {area.changed} of change.",
    ),
)

NOTHING = Rule(
    "nothing",
    "immediate",
    "There are no grades of damage, no object of change was found, and no other rule holds.",
    ("area.observed", "object.count"),
    lambda known: number(known, "object.count") == 0,
    "No recovery is called for by what can be seen: {object.count} of change in {area.observed}.",
)
UNDAMAGED = Rule(
    "undamaged",
    "immediate",
    "No graded building is damaged, and no other rule holds.",
    ("damage.buildings", "damage.any.count"),
    lambda known: number(known, "damage.any.count") == 0,
    "No recovery of buildings is called for by what can be seen: {damage.any.count} of the "
    "{damage.buildings} that were graded are damaged.",
)
