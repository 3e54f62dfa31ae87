"""Answers about the run itself, and in several sentences."""

from __future__ import annotations

from terralapse.ask import rules_change, rules_classes
from terralapse.ask.draft import CannotTell, Draft

_REPORT = (
    ("DISASTER", "disaster"), ("BUILDING", "building"), ("ROAD", "road"), ("VEGETATION", "vegetation"),
    ("WATER_BODY", "water"), ("AGRICULTURE", "farmland"),
)  # fmt: skip


def caption(d: Draft) -> None:
    """The run in a few sentences, or one place of it."""
    if d.slots.places or d.slots.missing_zone:
        rules_change.area(d)
        where = d.slots.places[0]
        if f"{where}.objects" in d.book:
            fact, least = d.book[f"{where}.objects"], d.book["object.minimum"]
            d.say("count", count=fact, where="", minimum=least)
        return
    if d.slots.classes or d.slots.absent:
        rules_classes.area(d, as_share=False)
        return
    for said in d.book.summary:
        d.text.append(said["text"])
        d.facts |= {k: d.book[k] for k in said["facts"]}
    changed = d.book.get(rules_change.head(d)[0])
    if changed is not None:
        d.facts[changed["id"]] = changed
    if d.book.classes:
        rules_classes.transitions(d)
    if d.book.damage:
        rules_classes.damage(d, as_share=False, counted=False)
    d.value = None


def report(d: Draft) -> None:
    """The lines of a disaster report, each from facts or with the reason why it cannot be."""
    phrases = d.language.phrases
    for head, concept in _REPORT:
        part = Draft(d.book, d.slots, d.language)
        try:
            if concept == "disaster":
                part.cannot("disaster")
            elif concept == "building" and d.book.damage:
                rules_classes.damage(part, as_share=False, counted=False)
            else:
                own = [
                    name
                    for name, title in d.book.classes.items()
                    if name == concept
                    or phrases.get(title.lower(), ("", ""))[1] == concept
                    or name in d.language.words["wider"].get(concept, ())
                ]
                if not own:
                    what = d.concept(concept)
                    if not d.book.classes:
                        part.cannot("no-classes", what=what)
                    listed = d.listed([d.title(c) for c in d.book.classes])
                    part.cannot("no-class", what=what, classes=listed)
                for name in own:
                    lost, gained = (d.book[f"class.{name}.{w}"] for w in ("lost", "gained"))
                    part.say("class.both", lost=lost, gained=gained, what=d.title(name), where="")
        except CannotTell as error:
            part.text = [error.text]
        d.facts |= part.facts
        d.text.append(d.phrase("report.line", head=head, text=" ".join(part.text)) + "\n")
    end = Draft(d.book, d.slots, d.language)
    rules_change.changed(end)
    d.facts |= end.facts
    d.text.append(d.phrase("report.line", head="CONCLUSION", text=end.text[0].partition(": ")[2]))


def dates(d: Draft) -> None:
    """When the images were taken."""
    if d.book.series:
        first, last, n = (d.book[k] for k in ("date.first", "date.last", "series.dates"))
        d.say("dates.series", first=first, last=last, n=n).give([first["value"], last["value"]])
        return
    wanted = [d.slots.side] if d.slots.side else ["before", "after"]
    without = [w for w in wanted if d.book.get(f"date.{w}") is None]
    if without:
        d.cannot("undated", what=d.listed([f"the image {w}" for w in without]))
    if len(wanted) == 1:
        date = d.book[f"date.{wanted[0]}"]
        d.say("dates.one", which=wanted[0], date=date).give(date["value"])
        return
    before, after = d.book["date.before"], d.book["date.after"]
    d.say("dates", before=before, after=after).give([before["value"], after["value"]])


def interval(d: Draft) -> None:
    """How much time lies between the images."""
    found = d.book.get("date.interval")
    if found is None:
        d.cannot("undated", what="one of the images or both")
    else:
        d.say("interval", interval=found).give(found["value"], "days")


def sensor(d: Draft) -> None:
    """What took the images."""
    if d.book.series:
        d.cannot("not-in-series")
    before, after = d.book["sensor.before"], d.book["sensor.after"]
    d.say("sensor", before=before, after=after).give([before["value"], after["value"]])


def confidence(d: Draft) -> None:
    """How sure the result is."""
    compared(d)
    if d.book.get("confidence.calibration") is None:
        d.facts["confidence.calibration"] = d.book["confidence.calibration"]
        d.say("confidence.raw").give(None)
        return
    if d.slots.objects or d.slots.rank:
        number = d.slots.objects[0] if d.slots.objects else d.slots.rank
        found = d.book.get(f"object.{number}.probability")
        if found is None:
            d.cannot("no-object", what=number, told="the ten largest")
        else:
            d.say("confidence.object", number=number, probability=found).give(found["value"])
            d.focus = number
        return
    if d.book.get("confidence.mean") is not None:
        mean, wrong, off = (d.book[f"confidence.{k}"] for k in ("mean", "false", "calibration"))
        d.say("confidence", mean=mean, wrong=wrong, off=off).give(mean["value"])
    d.say("confidence.uncertain", uncertain=d.book["confidence.uncertain"])


def compared(d: Draft) -> None:
    """As for questions about change."""
    rules_change.compared(d)


def masked(d: Draft, clouds: bool, usable: bool) -> None:
    """What could not be compared, and why."""
    if d.book.series:
        found = d.book["share.unmodelled"]
        d.say("masked.series", share=found).give(found["value"], "1")
        return
    reasons = {k: f for k, f in d.book.facts.items() if k.startswith("masked.")}
    if clouds:
        hidden = [k for k in reasons if "cloud" in k or "shadow" in k]
        if not hidden:
            d.facts["share.masked"] = d.book["share.masked"]
            d.say("masked.noclouds").give(False)
            return
        d.say("masked.clouds", area=d.book.total(hidden)).give(True)
        return
    if usable:
        area = d.book["area.observed"]
        d.quote(area).amount(area)
        return
    share = d.book.get("share.masked")
    if share is None or not share["value"]:
        d.facts["share.masked"] = d.book["share.masked"]
        d.say("masked.none", area=d.book["area.observed"]).give(0.0, "1")
        return
    d.say("masked", share=share).amount(share)
    ranked = sorted(reasons.values(), key=lambda f: -f["value"])
    named = [
        d.phrase("masked.one", reason=f["sentence"].rpartition(": ")[2].rstrip("."), area=f) for f in ranked
    ]
    if named:
        d.say("masked.reasons", list=d.listed(named))


def alignment(d: Draft) -> None:
    """How well the dates lie on each other."""
    found = d.book.get("alignment.verdict")
    if found is None:
        d.cannot("not-in-series")
    else:
        d.quote(found).give(found["value"])


def model(d: Draft) -> None:
    """What detected the change."""
    if d.book.series:
        d.say("model.series", form=d.book["model.form"])
        return
    name, threshold = d.book["model.name"], d.book["model.threshold"]
    d.say("model", name=name, threshold=threshold).give(name["value"])


def resolution(d: Draft) -> None:
    """The pixel and the CRS."""
    crs, size = d.book["grid.crs"], d.book.get("grid.resolution")
    if size is None:
        d.say("resolution.series", crs=crs).give(crs["value"])
    else:
        d.say("resolution", size=size, crs=crs).amount(size)


def warnings(d: Draft) -> None:
    """What a reader must know first."""
    found = [f for k, f in d.book.facts.items() if k.startswith("warning.")]
    for fact in found:
        d.quote(fact)
    if not found:
        d.say("warnings.none")
    d.give([f["value"] for f in found])
