"""An answer in the making: sentences of the language, filled with facts, which are cited as they are used."""

from __future__ import annotations

import re
from typing import Any

from terralapse.ask import measure
from terralapse.ask.answer import Answer, Fact
from terralapse.ask.book import PARTS, Book
from terralapse.ask.language import Language
from terralapse.ask.slots import Slots

_BLANK = re.compile(r"\{(\w+)\}")


class Draft:
    """Sentences with their facts. What is no fact in them are names: of classes, places and kinds."""

    def __init__(self, book: Book, slots: Slots, language: Language) -> None:
        self.book, self.slots, self.language = book, slots, language
        self.text: list[str] = []
        self.facts: dict[str, Fact] = {}
        self.value: Any = None
        self.unit = ""
        self.focus: int | None = None

    def show(self, fact: Fact) -> str:
        """How a fact reads, in the unit that was asked for."""
        unit = self.slots.unit
        if fact["kind"] == "area":
            return measure.area(fact["value"], fact["unit"], unit if unit in measure.AREAS else None)
        if fact["kind"] == "length" and fact["unit"] == "m":
            return measure.length(fact["value"], "m", unit if unit in measure.LENGTHS else None)
        return fact["display"]

    def phrase(self, key: str, **blanks: Any) -> str:
        """A sentence with its blanks filled; facts in them are cited."""

        def fill(found: re.Match[str]) -> str:
            value = blanks[found[1]]
            if isinstance(value, dict):
                self.facts[value["id"]] = value
                return self.show(value)
            return str(value)

        return _BLANK.sub(fill, self.language.sentences[key])

    def say(self, key: str, **blanks: Any) -> Draft:
        """Adds a sentence."""
        said = self.phrase(key, **blanks)
        self.text.append(said[0].upper() + said[1:])
        return self

    def quote(self, fact: Fact) -> Draft:
        """Adds the fact's own sentence."""
        self.facts[fact["id"]] = fact
        for key in fact["cites"]:
            self.facts[key] = self.book[key]
        self.text.append(fact["sentence"])
        return self

    def give(self, value: Any, unit: str = "") -> Draft:
        """The answer for programs; the first one stands."""
        if self.value is None:
            self.value, self.unit = value, unit
        return self

    def amount(self, fact: Fact) -> Draft:
        """A fact as the answer for programs, in the unit asked for."""
        unit = self.slots.unit
        if fact["kind"] == "area" and unit in measure.AREAS and fact["unit"] == "m2":
            return self.give(fact["value"] / measure.AREAS[unit][0], unit)
        if fact["kind"] == "length" and unit in measure.LENGTHS and fact["unit"] == "m":
            return self.give(fact["value"] / measure.LENGTHS[unit][0], unit)
        return self.give(fact["value"], fact["unit"])

    def cannot(self, reason: str, **blanks: Any) -> Draft:
        """Says that the facts do not hold it, and why."""
        raise CannotTell(reason, self.phrase("cannot", why=self.phrase(f"why.{reason}", **blanks)), self)

    # --- names ---------------------------------------------------------------------------------------
    def place(self, key: str) -> str:
        """`the northern third`, `zone Harbour`."""
        kind, _, name = key.partition(".")
        if kind == "ninth":
            form = "place.middle" if name in PARTS else "place.ninth"
            return self.phrase(form, name=name)
        return self.phrase(f"place.{kind}", name=self.book.zones.get(key, name))

    def where(self, key: str | None) -> str:
        """` in the northern third`, or nothing."""
        return "" if key is None else self.phrase("in", place=self.place(key))

    def title(self, name: str) -> str:
        """A class as it reads inside of a sentence."""
        return self.book.classes.get(name, name.replace("_", " ")).lower()

    def concept(self, name: str) -> str:
        """A thing as it is called in the language, in the plural where it has one."""
        phrases = self.language.words["concepts"].get(name, [name.replace("_", " ")])
        return phrases[1] if len(phrases) > 1 and phrases[1].startswith(phrases[0]) else phrases[0]

    def listed(self, items: list[str]) -> str:
        """`a, b and c`."""
        return (
            items[0]
            if len(items) == 1
            else ", ".join(items[:-1]) + self.language.sentences["and"] + items[-1]
        )

    # --- the answer ----------------------------------------------------------------------------------
    def answer(self, kind: str, understood: float) -> Answer:
        """The finished answer; what it shows is what its facts rest on."""
        facts = tuple(self.facts.values())
        overlay = []
        for fact in facts:
            if fact["evidence"] not in overlay and not {"file", "table"} & set(fact["evidence"]):
                overlay.append(fact["evidence"])
        return Answer(
            text=" ".join(self.text),
            facts=facts,
            overlay=tuple(overlay),
            confidence=self._confidence(understood),
            kind=kind,
            value=self.value,
            unit=self.unit,
        )

    def _confidence(self, understood: float) -> dict[str, Any]:
        book = self.book
        evidence, said = None, "not calibrated"
        calibration = book.get("confidence.calibration")
        own = book.get(f"object.{self.focus}.probability") if self.focus else None
        mean = own or book.get("confidence.mean")
        if calibration is not None and mean is not None:
            evidence, said = mean["value"], f"mean calibrated probability of the change, {mean['id']}"
        return {"understood": round(understood, 3), "evidence": evidence, "statement": said}


class CannotTell(Exception):
    """The facts do not hold the answer."""

    def __init__(self, reason: str, text: str, draft: Draft) -> None:
        super().__init__(text)
        self.reason, self.text, self.draft = reason, text, draft
