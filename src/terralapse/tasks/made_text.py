"""Captions that are made from statistics: what a maker of them is, and how each of its sentences is checked.

A maker turns an item (a map of classes, an image, or both, with what is known about it) into statistics and
the statistics into sentences, by rules or by a language model that sees nothing but the statistics. Whoever
wrote a sentence, it is kept only when a `Sheet` of the statistics supports it: the classes it names are
there, in the place that it names; its numbers are theirs; what it calls large or dominant is.

The check is of words, so it has limits: a sentence that names several places is held to the places together,
and what no list of words knows (a shape, a texture) is not judged.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from terralapse.cards import Card
from terralapse.labels import ClassScheme
from terralapse.tasks.claims import Claim, claims

WHOLE = ""  # the place that is all of the image
PLACES: dict[str, tuple[str, ...]] = {
    "top left": ("top left", "upper left", "top-left", "upper-left", "northwest"),
    "top right": ("top right", "upper right", "top-right", "upper-right", "northeast"),
    "bottom left": ("bottom left", "lower left", "bottom-left", "lower-left", "southwest"),
    "bottom right": ("bottom right", "lower right", "bottom-right", "lower-right", "southeast"),
    "middle": ("middle", "centre", "center", "central part", "central area"),
}
BANDS = ("extra small", "extra large", "small", "medium", "large")
NOUNS = ("fraction", "part", "portion", "amount", "quantity")
# What captions like to claim and no statistics of land cover hold, unless it is the name of a class.
THINGS = frozenset(
    re.findall(
        r"\w+",
        """airport airports beach beaches bridge bridges building buildings canal canals cloud clouds
        coast coastline desert factory factories farm farms flood floods harbour harbor highway
        highways hill hills house houses island islands lake lakes mountain mountains ocean parking
        people pond ponds port railway reservoir river rivers road roads runway school sea shadow
        shadows ship ships shore shoreline solar stadium stream street streets valley vehicle vehicles
        village villages volcano city cities town towns urban rural industrial residential""",
    )
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(*-])|\n+")
_TOP = re.compile(
    r"\b(dominat\w+|predominant\w*|mostly|mainly|main|largest|most of|majority|primar\w+|chief\w*)\b", re.I
)
_NOT = re.compile(
    r"\b(no|without|lacks?|lacking|free of|absence of|nor|devoid of)\b(?:\W+\w+){0,2}\W*$", re.I
)
_SIZE = re.compile(rf"\b({'|'.join(BANDS)})[- ](?:{'|'.join(NOUNS)}|share|area)s?\b", re.I)
_NAME = re.compile(r"(?<![.!?:\"]\s)(?<!^)(?<![\w(])\b([A-Z][a-zA-Z]{2,})\b")
_FRACTION = 0.05  # "half" may be this far from a half
_TIE = 0.005  # shares that are called equal


@dataclass(frozen=True)
class Item:
    """What a caption is made of: `image` uint8 [H, W, 3], `labels` [H, W] of the values of `scheme` (and its
    nodata), either of which may be missing, and `about`, what is known of the place or of the sensor."""

    key: str
    image: np.ndarray | None = None
    labels: np.ndarray | None = None
    scheme: ClassScheme | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What is not supported: its kind (`class`, `place`, `number`, `size`, `order`, `thing`, `name`,
    `banned`), the words, and the sentence that they stand in."""

    kind: str
    said: str
    sentence: str


@dataclass(frozen=True)
class Sheet:
    """What sentences about one item may say.

    Attributes:
        shares: place (`WHOLE` for all of it) to the share, 0 to 1, of each class that is there.
        words: each class that could be said, there or not, to the words for it, in lower case.
        sizes: (place, class) to the size that stands in the statistics, one of `BANDS`.
        numbers: (number, unit) that may be said, beside the shares; the units of `claims`.
        names: what is called by a name (tags, places, satellites, sensors): said as a whole, it claims no
            class, no place and no number.
        known: a text whose names and numbers may be said too.
        banned: words, as regular expressions, that no sentence may hold.
    """

    shares: Mapping[str, Mapping[str, float]]
    words: Mapping[str, tuple[str, ...]]
    sizes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    numbers: tuple[tuple[float, str], ...] = ()
    names: tuple[str, ...] = ()
    known: str = ""
    banned: tuple[str, ...] = ()

    @cached_property
    def _spoken(self) -> dict[str, str]:
        """Words to the class that they stand for; plurals too."""
        found = {w: name for name, words in self.words.items() for w in words}
        return {w + "s": name for w, name in found.items()} | found

    @cached_property
    def pool(self) -> str:
        """All that names may be taken from, in lower case."""
        return "; ".join([*self.names, self.known]).lower()

    def plain(self, text: str) -> str:
        """A text with blanks in place of names, as long as it was."""
        for name in sorted((n for n in self.names if n), key=len, reverse=True):
            text = re.sub(rf"\b{re.escape(name)}\b", lambda m: " " * len(m[0]), text, flags=re.I)
        return text

    @cached_property
    def _classes(self) -> re.Pattern[str]:
        words = sorted(self._spoken, key=len, reverse=True)
        return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.I) if words else re.compile(r"(?!)")

    def mentions(self, text: str) -> list[tuple[int, int, str, bool]]:
        """Start, end, class, and whether it is said to be missing, of every class that a text names."""
        return [
            (m.start(), m.end(), self._spoken[m[0].lower()], bool(_NOT.search(text[: m.start()])))
            for m in self._classes.finditer(text)
        ]

    def top(self, place: str, name: str) -> bool:
        """Whether a class is the largest of a place."""
        here = self.shares.get(place, {})
        return name in here and here[name] >= max(here.values()) - _TIE


_PLACE = re.compile(rf"\b({'|'.join(w for words in PLACES.values() for w in words)})\b", re.I)
_PLACE_OF = {word: place for place, words in PLACES.items() for word in words}


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [s.strip() for s in _SENTENCES.split(text) if s.strip()]


def faults(text: str, sheet: Sheet) -> list[Fault]:
    """Everything in a text that its sheet does not support."""
    return [f for s in sentences(text) for f in _sentence(s, sheet)]


def supported(text: str, sheet: Sheet) -> tuple[str, list[Fault]]:
    """The text without the sentences that the sheet does not support, and what was wrong with those."""
    found = faults(text, sheet)
    bad = {f.sentence for f in found}
    return " ".join(s for s in sentences(text) if s not in bad), found


def _sentence(sentence: str, sheet: Sheet) -> list[Fault]:
    text = sheet.plain(sentence)
    places = list(dict.fromkeys(_PLACE_OF[m[0].lower()] for m in _PLACE.finditer(text)))
    said = sheet.mentions(text)
    found = [
        *(Fault("banned", m[0], text) for word in sheet.banned for m in re.finditer(word, text, re.I)),
        *_presence(text, sheet, places, said),
        *_order(text, sheet, places, said),
        *_sizes(text, sheet, places, said),
        *_numbers(text, sheet, places, said),
        *_foreign(text, sheet),
    ]
    return [replace(f, sentence=sentence) for f in found]


Mentions = Sequence[tuple[int, int, str, bool]]


def _presence(text: str, sheet: Sheet, places: list[str], said: Mentions) -> list[Fault]:
    found = []
    for start, end, name, missing in said:
        here = [sheet.shares.get(p, {}).get(name, 0.0) for p in (places or [WHOLE])]
        if missing and max(here) > 0:
            found.append(Fault("class", f"no {text[start:end]}", text))
        elif not missing and not max(here) > 0:
            kind = "place" if sheet.shares.get(WHOLE, {}).get(name, 0.0) > 0 else "class"
            found.append(Fault(kind, text[start:end], text))
    return found


def _order(text: str, sheet: Sheet, places: list[str], said: Mentions) -> list[Fault]:
    """What is called dominant is the largest class of every place named; of one of them where the sentence
    names several classes as well."""
    word = _TOP.search(text)
    there = [name for *_, name, missing in said if not missing]
    if word is None or not there:
        return []
    right = [sheet.top(p, there[0]) for p in (places or [WHOLE])]
    fine = all(right) if len(set(there)) == 1 else any(right)
    return [] if fine else [Fault("order", f"{word[0]} {there[0]}", text)]


def _sizes(text: str, sheet: Sheet, places: list[str], said: Mentions) -> list[Fault]:
    """A size is that of the class before it or of the class after it."""
    found = []
    for size in _SIZE.finditer(text):
        before = [name for _, end, name, _ in said if end <= size.start()][-1:]
        after = [name for start, _, name, _ in said if start >= size.end()][:1]
        stated = {sheet.sizes.get((p, n)) for p in (places or [WHOLE]) for n in (*before, *after)}
        if size[1].lower() not in stated:
            found.append(Fault("size", size[0], text))
    return found


def _numbers(text: str, sheet: Sheet, places: list[str], said: Mentions) -> list[Fault]:
    named = {name for *_, name, missing in said if not missing}
    shares = [
        share
        for place in (places or [WHOLE])
        for name, share in sheet.shares.get(place, {}).items()
        if name in named or not named
    ]
    return [Fault("number", claim.said, text) for claim in claims(text) if not _fits(claim, shares, sheet)]


def _fits(claim: Claim, shares: Sequence[float], sheet: Sheet) -> bool:
    if claim.kind in ("text", "date", "object"):
        return claim.said.lower() in sheet.pool
    if claim.kind == "fraction":
        return any(abs(claim.value - s) <= _FRACTION for s in shares)
    if any(claim.unit == unit and claim.rounds(value) for value, unit in sheet.numbers):
        return True
    if claim.unit == "%":
        return any(claim.rounds(100 * s) for s in shares)
    return claim.unit == "" and re.search(rf"\b{re.escape(claim.said.lower())}\b", sheet.pool) is not None


def _foreign(text: str, sheet: Sheet) -> list[Fault]:
    """Things and names that are neither classes nor known."""
    known = sheet.pool
    own = {part for words in sheet.words.values() for w in words for part in re.findall(r"\w+", w)}
    found = [
        Fault("thing", word, text)
        for word in re.findall(r"[a-z]+", text.lower())
        if word in THINGS and word not in own and word.rstrip("s") not in own and word not in known
    ]
    names = [w for w in _NAME.findall(text) if w.lower() not in known and w.lower() not in own]
    return found + [Fault("name", w, text) for w in names]


class CaptionMaker(ABC):
    """A procedure that makes captions of items.

    `version` names the procedure: it changes whenever the same item would get other words.
    """

    card: Card
    version: ClassVar[str]

    @abstractmethod
    def statistics(self, item: Item) -> dict[str, Any] | None:
        """What is said about an item, ready for JSON; None where there is nothing to say."""

    @abstractmethod
    def sheet(self, statistics: Mapping[str, Any]) -> Sheet:
        """What sentences on these statistics may say."""

    @abstractmethod
    def write(self, statistics: Mapping[str, Any], seed: int) -> list[str]:
        """The captions by rules; the same for the same seed."""

    def before(self, item: Item) -> list[dict[str, Any]] | None:
        """What a language model is asked first; its reply is `item.about["summary"]` from then on. None where
        nothing has to be asked."""
        return None

    @abstractmethod
    def messages(self, statistics: Mapping[str, Any], item: Item, seed: int) -> list[dict[str, Any]]:
        """What a language model is asked, in the form of the chat-completions protocol."""

    @abstractmethod
    def read(self, reply: str) -> list[str]:
        """The captions in a reply; empty where it has not the form that was asked for."""

    @abstractmethod
    def record(self, statistics: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """What is stored beside an image, in the layout of the procedure's own data set.

        Raises:
            UnreadableFileError: it breaks that layout.
        """
