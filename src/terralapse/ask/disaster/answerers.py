"""Who answers: rules over maps of damage, a language model over their sheet, a model that sees, or files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from terralapse.ask.disaster.prompts import message_of, request_of
from terralapse.ask.endpoint import Endpoint
from terralapse.data.damage_questions import STATES
from terralapse.data.disaster_sheet import ROADS, DamageSheet, building_states, read_maps
from terralapse.data.disaster_words import caption_of, recovery_of
from terralapse.data.disasterm3 import Item, read_mask
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

ANSWERERS = ("rules", "agent", "vlm", "files")
_TOKENS = 8192  # as the official runner allows
_SYSTEM = (
    "You see no image. You know of the place only this sheet, counted from maps of damage: {sheet}\n"
    "Answer from it alone. Where it does not hold the answer, choose the likeliest option."
)


@dataclass(frozen=True)
class Reply:
    """An answer: a text, or for a referring task a mask bool [H, W]. Both None: the answerer has none."""

    text: str | None = None
    mask: np.ndarray | None = None


class Answerer(Protocol):
    """Anything that answers the tasks; `name` stands in the tables."""

    name: str

    def answer(self, item: Item) -> Reply:
        """The reply to one item."""
        ...


# --- rules ---------------------------------------------------------------------------------------------
# Words of a question for a state, of buildings and of roads; the first that fits is taken.
_BUILDING_WORDS = (
    ("intact", r"intact|undamaged|not damaged|no damage|unaffected|survived"),
    ("destroyed", r"destroy\w*|collapsed?|levell?ed"),
    ("damaged", r"damaged?|affected"),
)
_ROAD_WORDS = (
    ("intact", r"intact|undamaged|passable|unaffected"),
    ("flooded", r"flood\w*|submerged|under water|inundated"),
    ("debris", r"debris|rubble|blocked|covered"),
)


class Rules:
    """Counts in maps of damage and roads, such as a damage model of this library writes. It knows buildings
    and roads: of the kind of disaster, land use and annotated images it has no answer.

    Args:
        maps: see `terralapse.data.disaster_sheet.read_maps`.
    """

    name = "rules"

    def __init__(self, maps: Path) -> None:
        if not (maps / "damage").is_dir():
            raise FileMissingError(
                maps / "damage", "is not there", "Give --maps, a folder with damage/ and roads/."
            )
        self.maps = maps

    def sheet(self, item: Item) -> DamageSheet:
        """The counts of a pair."""
        return DamageSheet.of(*read_maps(self.maps, item.images[-1]))

    def answer(self, item: Item) -> Reply:
        """The reply; without one where the maps do not hold the answer.

        Raises:
            FileMissingError, UnreadableFileError: the maps of this pair.
        """
        task = item.subset.task
        if task == "caption":
            return Reply(caption_of(self.sheet(item)))
        if task == "advice":
            return Reply(recovery_of(self.sheet(item)))
        if task == "segmentation":
            return self._mask(item)
        if task in ("BDC", "DRE"):
            return Reply(self._count(item))
        return Reply()

    def _count(self, item: Item) -> str | None:
        """The letter of the option that is nearest to the count; None where the state is not understood."""
        building = item.subset.task == "BDC"
        state = _state(item.question, _BUILDING_WORDS if building else _ROAD_WORDS)
        numbers = {k: n for k, v in item.options.items() if (n := _number(v)) is not None}
        if state is None or not numbers:
            return None
        sheet = self.sheet(item)
        count = (sheet.buildings if building else sheet.roads)[state]
        return min(numbers, key=lambda k: (abs(numbers[k] - count), k))

    def _mask(self, item: Item) -> Reply:
        damage, roads = read_maps(self.maps, item.images[-1])
        if re.search(r"\broads?\b|\bstreets?\b", item.question, re.I):
            state = _state(item.question, _ROAD_WORDS)
            return Reply() if state is None else Reply(mask=roads == 1 + ROADS.index(state))
        state = _state(item.question, _BUILDING_WORDS)
        if state is None or not re.search(r"\bbuildings?\b|\bhouses?\b", item.question, re.I):
            return Reply()
        return Reply(mask=building_states(damage) == 1 + STATES.index(state))


def _state(question: str, words: tuple[tuple[str, str], ...]) -> str | None:
    return next((s for s, p in words if re.search(rf"\b(?:{p})\b", question, re.I)), None)


def _number(text: str) -> float | None:
    found = re.search(r"\d[\d,]*(?:\.\d+)?", text)
    return None if found is None else float(found[0].replace(",", ""))


# --- models behind an endpoint -------------------------------------------------------------------------
class Model:
    """A model behind an OpenAI-compatible endpoint. With images it is shown them as the official runner shows
    them; without, it reads the sheet of the maps.

    Args:
        sheets: `Rules`, for a model that sees nothing; None for one that does.
        side: see `message_of`.
    """

    def __init__(self, endpoint: Endpoint, llm: str, sheets: Rules | None, side: int | None) -> None:
        self.endpoint, self.llm, self.sheets, self.side = endpoint, llm, sheets, side
        self.name = f"{'vlm' if sheets is None else 'agent'} {llm}"

    def answer(self, item: Item) -> Reply:
        """The model's text. It draws no masks, so of referring tasks it has no answer.

        Raises:
            EndpointError: the model cannot be reached or does not answer as one.
            FileMissingError, UnreadableFileError: an image or a map.
        """
        if item.subset.kind == "mask":
            return Reply()
        messages: list[dict[str, Any]]
        if self.sheets is None:
            messages = [message_of(item, self.side)]
        else:
            if len(item.images) == 1:
                return Reply()  # the maps belong to pairs
            sheet = json.dumps(self.sheets.sheet(item).as_dict())
            messages = [
                {"role": "system", "content": _SYSTEM.format(sheet=sheet)},
                {"role": "user", "content": request_of(item)},
            ]
        return Reply(said_by(self.endpoint, self.llm, messages, _TOKENS))


def said_by(endpoint: Endpoint, llm: str, messages: list[dict[str, Any]], tokens: int) -> str:
    """The text of a model at temperature 0; empty where it said nothing."""
    body = {"model": llm, "messages": messages, "temperature": 0, "max_tokens": tokens}
    reply = endpoint.chat(body, endpoint.timeout)
    return (reply["choices"][0]["message"].get("content") or "").strip()


# --- files ---------------------------------------------------------------------------------------------
class Files:
    """Answers that somebody else's runner has written: `<folder>/<subset>.jsonl` with `id` and `response` a
    line (the official runner's `finished.jsonl`), and `<folder>/masks/<id>.png`.

    Raises:
        FileMissingError: there is neither.
        UnreadableFileError: a line of other form, or an id twice.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.jsonl"))
        if not files and not (folder / "masks").is_dir():
            raise FileMissingError(folder, "holds no <subset>.jsonl and no masks", "Give --responses FOLDER.")
        self.name, self.folder = f"files {folder.name}", folder
        self._said: dict[str, str] = {}
        for path in files:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if line.strip():
                    self._take(path, number, line)

    def _take(self, path: Path, number: int, line: str) -> None:
        try:
            record = json.loads(line)
            name, response = record["id"], record["response"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFileError(
                path, f"line {number} has no id and response", "Each line is a JSON object with both."
            ) from error
        if name in self._said or not isinstance(response, str):
            raise UnreadableFileError(path, f"line {number} repeats {name} or holds no text", "Correct it.")
        self._said[name] = response

    def answer(self, item: Item) -> Reply:
        """What the files hold; nothing where they have no such id."""
        if item.subset.kind != "mask":
            return Reply(self._said.get(item.id))
        path = self.folder / "masks" / f"{item.id}.png"
        return Reply(mask=read_mask(path)) if path.is_file() else Reply()


def answerer_of(
    name: str,
    *,
    maps: Path | None = None,
    responses: Path | None = None,
    base_url: str | None = None,
    llm: str | None = None,
    side: int | None = None,
    timeout: float = 300.0,
    cache: Path | None = None,
) -> Answerer:
    """An answerer by its name.

    Raises:
        SettingError: no such name, or a setting that it needs is missing.
    """
    if name not in ANSWERERS:
        raise SettingError(f"answerer {name}", "is not known", f"Choose one of {', '.join(ANSWERERS)}.")
    if name == "files":
        if responses is None:
            raise SettingError("answerer files", "needs the files of answers", "Give --responses FOLDER.")
        return Files(responses)
    if name != "vlm" and maps is None:
        raise SettingError(
            f"answerer {name}", "reads maps of damage and was given none", "Give --maps FOLDER."
        )
    if name == "rules":
        assert maps is not None
        return Rules(maps)
    if not llm:
        raise SettingError(f"answerer {name}", "needs the name of a model", "Give --llm NAME.")
    sheets = Rules(maps) if name == "agent" and maps is not None else None
    return Model(Endpoint(base_url, None, timeout, cache), llm, sheets, side)
