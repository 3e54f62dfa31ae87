"""Tools that go back to the images of a run: look at a place, measure an index, compare dates, write a
sentence about the pair, and draw a map.

Each takes bounded time and memory, gives facts, and says what it rests on. What a model says of a picture is
held against the facts before it becomes one, and proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.ask.answer import Fact
from terralapse.ask.book import Book
from terralapse.ask.tools import PLACE, Tool, ToolError, place_key, schema
from terralapse.ask.verify import problems, sentences
from terralapse.errors import TerralapseError

if TYPE_CHECKING:
    from terralapse.layers.chat_models import ChatModel
    from terralapse.products.look import RunPictures

INDICES = ("ndvi", "ndwi", "mndwi", "nbr", "ndmi", "ndbi", "evi2")
_LOOKS = 4  # at pictures by a model, for one agent and question
_MAPS = 8  # files in a folder of maps
_SIDE = 1200  # pixels of a map
_OBJECTS = {"type": "integer", "minimum": 1, "maximum": 10}


@dataclass
class Kit:
    """What the tools may use beside the run.

    `looker` is a vision-language model; `describer` gives a sentence about two pictures (uint8 [h, w, 3]
    each); `maps` is the folder that maps are written to. What is None is not offered.
    """

    looker: ChatModel | None = None
    describer: Callable[[Any, Any], str] | None = None
    maps: Path | None = None
    seconds: float = 60.0
    looks: int = field(default=0, init=False)

    def tools(self) -> dict[str, Tool]:
        """By name, for one question: its number of looks begins anew."""
        self.looks = 0
        index = {"enum": list(INDICES)}
        found = [
            Tool(
                "spectral_index",
                "Mean of a spectral index at both dates, in all or in a place.",
                schema(("index",), index=index, place=PLACE),
                _spectral_index,
            ),
            Tool(
                "compare_dates",
                "Both dates, the time between them, and the mean of each band, in all or in a place.",
                schema(place=PLACE),
                _compare_dates,
            ),
        ]
        if self.looker is not None:
            about = "What a vision-language model sees in both dates of a place or of an object."
            text = {"type": "string", "minLength": 3, "maxLength": 300}
            found.append(
                Tool(
                    "look",
                    about,
                    schema(("question",), question=text, place=PLACE, object=_OBJECTS),
                    self._look,
                )
            )
        if self.describer is not None:
            found.append(
                Tool(
                    "caption",
                    "A sentence about the change by a captioner, in all or in a place.",
                    schema(place=PLACE, object=_OBJECTS),
                    self._caption,
                )
            )
        if self.maps is not None:
            found.append(
                Tool(
                    "write_map",
                    "Draws the change over the later image, in all or around a place or object.",
                    schema(place=PLACE, object=_OBJECTS),
                    self._write_map,
                )
            )
        return {t.name: t for t in found}

    def _look(self, book: Book, given: dict[str, Any]) -> list[Fact]:
        from terralapse.ask.vlm import Vlm

        if self.looks >= _LOOKS:
            raise ToolError("there were enough looks for one question; answer from the facts")
        self.looks += 1
        place = _wanted_place(given)
        question = given["question"] if place is None else f"{given['question']} ({_words(place)})"
        assert self.looker is not None
        vlm = Vlm(model=self.looker, seconds=self.seconds)
        seen = _told(lambda: vlm.answer(question, book, place=place))
        if not seen.answered:
            raise ToolError(seen.text)
        return [*_sayings("look", seen.text, book, list(seen.facts), place), *seen.facts]

    def _caption(self, book: Book, given: dict[str, Any]) -> list[Fact]:
        place = _wanted_place(given)
        pictures = _told(lambda: _open(book))
        before, after = _told(lambda: _cut(pictures, place))
        describe = self.describer
        assert describe is not None
        said = _told(lambda: describe(before, after))
        facts = [f for k, f in book.facts.items() if k.startswith(("class.", "classes", "area.", "share."))]
        found = _sayings("caption", f"{said[:1].upper()}{said[1:]}.", book, facts, place)
        if not found:
            raise ToolError("the captioner named things that no fact of this run supports")
        return found

    def _write_map(self, book: Book, given: dict[str, Any]) -> list[Fact]:
        from terralapse.products.look import as_image

        assert self.maps is not None
        place = _wanted_place(given)
        pictures = _told(lambda: _open(book))
        window = None if place is None else _told(lambda: pictures.window(place))
        name = f"map_{'all' if place is None else place.replace('.', '_')}.png"
        path = self.maps / name
        try:
            self.maps.mkdir(parents=True, exist_ok=True)
            if not path.exists() and len(list(self.maps.glob("map_*.png"))) >= _MAPS:
                raise ToolError("there are maps enough; answer from the facts")
            part = path.with_suffix(".part")
            as_image(pictures.marked(window), _SIDE).save(part, "PNG")
            part.replace(path)
        except OSError as error:
            raise ToolError(f"the map could not be written: {type(error).__name__}") from error
        of = "all" if place is None else _words(place)
        return [_fact("map.written", "text", name, name, f"A map of {of} is in {name}.", {"file": name})]


def _words(place: str) -> str:
    from terralapse.ask.vlm import in_words

    return in_words(place)


def _wanted_place(given: dict[str, Any]) -> str | None:
    if "place" in given and "object" in given:
        raise ToolError("give a place or an object, not both")
    if "object" in given:
        return f"object.{given['object']}"
    return place_key(given) if "place" in given else None


def _told(what: Callable[[], Any]) -> Any:
    """What a function gives; an error that a user could mend is one that the model is told."""
    try:
        return what()
    except TerralapseError as error:
        raise ToolError(str(error)[:300]) from error


def _open(book: Book) -> RunPictures:
    from terralapse.products.look import RunPictures

    return RunPictures.open(book.folder)


def _cut(pictures: RunPictures, place: str | None) -> tuple[Any, Any]:
    if place is None:
        return pictures.before, pictures.after
    return pictures.cut(pictures.window(place))


def _fact(
    key: str, kind: str, value: Any, display: str, sentence: str, evidence: dict[str, Any], **more: Any
) -> Fact:
    return {
        "id": key, "kind": kind, "value": value, "unit": "", "display": display, "evidence": evidence,
        "uncertainty": None, "sentence": sentence, "cites": [], **more,
    }  # fmt: skip


def _sayings(kind: str, text: str, book: Book, facts: list[Fact], place: str | None) -> list[Fact]:
    """The sentences that hold against the facts, as facts that may be repeated and prove nothing."""
    kept = [s for s in sentences(text) if not problems(s, facts, book)]
    key = kind if place is None else f"{kind}.{place}"
    return [
        _fact(f"{key}.{n}" if "." in key else f"{kind}.all.{n}", "text", s, s, s, {"file": "before.tif"})
        for n, s in enumerate(kept, 1)
    ]


def _measured(book: Book, index: str | None, place: str | None) -> list[Fact]:
    from terralapse.workflows.reopen import means

    found = _told(lambda: means(book.folder, index, place))
    where = "" if place is None else f" in {_words(place)}"
    facts = []
    for name, before, after in zip(found.names, found.before, found.after, strict=True):
        title = name.upper() if index is not None else f"{name} band"
        head = f"index.{name}" if place is None else f"{place}.index.{name}"
        # A sentence that gives the number has to name the index: 0.4 alone could be a probability.
        more = {"says": [name.lower()]}
        evidence = {"file": "run.json"}
        for which, value in (("before", before), ("after", after)):
            said = f"The mean {title}{where} {which} is {value:.3g}."
            facts.append(_fact(f"{head}.{which}", "index", value, f"{value:.3g}", said, evidence, **more))
        rise = after - before
        said = f"The mean {title}{where} differs by {rise:+.3g} from before to after."
        facts.append(_fact(f"{head}.net", "index", rise, f"{rise:+.3g}", said, evidence, **more))
    return facts


def _spectral_index(book: Book, given: dict[str, Any]) -> list[Fact]:
    return _measured(book, given["index"], _wanted_place(given))


def _compare_dates(book: Book, given: dict[str, Any]) -> list[Fact]:
    dates = [f for k, f in book.facts.items() if k.startswith(("date.", "sensor."))]
    return dates + _measured(book, None, _wanted_place(given))
