"""One language of questions: its words, put into one form, with their typos mended.

Everything that belongs to a language is in `languages/<code>.json` (words, grammar, sentences) and
`weights/<code>.json` (the classifier). A new language is these files and nothing else.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache, cached_property
from importlib import resources
from typing import Any

_PUNCTUATION = re.compile(r"[^\w%.,²°]+", re.UNICODE)
_LOOSE = re.compile(r"(?<!\d)[.,]|[.,](?!\d)")
_LONG, _VERY_LONG = 4, 8  # letters from which on one and two typos are mended


class Language:
    """The words of a language. `code` names the file."""

    def __init__(self, code: str) -> None:
        root = resources.files("terralapse.ask") / "languages"
        self.code = code
        self.words: dict[str, Any] = json.loads((root / f"{code}.json").read_text(encoding="utf-8"))
        self.grammar: list[list[str]] = json.loads(
            (root / f"{code}.grammar.json").read_text(encoding="utf-8")
        )
        self.sentences: dict[str, str] = json.loads(
            (root / f"{code}.sentences.json").read_text(encoding="utf-8")
        )

    @cached_property
    def rules(self) -> list[tuple[str, re.Pattern[str]]]:
        """Intents with the pattern of a masked question that decides for them, in order."""
        return [(intent, re.compile(pattern)) for intent, pattern in self.grammar]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every single word that is understood."""
        found: set[str] = set(self.words["known"].split())
        for group in self.words.values():
            phrases: list[str] = []
            if isinstance(group, dict):
                for key, value in group.items():
                    phrases += value if isinstance(value, list) else [key]
            elif isinstance(group, list):
                phrases = group
            if group is not self.words["reject"]:
                for phrase in phrases:
                    found |= set(phrase.split())
        return frozenset(found)

    @cached_property
    def phrases(self) -> dict[str, tuple[str, str]]:
        """Phrase -> (kind, name) for what a question can name: classes, grades, places, units."""
        found: dict[str, tuple[str, str]] = {}
        for kind, table in (
            ("class", "concepts"),
            ("grade", "grades"),
            ("place", "places"),
            ("unit", "units"),
        ):
            for name, phrases in self.words[table].items():
                found |= dict.fromkeys(phrases, (kind, name))
        for phrase in self.words["other_places"]:
            found[phrase] = ("place", "other")
        return found

    @cached_property
    def _commas(self) -> re.Pattern[str]:
        """A word of a place, a comma, and what comes before the next one."""
        places = {w for table in self.words["places"].values() for phrase in table for w in phrase.split()}
        one = "|".join(sorted(map(re.escape, places), key=len, reverse=True))
        return re.compile(rf"\b({one})\s*,\s*(?=(?:\w+\s+){{0,2}}(?:{one})\b)", re.IGNORECASE)

    def listed(self, text: str) -> str:
        """A question in which the places of a list have a word between them: the comma of "in the centre,
        south and east" says that the centre is one place and the south another."""
        return self._commas.sub(rf"\1 {self.words['and']} ", text)

    def mend(self, words: list[str], known: frozenset[str]) -> list[str]:
        """The words with typos replaced by the nearest word that is known; others are left."""
        return [w if w in known or len(w) < _LONG or not w.isalpha() else _nearest(w, known) for w in words]

    def foreign(self, words: list[str], known: frozenset[str]) -> str | None:
        """The name of the language that a question seems to be in, when it is not this one."""
        letters = [w for w in words if any(c.isalpha() for c in w)]
        if not letters:
            return None
        strange = "".join(letters)
        if sum(ord(c) > 0x24F for c in strange) > len(strange) / 2:
            return "another script"
        own = sum(w in known for w in letters)
        scores = {
            code: sum(w in stop and w not in self.words["known"].split() for w in letters)
            for code, stop in self.words["reject"].items()
        }
        best = max(scores, key=lambda code: scores[code])
        if scores[best] >= 2 and scores[best] >= own * 0.8 and own < 0.75 * len(letters):
            return self.words["languages"][best]
        return None


@cache
def language(code: str = "en") -> Language:
    """A language that there is; loaded once."""
    return Language(code)


def plain(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, accents kept, dashes as blanks."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'").replace("n't", " not")
    text = text.replace("'s", " ").replace("-", " ")
    return _LOOSE.sub(" ", _PUNCTUATION.sub(" ", text)).replace("%", " percent ").split()


@cache
def _by_start(known: frozenset[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in sorted(known):
        found.setdefault(word[0], []).append(word)
    return found


def _nearest(word: str, known: frozenset[str]) -> str:
    """The known word within one typo (two for long words); the first letter is right or swapped."""
    limit = 2 if len(word) >= _VERY_LONG else 1
    starts = {word[0], word[1]}
    best, found = limit + 1, word
    for start in sorted(starts):
        for other in _by_start(known).get(start, ()):
            if abs(len(other) - len(word)) < best and len(other) >= _LONG - 1:
                distance = _typos(word, other, best)
                if distance < best:
                    best, found = distance, other
    return found


def _typos(a: str, b: str, limit: int) -> int:
    """Letters left out, added, exchanged or swapped; `limit` when there are that many."""
    before, row = [], list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) >= limit:
            return limit
    return row[-1]
