"""The numbers, dates and numbered objects that a sentence claims."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_UNITS = {
    "m2": r"m²|m2\b|square met(?:re|er)s?|sq\.? ?m\b|sqm\b",
    "ha": r"ha\b|hectares?\b",
    "km2": r"km²|km2\b|square kilomet(?:re|er)s?|sq\.? ?km\b",
    "acre": r"acres?\b",
    "ft2": r"sq\.? ?ft\b|ft²|square f(?:ee|oo)t",
    "yd2": r"sq\.? ?yd\b|square yards?",
    "mi2": r"sq\.? ?mi\b|square miles?",
    "%": r"%|percent\b|per cent\b",
    "px": r"px\b|pixels?\b",
    "km": r"km\b|kilomet(?:re|er)s?\b",
    "m": r"m\b|met(?:re|er)s?\b",
    "ft": r"ft\b|feet\b|foot\b",
    "mi": r"miles?\b",
    "yd": r"yards?\b|yd\b",
    "°": r"°|degrees?\b",
    "count": r"(?:new |changed |separate |damaged )?(?:objects?|patch(?:es)?|polygons?|buildings?|houses?"
    r"|changes?|dates?)\b",
}
_UNIT = "|".join(f"(?P<u{i}>{p})" for i, p in enumerate(_UNITS.values()))
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.])[-−+])?(?<![\w.])(?P<n>\d[\d,]*(?:\.\d+)?)(?:e(?P<e>[-+]?\d+))?(?:\s?(?P<unit>{_UNIT}))?(?![\w])",
    re.I,
)
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}\b|\b(?:\d{{1,2}} )?{_MONTH}(?: \d{{1,2}})?(?:,? \d{{4}})?\b|"
    r"(?<![\d.,])(?:19|20)\d{2}(?![\d.,]*\d)(?!\s?(?:%|m²|ha|km|px|m\b|objects?|sq|acres?|patches|buildings?|polygons?))"
)
_OBJECT = re.compile(r"\bobject (\d+)(?: and object (\d+))?|\bobjects (\d+) and (\d+)", re.I)
_CRS = re.compile(r"\bEPSG:\d+|\bUTM zone \d+\w?|\b\d{2}:\d{2} UTC|\b[a-z][\w]*[/-][\w./-]*\d\w*", re.I)
_ORDINAL = re.compile(
    r"\b(second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|2nd|3rd|\dth|10th)[ -]"
    r"(largest|biggest|object)",
    re.I,
)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_SMALL = (
    "zero", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: n for n, word in enumerate(_SMALL) if word} | {w: 20 + 10 * n for n, w in enumerate(_TENS)}
for _word, _n in (("hundred", 100), ("thousand", 1000), ("million", 10**6), ("dozen", 12)):
    _WORDS |= {_word: _n, f"{_word}s": _n}
_AFTER = _UNIT.replace("?P<u", "?P<w")
_WORD = re.compile(
    rf"\b({'|'.join(_WORDS)})\b(?!\s(?:dates|images|pictures|largest|places))(?:[ -](?P<u>{_AFTER}))?",
    re.I,
)
_FRACTION = re.compile(
    r"\b(half|two thirds|one third|a third|one quarter|a quarter|three quarters|twice|double|doubled|tripled"
    r"|halved)\b",
    re.I,
)
_PARTS = {
    "half": 0.5, "two thirds": 2 / 3, "one third": 1 / 3, "a third": 1 / 3, "one quarter": 0.25,
    "a quarter": 0.25, "three quarters": 0.75,
}  # fmt: skip
_PLACE = re.compile(r"\b(northern|southern|eastern|western) (third|ninth)\b", re.I)
_SQUARE = re.compile(r"\b(square|zone) [A-Za-z]*\d+\b", re.I)


@dataclass(frozen=True)
class Claim:
    """One claim. `kind` is `number`, `date`, `object` (a number that names one), `fraction` (in words) or
    `text` (a code that must stand in a cited fact); `unit` is a key of the units, or empty."""

    kind: str
    said: str
    value: float = 0.0
    unit: str = ""
    decimals: int = 0
    step: float = 1.0

    def rounds(self, value: float) -> bool:
        """Whether the claim is `value` rounded to the digits that are written (whole tens and hundreds may
        stand for what is within 2 % of them)."""
        if not math.isfinite(value):
            return False
        wanted = abs(value) if self.value >= 0 else value
        coarse = min(self.step / 2, 0.02 * abs(value)) if self.step > 1 else 0.0
        # Values read are themselves rounded to three digits and more.
        return abs(self.value - wanted) <= max(0.5 * 10**-self.decimals, coarse) * (1 + 1e-9) + 1e-12


def without_marks(text: str) -> str:
    """A text without the emphasis of Markdown."""
    return re.sub(r"[*_`#]+", " ", text)


def claims(text: str) -> list[Claim]:
    """Everything that a sentence claims in numbers."""
    text = without_marks(text)
    found: list[Claim] = []

    def cut(pattern: re.Pattern[str], text: str) -> str:
        return pattern.sub(lambda m: " " * len(m[0]), text)

    for match in _OBJECT.finditer(text):
        found += [Claim("object", match[0], float(n)) for n in match.groups() if n]
    for match in _ORDINAL.finditer(text):
        word = match[1].lower()
        rank = _ORDINALS.index(word) + 1 if word in _ORDINALS else int(re.sub(r"\D", "", word))
        found.append(Claim("object", match[0], float(rank)))
    for pattern in (_OBJECT, _ORDINAL, _PLACE, _SQUARE):
        text = cut(pattern, text)
    for match in _CRS.finditer(text):
        found.append(Claim("text", match[0]))
    text = cut(_CRS, text)
    found += [Claim("date", m[0]) for m in _DATE.finditer(text)]
    text = cut(_DATE, text)
    for match in _NUMBER.finditer(text):
        digits = match["n"].replace(",", "")
        value = float(digits) * 10 ** int(match["e"] or 0)
        decimals = len(digits.partition(".")[2])
        zeros = len(digits) - len(digits.rstrip("0")) if decimals == 0 and value else 0
        sign = -1 if match["sign"] in ("-", "−") else 1
        unit = next((u for i, u in enumerate(_UNITS) if match[f"u{i}"]), "")
        found.append(Claim("number", match[0].strip(), sign * value, unit, decimals, 10.0**zeros))
    for match in _WORD.finditer(text):
        unit = next((u for i, u in enumerate(_UNITS) if match[f"w{i}"]), "")
        found.append(Claim("number", match[0], float(_WORDS[match[1].lower()]), unit))
    found += [Claim("fraction", m[0], _PARTS.get(m[1].lower(), 2.0)) for m in _FRACTION.finditer(text)]
    return found
