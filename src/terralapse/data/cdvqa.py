"""CDVQA: questions on what changed between two dates, as released and by its rules from maps of change.

Source: Yuan, Mou, Xiong and Zhu, "Change Detection Meets Visual Question Answering", IEEE TGRS 60, 2022
(Apache-2.0). Images and maps are those of SECOND. All questions follow from the maps: sixteen groups a pair,
one for each type and date, whose wordings are drawn. Here the wordings are those of the released validation
part, with their frequencies; ties of areas go to the class that is asked about first. By these rules the
released answers to several questions on one pair agree with each other, but for 6 of 1,544 largest and
smallest classes, which other answers say did not change.

Released files: `<Part>_questions.json`, `<Part>_answers.json` and `<Part>_images.json` in one folder, of the
parts Train, Val, Test and Test2, and the images in `im1` and `im2` of SECOND's training folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from terralapse.data.folders import DATES, SemanticBiTemporal
from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import RGB, files_of, read_rgb
from terralapse.data.questions import Asked, QuestionPair, Words
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import CDVQA_ANSWERS, SECOND_MAMBA, ClassScheme
from terralapse.sensors import Unit

Side = Literal["", "pre", "post"]
# Name in a scheme of SECOND, in a question, and as an answer; in the order of the released questions.
CLASSES = (
    ("non_vegetated_ground", "non-vegetated ground surface", "NVG_surface"),
    ("tree", "trees", "trees"),
    ("low_vegetation", "low vegetation", "low_vegetation"),
    ("water", "water", "water"),
    ("building", "buildings", "buildings"),
    ("playground", "playgrounds", "playgrounds"),
)
KINDS = (
    "change_or_not",
    "increase_or_not",
    "decrease_or_not",
    "largest_change",
    "smallest_change",
    "change_to_what",
    "change_ratio",
    "change_ratio_types",
)
ANSWERS = tuple(c.name for c in CDVQA_ANSWERS.classes)
BINS = ANSWERS[-11:]  # "0", "0_to_10", ... "90_to_100"
PARTS = {"train": "Train", "val": "Val", "test": "Test", "test2": "Test2"}
# How often a class is asked about, as counted in the released validation part.
KEPT = {"change_or_not": 0.8, "increase_or_not": 0.8, "decrease_or_not": 0.8, "change_ratio_types": 0.5}


# --- what is asked ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Question:
    """What a text asks: its type, the number of a class in `CLASSES` where it names one, the date where it
    names one, and whether it asks for what did not change."""

    kind: str
    number: int | None = None
    side: Side = ""
    unchanged: bool = False


def _where(side: Side, words: Sequence[str] = ("image", "event", "change")) -> list[str]:
    """The ways to name a date."""
    if not side:
        return [""]
    first = "first" if side == "pre" else "second"
    every = {"image": f" in the {first} image"} | {
        w: f" in the {side}-{w} image" for w in ("event", "change")
    }
    return [every[w] for w in words]


def _wordings(kind: str, side: Side = "", unchanged: bool = False) -> list[str]:
    """The released wordings of a type, with `{c}` for a class, as often as they are drawn."""
    change, event, image = (_where(side, [w])[0] for w in ("change", "event", "image"))
    match kind:
        case "change_or_not":
            return [
                f"Did the areas of {{c}} change{change}?",
                f"Did the regions of {{c}} change{event}?",
                f"Have the areas of {{c}} changed{image}?",
                f"Have the regions of {{c}} changed{image}?",
            ]
        case "increase_or_not" | "decrease_or_not":
            verb = kind.partition("_")[0]
            did = [f"Did the {what} of {{c}} {verb}?" for what in ("areas", "regions")]
            return did + [f"Have the {what} of {{c}} {verb}d?" for what in ("areas", "regions")]
        case "largest_change" | "smallest_change":
            size = kind.partition("_")[0]
            start = (f"What is the {size} change", f"What type of change is the {size}")
            return [f"{s}{w}?" for s in start for w in _where(side)]
        case "change_to_what":
            what = ("areas", "regions")
            return [f"What have the {x} of {{c}}{w} mainly changed to?" for x in what for w in _where("pre")]
        case "change_ratio":
            no, un, non = (" not", "unchanged", "non-change") if unchanged else ("", "changed", "change")
            regions = "non-change" if unchanged else "changed"
            return [
                f"How much of the area has{no} changed?",
                f"What is the {non} ratio of the imagery?",
                f"What is the percentage of {un} areas?",
                f"What is the percentage of {regions} regions?",
            ]
        case _:
            # The form with "event" was drawn twice as often as the others.
            shares = [f"What is the change ratio of {{c}}{w}?" for w in (change, event, event, image)]
            shares += [f"What is the change percentage of {{c}}{w}?" for w in (change, image)]
            shares += [f"What is the change proportion of {{c}}{w}?" for w in (event, image)]
            return shares + [f"How much area of {{c}} has changed{w}?" for w in (change, image)]


# The sixteen groups of a pair, in the released order; each is a type, a date, and "of the unchanged".
GROUPS: tuple[tuple[str, Side, bool], ...] = (
    ("change_or_not", "", False),
    ("change_or_not", "pre", False),
    ("change_or_not", "post", False),
    ("increase_or_not", "", False),
    ("decrease_or_not", "", False),
    ("smallest_change", "", False),
    ("largest_change", "", False),
    ("smallest_change", "pre", False),
    ("smallest_change", "post", False),
    ("largest_change", "pre", False),
    ("largest_change", "post", False),
    ("change_to_what", "pre", False),
    ("change_ratio", "", False),
    ("change_ratio", "", True),
    ("change_ratio_types", "pre", False),
    ("change_ratio_types", "post", False),
)


@cache
def known_questions() -> dict[str, Question]:
    """Every text that the generator can write, with what it asks."""
    found: dict[str, Question] = {}
    for kind, side, unchanged in GROUPS:
        for text in _wordings(kind, side, unchanged):
            if "{c}" not in text:
                found[text] = Question(kind, None, side, unchanged)
                continue
            for number, (_, words, _) in enumerate(CLASSES):
                found[text.format(c=words)] = Question(kind, number, side, unchanged)
    return found


def read_question(text: str) -> Question:
    """What a text asks.

    Raises:
        SettingError: it is no question of CDVQA.
    """
    found = known_questions().get(" ".join(text.split()))
    if found is None:
        raise SettingError(
            text, "is no question of CDVQA", f"Known are {len(known_questions())} texts, see known_questions."
        )
    return found


@cache
def words() -> Words:
    """The vocabulary of all questions."""
    return Words.of(known_questions())


# --- the answers -----------------------------------------------------------------------------------------
def ratio_bin(part: float, whole: float) -> str:
    """The bin of a share: "0" for nothing at all, else (0, 10], (10, 20], ... per cent; exact for integers.

    Raises:
        ValueError: `part` is not within 0 and `whole`.
    """
    if not 0 <= part <= whole or whole == 0:
        raise ValueError(f"{part} of {whole} is no share")
    return BINS[int(-(-10 * part // whole))]


@dataclass(frozen=True)
class ChangeAreas:
    """What the answers follow from, in pixels: int [6] of each class before and after, by `CLASSES`; `joint`
    int [6, 6] of from-to; how many pixels changed and how many there are."""

    before: np.ndarray
    after: np.ndarray
    joint: np.ndarray
    changed: int
    total: int

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, scheme: ClassScheme = SECOND_MAMBA) -> ChangeAreas:
        """From maps of what changed, uint8 [H, W] of 0 (unchanged), classes of `scheme`, and `IGNORE`, which
        counts nowhere.

        Raises:
            SettingError: the scheme lacks a class of SECOND.
        """
        values = {c.name: c.value for c in scheme.classes}
        if missing := [name for name, _, _ in CLASSES if name not in values]:
            raise SettingError(scheme.slug, f"has no class {missing[0]}", "Give maps in a scheme of SECOND.")
        place = np.zeros(256, np.int64)  # 0: unchanged or a class that nobody asks about
        for number, (name, _, _) in enumerate(CLASSES, start=1):
            place[values[name]] = number
        known = (before != IGNORE) & (after != IGNORE)
        size = len(CLASSES) + 1
        pairs = np.bincount(place[before[known]] * size + place[after[known]], minlength=size**2)
        table = pairs.reshape(size, size)
        return cls(
            table.sum(axis=1)[1:],
            table.sum(axis=0)[1:],
            table[1:, 1:],
            int(((before[known] > 0) | (after[known] > 0)).sum()),
            int(known.sum()),
        )

    def on(self, side: Side) -> np.ndarray:
        """Areas [6] on a side; of both together where none is named."""
        return self.before if side == "pre" else self.after if side == "post" else self.before + self.after


def answer(question: Question, areas: ChangeAreas) -> str | None:
    """The answer by the rules of CDVQA; None where there is none (nothing changed, or no pixel is known)."""
    number, side = question.number, question.side
    here = areas.on(side)
    match question.kind:
        case "largest_change" | "smallest_change":
            if not here.any():
                return None
            largest = question.kind == "largest_change"
            absent = -1 if largest else np.iinfo(np.int64).max
            ranked = np.where(here > 0, here, absent)
            return CLASSES[int(ranked.argmax() if largest else ranked.argmin())][2]
        case "change_ratio":
            if areas.total == 0:
                return None
            part = areas.total - areas.changed if question.unchanged else areas.changed
            return ratio_bin(part, areas.total)
    assert number is not None
    match question.kind:
        case "change_or_not":
            return _yes(here[number] > 0)
        case "increase_or_not":
            return _yes(areas.after[number] > areas.before[number])
        case "decrease_or_not":
            return _yes(areas.after[number] < areas.before[number])
        case "change_to_what":
            row = areas.joint[number]
            return CLASSES[int(row.argmax())][2] if row.any() else None
        case _:
            part = int(areas.on(side or "pre")[number])
            return ratio_bin(part, areas.total) if areas.total else None


def _yes(is_so: bool | np.bool_) -> str:
    return "yes" if is_so else "no"


def ask_all(areas: ChangeAreas, rng: np.random.Generator) -> list[Asked]:
    """The questions on one pair as the released ones are made: sixteen groups, `KEPT` of the classes of some
    of them, one wording drawn for each question."""
    found: list[Asked] = []
    for kind, side, unchanged in GROUPS:
        wordings = _wordings(kind, side, unchanged)
        numbers: Sequence[int | None] = range(len(CLASSES)) if "{c}" in wordings[0] else [None]
        for number in numbers:
            skipped = rng.random() >= KEPT.get(kind, 1.0)
            text = wordings[int(rng.integers(len(wordings)))]
            says = answer(Question(kind, number, side, unchanged), areas)
            if skipped or says is None:
                continue
            named = text if number is None else text.format(c=CLASSES[number][1])
            found.append(Asked(kind, named, says))
    return found


# --- readers ---------------------------------------------------------------------------------------------
class _OnPairs:
    """Questions by number, each with the files of its pair."""

    scheme = CDVQA_ANSWERS
    kinds = KINDS
    bands = RGB
    unit = Unit.RGB255
    title: str
    gsd: float

    def __init__(self) -> None:
        self.names: list[str] = []
        self._asked: list[Asked] = []
        self._read: dict[str, Callable[[], np.ndarray]] = {}  # the images of a pair, by its name

    def _add(self, name: str, asked: Asked) -> None:
        self.names.append(name)
        self._asked.append(asked)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> QuestionPair:
        name = self.names[index]
        return QuestionPair(name, self._read[name], self._asked[index], self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[QuestionPair]:
        return (self[i] for i in range(len(self)))


def read_dates(before: Path, after: Path) -> np.ndarray:
    """Two images as float32 [2, 3, H, W].

    Raises:
        UnreadableFileError: they are of two sizes, or no images.
    """
    both = [read_rgb(before), read_rgb(after)]
    if both[0].shape != both[1].shape:
        raise UnreadableFileError(
            after, f"is {both[1].shape[1:]}, its partner {both[0].shape[1:]}", "Both need one size."
        )
    return np.stack(both)


class Cdvqa(_OnPairs):
    """The released questions of one part, in the order of the file, without those marked inactive.

    Args:
        root: the folder with the JSON files.
        split: `train`, `val`, `test` or `test2`.
        images: the folder of SECOND that holds `im1` and `im2` (or other names of two dates); by default
            `root`.

    Raises:
        FileMissingError: a file of the part or an image is missing.
        UnreadableFileError: the files do not belong together, or hold a type or an answer that CDVQA has not.
        SettingError: no such split.
    """

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        images: Path | str | None = None,
        gsd: float = float("nan"),
        title: str = "CDVQA",
    ) -> None:
        super().__init__()
        if split not in PARTS:
            raise SettingError(f"split={split}", "is no part of CDVQA", f"Choose one of {', '.join(PARTS)}.")
        self.gsd, self.title = gsd, f"{title} {split}"
        start = Path(root) / PARTS[split]
        questions = Path(f"{start}_questions.json")
        rows = _rows(questions, "questions", ("id", "img_id", "type", "question"))
        answers_file, images_file = Path(f"{start}_answers.json"), Path(f"{start}_images.json")
        says = {
            a["question_id"]: a["answer"] for a in _rows(answers_file, "answers", ("question_id", "answer"))
        }
        files = {i["id"]: i["file_name"] for i in _rows(images_file, "images", ("id", "file_name"))}
        for row in rows:
            if row["id"] not in says or row["img_id"] not in files:
                where = answers_file if row["id"] not in says else images_file
                raise UnreadableFileError(
                    where, f"has nothing for question {row['id']}", "Take the three files of one part."
                )
            kind, text = row["type"], says[row["id"]]
            if kind not in KINDS or text not in ANSWERS:
                strange = f"the type {kind}" if kind not in KINDS else f"the answer {text}"
                raise UnreadableFileError(
                    questions, f"has {strange} (question {row['id']})", "CDVQA has eight types, 19 answers."
                )
            self._add(Path(files[row["img_id"]]).stem, Asked(kind, row["question"], text))
        files_of_pairs = _dates_in(Path(root if images is None else images), set(self.names))
        self._read = {name: partial(read_dates, *both) for name, both in files_of_pairs.items()}


def _rows(path: Path, key: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The active entries of a released file."""
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give the folder of the JSON files of CDVQA.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))[key]
        active = [r for r in rows if r.get("active", True)]
        for row in active:
            for field in fields:
                row[field]  # a missing one is found here, with the name of the file
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFileError(path, f"is no file of {key} ({error!r})", "Copy it again.") from error
    return active


def _dates_in(root: Path, names: set[str]) -> dict[str, tuple[Path, Path]]:
    """The files before and after of the named pairs."""
    there = {p.name.lower(): p for p in root.iterdir() if p.is_dir()} if root.is_dir() else {}
    folders = [(one, two) for one, two in DATES if one.lower() in there and two.lower() in there]
    if len(folders) != 1:
        raise FileMissingError(
            root / "im1",
            "is not there, or not alone",
            "Give `images`, the folder of SECOND with im1 and im2.",
        )
    dates = [files_of(there[f.lower()]) for f in folders[0]]
    for files, folder in zip(dates, folders[0], strict=True):
        if missing := sorted(names - files.keys()):
            raise FileMissingError(
                root / folder / f"{missing[0]}.png",
                f"is not there, and {len(missing)} pair(s) of the questions lack it",
                "CDVQA needs the training images of SECOND.",
            )
    return {n: (dates[0][n], dates[1][n]) for n in names}


class MadeCdvqa(_OnPairs):
    """Questions made by the rules from the maps of a folder in the layout of SECOND.

    Args:
        root, split, scheme: as `SemanticBiTemporal` takes them.
        seed: of the wordings and of the classes that are left out; with the name of a pair it decides them.

    Raises:
        As `SemanticBiTemporal`; all maps are read here.
    """

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        scheme: ClassScheme = SECOND_MAMBA,
        seed: int = 0,
        gsd: float = float("nan"),
        title: str = "SECOND",
    ) -> None:
        super().__init__()
        pairs = SemanticBiTemporal(root, split, scheme=scheme, gsd=gsd, title=title)
        self.gsd, self.title = gsd, f"{pairs.title}, questions by rules"
        for index, (name, pair) in enumerate(zip(pairs.names, pairs, strict=True)):
            areas = ChangeAreas.of(pair.before, pair.after, scheme)
            for asked in ask_all(areas, drawn(seed, name)):
                self._add(name, asked)
            self._read[name] = partial(_images_of, pairs, index)


def drawn(seed: int, name: str) -> np.random.Generator:
    """Randomness that a seed and the name of a pair decide, and nothing else."""
    return np.random.default_rng([seed, *name.encode()])


def _images_of(pairs: SemanticBiTemporal, index: int) -> np.ndarray:
    return pairs[index].images
