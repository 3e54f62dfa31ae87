"""The library's functions as typed tools for a language model: each gives facts and nothing else.

Arguments are checked against a JSON schema before a tool runs; no tool here runs text of the model, writes a
file or reaches the network. Those that go back to the images are in `terralapse.ask.tools_look`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from terralapse.ask.answer import Fact
from terralapse.ask.book import GRADES, NINTHS, PARTS, Book
from terralapse.ask.draft import CannotTell
from terralapse.ask.measure import AREAS
from terralapse.ask.rules_change import PART_OF

_MOST = 40  # facts in one reply
_OF_OBJECT = ("area", "place", "probability", "nearest", "date", "direction", "magnitude")
_TEXT = 400  # characters of a sentence that is handed on


class ToolError(Exception):
    """A call that cannot be made; the text is for the model."""


@dataclass(frozen=True)
class Tool:
    """A tool: what it does, the JSON schema of its arguments, and what it calls."""

    name: str
    about: str
    schema: dict[str, Any]
    run: Callable[[Book, dict[str, Any]], list[Fact]]

    def as_function(self) -> dict[str, Any]:
        """As the chat-completions protocol lists it."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.about, "parameters": self.schema},
        }


def call(
    name: str, arguments: str, book: Book, more: Mapping[str, Tool] = MappingProxyType({})
) -> list[Fact]:
    """Runs a tool by its name with arguments as JSON text; `more` are tools beside those of every run.

    Raises:
        ToolError: no such tool, arguments that are no JSON or not of its schema, or facts that there are not.
    """
    tool = TOOLS.get(name) or more.get(name)
    if tool is None:
        raise ToolError(f"there is no tool {name[:60]!r}; there are {', '.join([*TOOLS, *more])}")
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError("the arguments are not valid JSON") from error
    from jsonschema import Draft202012Validator

    wrong = next(iter(Draft202012Validator(tool.schema).iter_errors(given)), None)
    if wrong is not None:
        raise ToolError(f"the arguments do not fit the schema: {wrong.message[:200]}")
    return tool.run(book, given)[:_MOST]


def shown(facts: list[Fact]) -> str:
    """Facts as the model reads them; their texts are cut and hold no control characters."""
    rows = [
        {
            "id": f["id"],
            "value": f["value"],
            "unit": f["unit"],
            "display": _clean(f["display"]),
            "sentence": _clean(f["sentence"]),
        }
        for f in facts
    ]
    return json.dumps({"facts": rows}, ensure_ascii=False)


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT]


# --- the tools -------------------------------------------------------------------------------------
def _wanted(book: Book, ids: list[str]) -> list[Fact]:
    found = [book.facts[i] for i in ids if i in book.facts]
    if not found:
        raise ToolError(f"this run has no such facts: {', '.join(ids)[:200]}")
    return found


def _summary(book: Book, _given: dict[str, Any]) -> list[Fact]:
    return _wanted(book, list(dict.fromkeys(k for s in book.summary for k in s["facts"])))


def place_key(given: dict[str, Any]) -> str:
    """`ninth.north` or `part.north` of the place that a call names."""
    name = given["place"]
    return f"part.{name.removesuffix(' third')}" if name.endswith(" third") else f"ninth.{name}"


def _area(book: Book, given: dict[str, Any]) -> list[Fact]:
    if "place" in given:
        key = place_key(given)
        return _wanted(book, [f"{key}.{k}" for k in ("changed", "share", "observed", "objects", "part")])
    return _wanted(
        book,
        ["area.changed", "share.changed", "area.observed", "area.broken", "share.broken", "area.modelled"],
    )


def _count(book: Book, given: dict[str, Any]) -> list[Fact]:
    if "object.count" not in book:
        raise ToolError("this run has no objects")
    least, most = given.get("least_area"), given.get("most_area")
    if "unit" in given and book.unit == "m2":
        scale = AREAS[given["unit"]][0]
        least, most = (None if v is None else v * scale for v in (least, most))
    key = None if "place" not in given else place_key(given)
    source = "object.count" if key is None else f"{key}.objects"
    if least is None and most is None:
        return _wanted(book, [source, "object.minimum"])
    ninths = () if key is None else PART_OF.get(key, (key.partition(".")[2],))
    ids = book.objects(least, most, ninths)
    bounds = [
        book.derive("area", v, ["object.count"], f"{side} area asked for {v:g}", book.unit)
        for side, v in (("least", least), ("most", most))
        if v is not None
    ]
    name = f"{source} of {least or 0:g} to {'any' if most is None else f'{most:g}'}"
    return [book.derive("count", len(ids), [source], name, "objects"), *bounds]


def _objects(book: Book, given: dict[str, Any]) -> list[Fact]:
    numbers = given.get("numbers", [1, 2, 3])
    ids = [f"object.{n}.{k}" for n in numbers for k in _OF_OBJECT]
    pairs = [f"distance.{a}.{b}" for a in numbers for b in numbers if a < b]
    sizes = [f"object.{k}" for k in ("count", "mean", "median", "smallest", "half", "spacing")]
    return _wanted(book, ids + pairs + sizes)


def _where(book: Book, _given: dict[str, Any]) -> list[Fact]:
    return _wanted(
        book, ["location.main", *(f"location.{n}" for n in NINTHS), *(f"ninth.{n}.changed" for n in NINTHS)]
    )


def _classes(book: Book, given: dict[str, Any]) -> list[Fact]:
    if not book.classes:
        raise ToolError("this run marks where something changed and does not say of what class")
    if "name" not in given:
        keys = [k for k in book.facts if k == "classes" or (k.startswith("class.") and k.count(".") == 2)]
        return _wanted(book, keys)
    head = f"class.{given['name']}."
    found = [k for k in book.facts if k.startswith(head)]
    if not found:
        raise ToolError(f"no such class; there are {', '.join(book.classes)}")
    return _wanted(book, found)


def _transitions(book: Book, _given: dict[str, Any]) -> list[Fact]:
    found = [k for k in book.facts if k.startswith("transition.")]
    if not found:
        raise ToolError("this run has no transitions between classes")
    ranked = sorted(found, key=lambda k: -book.facts[k.removesuffix(".share")]["value"])
    return _wanted(book, ranked)


def _starting(*heads: str) -> Callable[[Book, dict[str, Any]], list[Fact]]:
    return lambda book, _given: _wanted(book, [k for k in book.facts if k.startswith(heads)])


def _zones(book: Book, _given: dict[str, Any]) -> list[Fact]:
    return _wanted(book, [f"{z}.{k}" for z in book.zones for k in ("changed", "share")])


def _rules(book: Book, given: dict[str, Any]) -> list[Fact]:
    from terralapse.ask.rules import answer

    try:
        found, _ = answer(given["question"], book)
    except CannotTell as error:
        raise ToolError(error.text) from error
    if not found.answered:
        raise ToolError(found.text)
    return list(found.facts)


def _calculate(book: Book, given: dict[str, Any]) -> list[Fact]:
    facts = _wanted(book, given["ids"])
    if len(facts) != len(given["ids"]):
        raise ToolError("some of the ids are no facts of this run")
    kinds = {(f["kind"], f["unit"]) for f in facts}
    if len(kinds) > 1 or next(iter(kinds))[0] not in ("area", "length", "count"):
        raise ToolError("the facts must be areas, lengths or counts of one unit")
    ids, how = given["ids"], given["how"]
    if how == "sum":
        return [book.total(ids, facts[0]["kind"])]
    if len(ids) != 2:
        raise ToolError(f"a {how} is of two facts")
    if how == "difference":
        return [book.rest(*ids)]
    found = book.ratio(facts[0], ids[1])
    if found is None:
        raise ToolError("the second fact is zero")
    return [found]


def schema(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """The JSON schema of arguments of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


PLACE = {"enum": [*NINTHS, *(f"{p} third" for p in PARTS)]}
_IDS = {"type": "array", "items": {"type": "string", "maxLength": 120}, "minItems": 1, "maxItems": 20}
_NUMBER = {"type": "number", "minimum": 0, "maximum": 1e15}

TOOLS: dict[str, Tool] = {
    t.name: t
    for t in (
        Tool("summary", "The main facts of the run.", schema(), _summary),
        Tool("changed_area", "Changed area and share, in all or in a place.", schema(place=PLACE), _area),
        Tool(
            "count_objects",
            "How many objects of change there are, of a size and in a place.",
            schema(least_area=_NUMBER, most_area=_NUMBER, unit={"enum": list(AREAS)}, place=PLACE),
            _count,
        ),
        Tool(
            "objects",
            "Area, place, probability and distances of the largest objects; sizes of all.",
            schema(
                numbers={
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1, "maximum": 10},
                    "minItems": 1,
                    "maxItems": 5,
                }
            ),
            _objects,
        ),
        Tool("where", "In which ninths of the scene the change lies.", schema(), _where),
        Tool("zones", "Changed area and share by zone or square.", schema(), _zones),
        Tool(
            "classes",
            "What was lost and gained by class.",
            schema(name={"type": "string", "maxLength": 60}),
            _classes,
        ),
        Tool("transitions", "From which class to which.", schema(), _transitions),
        Tool(
            "damage",
            f"Buildings by grade of damage: {', '.join(GRADES)}.",
            schema(),
            _starting("damage."),
        ),
        Tool("dates", "Dates and sensors.", schema(), _starting("date.", "sensor.", "series.dates")),
        Tool(
            "years",
            "Of a series: what broke by year and by half, the first and the last break, its pace.",
            schema(),
            _starting("year.", "break.", "rate.", "half.", "trend."),
        ),
        Tool("confidence", "How sure the result is.", schema(), _starting("confidence.", "area.expected")),
        Tool(
            "masked", "What could not be compared, and why.", schema(), _starting("masked.", "share.masked")
        ),
        Tool(
            "about",
            "Model, grid, alignment and warnings.",
            schema(),
            _starting("model.", "grid.", "alignment.", "warning."),
        ),
        Tool(
            "calculate",
            "Sum, difference or ratio of facts of one unit.",
            schema(("ids", "how"), ids=_IDS, how={"enum": ["sum", "difference", "ratio"]}),
            _calculate,
        ),
        Tool("facts", "Facts by their ids.", schema(("ids",), ids=_IDS), lambda b, g: _wanted(b, g["ids"])),
        Tool(
            "ask_rules",
            "The facts that answer a plain question, found without a model.",
            schema(("question",), question={"type": "string", "minLength": 1, "maxLength": 300}),
            _rules,
        ),
    )
}
