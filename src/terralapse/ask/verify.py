"""Nothing is said that no cited fact supports: numbers, dates, classes, places, names and directions.

A text is checked sentence by sentence. A number needs a cited fact with that value in that unit which is
about what the sentence is about: the same class, the same place, the same kind of thing (what changed is not
what was compared). A sentence that does not pass is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from terralapse.ask.answer import Answer, Fact
from terralapse.ask.book import GRADES, NINTHS, Book
from terralapse.ask.language import language, plain
from terralapse.ask.measure import AREAS, LENGTHS
from terralapse.ask.parse import MOST
from terralapse.tasks.claims import Claim, claims, without_marks

_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(*-])|\n+")
_CANNOT = re.compile(
    r"^(\w+: )?i cannot tell from this\b|^i (cannot|can't|do not|don't) (tell|know|answer)", re.I
)
_NOTHING = re.compile(
    r"\b(no changes?|nothing (has |had |was )?(changed|happened)|identical|no difference|no damage was)\b",
    re.I,
)
_UP = re.compile(r"\b(increas\w+|grew|grown|grow|grows|growing|expand\w*|rose|risen)\b", re.I)
_DOWN = re.compile(r"\b(decreas\w+|shrank|shrunk|shrink\w*|declin\w+|diminish\w*)\b", re.I)
# The words that say what a number is of, by what facts are about.
_SPOKEN = {
    "changed": r"chang\w+|broke|break\w*|affected|differ\w*|it|all|most",
    "compared": r"compar\w+|modelled|observed|usable|looked at",
    "masked": r"mask\w*|clouds?|shadows?|could not|hid\w*|excluded|nothing can be said|reasons?|invalid",
    "lost": r"lost|loss|became|become|went|was|less|removed|shrank|decreas\w+|disappear\w*",
    "gained": r"gain\w*|new|is now|was mainly|grew|appear\w*|increas\w+|added",
    "objects": r"objects?|patch\w*|polygons?|they|them|largest|smallest|buildings?|mean|it|its",
    "sure": r"probabilit\w+|confiden\w+|sure|uncertain\w*|threshold|false|not changed|off by|wrong|expect\w*",
}
_ABOUT = {tag: re.compile(rf"\b({words})\b", re.I) for tag, words in _SPOKEN.items()}
_CAPITAL = re.compile(r"(?<![.!?:]\s)(?<!^)(?<![\w(])\b([A-Z][a-zA-Z]{2,})\b")
# Things on the ground and in life that a text can claim, beyond the classes of the language and of the run.
_THINGS = frozenset(
    re.findall(
        r"\w+",
        """village villages town towns city cities hospital hospitals mosque temple tower towers tent tents
        greenhouse greenhouses dike dikes levee levees landslide lava ash mud debris rubble fence fences pier
        piers container containers tank tanks helicopter aircraft train trains tunnel refugee camp camps fire
        fires flood flooding earthquake tornado hurricane tsunami explosion volcano war bomb crater casualties
        victims deaths people residents inhabitants dollars euros""",
    )
)


@dataclass(frozen=True)
class Problem:
    """What is not supported: its kind (`number`, `date`, `class`, `place`, `name`, `direction`), the words,
    and the sentence that they stand in."""

    kind: str
    said: str
    sentence: str


@dataclass(frozen=True)
class About:
    """What a fact is about."""

    classes: frozenset[str]
    places: frozenset[str]
    grades: frozenset[str]
    tags: frozenset[str]
    year: int | None


def verified(answer: Answer, book: Book, question: str) -> Answer:
    """The answer without the sentences that its facts do not support; what is left out is said."""
    allowed = f"{question} {len(question):,} {MOST:,}"
    found = problems(answer.text, answer.facts, book, allowed)
    if not found and answer.text:
        return answer
    bad = {p.sentence for p in found}
    kept = [s for s in sentences(answer.text) if s not in bad]
    if not kept:
        said = "I cannot tell from this: the answer was not supported by the facts of this run."
        return replace(
            answer, text=said, facts=(), overlay=(), answered=False, reason="not-supported", value=None
        )
    return replace(answer, text=" ".join(kept), confidence=answer.confidence | {"left_out": len(bad)})


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [s.strip() for s in _SENTENCES.split(text) if s.strip()]


def problems(text: str, facts: Iterable[Fact], book: Book, allowed: str = "") -> list[Problem]:
    """All that is not supported in a text.

    Args:
        text: to check.
        facts: those that it cites.
        book: of the run.
        allowed: the question: what "I cannot tell" sentences may repeat.
    """
    cited = list(facts)
    about = {f["id"]: about_fact(f, book) for f in cited}
    return [p for s in sentences(text) for p in _sentence(s, cited, about, book, allowed)]


def about_fact(fact: Fact, book: Book) -> About:
    """What a fact is about, read from its id and, where it was worked out, from those of its sources."""
    ids = [fact["id"], *fact.get("sources", ())]
    classes: set[str] = set()
    places: set[str] = set()
    tags: set[str] = set()
    years: set[int] = set()
    for key in ids:
        parts = key.split(".")
        if parts[0] == "transition":
            classes |= set(parts[1:3])
        if "class" in parts[:-1]:
            classes.add(parts[parts.index("class") + 1])
        if parts[0] in ("ninth", "part"):
            places.add(parts[1])
        if parts[0] in ("zone", "cell"):
            places.add(f"{parts[0]}.{parts[1]}")
        if parts[0] == "location" and parts[1] != "main":
            places.add(parts[1])
        if parts[0] == "year":
            years.add(int(parts[1]))
        tags |= _tags(key)
    if fact["id"].rpartition(".")[2] in ("became", "came"):
        classes.add(str(fact["value"]))
    if fact["id"].startswith("damage."):
        classes.add("building")
    if fact["id"] == "classes":
        classes |= set(book.classes)
    if fact["kind"] == "place" and isinstance(fact["value"], dict):
        places.add(str(fact["value"].get("location")))
    if fact["id"].startswith("object.") and fact["id"].split(".")[1].isdigit():
        places.add(_location(book, int(fact["id"].split(".")[1])))
    if fact["id"] == "location.main":
        places.add(str(fact["value"]))
    grades = {
        p for p in fact["id"].split(".")[1:2] if fact["id"].startswith("damage.") and p in (*GRADES, "any")
    }
    known = frozenset(p for p in places if p in NINTHS or "." in p)
    return About(
        frozenset(classes),
        known,
        frozenset(grades),
        frozenset(tags),
        next(iter(years)) if len(years) == 1 else None,
    )


def _tags(key: str) -> set[str]:
    last = key.rpartition(".")[2]
    if key.startswith("derived."):
        return set()
    if key.startswith(("confidence.", "model.threshold")) or last == "probability" or key == "area.expected":
        return {"sure"}
    if key.startswith("masked.") or key in ("share.masked", "share.unmodelled") or key.startswith("quality."):
        return {"masked"}
    if last in ("observed", "modelled", "considered"):
        return {"compared"}
    if last in ("lost", "gained") or ".lost." in key or ".gained." in key:
        return {"lost"} if "lost" in key else {"gained"}
    if key.startswith(("object.", "distance.", "damage.")) or last == "objects":
        return {"objects"}
    if (
        last in ("changed", "broken")
        or key in ("share.changed", "share.broken")
        or key.startswith(("year.", "half.", "rate."))
    ):
        return {"changed"}
    if key.startswith(("location.", "ninth.", "part.", "zone.", "cell.", "transition.")):
        return {"changed", "lost", "gained", "objects"}
    return set()


# --- one sentence ----------------------------------------------------------------------------------
def _sentence(
    text: str, cited: list[Fact], about: dict[str, About], book: Book, allowed: str
) -> list[Problem]:
    if _CANNOT.search(text):
        return _unknowing(text, book, allowed)
    if any(_quotes(text, f) for f in cited if f["kind"] == "text"):
        return []
    said = mentions(text, book)
    found: list[Problem] = []
    support: list[Fact] = []
    told = claims(text)
    for claim in (c for c in told if c.kind != "fraction"):
        fitting = [f for f in cited if supports(f, claim)]
        if claim.kind == "number":
            fitting = [f for f in fitting if _fits(f, about[f["id"]], text, said)]
            support += fitting
        if not fitting:
            found.append(Problem("date" if claim.kind == "date" else "number", claim.said, text))
    for claim in (c for c in told if c.kind == "fraction"):
        if not any(_halves(f, claim) for f in support):
            found.append(Problem("number", claim.said, text))
    basis = support or cited
    texts = " ".join(f["display"].lower() for f in cited if f["kind"] == "text" and _own(f))
    for kind, noun in (("classes", "class"), ("places", "place"), ("grades", "grade")):
        pool = set().union(*(getattr(about[f["id"]], kind) for f in basis)) if basis else set()
        for word, names in said[kind].items():
            if not names & pool and (kind == "places" or word not in texts):
                found.append(Problem(noun, word, text))
    found += _superlatives(text, told, said, book)
    found += _names(text, cited, allowed, book)
    found += _directions(text, cited, about, said)
    return found


def _own(fact: Fact) -> bool:
    """Whether a text is the library's: warnings may hold what came with an image, and what a model says of a
    picture, or the name of a file, is only said; they prove nothing."""
    return not fact["id"].startswith(("warning.", "zones", "look.", "caption.", "map."))


def _quotes(text: str, fact: Fact) -> bool:
    """Whether a sentence is a whole one of a fact of words: it may be repeated as it stands."""
    return plain(text) == plain(fact["sentence"]) or plain(text) in [
        plain(s) for s in sentences(fact["sentence"])
    ]


def _halves(fact: Fact, claim: Claim) -> bool:
    """Whether a fraction in words is that of a fact whose number stands in the same sentence."""
    if fact["kind"] == "share" and abs(fact["value"] - claim.value) < 0.02:
        return True
    return fact["id"] in ("object.median", "object.half") and claim.said.lower() == "half"


_MOST_OF = re.compile(r"\b(most|mostly|mainly|least)\b", re.I)
_LARGEST = re.compile(r"(?<!second )(?<!third )\b(largest|biggest|greatest)\b", re.I)


def _superlatives(
    text: str, told: list[Claim], said: dict[str, dict[str, frozenset[str]]], book: Book
) -> list[Problem]:
    """ "Most of it lies in the north", "the largest object is in the north": the places must be those."""
    places = list(said["places"].items())
    if not places:
        return []
    word, names = places[0]
    objects = [int(c.value) for c in told if c.kind == "object"]
    if not objects and _LARGEST.search(text) and not said["classes"]:
        objects = [1]
    if objects:
        own = {_location(book, n) for n in objects}
        return [] if names & own or any("." in n for n in names) else [Problem("place", word, text)]
    most = _MOST_OF.search(text)
    if most is None:
        return []
    pick = min if most[0].lower() == "least" else max
    tops = set(_tops(book, frozenset().union(*said["classes"].values()), pick))
    if pick is max and "location.main" in book:
        tops.add(str(book["location.main"]["value"]))
    return [] if names & tops else [Problem("place", word, text)]


def _location(book: Book, number: int) -> str:
    place = book.get(f"object.{number}.place")
    return str(place["value"]["location"]) if place is not None else ""


def _tops(book: Book, classes: frozenset[str], pick: Any) -> Iterator[str]:
    """The ninth, the third, the zone and the square with the most (or least) of what is spoken of."""
    lasts = [f".class.{c}.{w}" for c in classes for w in ("lost", "gained")] or [".changed", ".share"]
    for kind in ("ninth", "part", "zone", "cell"):
        for last in lasts:
            held = {
                k: f["value"]
                for k, f in book.facts.items()
                if k.startswith(f"{kind}.") and k.endswith(last) and f["value"] is not None
                and (classes or ".class." not in k)
            }  # fmt: skip
            if held:
                key = pick(held, key=lambda k: held[k])
                stem = key[: -len(last)]
                yield stem if kind in ("zone", "cell") else stem.partition(".")[2]


def _unknowing(text: str, book: Book, allowed: str) -> list[Problem]:
    """ "I cannot tell" may repeat words of the question, and name what the run has; it brings no numbers."""
    echoes = {c.said.strip() for c in claims(allowed)} | set(plain(allowed))
    own = " ".join([*book.zones.values(), *book.classes.values()])
    echoes |= set(plain(own))
    bad = [
        c for c in claims(text)
        if c.kind not in ("object", "text") and not set(plain(c.said)) & echoes and c.said not in ("1 and 2",)
    ]  # fmt: skip
    bad = [c for c in bad if not re.search(r"version 1\b|\b1 to \d+$|one by one", text)]
    return [Problem("number", c.said, text) for c in bad]


def _fits(fact: Fact, about: About, text: str, said: dict[str, dict[str, frozenset[str]]]) -> bool:
    """Whether a fact is about what a sentence is about."""
    named = {kind: frozenset().union(*said[kind].values()) for kind in said}
    if not _says(fact, text):
        return False
    if about.classes and not about.classes & named["classes"] and not fact["id"].startswith("damage."):
        return False
    if about.grades and not about.grades & named["grades"] and "any" not in about.grades:
        return False
    place_free = fact["kind"] in ("place", "text") or fact["id"].startswith("object.")
    if about.places and not place_free and not about.places & named["places"]:
        return False
    if about.year is not None and str(about.year) not in text:
        return False
    spoken = {tag for tag, words in _ABOUT.items() if words.search(text)}
    return not about.tags or not spoken or bool(about.tags & spoken)


def _says(fact: Fact, text: str) -> bool:
    """Whether a sentence says the words without which the fact means something else: the name of an index."""
    wanted = fact.get("says", ())
    return not wanted or set(wanted) <= set(plain(text))


def supports(fact: Fact, claim: Claim) -> bool:
    """Whether the value of a fact is the number that is claimed, as it was rounded."""
    value, kind = fact["value"], fact["kind"]
    if claim.kind == "text":
        return claim.said.lower() in f"{fact['display']} {fact['sentence']}".lower()
    if claim.kind == "object":
        key = fact["id"].split(".")
        return key[0] in ("object", "distance") and str(int(claim.value)) in key[1:3]
    if claim.kind == "date":
        if re.match(r"(derived\.)?year\.", fact["id"]):
            return claim.said in re.findall(r"\byear\.(\d{4})", fact["id"])
        return kind in ("date", "text") and _date(claim.said, f"{fact['display']} {value}")
    if kind == "text" and not _own(fact):
        return False
    if kind in ("text", "place", "date") or fact["unit"] == "days":
        if claim.unit in ("", "°"):
            return _number_in(claim, fact)
        return claim.said.replace(" ", "") in fact["display"].replace(" ", "")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if kind == "area":
        scale = AREAS[claim.unit][0] if claim.unit in AREAS else None
        if fact["unit"] == "px":
            return claim.unit in ("px", "") and claim.rounds(value)
        return scale is not None and claim.rounds(value / scale)
    if kind == "length":
        if fact["unit"] == "px":
            return claim.unit in ("px", "") and claim.rounds(value)
        return claim.unit in LENGTHS and claim.rounds(value / LENGTHS[claim.unit][0])
    if kind in ("share", "probability"):
        if claim.unit == "%":
            return claim.rounds(100 * value) or fact["display"].replace(" ", "") in claim.said.replace(
                " ", ""
            )
        return claim.unit == "" and claim.decimals > 0 and claim.rounds(value)
    if kind == "count":
        return claim.unit in ("", "count") and claim.value == value
    return claim.unit == "" and claim.rounds(value)


def _number_in(claim: Claim, fact: Fact) -> bool:
    numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", f"{fact['display']} {fact['value']}")
    return any(replace(claim, value=abs(claim.value)).rounds(float(n.replace(",", ""))) for n in numbers)


def _date(said: str, display: str) -> bool:
    return all(re.search(rf"\b0?{re.escape(w)}", display, re.I) for w in re.findall(r"[A-Za-z]+|\d+", said))


def _names(text: str, cited: list[Fact], allowed: str, book: Book) -> list[Problem]:
    """Names in capitals that neither a cited fact nor the question holds."""
    pool = " ".join([f"{f['display']} {f['sentence']} {f['value']}" for f in cited] + [allowed]).lower()
    known = language().vocabulary
    found = []
    for word in _CAPITAL.findall(without_marks(text)):
        low = word.lower()
        if low not in pool and low not in known and word not in _HEADS:
            found.append(Problem("name", word, text))
    return found


_OF_CHANGE = {"changed", "lost", "gained", "objects"}
_HEADS = ("DISASTER", "BUILDING", "ROAD", "VEGETATION", "AGRICULTURE", "CONCLUSION", "CRS", "UTC", "EPSG")


def _directions(
    text: str, cited: list[Fact], about: dict[str, About], said: dict[str, dict[str, frozenset[str]]]
) -> list[Problem]:
    """Growth, shrinkage and "nothing changed" against the facts."""
    found = []
    named = frozenset().union(*said["classes"].values())
    net = [f for f in cited if f["id"].endswith(".net") and _says(f, text)]
    net = [f for f in net if f.get("says") or not named or about[f["id"]].classes & named]
    for pattern, sign in ((_UP, 1), (_DOWN, -1)):
        word = pattern.search(text)
        if word and not text.lower().startswith("no") and not any(sign * f["value"] > 0 for f in net):
            found.append(Problem("direction", word[0], text))
    nothing = _NOTHING.search(text)
    if nothing:
        spoken = frozenset().union(*said["places"].values())
        zero = [f for f in cited if f["kind"] in ("area", "count") and f["value"] == 0]
        kinds = [about[f["id"]] for f in zero]
        if not any(
            k.tags & _OF_CHANGE and k.places <= spoken and (k.classes & named if named else not k.classes)
            for k in kinds
        ):
            found.append(Problem("direction", nothing[0], text))
    return found


# --- what a sentence names -------------------------------------------------------------------------
def mentions(text: str, book: Book) -> dict[str, dict[str, frozenset[str]]]:
    """Classes, places and grades that a sentence names: words -> the names that they may stand for."""
    words = language()
    own: dict[str, set[str]] = {}
    for name, title in book.classes.items():
        base = " ".join(plain(title))
        concept = words.phrases.get(base, ("", name))[1]
        for phrase in {base, name.replace("_", " "), *words.words["concepts"].get(concept, ())}:
            own.setdefault(phrase, set()).add(name)
            own.setdefault(phrase + "s", set()).add(name)
        for wide, narrow in words.words["wider"].items():
            if name in narrow or concept in narrow:
                for phrase in words.words["concepts"].get(wide, ()):
                    own.setdefault(phrase, set()).add(name)
    zones = {" ".join(plain(n)): k for k, n in book.zones.items()}
    found: dict[str, dict[str, frozenset[str]]] = {"classes": {}, "places": {}, "grades": {}}
    tokens = plain(without_marks(text))
    i = 0
    while i < len(tokens):
        for n in range(min(6, len(tokens) - i), 0, -1):
            phrase = " ".join(tokens[i : i + n])
            if _mention(phrase, tokens[i - 1] if i else "", own, zones, found):
                i += n
                break
        else:
            i += 1
    return found


def _mention(
    phrase: str,
    previous: str,
    own: dict[str, set[str]],
    zones: dict[str, str],
    found: dict[str, dict[str, frozenset[str]]],
) -> bool:
    kind, name = language().phrases.get(phrase, ("", ""))
    if phrase in zones and (len(phrase) > 3 or previous in ("square", "zone")):
        found["places"][phrase] = frozenset({zones[phrase]})
    elif phrase in own:
        found["classes"][phrase] = frozenset(own[phrase])
    elif kind == "class" and phrase not in ("fields", "structure", "home", "plane", "port", "ice"):
        if not (name == "building" and _graded(found)):
            found["classes"][phrase] = frozenset({name})
    elif phrase in _THINGS:
        found["classes"][phrase] = frozenset({phrase})
    elif kind == "place" and name != "other" and phrase not in _NO_PLACES:
        found["places"][phrase] = frozenset({name.partition(".")[2]})
    elif kind == "grade" and phrase != "hit":
        found["grades"][phrase] = frozenset({name, "any"} if name == "any" else {name})
    else:
        return False
    return True


_NO_PLACES = ("middle", "right", "left", "top", "se", "ne", "nw", "sw")  # they mean other things too


def _graded(found: dict[str, dict[str, frozenset[str]]]) -> bool:
    return bool(found["grades"])
