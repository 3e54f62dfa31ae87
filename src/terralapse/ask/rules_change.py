"""Answers about change as such: whether, where, how much, how many, how large, how far apart."""

from __future__ import annotations

from terralapse.ask.answer import Fact
from terralapse.ask.book import NINTHS
from terralapse.ask.draft import Draft
from terralapse.ask.measure import AREAS, LENGTHS

_ORDINALS = ("largest", "second largest", "third largest", "fourth largest", "fifth largest", "sixth largest",
             "seventh largest", "eighth largest", "ninth largest", "tenth largest")  # fmt: skip
PART_OF = {
    "part.north": ("north-west", "north", "north-east"),
    "part.south": ("south-west", "south", "south-east"),
    "part.west": ("north-west", "west", "south-west"),
    "part.east": ("north-east", "east", "south-east"),
}


def head(d: Draft) -> tuple[str, str, str]:
    """Ids of what changed, its share, and what was compared, in this kind of run."""
    if d.book.series:
        return "area.broken", "share.broken", "area.modelled"
    return "area.changed", "share.changed", "area.observed"


def place(d: Draft) -> str | None:
    """The one place that is asked about, checked; None for the whole."""
    if d.slots.missing_zone:
        zones = d.listed(list(d.book.zones.values())[:8]) if d.book.zones else "ninths of the scene"
        d.cannot("no-zone", what=d.slots.missing_zone, zones=zones)
    if not d.slots.places:
        return None
    key = d.slots.places[0]
    if "other" in d.slots.places:
        d.cannot("no-place", what="halves or quarters")
    if d.book.series:
        d.cannot("not-in-series")
    if f"{key}.changed" not in d.book:
        if d.book.version == 1 and key.split(".")[0] in ("ninth", "part"):
            d.cannot("old-facts")
        d.cannot("no-zone", what=d.place(key), zones="ninths of the scene")
    return key


def compared(d: Draft) -> None:
    """Refuses where nothing could be compared."""
    observed = d.book.get(head(d)[2])
    if observed is None and d.book.series:
        d.cannot("not-in-series")
    if observed is None or not observed["value"]:
        d.cannot("nothing-compared")


def nothing(d: Draft) -> bool:
    """Whether no change was found; says so."""
    key, _, observed = head(d)
    if d.book[key]["value"]:
        return False
    d.facts[key] = d.book[key]
    d.say("broke.no" if d.book.series else "none", observed=d.book[observed])
    return True


def _units(d: Draft, wanted: str) -> None:
    unit = d.slots.unit
    if unit is not None and d.book.unit == "px":
        d.cannot("no-unit")
    if wanted == "area" and unit in LENGTHS and unit not in AREAS:
        d.cannot("not-a-length")


def changed(d: Draft, inverted: bool = False) -> None:
    """Whether something changed."""
    compared(d)
    where = place(d)
    key, share, observed = head(d)
    if where is not None:
        key, share, observed = f"{where}.changed", f"{where}.share", f"{where}.observed"
    found = d.book[key]
    d.give((found["value"] > 0) != inverted)
    if found["value"] > 0:
        form = "broke.yes" if d.book.series else "changed.yes"
        d.say(form, area=found, share=d.book[share], where=d.where(where))
    elif observed in d.book:
        d.facts[key] = found
        form = "broke.no" if d.book.series else "changed.no"
        d.say(form, observed=d.book[observed], where=d.where(where))
    else:
        d.facts[key] = found
        d.say("changed.no-zone", where=d.where(where))
    if inverted:
        own, other = d.language.sentences["yes"], d.language.sentences["no"]
        first, _, rest = d.text[0].partition(":")
        d.text[0] = f"{other if first == own else own}:{rest}"


def area(d: Draft, as_share: bool = False) -> None:
    """How much changed, as an area and as a share."""
    compared(d)
    _units(d, "area")
    where = place(d)
    if len(d.slots.places) > 1:
        for one in d.slots.places:
            _one_area(d, one, as_share)
        return
    _one_area(d, where, as_share)


def _one_area(d: Draft, where: str | None, as_share: bool) -> None:
    key, share, observed = head(d)
    if where is not None:
        key, share, observed = f"{where}.changed", f"{where}.share", f"{where}.observed"
    if key not in d.book:
        d.cannot("no-zone", what=where or "", zones="ninths of the scene")
    found = d.book[key]
    if d.slots.unchanged and observed in d.book:
        rest = d.book.rest(observed, key)
        part = d.book.ratio(rest, observed)
        if part is None:
            d.cannot("nothing-compared")
        else:
            form = "broke.unchanged" if d.book.series else "area.unchanged"
            d.say(form, area=rest, share=part, observed=d.book[observed], where=d.where(where))
            d.amount(part if as_share else rest)
        return
    ratio = d.book.get(share)
    if ratio is None:
        d.say("area.noshare", area=found, where=d.where(where)).amount(found)
        return
    form = "broke" if d.book.series else "area"
    d.say(form, area=found, share=ratio, where=d.where(where)).amount(ratio if as_share else found)


def count(d: Draft) -> None:
    """How many objects, in a place and of a size."""
    compared(d)
    where = place(d)
    least, most = _bounds(d)
    if least is None and most is None:
        key = "object.count" if where is None else f"{where}.objects"
        if key not in d.book:
            d.cannot("objects-in-zone", what=d.place(where or ""))
        found = d.book[key]
        d.say("count", count=found, where=d.where(where), minimum=d.book["object.minimum"]).amount(found)
        return
    if where is not None and where.split(".")[0] not in ("ninth", "part"):
        d.cannot("objects-in-zone", what=d.place(where))
    ninths = () if where is None else PART_OF.get(where, (where.partition(".")[2],))
    ids = d.book.objects(least, most, ninths)
    bounds = {
        side: d.book.derive("area", value, ["object.count"], f"{side} area asked for {value:g}", d.book.unit)
        for side, value in (("least", least), ("most", most))
        if value is not None
    }
    form = "bound.both" if len(bounds) == 2 else f"bound.{next(iter(bounds))}"
    bound = d.phrase(form, **bounds)
    source = "object.count" if where is None else f"{where}.objects"
    low, high = f"{least or 0:g}", "any" if most is None else f"{most:g}"
    found = d.book.derive("count", len(ids), [source], f"{source} of {low} to {high}", "objects")
    found["evidence"] = {"polygons": ids}
    d.say("count.bound", count=found, where=d.where(where), bound=bound).amount(found)


def _bounds(d: Draft) -> tuple[float | None, float | None]:
    """The sizes asked for, in the unit of the run; two sizes without a word are from one to the other."""
    least, most, unit = d.slots.least, d.slots.most, d.slots.unit
    if least is None and most is None and d.slots.numbers and unit in AREAS:
        scale = AREAS[unit][0] if d.book.unit == "m2" else 1.0
        sizes = sorted(n * scale for n in d.slots.numbers)
        if len(sizes) != 2:
            d.cannot("no-bound")
        least, most = sizes
    return least, most


def where_changed(d: Draft) -> None:
    """Where it changed: the ninth with most of it, and all that have some."""
    compared(d)
    if d.book.series and "location.main" not in d.book and d.book["area.broken"]["value"]:
        d.cannot("old-series")
    place(d)
    if nothing(d):
        d.give([])
        return
    main = d.book.get("location.main")
    if main is not None:
        share = d.book[f"location.{main['value']}"]
        d.say("where.main" if share["value"] < 1 else "where.only", main=main, share=share)
    if "ninth.north.changed" in d.book:
        named = [(n, d.book[f"ninth.{n}.changed"]) for n in NINTHS]
        found = [(n, f) for n, f in named if f["value"] > 0]
        d.facts |= {f["id"]: f for _, f in found}
        names = [n for n, _ in sorted(found, key=lambda x: -x[1]["value"])]
        d.say("where.list", places=d.listed(names)).give(names)
    elif main is not None:
        shares = [(n, d.book.get(f"location.{n}")) for n in NINTHS]
        found = [(n, f) for n, f in shares if f is not None]
        d.facts |= {f["id"]: f for _, f in found}
        names = [n for n, _ in sorted(found, key=lambda x: -x[1]["value"])]
        d.say("where.list", places=d.listed(names)).give(names)


def coordinates(d: Draft) -> None:
    """Where the place is."""
    found = d.book.get("grid.corners")
    if found is None:
        d.cannot("no-coordinates")
    else:
        d.say("where.place", middle=found).give(found["value"])


def largest(d: Draft, wants_where: bool = False) -> None:
    """The largest object, or one by its number or rank, or the first few."""
    compared(d)
    if nothing(d):
        return
    _units(d, "area")
    if d.book.series and "object.1.place" not in d.book:
        d.cannot("old-series")
    told = [int(k.split(".")[1]) for k in d.book.facts if k.startswith("object.") and k.endswith(".place")]
    if d.slots.objects:
        wanted = list(d.slots.objects)
    elif d.slots.rank:
        wanted = [d.slots.rank]
    elif d.slots.numbers and 1 <= d.slots.numbers[0] <= 10 and d.slots.numbers[0].is_integer():
        wanted = list(range(1, int(d.slots.numbers[0]) + 1))
        wanted = [n for n in wanted if n in told] or wanted[:1]
    else:
        wanted = [1]
    for number in wanted:
        if number not in told:
            d.cannot("no-object", what=number, told=f"1 to {max(told)}" if told else "none")
        one_object(d, number, wants_where)


def one_object(d: Draft, number: int, wants_where: bool = False) -> None:
    """One of the objects that are told one by one."""
    covers, at = d.book[f"object.{number}.area"], d.book[f"object.{number}.place"]
    if d.slots.objects:
        d.say("object", number=number, area=covers, place=at)
    else:
        d.say("object.rank", ordinal=_ORDINALS[number - 1], area=covers, place=at)
    if d.book.series:
        day, way = d.book[f"object.{number}.date"], d.book[f"object.{number}.direction"]
        d.say("object.broke", date=day, direction=way)
    if d.focus is None:
        d.focus = number
    if wants_where:
        d.give(at["value"]["location"])
    d.amount(covers)


def box(d: Draft) -> None:
    """The box of an object in degrees."""
    if d.book.series:
        d.cannot("not-in-series")
    largest(d, wants_where=True)
    if d.focus is None:
        return
    at = d.book[f"object.{d.focus}.place"]
    corners = at["value"].get("box")
    if corners is None:
        d.cannot("no-coordinates")
    else:
        sides = zip(("west", "south", "east", "north"), corners, strict=True)
        d.say("object.box", **{side: f"{value:.5f}" for side, value in sides})
        d.value, d.unit = corners, "degrees"


def smallest(d: Draft) -> None:
    """The smallest object."""
    compared(d)
    if d.book.series:
        d.cannot("not-in-series")
    if nothing(d):
        return
    found = d.book.get("object.smallest")
    if found is None:
        d.cannot("old-facts")
    else:
        d.say("smallest", area=found).amount(found)


def sizes(d: Draft) -> None:
    """How large objects are."""
    compared(d)
    if d.book.series:
        d.cannot("not-in-series")
    if nothing(d):
        return
    if "object.mean" not in d.book:
        d.cannot("old-facts")
    d.say(
        "sizes",
        mean=d.book["object.mean"],
        median=d.book["object.median"],
        largest=d.book["object.1.area"],
        smallest=d.book["object.smallest"],
    ).say("sizes.half", half=d.book["object.half"])
    d.amount(d.book["object.mean"])


def distance(d: Draft, nearest: bool, spacing: bool) -> None:
    """How far objects are apart."""
    compared(d)
    if d.book.series:
        d.cannot("not-in-series")
    if nothing(d):
        return
    if d.slots.unit is not None and d.book.unit == "px":
        d.cannot("no-unit")
    if "object.spacing" not in d.book:
        d.say("distance.one")
        d.facts["object.count"] = d.book["object.count"]
        return
    ids = list(d.slots.objects)
    if d.slots.rank:
        other = ids[0] if ids else 1
        ids = [other, d.slots.rank] if d.slots.rank != other else [1, 2]
    if spacing and not ids:
        found = d.book["object.spacing"]
        d.say("distance.spacing", length=found).amount(found)
        return
    if nearest or len(ids) == 1:
        number = ids[0] if ids else 1
        found = d.book.get(f"object.{number}.nearest")
        if found is None:
            d.cannot("no-object", what=number, told="the ten largest")
        else:
            d.say("distance.next", a=number, length=found).amount(found)
        return
    a, b = sorted(ids[:2]) if len(ids) >= 2 else (1, 2)
    found = d.book.get(f"distance.{a}.{b}")
    if found is None and d.book.version == 1:
        d.cannot("old-facts")
    if found is None:
        d.cannot("no-object", what=f"{a} or {b}", told="the five largest")
    else:
        d.say("distance", a=a, b=b, length=found).amount(found)


def place_rank(d: Draft, least: bool, by_share: bool) -> None:
    """Which ninth, third, zone or square changed most or least."""
    compared(d)
    if d.book.series:
        d.cannot("not-in-series")
    if nothing(d):
        return
    asked = " ".join(d.slots.places)
    wanted = (
        "zone." if any(k.startswith("zone.") for k in d.book.zones) and "ninth" not in asked else "ninth."
    )
    named = [(k[: -len(".changed")], f) for k, f in d.book.facts.items() if k.startswith(wanted)
             and k.endswith(".changed") and k.count(".") == 2]  # fmt: skip
    if not named:
        d.cannot("old-facts")
    observed = [(k, f) for k, f in named if d.book[f"{k}.share"]["value"] is not None]

    def size(entry: tuple[str, Fact]) -> float:
        return d.book[f"{entry[0]}.share"]["value"] if by_share else entry[1]["value"]

    ranked = sorted(observed, key=size, reverse=not least)
    key, found = ranked[0]
    what = d.place(key).removeprefix("the ")
    d.say("place.least" if least else "place.most", what=what, area=found, share=d.book[f"{key}.share"])
    d.give(key.partition(".")[2] if wanted == "ninth." else d.book.zones[key])
    rest = [f"{d.place(k)} ({d.phrase('any', f=f)})" for k, f in ranked[1:3]]
    if rest and not least:
        d.say("place.next", list=d.listed(rest))


def compare(d: Draft) -> None:
    """Which of two places changed more."""
    compared(d)
    keys = [k for k in d.slots.places if f"{k}.changed" in d.book]
    if "other" in d.slots.places:
        d.cannot("no-place", what="halves or quarters")
    if len(keys) < 2:
        d.cannot("one-place")
    a, b = (d.book[f"{k}.changed"] for k in keys[:2])
    if a["value"] == b["value"]:
        d.facts[b["id"]] = b
        d.say("compare.same", a=a).give(None)
        return
    first, second = (keys[0], keys[1]) if a["value"] > b["value"] else (keys[1], keys[0])
    d.say(
        "compare",
        more=d.place(first),
        less=d.place(second),
        a=d.book[f"{first}.changed"],
        b=d.book[f"{second}.changed"],
    )
    d.give(d.book.zones.get(first, first.partition(".")[2]))
