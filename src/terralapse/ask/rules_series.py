"""Answers about the course of a run over many dates: when, first and last, how fast, faster or slower, by
period."""

from __future__ import annotations

import re

from terralapse.ask import rules_about, rules_change
from terralapse.ask.answer import Fact
from terralapse.ask.draft import Draft

_RANGE = re.compile(r"\b(between|from|during|over)\b.*<y>.*<y>|<y> (to|until|till|and|through) <y>$|<y> <y>")
_RATHER = re.compile(r"<y>,? (or|than|versus|vs|compared to|compared with) (in )?<y>|\bcompare\b")
_SINCE = re.compile(r"(\bsince|<after>|\bfrom)( the year)? <y>(?!.*<y>)")
_UNTIL = re.compile(r"(\bto|\buntil|\btill|\bby|<before>|\bup to)( the year)? <y>")
_LEAST = re.compile(r"\b(least|slowest|lowest|fewest|smallest|weakest|quietest)\b")
_NONE = re.compile(r"\b(no|without) (change|changes|breaks?)\b|\bnothing\b|\bnone\b")
_LARGEST = re.compile(
    r"\b(largest|biggest|greatest)\b(?! (change|area|loss)$)|<o>|\b(object|polygon|patch) (number )?<n>"
)


def when(d: Draft, masked: str) -> None:
    """In which year most (or least) of it broke, or when an object did; for two dates, between which it
    was."""
    if not d.book.series:
        _pair(d)
        return
    rules_change.compared(d)
    if rules_change.nothing(d):
        return
    if _LARGEST.search(masked):
        _object(d)
        return
    years = _years(d)
    if _LEAST.search(masked):
        low = min(f["value"] for f in years.values())
        found = [y for y, f in years.items() if f["value"] == low]
        for y in found[1:]:
            d.facts[years[y]["id"]] = years[y]
        listed = d.listed([str(y) for y in found])
        d.say("year.least", years=listed, area=years[found[0]])
        d.give(found[0] if len(found) == 1 else found)
        return
    empty = [y for y, f in years.items() if not f["value"]]
    if _NONE.search(masked) and empty:
        d.facts |= {years[y]["id"]: years[y] for y in empty}
        d.say("year.nothing", years=d.listed([str(y) for y in empty]), area=years[empty[0]]).give(empty)
        return
    top = max(years, key=lambda y: years[y]["value"])
    d.say("year.most", year=top, area=years[top]).give(top)


def _pair(d: Draft) -> None:
    if d.book.get("date.before") is None or d.book.get("date.after") is None:
        d.cannot("undated", what="one of the images or both")
    before, after = d.book["date.before"], d.book["date.after"]
    area = d.book["area.changed"]
    d.say("year.pair", before=before, after=after, area=area).give([before["value"], after["value"]])


def _object(d: Draft) -> None:
    number = d.slots.objects[0] if d.slots.objects else d.slots.rank or 1
    day = d.book.get(f"object.{number}.date")
    if day is None:
        _old(d)
        told = [int(k.split(".")[1]) for k in d.book.facts if k.endswith(".place")]
        d.cannot("no-object", what=number, told=f"1 to {max(told)}" if told else "none")
    else:
        rules_change.one_object(d, number)
        d.value = None
        d.give(day["value"][:10])


def _years(d: Draft) -> dict[int, Fact]:
    """All calendar years that the facts know."""
    known = sorted(k for k in d.book.facts if re.fullmatch(r"year\.\d{4}", k))
    return {int(k[5:]): d.book[k] for k in known}


def _old(d: Draft) -> None:
    """Folders that were written before the facts held the course."""
    if "break.first" not in d.book:
        d.cannot("old-series")


def end(d: Draft, last: bool) -> None:
    """When it first or last broke."""
    if not d.book.series:
        d.cannot("series-only")
    rules_change.compared(d)
    if rules_change.nothing(d):
        return
    _old(d)
    day = d.book["break.last" if last else "break.first"]
    d.say("break.last" if last else "break.first", date=day).give(day["value"][:10])


def speed(d: Draft) -> None:
    """How much broke a year on average, and in which year most did."""
    if not d.book.series:
        d.cannot("series-only")
    rules_change.compared(d)
    if rules_change.nothing(d):
        return
    _old(d)
    rate = d.book["rate.mean"]
    d.say("rate", rate=rate, first=d.book["date.first"], last=d.book["date.last"]).amount(rate)
    years = _years(d)
    top = max(years, key=lambda y: years[y]["value"])
    d.say("year.most", year=top, area=years[top])


def pace(d: Draft, masked: str) -> None:
    """Whether it sped up or slowed down, from half to half of the period and over the years."""
    if not d.book.series:
        d.cannot("series-only")
    rules_change.compared(d)
    if rules_change.nothing(d):
        return
    _old(d)
    early, late, middle = (d.book[f"half.{k}"] for k in ("first", "second", "date"))
    if half := re.search(r"\b(first|second|earlier|later|last) <p>", masked):
        first = half[1] in ("first", "earlier")
        area = early if first else late
        d.say("half.first" if first else "half.second", area=area, date=middle).amount(area)
        return
    found = d.book["trend.pace"]
    faster = re.search(r"\b(fast\w*|accelerat\w*|sp(eed|ed)\w*)\b", masked)
    slower = re.search(r"\bslow\w*\b", masked)
    whether = re.match(r"(is|was|did|has|does|are|were|do)\b", masked)
    if whether and bool(faster) != bool(slower):
        right = found["value"] == ("faster" if faster else "slower")
        d.give(right)
        answer = d.language.sentences["yes" if right else "no"]
        d.say("pace.whether", answer=answer, pace=found, early=early, late=late, date=middle)
    else:
        d.give(found["value"])
        d.say("pace", pace=found, early=early, late=late, date=middle)
    if d.book.get("trend.tau") is not None:
        d.say("pace.tau", tau=d.book["trend.tau"], p=d.book["trend.p"])


def year(d: Draft, masked: str) -> None:
    """What broke in a year, in several, from one to another, or in which of two more did."""
    if not d.book.series:
        _of_pair(d)
        return
    rules_change.compared(d)
    first, last = (int(d.book[f"date.{w}"]["value"][:4]) for w in ("first", "last"))
    asked = d.slots.years
    for y in asked:
        if not first <= y <= last:
            d.cannot("no-year", what=y)
    if len(asked) == 2 and _RATHER.search(masked):
        _rather(d, *asked)
    elif len(asked) == 2 and _RANGE.search(masked):
        _period(d, min(asked), max(asked))
    elif len(asked) == 1 and _SINCE.search(masked):
        _period(d, asked[0] + ("<after>" in masked), last)
    elif len(asked) == 1 and _UNTIL.search(masked):
        _period(d, first, asked[0] - ("<before>" in masked))
    else:
        falling = bool(re.search(r"\b(fell|fall|falling|drop\w*)\b", masked))
        for y in asked:
            _one_year(d, y, falling)


def _amount(d: Draft, y: int) -> Fact:
    """The fact of a year; in folders that tell only years with breaks, nothing follows from the others."""
    found = d.book.get(f"year.{y}")
    if found is not None:
        return found
    return d.book.derive("area", 0.0, ["area.broken"], f"year.{y} of no break", d.book.unit)


def _one_year(d: Draft, y: int, falling: bool) -> None:
    found = _amount(d, y)
    if not found["value"]:
        d.facts[found["id"]] = found
        d.say("year.none", year=y).give(0.0, d.book.unit)
        return
    d.say("year", year=y, area=found)
    if falling:
        share = d.book[f"year.{y}.falling"]
        d.say("falling", year=y, share=share).amount(share)
    d.amount(found)


def _period(d: Draft, start: int, end_: int) -> None:
    """The sum over calendar years, both of them included, and each year."""
    if start > end_:
        d.cannot("no-year", what=f"{end_} to {start}")
    if start == end_:
        _one_year(d, start, False)
        return
    each = {y: _amount(d, y) for y in range(start, end_ + 1)}
    total = d.book.total([f["id"] for f in each.values()])
    d.facts |= {f["id"]: f for f in each.values()}
    d.say("period", start=start, end=end_, area=total).amount(total)
    told = [d.phrase("years.one", year=y, area=f) for y, f in each.items() if f["value"]]
    if told:
        d.say("years", list=d.listed(told))


def _rather(d: Draft, one: int, other: int) -> None:
    a, b = _amount(d, one), _amount(d, other)
    if a["value"] == b["value"]:
        d.facts |= {f["id"]: f for f in (a, b)}
        d.say("years.same", one=one, other=other, area=a).give(None)
        return
    more, less = (one, other) if a["value"] > b["value"] else (other, one)
    d.say("years.more", more=more, less=less, a=_amount(d, more), b=_amount(d, less)).give(more)


def _of_pair(d: Draft) -> None:
    """A year asked of a run of two dates: told only where both dates are those years."""
    days = {w: d.book.get(f"date.{w}") for w in ("before", "after")}
    if any(f is None for f in days.values()):
        d.cannot("undated", what="one of the images or both")
    own = {int(f["value"][:4]) for f in days.values() if f is not None}
    strange = [y for y in d.slots.years if y not in own]
    if strange or (len(d.slots.years) == 1 and len(own) > 1):
        d.cannot("series-only")
    _pair(d)
    d.value = None
    d.amount(d.book["area.changed"])


def trend(d: Draft) -> None:
    """The course over the years."""
    if not d.book.series:
        d.cannot("series-only")
    rules_change.compared(d)
    if rules_change.nothing(d):
        return
    said = [d.phrase("years.one", year=y, area=d.book[f"year.{y}"]) for y in d.book.years]
    d.say("years", list=d.listed(said)).give({str(y): d.book[f"year.{y}"]["value"] for y in d.book.years})
    if "trend.pace" in d.book:
        early, late, middle = (d.book[f"half.{k}"] for k in ("first", "second", "date"))
        d.say("pace", pace=d.book["trend.pace"], early=early, late=late, date=middle)


def interval(d: Draft) -> None:
    """How long the series is; with its dates."""
    found = d.book.get("date.interval")
    if found is not None:
        d.say("interval.series", interval=found).give(found["value"], "days")
    rules_about.dates(d)
