"""Sentences and questions about changed buildings, made by rules from real masks of change.

MS-HS-BCD has masks and no words. Here each mask becomes facts (how many parts changed, on how large a share,
in which ninth most), and the facts become five sentences of fixed form, in words of LEVIR-CC, and questions
with closed answers. So a statement is right or wrong, and `said_in` reads it back out of a sentence.

All rules and wordings are this library's. The bounds of the classes part the training tiles roughly in three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from terralapse.data.cdvqa import drawn
from terralapse.data.mshs_bcd import RGB_BANDS, MshsPairs
from terralapse.data.pairs import LabelledPair
from terralapse.data.questions import Asked, QuestionPair, Words
from terralapse.data.samples import CaptionedPair
from terralapse.data.words import UNCHANGED, says_change
from terralapse.labels import BUILDING_ANSWERS, LEVIR_MCI
from terralapse.sensors import Unit

LEAST_AREA = 5  # pixels that a part must hold more than, as in the rules of ChangeChat
NUMBERS = ((0, "none"), (2, "few"), (8, "several"))  # parts at most; more are "many"
SIZES = ((0.0, "none"), (0.01, "small"), (0.03, "medium"))  # share of the image at most; more is "large"
PLACES = (
    "upper left", "upper middle", "upper right",
    "middle left", "center", "middle right",
    "lower left", "lower middle", "lower right",
)  # fmt: skip
PERCENTS = (1, 2, 4)
BUILDING = 2  # in a mask of LEVIR-MCI
TURNS = 8  # ways in which a square can lie
SAME = TURNS  # in place of a turn: one of the dates twice, so that nothing changed
_HOW_MANY = {"few": "a few", "several": "several", "many": "many"}
_SAID = (
    "{n} buildings have changed on a {s} area in the {p} of the scene",
    "the scene shows {n} changed buildings on a {s} area in the {p}",
    "on a {s} area in the {p} {n} buildings have changed",
    "{n} buildings in the {p} have changed and the area is {s}",
    "there are {n} changed buildings in the {p} on a {s} area",
)
_ASKED = {
    "changed": ("Have any buildings changed?", "Are there changed buildings?"),
    "changed_here": ("Have buildings changed in the {p}?", "Are there changed buildings in the {p}?"),
    "number": ("How many buildings have changed?", "What is the number of changed buildings?"),
    "size": ("How large is the changed area?", "What is the size of the area of changed buildings?"),
    "more_than": (
        "Is more than {x} percent of the scene changed buildings?",
        "Do changed buildings cover more than {x} percent?",
    ),
    "where": ("Where have most buildings changed?", "In which part have buildings changed most?"),
    "half": (
        "Is the changed area larger in the {a} half or in the {b} half?",
        "Which half has more changed buildings, the {a} or the {b}?",
    ),
}
KINDS = tuple(_ASKED)
HALVES = (("left", "right"), ("upper", "lower"))


# --- facts -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BuildingFacts:
    """What is said and answered about a mask: how many `parts` of more than `LEAST_AREA` pixels it has
    (connected by sides or corners), and int [9] of their pixels in each of `PLACES`, row by row, of `pixels`
    in all; `halves` are their pixels on the left, right, upper and lower side."""

    parts: int
    cells: tuple[int, ...]
    halves: tuple[int, int, int, int]
    pixels: int

    @classmethod
    def of(cls, mask: np.ndarray) -> BuildingFacts:
        """From a mask [H, W], true or 1 where a building changed."""
        labelled: Any = ndimage.label(np.asarray(mask) == 1, structure=np.ones((3, 3)))
        large = np.bincount(labelled[0].ravel()) > LEAST_AREA
        large[0] = False
        kept: np.ndarray = large[labelled[0]]
        down, across = (np.linspace(0, side, 4).round().astype(int) for side in kept.shape)
        cells = tuple(
            int(kept[down[i] : down[i + 1], across[j] : across[j + 1]].sum())
            for i in range(3)
            for j in range(3)
        )
        row, column = kept.shape[0] // 2, kept.shape[1] // 2
        sides = (kept[:, :column], kept[:, column:], kept[:row], kept[row:])
        left, right, upper, lower = (int(s.sum()) for s in sides)
        return cls(int(large.sum()), cells, (left, right, upper, lower), kept.size)

    @property
    def share(self) -> float:
        """Of the image that changed, 0 to 1."""
        return sum(self.cells) / self.pixels

    @property
    def number(self) -> str:
        """none, few, several or many."""
        return next((name for most, name in NUMBERS if self.parts <= most), "many")

    @property
    def size(self) -> str:
        """none, small, medium or large."""
        return next((name for most, name in SIZES if self.share <= most), "large")

    @property
    def place(self) -> str:
        """The one of `PLACES` in which most changed (of equals the first), or none."""
        return PLACES[int(np.argmax(self.cells))] if self.parts else "none"

    @property
    def said(self) -> tuple[str, str, str]:
        """Number, size and place."""
        return self.number, self.size, self.place


# --- sentences -------------------------------------------------------------------------------------------
def sentences_of(facts: BuildingFacts) -> tuple[str, ...]:
    """Five sentences on the facts; where nothing changed, those of LEVIR-CC."""
    if not facts.parts:
        return UNCHANGED
    return tuple(s.format(n=_HOW_MANY[facts.number], s=facts.size, p=facts.place) for s in _SAID)


_NUMBER = re.compile(r"\b(few|several|many)\b")
_SIZE = re.compile(r"\b(small|medium|large)\b")
_PLACE = re.compile(rf"\b({'|'.join(PLACES)})\b")


def said_in(sentence: str) -> tuple[str, str, str]:
    """Number, size and place that a sentence states, each the first that it names: none where it says that
    nothing changed, and empty where it leaves one out."""
    if not says_change(sentence):
        return "none", "none", "none"
    found = [pattern.search(sentence) for pattern in (_NUMBER, _SIZE, _PLACE)]
    number, size, place = ("" if f is None else f[1] for f in found)
    return number, size, place


# --- questions -------------------------------------------------------------------------------------------
def answer(facts: BuildingFacts, kind: str, **fill: Any) -> str:
    """The answer to a question of a kind, by the rules, as a name of `BUILDING_ANSWERS`; `p`, `x`, `a` and
    `b` are what its text names. Of two halves that are equal it is none.
    """
    if kind in ("number", "size"):
        return facts.number if kind == "number" else facts.size
    if kind == "where":
        return facts.place.replace(" ", "_")
    if kind == "half":
        names = [name for pair in HALVES for name in pair]
        a, b = (facts.halves[names.index(fill[side])] for side in "ab")
        return "none" if a == b else fill["a"] if a > b else fill["b"]
    if kind == "changed":
        yes = facts.parts > 0
    elif kind == "changed_here":
        yes = facts.cells[PLACES.index(fill["p"])] > LEAST_AREA
    else:
        yes = facts.share > fill["x"] / 100
    return "yes" if yes else "no"


def questions_of(rng: np.random.Generator) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, text and what it names of the eleven questions on a pair, whatever changed in it: three of the
    ninths, two of the percentages, both pairs of halves, and the other kinds once."""
    here = [{"p": PLACES[int(i)]} for i in sorted(rng.permutation(len(PLACES))[:3])]
    more = [{"x": PERCENTS[int(i)]} for i in sorted(rng.permutation(len(PERCENTS))[:2])]
    halves = [{"a": a, "b": b} for a, b in HALVES]
    fills: dict[str, list[dict[str, Any]]] = {"changed_here": here, "more_than": more, "half": halves}
    return [
        (kind, wordings[int(rng.integers(len(wordings)))].format(**fill), fill)
        for kind, wordings in _ASKED.items()
        for fill in fills.get(kind, [{}])
    ]


@cache
def words() -> Words:
    """The vocabulary of all questions."""
    fills = [{"p": p, "x": x, "a": a, "b": b} for p in PLACES for x in PERCENTS for a, b in HALVES]
    return Words.of(w.format(**f) for wordings in _ASKED.values() for w in wordings for f in fills)


# --- data sets -------------------------------------------------------------------------------------------
def turned(planes: np.ndarray, turn: int) -> np.ndarray:
    """The last two axes in one of the eight ways a square can lie: a quarter turn for each of `turn` modulo
    4, after a flip for 4 and more."""
    flipped = planes[..., ::-1] if turn >= 4 else planes
    return np.ascontiguousarray(np.rot90(flipped, turn % 4, axes=(-2, -1)))


class _Tiles:
    """The tiles of a split, those of training in every way that they can lie where `turns` is set: words are
    made for each, so that places stay true. Almost every tile has a change, so that with `turns` each also
    comes once with one of its dates twice: what looks the same has not changed."""

    bands = RGB_BANDS
    unit = Unit.RGB255

    def __init__(self, root: Path | str, split: str, turns: bool) -> None:
        self._pairs = MshsPairs(root, split)
        self.gsd, self.split = self._pairs.gsd, split
        self.turns = TURNS + 1 if turns and split == "train" else 1

    def tile(self, number: int, turn: int) -> tuple[LabelledPair, np.ndarray]:
        """A tile as it was read, and its mask as it lies now."""
        pair = self._pairs[number]
        return pair, np.zeros_like(pair.label) if turn == SAME else turned(pair.label, turn)

    def name(self, number: int, turn: int) -> str:
        name = self._pairs.names[number]
        return f"{name}-same" if turn == SAME else f"{name}-{turn}" if turn else name

    def places(self) -> list[tuple[int, int]]:
        """Number and turn of all."""
        return [(number, turn) for number in range(len(self._pairs)) for turn in range(self.turns)]

    def images(self, number: int, turn: int) -> np.ndarray:
        images = self._pairs[number].images
        if turn != SAME:
            return turned(images, turn)
        return np.stack([turned(images[number % 2], number % TURNS)] * 2)


class BuildingCaptions:
    """MS-HS-BCD with five sentences a tile; masks in the classes of LEVIR-MCI, of which roads never occur.

    Args:
        root: the folder of MS-HS-BCD.
        split: `train`, `val` or `test`.
        turns: give each tile of `train` in all eight ways that it can lie, and once with one date twice.

    Raises:
        FileMissingError, SettingError: as `terralapse.data.mshs_bcd.MshsPairs`.
    """

    scheme = LEVIR_MCI

    def __init__(self, root: Path | str, split: str, turns: bool = False) -> None:
        self._tiles = _Tiles(root, split, turns)
        self.title = f"sentences on MS-HS-BCD {split}"
        self._places = self._tiles.places()
        self.names = [self._tiles.name(*place) for place in self._places]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CaptionedPair:
        place = self._places[index]
        pair, mask = self._tiles.tile(*place)
        said = sentences_of(BuildingFacts.of(mask))
        label = (mask * BUILDING).astype(np.uint8)
        images = self._tiles.images(*place)
        return CaptionedPair(self.names[index], images, label, said, pair.gsd, pair.bands, pair.unit)

    def __iter__(self) -> Iterator[CaptionedPair]:
        return (self[i] for i in range(len(self)))


class BuildingQuestions:
    """MS-HS-BCD with the questions of `questions_of` on each tile, drawn by its name and the seed.

    Args:
        root, split, turns: as of `BuildingCaptions`.
        seed: of what is asked, and how.

    Raises:
        FileMissingError, SettingError: as `terralapse.data.mshs_bcd.MshsPairs`.
    """

    scheme = BUILDING_ANSWERS
    kinds = KINDS

    def __init__(self, root: Path | str, split: str, turns: bool = False, seed: int = 0) -> None:
        self._tiles = _Tiles(root, split, turns)
        self.title = f"questions on MS-HS-BCD {split}"
        self.names: list[str] = []
        self.asked: list[tuple[Asked, dict[str, Any]]] = []
        self._places: list[tuple[int, int]] = []
        for place in self._tiles.places():
            name = self._tiles.name(*place)
            facts = BuildingFacts.of(self._tiles.tile(*place)[1])
            for kind, text, fill in questions_of(drawn(seed, name)):
                says = answer(facts, kind, **fill)
                self.asked.append((Asked(kind, text, says, kind in ("changed_here", "where", "half")), fill))
                self.names.append(name)
                self._places.append(place)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> QuestionPair:
        tiles = self._tiles
        read = partial(tiles.images, *self._places[index])
        asked = self.asked[index][0]
        return QuestionPair(self.names[index], read, asked, tiles.gsd, tiles.bands, tiles.unit)

    def __iter__(self) -> Iterator[QuestionPair]:
        return (self[i] for i in range(len(self)))
