"""What a question names: classes, places, grades, units, numbers, years, objects, and which date.

What is found is replaced in the text by a mark (`<c>`, `<p>`, ...), so that the grammar and the classifier
see what kind of question it is and not what it is about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from terralapse.ask.book import Book
from terralapse.ask.classifier import classifier
from terralapse.ask.language import Language, plain
from terralapse.ask.measure import AREAS

_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")
_GLUED = re.compile(r"(\d[\d,]*(?:\.\d+)?)([a-z²]+2?)")
_YEAR = re.compile(r"(19|20)\d\d")
_LONGEST = 6  # words of a phrase


@dataclass(frozen=True)
class Slots:
    """What a question names.

    `classes` are names of the run's classes; `absent` are concepts that the run has no class for; `place`
    keys of facts (`ninth.north`, `part.north`, `zone.a`, `cell.b2`) or `other` for places that facts do not
    know; `least`, `most` are areas in the unit of the run; `rank` counts from 1; `pair` is set for "from A to
    B".
    """

    classes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    grade: str | None = None
    unit: str | None = None
    years: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    least: float | None = None
    most: float | None = None
    rank: int | None = None
    objects: tuple[int, ...] = ()
    side: str | None = None
    unchanged: bool = False
    moved: str | None = None
    pair: tuple[str, str] | None = None
    missing_zone: str | None = None

    def over(self, other: Slots) -> Slots:
        """These, with what they leave open taken from `other`: how a follow-up is read."""
        taken = {k: v for k, v in other.__dict__.items() if getattr(self, k) in (None, (), False)}
        named = self.classes or self.absent
        if named:
            taken["classes"], taken["absent"], taken["pair"] = self.classes, self.absent, self.pair
        if self.rank or self.objects:  # another object is meant
            taken["rank"], taken["objects"] = self.rank, self.objects
        if self.missing_zone or self.places:
            taken["places"], taken["missing_zone"] = self.places, self.missing_zone
        return replace(self, **taken)


@dataclass
class Read:
    """A question: its slots, and its words with marks where they were."""

    words: list[str]
    slots: Slots
    masked: str
    unknown: list[str] = field(default_factory=list)


def read(text: str, book: Book, language: Language) -> Read:
    """The slots of a question about a run. Typos are mended first."""
    known = vocabulary(book, language)
    words = _split(language.mend(plain(language.listed(text)), known), language)
    phrases = dict(language.phrases)
    for kind, table in (("run", book.classes), ("zone", book.zones)):
        for key, title in table.items():
            if kind == "zone" and key.startswith("cell."):
                phrases[f"square {title.lower()}"] = (kind, key)
                phrases[f"cell {title.lower()}"] = (kind, key)
                continue
            for name in {title, key if kind == "run" else title}:
                phrases[" ".join(plain(name.replace("_", " ")))] = (kind, key)
                if kind == "run":
                    phrases[" ".join(plain(name.replace("_", " "))) + "s"] = (kind, key)
    for side in ("before", "after", "more", "less", "unchanged"):
        for phrase in language.words[side]:
            phrases.setdefault(phrase, ("word", side))
    return _Reader(words, phrases, book, language).read()


def vocabulary(book: Book, language: Language) -> frozenset[str]:
    """The words of the language and those of the run's own names."""
    names = " ".join([*book.classes.values(), *book.classes, *book.zones.values()]).replace("_", " ")
    return language.vocabulary | classifier(language.code).words | frozenset(plain(names))


def _split(words: list[str], language: Language) -> list[str]:
    """`10ha` is two words; numbers written as words become digits elsewhere."""
    found: list[str] = []
    for word in words:
        glued = _GLUED.fullmatch(word)
        if glued and (glued[2],) != ("st",) and any(glued[2] in v for v in language.words["units"].values()):
            found += [glued[1], glued[2]]
        else:
            found.append(word)
    return found


class _Reader:
    def __init__(
        self, words: list[str], phrases: dict[str, tuple[str, str]], book: Book, language: Language
    ) -> None:
        self._words, self._phrases, self._book, self._language = words, phrases, book, language
        self._marks: list[str] = []
        self._classes: list[str] = []
        self._absent: list[str] = []
        self._places: list[str] = []
        self._numbers: list[float] = []
        self._years: list[int] = []
        self._objects: list[int] = []
        self._bound: str | None = None
        self._found: dict[str, object] = {}
        self._where: list[tuple[int, str]] = []  # position in the marks of each class

    def read(self) -> Read:
        i, unknown = 0, []
        known = vocabulary(self._book, self._language)
        while i < len(self._words):
            for n in range(min(_LONGEST, len(self._words) - i), 0, -1):
                phrase = " ".join(self._words[i : i + n])
                if phrase in self._phrases and self._take(phrase, i):
                    i += n
                    break
            else:
                word = self._words[i]
                if not self._number(i) and word not in self._numbers_words(i):
                    self._marks.append(word)
                    if word not in known and not any(c.isdigit() for c in word):
                        unknown.append(word)
                i += 1
        return Read(self._words, self._slots(), " ".join(self._marks), unknown)

    def _numbers_words(self, i: int) -> tuple[str, ...]:
        """Takes ordinals and small numbers in words; returns the word when it was taken."""
        word, words = self._words[i], self._language.words
        if word in words["ordinals"] and set(self._words[i + 1 : i + 2]) & set(words["ranked"]):
            self._found.setdefault("rank", words["ordinals"][word])
            self._marks.append("<o>")
            return (word,)
        if word in words["numbers"] and self._objects_before():
            self._objects.append(words["numbers"][word])
            self._marks.append("<n>")
            return (word,)
        return ()

    def _objects_before(self) -> bool:
        return bool(self._marks) and self._marks[-1] in ("object", "objects", "polygon", "number", "patch")

    def _take(self, phrase: str, at: int) -> bool:
        kind, name = self._phrases[phrase]
        words = self._language.words
        if kind == "class":
            own = self._own(name)
            if not own and phrase in ("fields", "structure", "structures", "ice", "sand"):
                return False
            (self._classes.extend(own) if own else self._absent.append(name))
            self._where += [(len(self._marks), c) for c in own]
            self._marks.append("<c>")
        elif kind == "run":
            self._classes.append(name)
            self._where.append((len(self._marks), name))
            self._marks.append("<c>")
        elif kind == "zone":
            self._places.append(name)
            self._marks.append("<z>")
        elif kind == "place":
            if phrase == "right" and self._words[at - 1 : at] == ["is"]:
                return False
            if phrase in ("sw", "se", "ne", "nw") and len(self._words) == 1:
                return False
            self._places.append(name)
            self._marks.append("<p>")
        elif kind == "grade":
            if phrase == "hit" and not self._book.damage:
                return False
            self._found["grade"] = name if name != "any" else self._found.get("grade", "any")
            self._marks.append("<g>")
        elif kind == "unit":
            if phrase in ("m", "ha", "foot") and not self._after_number():
                return False
            self._found["unit"] = name
            self._bounded(name)
            self._marks.append("<u>")
        elif name in ("more", "less"):
            self._bound = name
            if phrase.startswith("or ") and self._numbers:
                unit = self._found.get("unit")
                if isinstance(unit, str):
                    self._bounded(unit)
            self._marks.extend(phrase.split())
        elif name == "unchanged":
            self._found["unchanged"] = True
            self._marks.append("unchanged")
        else:
            if phrase in ("before", "after", "now") and self._words[at + 1 : at + 2] in (["and"], ["the"]):
                return False
            if phrase in words["before"] or phrase in words["after"]:
                self._found["side"] = name
            self._marks.append(f"<{name}>")
        return True

    def _own(self, concept: str) -> list[str]:
        """The run's classes that a concept means."""
        wanted = {concept, *self._language.words["wider"].get(concept, ())}
        found = []
        for name, title in self._book.classes.items():
            kind, of = self._phrases.get(" ".join(plain(title)), ("", ""))
            direct = name if kind == "run" else of
            base = self._language.phrases.get(" ".join(plain(title)), ("", direct))[1]
            if {name, base} & wanted:
                found.append(name)
        exact = [n for n in found if n == concept]
        return exact if exact else found

    def _after_number(self) -> bool:
        return bool(self._marks) and self._marks[-1] in ("<n>", "in", "how", "many")

    def _number(self, i: int) -> bool:
        word = self._words[i]
        if not _NUMBER.fullmatch(word):
            return False
        value = float(word.replace(",", ""))
        if _YEAR.fullmatch(word) and self._bound is None and not self._objects_before():
            self._years.append(int(word))
            self._marks.append("<y>")
            return True
        if self._objects_before() or (
            self._marks and self._marks[-1] == "and" and self._objects and value.is_integer()
        ):
            self._objects.append(int(value))
        else:
            self._numbers.append(value)
        self._marks.append("<n>")
        return True

    def _bounded(self, unit: str) -> None:
        """A number with a unit of area after "more than" or "less than" is a bound."""
        if self._bound is None or not self._numbers or unit not in AREAS:
            return
        scale = AREAS[unit][0] if self._book.unit == "m2" else 1.0
        key = "least" if self._bound == "more" else "most"
        self._found[key] = self._numbers.pop() * scale
        self._found.pop("unit", None)
        self._bound = None

    def _slots(self) -> Slots:
        marks = " ".join(self._marks)
        words = self._language.words
        moved = None
        if any(w in self._words for w in words["gained"]):
            moved = "gained"
        if any(w in self._words for w in words["lost"]) or "cut down" in " ".join(self._words):
            moved = "lost"
        missing = None
        named = re.search(r"\b(zone|square|cell|district) (\w+)", marks)
        if named and named[2] not in self._language.vocabulary and not self._places:
            missing = named[2]
        if "zone <n>" in marks and not self._places:
            missing = f"{self._numbers[0]:g}" if self._numbers else "?"
        classes = tuple(dict.fromkeys(self._classes))
        return Slots(
            classes=classes,
            absent=tuple(dict.fromkeys(self._absent)),
            places=tuple(dict.fromkeys(self._places)),
            years=tuple(dict.fromkeys(self._years)),
            numbers=tuple(self._numbers),
            objects=tuple(dict.fromkeys(self._objects)),
            moved=moved,
            pair=self._pair(marks),
            missing_zone=missing,
            **self._found,  # type: ignore[arg-type]
        )

    def _pair(self, marks: str) -> tuple[str, str] | None:
        """From which class to which, where a question says so."""
        if len(self._where) < 2:
            return None
        a, b = self._where[0], self._where[1]
        between = self._marks[a[0] + 1 : b[0]]
        if {"to", "into", "became", "become", "becomes", "by"} & set(between) and a[1] != b[1]:
            return a[1], b[1]
        return None
