"""ChangeChat-105k: instructions on the pairs of LEVIR-CC in six types, as released and by its rules.

Source: Deng et al., ChangeChat (arXiv:2409.08582), and DeltaVLM (arXiv:2507.22346); annotations
`hlwu/changechat-105k` on the Hugging Face hub (CC BY 4.0). A file is a list of records `{id, image: [before,
after], changeflag, conversations: [{from: human or gpt, value}]}`; that of the captions of test has
`{image_A, image_B, captions, changeflag}`. Paths of images are relative to the folder `images` of LEVIR-MCI.

A talk of n turns becomes n turns with their histories. Open questions and answers were written by a language
model and cannot be made again; everything else follows from captions and masks (`MadeChangeChat`). Two rules
of theirs are not established and are ours: what counts as one road or building is a part of the mask of more
than five pixels, connected by sides or corners, and a cell of the 3 x 3 grid is named when it holds more
than five pixels of such parts. Answers have the form of the released ones.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from terralapse.data.chat import ChatPair, Turn, with_history
from terralapse.data.levir_mci import LevirMci
from terralapse.data.pictures import RGB, read_rgb
from terralapse.data.words import says_change
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import LEVIR_MCI
from terralapse.sensors import Unit

CAPTION, BINARY, COUNT, PLACE, OPEN = "caption", "binary", "count", "place", "open"
TALK = "talk_"  # before the type of a turn that belongs to a talk
KINDS = (CAPTION, BINARY, COUNT, PLACE, OPEN, *(TALK + k for k in (BINARY, COUNT, CAPTION, OPEN)))
PROMPTS = {
    CAPTION: "Please briefly describe the changes in these two images.",
    BINARY: "Please judge whether these two images have changed. Please answer yes or no.",
    COUNT: "Please determine how many roads and buildings have changed?",
    PLACE: "Please indicate the locations where changes have occurred in the buildings and roads, using a "
    "3x3 grid (namely, 'top', 'center', and 'bottom' vertically and 'left', 'center', 'right' horizontally).",
}
TALK_PROMPTS = {
    BINARY: PROMPTS[BINARY],
    COUNT: "If changes have occurred, count the number of road and building changes separately.",
    CAPTION: "Based on the above analysis, please describe the changes of these two images in detail.",
}
FILES = ("train", "train_loc", "test", "test_binary", "test_count", "test_loc", "test_open", "test_dialog")
IMAGE = "<image>"
ROAD, BUILDING = 1, 2  # in a mask of LEVIR-MCI
LEAST_AREA = 5  # pixels that a part, and a cell, must hold more than
ROWS, COLUMNS = ("top", "center", "bottom"), ("left", "center", "right")


# --- what is asked -----------------------------------------------------------------------------------------
def _key(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


_KNOWN = {_key(text): kind for kind, text in PROMPTS.items()}
_KNOWN_TALK = {_key(text): kind for kind, text in TALK_PROMPTS.items()}


def kind_of(instruction: str, talk: bool = False) -> str:
    """The type of an instruction, by the fixed prompts of the data set; any other text is an open question.

    `talk` says that it belongs to a talk of several turns.
    """
    key = _key(instruction)
    if talk:
        return TALK + _KNOWN_TALK.get(key, OPEN)
    return _KNOWN.get(key, OPEN)


def turns_of(record: Mapping[str, Any], prefix: bool) -> list[Turn]:
    """The turns of a record, each with all that was said before it.

    Args:
        prefix: whether a first turn begins with `q:`; see `terralapse.data.chat.with_history`.

    Raises:
        ValueError: the record has no turns, or one of another form; says what.
    """
    flag = record.get("changeflag")
    changed = None if flag is None else bool(int(flag))
    if "captions" in record:
        answers = tuple(str(c).strip() for c in record["captions"])
        if not answers or not all(answers):
            raise ValueError("has no caption, or an empty one")
        text = with_history((), PROMPTS[CAPTION], prefix)
        return [Turn(CAPTION, text, answers, changed, PROMPTS[CAPTION])]
    said = record["conversations"]
    if not said or len(said) % 2 or [s["from"] for s in said] != ["human", "gpt"] * (len(said) // 2):
        raise ValueError("does not alternate between human and gpt")
    pairs = [
        (str(q["value"]).replace(IMAGE, "").strip(), str(a["value"]).strip())
        for q, a in zip(said[::2], said[1::2], strict=True)
    ]
    if not all(q and a for q, a in pairs):
        raise ValueError("has an empty turn")
    talk = len(pairs) > 1
    return [
        Turn(kind_of(q, talk), with_history(pairs[:i], q, prefix), (a,), changed, q, i)
        for i, (q, a) in enumerate(pairs)
    ]


def files_of_record(record: Mapping[str, Any]) -> tuple[str, str]:
    """The relative paths of both images."""
    before, after = record["image"] if "image" in record else (record["image_A"], record["image_B"])
    return str(before), str(after)


def read_records(path: Path, hint: str = "Copy it from the release.") -> list[Mapping[str, Any]]:
    """The records of a file.

    Raises:
        FileMissingError, UnreadableFileError: there is no such file, or something else is in it.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", hint)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFileError(path, f"is no JSON ({error})", "Copy it again.") from error
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records) or not records:
        raise UnreadableFileError(path, "is no list of records", "Copy it again.")
    return records


class ChangeChat:
    """The turns of one released file, in its order.

    Args:
        root: the folder with `changechat_105k_<split>.json`.
        split: one of `FILES`, or the name of a file in `root` without `.json`.
        images: the folder that the paths of images start from; by default `images` in `root`.
        prefix: whether single turns begin with `q:`. By default as in the released code: in training and in
            talks, and not where single turns are tested.
        gsd: in metres.
        title: for tables.

    Raises:
        FileMissingError: the file or an image is missing.
        UnreadableFileError: the file, or one of its records, has another form.
    """

    scheme = LEVIR_MCI
    kinds = KINDS
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        images: Path | str | None = None,
        prefix: bool | None = None,
        gsd: float = 0.5,
        title: str = "ChangeChat-105k",
    ) -> None:
        if not split:
            raise SettingError("split=none", "names no file", f"Choose one of {', '.join(FILES)}.")
        self.gsd, self.title = gsd, f"{title} {split}"
        path = Path(root) / (f"changechat_105k_{split}.json" if split in FILES else f"{split}.json")
        self._folder = Path(images) if images is not None else Path(root) / "images"
        if prefix is None:
            prefix = not split.startswith("test") or split == "test_dialog"
        self.names: list[str] = []
        self._turns: list[Turn] = []
        self._paths: dict[str, tuple[Path, Path]] = {}
        for place, record in enumerate(read_records(path)):
            try:
                files, turns = files_of_record(record), turns_of(record, prefix)
            except (KeyError, TypeError, ValueError) as error:
                what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise UnreadableFileError(path, f"record {place} {what}", "Copy it again.") from error
            name = self._name(*files)
            self._paths[name] = (self._folder / files[0], self._folder / files[1])
            self.names += [name] * len(turns)
            self._turns += turns
        self._need_images(path)

    def _name(self, before: str, after: str) -> str:
        """Of a pair: the path of its earlier image, with that of the later where two pairs begin alike."""
        name = Path(before).with_suffix("").as_posix()
        known = self._paths.get(name)
        mine = (self._folder / before, self._folder / after)
        return name if known in (None, mine) else f"{name}-{Path(after).with_suffix('').as_posix()}"

    def _need_images(self, path: Path) -> None:
        lost = [p for both in self._paths.values() for p in both if not p.is_file()]
        if lost:
            more = f", like {len(lost) - 1} more" if len(lost) > 1 else ""
            raise FileMissingError(
                lost[0],
                f"is named in {path.name} and not there{more}",
                "Give the folder `images` of LEVIR-MCI as images=FOLDER.",
            )

    def __len__(self) -> int:
        return len(self._turns)

    def turn(self, index: int) -> Turn:
        """A turn, without its images."""
        return self._turns[index]

    def __getitem__(self, index: int) -> ChatPair:
        name = self.names[index]
        read = partial(_read_both, *self._paths[name])
        return ChatPair(name, read, self._turns[index], self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[ChatPair]:
        return (self[i] for i in range(len(self)))


def _read_both(before: Path, after: Path) -> np.ndarray:
    both = [read_rgb(before), read_rgb(after)]
    if both[0].shape != both[1].shape:
        raise UnreadableFileError(
            after, f"is {both[1].shape[1:]}, its partner {both[0].shape[1:]}", "Both need one size."
        )
    return np.stack(both)


# --- the rules ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MaskFacts:
    """What the answers follow from: how many parts changed, and the cells of the grid that they lie in."""

    roads: int
    buildings: int
    road_cells: tuple[str, ...]
    building_cells: tuple[str, ...]

    @classmethod
    def of(cls, mask: np.ndarray) -> MaskFacts:
        """From a mask uint8 [H, W] of 0, 1 (road) and 2 (building); other values count nowhere."""
        (roads, road_cells), (buildings, building_cells) = (_parts(mask == c) for c in (ROAD, BUILDING))
        return cls(roads, buildings, road_cells, building_cells)


def _parts(mask: np.ndarray) -> tuple[int, tuple[str, ...]]:
    labelled: Any = ndimage.label(mask, structure=np.ones((3, 3)))
    numbered: np.ndarray = labelled[0]
    large = np.bincount(numbered.ravel()) > LEAST_AREA
    large[0] = False
    kept = large[numbered]
    down, across = (np.linspace(0, side, 4).round().astype(int) for side in mask.shape)
    cells = tuple(
        f"{row}-{column}"
        for i, row in enumerate(ROWS)
        for j, column in enumerate(COLUMNS)
        if kept[down[i] : down[i + 1], across[j] : across[j + 1]].sum() > LEAST_AREA
    )
    return int(large.sum()), cells


def count_answer(facts: MaskFacts) -> str:
    """How many there are, as the answer to the prompt of counts."""
    if not (facts.roads or facts.buildings):
        return "There are no changes in roads or buildings."
    return f"There are {facts.roads or 'no'} new roads and {facts.buildings or 'no'} new buildings."


def talk_count_answer(facts: MaskFacts) -> str:
    """How many there are, as the second answer of a talk."""
    return f"{facts.roads or 'No'} roads has changed, and {facts.buildings or 'no'} buildings has changed."


def place_answer(facts: MaskFacts) -> str:
    """Where they are."""
    return f"roads: {list(facts.road_cells)} buildings: {list(facts.building_cells)}"


def _sentence(caption: str) -> str:
    """A caption as a sentence: a capital first, and a full stop last."""
    plain = caption.strip().rstrip(" .")
    return f"{plain[:1].upper()}{plain[1:]}."


def made_records(
    name: str,
    files: tuple[str, str],
    mask: np.ndarray,
    captions: Sequence[str],
    seed: int = 0,
    test: bool = False,
) -> list[dict[str, Any]]:
    """The records of one pair by the rules, in the released form: a caption for each sentence (in a test one
    record with all of them), yes or no, counts, places, and a talk of three turns, whose caption is drawn.

    Whether the pair has changed is what the first sentence says. The same name and seed always give the same.

    Args:
        files: the relative paths of both images.
        mask: uint8 [H, W] of 0, 1 (road) and 2 (building).

    Raises:
        ValueError: no caption.
    """
    if not captions:
        raise ValueError(f"{name} has no caption")
    facts, changed = MaskFacts.of(mask), says_change(captions[0])
    drawn = int(np.random.default_rng([seed, zlib.crc32(name.encode())]).integers(len(captions)))
    yes_no = "Yes" if changed else "No"

    def record(*said: tuple[str, str]) -> dict[str, Any]:
        turns = []
        for place, (question, answer) in enumerate(said):
            value = question if place else f"{IMAGE} {IMAGE} {question}"
            turns += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
        return {"image": list(files), "changeflag": int(changed), "conversations": turns}

    if test:
        flag = {"changeflag": int(changed)}
        first: list[dict[str, Any]] = [
            {"image_A": files[0], "image_B": files[1], "captions": list(captions), **flag}
        ]
    else:
        first = [record((PROMPTS[CAPTION], c)) for c in captions]
    found = [
        *first,
        record((PROMPTS[BINARY], yes_no)),
        record((PROMPTS[COUNT], count_answer(facts))),
        record((PROMPTS[PLACE], place_answer(facts))),
        record(
            (TALK_PROMPTS[BINARY], yes_no),
            (TALK_PROMPTS[COUNT], talk_count_answer(facts)),
            (TALK_PROMPTS[CAPTION], _sentence(captions[drawn])),
        ),
    ]
    return [{"id": f"{name}-{place}", **r} for place, r in enumerate(found)]


class MadeChangeChat:
    """Instructions on the pairs of LEVIR-MCI by the rules of ChangeChat, made as they are asked for.

    In training each of the five sentences is a turn of its own; in other splits they are the references of
    one.

    Args:
        root: the folder of LEVIR-MCI.
        split: train, val or test.
        prefix: as for `ChangeChat`.
        seed: of the sentence that a talk ends with.

    Raises:
        FileMissingError, UnreadableFileError, SettingError: from LEVIR-MCI.
    """

    scheme = LEVIR_MCI
    kinds = KINDS
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str,
        prefix: bool | None = None,
        seed: int = 0,
        gsd: float = 0.5,
        title: str = "LEVIR-MCI, instructions by the rules of ChangeChat",
    ) -> None:
        self.pairs = LevirMci(root, split, gsd=gsd)
        self.gsd, self.seed, self.test = gsd, seed, split != "train"
        self.prefix = not self.test if prefix is None else prefix
        self.title = f"{title} {split}"
        self.names: list[str] = []
        self._places: list[tuple[int, int]] = []  # number of the pair, and of the turn among its own
        for number, name in enumerate(self.pairs.names):
            own = 6 + (1 if self.test else len(self.pairs.captions[name]))
            self.names += [name] * own
            self._places += [(number, turn) for turn in range(own)]
        self._turns = lru_cache(maxsize=None)(self._made)

    def __len__(self) -> int:
        return len(self.names)

    def records(self, number: int) -> list[dict[str, Any]]:
        """Those of a pair, by its number."""
        name = self.pairs.names[number]
        return made_records(
            name,
            self.pairs.files(number),
            self.pairs.label(number),
            self.pairs.captions[name],
            self.seed,
            self.test,
        )

    def _made(self, number: int) -> tuple[Turn, ...]:
        found: list[Turn] = []
        for record in self.records(number):
            talk = len(record.get("conversations", ())) > 2
            found += turns_of(record, self.prefix or talk)
        return tuple(found)

    def turn(self, index: int) -> Turn:
        """A turn; reads the mask of its pair the first time, and no image."""
        number, place = self._places[index]
        return self._turns(number)[place]

    def __getitem__(self, index: int) -> ChatPair:
        number, _ = self._places[index]
        return ChatPair(
            self.names[index],
            lambda: self.pairs[number].images,
            self.turn(index),
            self.gsd,
            self.bands,
            self.unit,
            partial(self.pairs.label, number),
        )

    def __iter__(self) -> Iterator[ChatPair]:
        return (self[i] for i in range(len(self)))


def write_records(dataset: MadeChangeChat, path: Path | str) -> int:
    """Writes all records of a split as one released file, and returns how many there are."""
    numbers: Iterable[int] = range(len(dataset.pairs))
    records = [record for number in numbers for record in dataset.records(number)]
    text = json.dumps(records, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return len(records)
