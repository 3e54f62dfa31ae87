"""Answers about classes: what the ground was and became, and how badly buildings are damaged."""

from __future__ import annotations

from terralapse.ask.answer import Fact
from terralapse.ask.book import GRADES, NINTHS
from terralapse.ask.draft import Draft
from terralapse.ask.rules_change import compared, place


def classes(d: Draft) -> tuple[str, ...]:
    """The classes that are asked about, checked; empty when none is named."""
    if d.slots.absent:
        what = d.listed([d.concept(a) for a in d.slots.absent])
        if not d.book.classes:
            d.cannot("no-classes", what=what)
        listed = d.listed([d.title(c) for c in d.book.classes])
        if not d.slots.classes:
            d.cannot("no-class", what=what, classes=listed)
        said = d.phrase("cannot", why=d.phrase("why.no-class", what=what, classes=listed))
        if said not in d.text:  # the other classes are answered
            d.text.append(said)
    if d.slots.classes and not d.book.classes:
        d.cannot("no-classes-at-all")
    return d.slots.classes


def needed(d: Draft) -> None:
    """Refuses where the run has no maps of classes."""
    compared(d)
    classes(d)
    if not d.book.classes:
        d.cannot("no-classes-at-all")


def _side(d: Draft) -> str | None:
    """`lost` or `gained` where the question is about one date or one direction."""
    if d.slots.moved:
        return d.slots.moved
    return {"before": "lost", "after": "gained"}.get(d.slots.side or "")


def _key(d: Draft, where: str | None, name: str, what: str) -> str:
    key = f"class.{name}.{what}" if where is None else f"{where}.class.{name}.{what}"
    if key not in d.book:
        d.cannot("class-in-zone", what=d.place(where or ""))
    return key


def changed(d: Draft) -> None:
    """Whether a class changed: was lost, was gained, or either."""
    needed(d)
    where, side = place(d), _side(d)
    answers = []
    for name in classes(d):
        both = {what: d.book[_key(d, where, name, what)] for what in ("lost", "gained")}
        counted = [both[side]] if side else list(both.values())
        yes = any(f["value"] > 0 for f in counted)
        answers.append(yes)
        if yes:
            form = f"class.{side}" if side else "class.both"
            rest = d.phrase(form, what=d.title(name), where=d.where(where), **both)
            d.say("class.changed.yes", rest=rest)
        else:
            d.facts |= {f["id"]: f for f in counted}
            d.say("class.changed.no", what=d.title(name), where=d.where(where))
    d.give(answers[0] if len(answers) == 1 else answers)


def area(d: Draft, as_share: bool) -> None:
    """How much of a class was lost or gained; the share is that of all that was compared."""
    needed(d)
    where, side = place(d), _side(d)
    values = []
    for name in classes(d):
        lost, gained = (d.book[_key(d, where, name, what)] for what in ("lost", "gained"))
        told = {"lost": lost, "gained": gained}
        if as_share and where is None:
            what = side or "lost"
            share = d.book[f"class.{name}.{what}.share"]
            d.say(f"class.{what}.share", what=d.title(name), share=share, **told)
            values.append(share)
        else:
            form = f"class.{side}" if side else "class.both"
            d.say(form, what=d.title(name), where=d.where(where), **told)
            values.append(told[side or "lost"])
    if len(values) == 1:
        d.amount(values[0])
    else:
        d.give([v["value"] for v in values], values[0]["unit"])


def count(d: Draft) -> None:
    """How many patches of a class are new."""
    needed(d)
    where = place(d)
    if where is not None:
        d.cannot("class-in-zone", what=d.place(where))
    if _side(d) == "lost":
        d.cannot("lost-objects")
    found = [d.book[f"class.{name}.objects"] for name in classes(d)]
    for name, fact in zip(classes(d), found, strict=True):
        d.say("count.class", count=fact, what=d.title(name), where="")
    if len(found) == 1:
        d.amount(found[0])
    else:
        d.give([f["value"] for f in found], "objects")


def where_changed(d: Draft) -> None:
    """In which ninths a class was lost or gained."""
    needed(d)
    side = _side(d) or "gained"
    every = []
    for name in classes(d):
        total = d.book[f"class.{name}.{side}"]
        named = [(n, d.book[f"ninth.{n}.class.{name}.{side}"]) for n in NINTHS]
        found = sorted(((n, f) for n, f in named if f["value"] > 0), key=lambda x: -x[1]["value"])
        moved = d.language.sentences[f"moved.{side}"]
        if not found:
            d.facts[total["id"]] = total
            d.say("where.class.none", what=d.title(name), moved=moved)
            continue
        d.facts |= {f["id"]: f for _, f in found}
        names = [n for n, _ in found]
        every += names
        d.say("where.class", what=d.title(name), moved=moved, places=d.listed(names))
        if len(names) > 1:
            d.say("where.class.main", what=d.title(name), moved=moved, main=names[0], area=found[0][1])
    d.give(list(dict.fromkeys(every)))


def trend(d: Draft, up: bool) -> None:
    """Whether a class grew or shrank."""
    compared(d)
    if not classes(d):
        d.cannot("no-trend")
    answers = []
    for name in classes(d):
        told: dict[str, Fact] = {w: d.book[f"class.{name}.{w}"] for w in ("gained", "lost", "net")}
        yes = told["net"]["value"] > 0 if up else told["net"]["value"] < 0
        answers.append(yes)
        form = ("more" if up else "fewer") if yes else "more.no"
        d.say(form, what=d.title(name), **told)
    d.give(answers[0] if len(answers) == 1 else answers)


def extreme(d: Draft, largest: bool) -> None:
    """The class that changed most or least; classes that did not change do not count."""
    needed(d)
    side = _side(d)
    totals: dict[str, Fact] = {}
    for name in d.book.classes:
        keys = [f"class.{name}.{w}" for w in ([side] if side else ("lost", "gained"))]
        fact = d.book.total(keys)
        if fact["value"] > 0:
            totals[name] = fact
    word = {"lost": "side.before", "gained": "side.after"}.get(side or "", "side.both")
    said = d.language.sentences[word]
    if not totals:
        d.facts["class.changed"] = d.book["class.changed"]
        d.say("extreme.none", side="").give(None)
        return
    pick = max if largest else min
    name = pick(totals, key=lambda n: totals[n]["value"])
    form = "extreme.largest" if largest else "extreme.smallest"
    d.say(form, what=d.title(name), area=totals[name], side=said).give(name)


def became(d: Draft, forward: bool) -> None:
    """What a class mainly became, or what it was before."""
    needed(d)
    if not classes(d):
        transitions(d)
        return
    for name in classes(d):
        found = d.book.get(f"class.{name}.{'became' if forward else 'came'}")
        if found is None:
            key = f"class.{name}.{'lost' if forward else 'gained'}"
            d.facts[key] = d.book[key]
            d.say("became.none" if forward else "came.none", what=d.title(name))
            continue
        pair = (name, found["value"]) if forward else (found["value"], name)
        moved = d.book[f"transition.{pair[0]}.{pair[1]}"]
        if forward:
            d.say("became", to=found, area=moved, what=d.title(name))
        else:
            d.say("came", of=found, area=moved, what=d.title(name))
        d.give(found["value"])


def transition(d: Draft, as_share: bool, whether: bool) -> None:
    """How much went from one class to another."""
    needed(d)
    if d.slots.pair is None:
        d.cannot("not-understood")
        return
    a, b = d.slots.pair
    found = d.book.get(f"transition.{a}.{b}")
    if found is None:
        d.facts |= {k: d.book[k] for k in (f"class.{a}.lost", f"class.{b}.gained")}
        d.say("transition.none", a=d.title(a), b=d.title(b)).give(False if whether else 0, d.book.unit)
        return
    share = d.book[f"transition.{a}.{b}.share"]
    d.say("transition", area=found, a=d.title(a), b=d.title(b), share=share)
    if whether:
        d.give(True)
    d.amount(share if as_share else found)


def transitions(d: Draft) -> None:
    """The largest transitions."""
    needed(d)
    found = [(k, f) for k, f in d.book.facts.items() if k.startswith("transition.") and k.count(".") == 2]
    if not found:
        d.facts["class.changed"] = d.book["class.changed"]
        d.say("extreme.none", side="").give([])
        return
    ranked = sorted(found, key=lambda x: -x[1]["value"])[:5]
    said = []
    for key, fact in ranked:
        _, a, b = key.split(".")
        said.append(d.phrase("transitions.one", a=d.title(a), b=d.title(b), area=fact))
    d.say("transitions", list=d.listed(said)).give([k.partition(".")[2] for k, _ in ranked])


def amount(d: Draft) -> None:
    """How much of a class there was at one date."""
    needed(d)
    if not classes(d):
        d.cannot("not-understood")
    if not d.book.whole:
        d.cannot("class-totals", what=d.listed([d.title(c) for c in classes(d)]))
    sides = [d.slots.side] if d.slots.side else ["before", "after"]
    for name in classes(d):
        for side in sides:
            found = d.book[f"class.{name}.{side}"]
            word = d.language.sentences[f"side.word.{side}"]
            d.say(
                "amount",
                what=d.title(name),
                area=found,
                side=word,
                share=d.book[f"class.{name}.{side}.share"],
            )
            d.amount(found)


def damage(d: Draft, as_share: bool, counted: bool) -> None:
    """Buildings by grade of damage."""
    compared(d)
    if not d.book.damage:
        d.cannot("no-damage")
    if d.slots.places:
        d.cannot("class-in-zone", what="place together with grades of damage")
    every = d.book["damage.buildings"]
    if not every["value"]:
        d.facts[every["id"]] = every
        d.say("damage.nothing").give(0, "objects")
        return
    grade = d.slots.grade or "any"
    if grade == "any" and not counted:
        parts = [
            d.phrase(
                "damage.one", count=d.book[f"damage.{g}.count"], grade=d.language.sentences[f"grade.{g}"]
            )
            for g in GRADES
        ]
        hurt, share = d.book["damage.any.count"], d.book["damage.any.share"]
        d.say("damage.all", hurt=hurt, all=every, share=share, list=d.listed(parts))
        d.amount(share if as_share else hurt)
        return
    found, share = d.book[f"damage.{grade}.count"], d.book[f"damage.{grade}.share"]
    word = d.language.sentences["is" if found["value"] == 1 else "are"]
    named = f"{word} {d.language.sentences[f'grade.{grade}']}"
    d.say("damage.count", count=found, all=every, grade=named, share=share).amount(
        share if as_share else found
    )
