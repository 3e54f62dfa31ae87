"""The disaster report of a finished run: damage, roads, water, vegetation, what cannot be told, and advice.

Every statement is a template whose numbers are the displays of facts, and carries the ids of these facts;
advice carries the id of its rule too (`disaster_rules`). What a run has no facts for is not guessed at: it is
said to be unknown, with the reason and, where there is one, the command that would change it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from terralapse.products import units
from terralapse.products.disaster_rules import NOTHING, RULES, UNDAMAGED, Rule
from terralapse.products.facts import Fact, Facts
from terralapse.products.record import plain

SCHEMA, VERSION = "terralapse-disaster", 1
GRADES = (("none", "No damage"), ("minor", "Minor"), ("major", "Major"), ("destroyed", "Destroyed"))
# Names of classes, in all schemes of `labels`, that mean the same to a responder.
GROUPS: dict[str, tuple[str, frozenset[str]]] = {
    "buildings": ("buildings", frozenset({"building", "buildings"})),
    "roads": ("roads", frozenset({"road", "highway", "freeway"})),
    "water": ("water", frozenset({"water", "river", "sea_lake"})),
    "vegetation": (
        "vegetation",
        frozenset(
            {
                "vegetation", "low_vegetation", "tree", "forest", "agriculture", "agricultural", "farmland",
                "herbaceous_vegetation", "annual_crop", "permanent_crop", "pasture", "chaparral",
            }
        ),
    ),
}  # fmt: skip
_RUN: dict[str, Any] = {"file": "run.json"}
_MOST_PLACES = 4


@dataclass(frozen=True)
class Statement:
    """A sentence, the ids of the facts that it rests on, and for advice the id of its rule."""

    text: str
    facts: tuple[str, ...] = ()
    rule: str | None = None


@dataclass(frozen=True)
class Section:
    """What is known of one subject; `unknown` says why nothing more is."""

    id: str
    title: str
    statements: tuple[Statement, ...]
    unknown: Statement | None = None


@dataclass
class DisasterReport:
    """The whole report; `facts` hold those of the run and the derived ones."""

    facts: Facts
    event: str
    short: list[Statement] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    immediate: list[Statement] = field(default_factory=list)
    long_term: list[Statement] = field(default_factory=list)
    cannot: list[Statement] = field(default_factory=list)

    @property
    def cited(self) -> list[str]:
        """Ids of all facts that stand behind a statement, in the order of the text."""
        inside = [s for part in self.sections for s in (*part.statements, part.unknown) if s is not None]
        every = [*self.short, *inside, *self.immediate, *self.long_term, *self.cannot]
        return list(dict.fromkeys(k for s in every for k in s.facts))

    @property
    def rules(self) -> list[Rule]:
        """Those that fired."""
        fired = {s.rule for s in (*self.immediate, *self.long_term)}
        return [r for r in (*RULES, NOTHING, UNDAMAGED) if r.id in fired]

    def as_dict(self) -> dict[str, Any]:
        """The content of `disaster.json`."""
        return plain(
            {
                "schema": SCHEMA,
                "version": VERSION,
                "run_id": self.facts.run_id,
                "event": self.event,
                "short": [asdict(s) for s in self.short],
                "sections": [asdict(s) for s in self.sections],
                "immediate": [asdict(s) for s in self.immediate],
                "long_term": [asdict(s) for s in self.long_term],
                "cannot_tell": [asdict(s) for s in self.cannot],
                "rules": [{"id": r.id, "term": r.term, "when": r.when} for r in self.rules],
                "facts": [asdict(self.facts[k]) for k in self.cited],
            }
        )


def disaster_report(
    facts: Facts,
    more: Iterable[Fact] = (),
    *,
    looks_for: str = "",
    no_index: str = "",
    event: str = "",
) -> DisasterReport:
    """The report of a run.

    Args:
        facts: of the run, as in its `facts.json`; they are added to.
        more: of `disaster_facts`.
        looks_for: what the detector finds, as its card says; for a run without grades of damage.
        no_index: why there are no facts of spectral indices; empty where there are some.
        event: what the user calls the disaster.
    """
    facts.extend(more)
    facts.extend(_derived(facts, looks_for))
    report = DisasterReport(facts, event.strip())
    report.sections = [
        _buildings(facts),
        _roads(facts),
        _cover(facts, "water", no_index),
        _cover(facts, "vegetation", no_index),
    ]
    for rule in RULES:
        if _fires(rule, facts):
            advice = report.immediate if rule.term == "immediate" else report.long_term
            advice.append(_advice(facts, rule))
    if not any(s.rule not in (None, "masked") for s in (*report.immediate, *report.long_term)):
        rule = UNDAMAGED if "damage.buildings" in facts else NOTHING
        report.immediate.insert(0, _advice(facts, rule))
    report.short = list(_short(facts))
    report.cannot = [s.unknown for s in report.sections if s.unknown is not None]
    report.cannot += _never(event)
    return report


def _said(facts: Facts, template: str) -> Statement:
    return Statement(*facts.fill(template))


def _advice(facts: Facts, rule: Rule) -> Statement:
    """Advice rests on what it says and on what its rule asked for."""
    text, cites = facts.fill(rule.text)
    return Statement(text, tuple(dict.fromkeys((*cites, *rule.needs))), rule.id)


def _fires(rule: Rule, facts: Facts) -> bool:
    needed = [facts.facts.get(k) for k in rule.needs]
    if any(
        f is None or f.value is None or (isinstance(f.value, float) and f.value != f.value) for f in needed
    ):
        return False
    return rule.holds(facts.facts)


# --- facts that follow from others -----------------------------------------------------------------
def _derived(facts: Facts, looks_for: str) -> Iterator[Fact]:
    if "damage.buildings" in facts:
        yield from _damage_sums(facts)
    else:
        said = "This run has {no.damage}."
        yield Fact("no.damage", "text", True, "", "no grades of damage", _RUN, said)
        if looks_for:
            said = "What the detector looks for: {detector.looks_for}"
            yield Fact("detector.looks_for", "text", looks_for, "", _blankless(looks_for), _RUN, said)
    for name in GROUPS:
        yield from _group(facts, name)
    for name in ("water", "vegetation"):
        if _members(facts, name):
            continue  # a map of classes says more than an index
        for what in ("lost", "gained"):
            for key in (what, f"{what}.share"):
                if (found := facts.facts.get(f"cover.{name}.{key}")) is not None:
                    yield Fact(
                        f"{name}.{key}", found.kind, found.value, found.unit, found.display, found.evidence,
                        found.template,
                    )  # fmt: skip


def _blankless(text: str) -> str:
    """A text from outside must not open a blank of a template."""
    return text.replace("{", "(").replace("}", ")")


def _damage_sums(facts: Facts) -> Iterator[Fact]:
    where = facts["damage.buildings"].evidence
    unfit = int(sum(facts[f"damage.{g}.count"].value for g in ("major", "destroyed")))
    said = "{homes.unfit} are destroyed or of major damage."
    yield Fact("homes.unfit", "count", unfit, "objects", units.count(unfit, "building"), where, said)
    ranked = sorted(
        (k[: -len(".any")] for k in facts.facts if k.startswith("ninth.") and k.endswith(".damage.any")),
        key=lambda k: (-facts[f"{k}.destroyed"].value, -facts[f"{k}.any"].value, k),
    )
    if ranked:
        place, worst = ranked[0].split(".")[1], facts[f"{ranked[0]}.any"]
        said = "The {priority.place} has the most destroyed buildings, then the most damaged ones."
        yield Fact("priority.place", "text", place, "", place, where, said)
        said = "In the {priority.place}, {priority.damaged} are damaged in some grade."
        yield Fact("priority.damaged", "count", worst.value, "objects", worst.display, where, said)


def _members(facts: Facts, name: str) -> list[str]:
    """The classes of a group that the maps of the run have."""
    if "classes" not in facts:
        return []
    listed = [c["name"] for c in facts["classes"].value["classes"]]
    return [c for c in listed if c in GROUPS[name][1]]


def _group(facts: Facts, name: str) -> Iterator[Fact]:
    """What a group of classes lost to others and gained from others; what moved inside of it is neither."""
    own = _members(facts, name)
    if not own:
        return
    title = GROUPS[name][0]
    where = facts["classes"].evidence
    others = [c["name"] for c in facts["classes"].value["classes"] if c["name"] not in own]
    whole = facts["area.observed"].value
    for what in ("lost", "gained"):
        pairs = [(a, b) if what == "lost" else (b, a) for a in own for b in others]
        keys = [f"transition.{a}.{b}" for a, b in pairs]
        area = math.fsum(facts[k].value for k in keys if k in facts)
        key = f"{name}.{what}"
        verb = "became something else" if what == "lost" else "is new"
        said = f"{{{key}}} of {title} {verb}, {{{key}.share}} of what was compared."
        yield Fact(key, "area", area, facts.unit, units.area(area, facts.unit), where, said)
        share = area / whole if whole else math.nan
        yield Fact(f"{key}.share", "share", share, "1", units.percent(share), where, said)


# --- sections --------------------------------------------------------------------------------------
def _buildings(facts: Facts) -> Section:
    title = "Buildings"
    if "damage.buildings" in facts:
        said = [facts["damage.buildings"], facts["damage.any.count"]]
        said += [facts[f"damage.{grade}.count"] for grade, _ in reversed(GRADES)]
        places = [f for k, f in facts.facts.items() if k.startswith("ninth.") and k.endswith(".damage.any")]
        said += sorted(places, key=lambda f: -f.value)[:_MOST_PLACES]
        return Section("damage", title, _statements(said))
    unknown = _said(
        facts,
        "How badly which building is hit: this run has {no.damage} "
        "(`terralapse facts OUT --damage GRADES.tif` adds a map of them).",
    )
    if _members(facts, "buildings"):
        return Section(
            "damage", title, _statements([facts["buildings.lost"], facts["buildings.gained"]]), unknown
        )
    said = [facts["area.changed"], facts["object.count"]]
    statements = list(_statements(said))
    if "location.main" in facts and facts["object.count"].value:
        statements.append(_said(facts, facts["location.main"].template))
    if "detector.looks_for" in facts:
        statements.append(_said(facts, facts["detector.looks_for"].template))
    return Section("damage", "Buildings: what changed", tuple(statements), unknown)


def _statements(said: Sequence[Fact]) -> tuple[Statement, ...]:
    return tuple(Statement(f.sentence, f.cites) for f in said)


def _no_class(facts: Facts, what: str) -> str:
    if "classes" not in facts:
        return (
            f"Whether {what}: this run has no maps of classes (`terralapse facts OUT --classes-before A.tif "
            "--classes-after B.tif --scheme NAME` adds them)"
        )
    return f"Whether {what}: the maps of this run have no such class, only {{classes}}"


def _roads(facts: Facts) -> Section:
    if _members(facts, "roads"):
        known = _statements([facts["roads.lost"], facts["roads.gained"]])
        said = (
            "Whether a road can be driven on: the maps tell where its surface can be seen, of which "
            "{roads.lost} is lost."
        )
        return Section("roads", "Roads", known, _said(facts, said))
    unknown = _said(facts, _no_class(facts, "roads are blocked, flooded or broken") + ".")
    return Section("roads", "Roads", (), unknown)


def _cover(facts: Facts, name: str, no_index: str) -> Section:
    title = name.capitalize()
    burnt = [facts["cover.burnt.gained"]] if name == "vegetation" and "cover.burnt.gained" in facts else []
    if _members(facts, name):
        return Section(name, title, _statements([facts[f"{name}.lost"], facts[f"{name}.gained"], *burnt]))
    if f"cover.{name}.lost" in facts:
        said = [facts[f"cover.{name}.{k}"] for k in ("before", "after", "lost", "gained")]
        return Section(name, title, _statements([*said, *burnt]))
    what = "water spread" if name == "water" else "vegetation was lost"
    reason = f", and {_blankless(no_index)}" if no_index else ""
    return Section(name, title, (), _said(facts, _no_class(facts, what) + reason + "."))


def _short(facts: Facts) -> Iterator[Statement]:
    dated = facts["date.before"].value and facts["date.after"].value
    between = "Between {date.before} and {date.after}" if dated else "Between the two images"
    if "damage.buildings" in facts:
        yield _said(
            facts,
            f"{between}, {{damage.any.count}} were damaged in some grade, {{damage.any.share}} of the "
            "{damage.buildings} that were graded: {damage.destroyed.count} destroyed, {damage.major.count} "
            "of major and {damage.minor.count} of minor damage.",
        )
        if "priority.place" in facts:
            yield _said(facts, facts["priority.place"].template)
    else:
        yield _said(
            facts, f"{between}, {{area.changed}} changed, {{share.changed}} of what could be compared."
        )
        if facts["object.count"].value:
            yield _said(facts, "It forms {object.count} of {object.minimum} or more; how badly buildings are "
                        "hit is not known, since this run has {no.damage}.")  # fmt: skip
    if "confidence.false" in facts:
        yield _said(facts, facts["confidence.false"].template)
    else:
        yield _said(facts, facts["confidence.calibration"].template)


def _never(event: str) -> Iterator[Statement]:
    """What no pair of images tells."""
    if not event.strip():
        yield Statement("What kind of disaster it was: the images show what differs and not why.")
    yield Statement(
        "How many people are hurt, missing or without a home, and what it is like inside of buildings, under "
        "roofs and trees, and under ground: nothing of it is seen from above."
    )
    yield Statement("What happened between the two images or after the later one.")
