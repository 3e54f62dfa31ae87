"""Words, slots, kinds of question, and the classifier that knows some of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ask_runs import Truth
from terralapse.ask import Conversation, training
from terralapse.ask.book import Book
from terralapse.ask.classifier import classifier, features
from terralapse.ask.language import language, plain
from terralapse.ask.parse import Before, parse, split
from terralapse.ask.slots import Slots, read

EN = language("en")
CDVQA = Path(__file__).resolve().parents[2] / "../shared/data/text_captions_vqa/cdvqa_val_qa_part.json.gz"
TYPES = {
    "change_or_not": {"changed"},
    "increase_or_not": {"increase"},
    "decrease_or_not": {"decrease"},
    "largest_change": {"largest_class", "largest_change"},
    "smallest_change": {"smallest_class", "smallest_change"},
    "change_to_what": {"became"},
    "change_ratio": {"share"},
    "change_ratio_types": {"share", "area"},
}


@pytest.fixture
def book(runs: dict[str, Truth]) -> Book:
    return Book.open(runs["classes"].folder)


@pytest.fixture
def zoned(runs: dict[str, Truth]) -> Book:
    return Book.open(runs["zones"].folder)


def test_the_weights_are_those_of_the_questions() -> None:
    made = training.questions()
    stored = classifier("en")
    assert stored.data == training.digest(made), "run `python -m terralapse.ask.training`"
    assert stored.words == frozenset(training.words().split())
    assert len(made) > 3000


def test_the_classifier_knows_what_it_learnt_and_more() -> None:
    made = training.questions()[::7]
    right = sum(classifier("en")(text)[0][0] == intent for intent, text in made)
    assert right / len(made) > 0.95
    for text, intent in (
        ("which spot has the strongest change", "place_rank"),
        ("name the date of both images", "dates"),
    ):
        kind, sure = classifier("en")(text)[0]
        assert (kind, sure > 0.6) == (intent, True)
    assert classifier("en")("what got added in place of <c>")[0][1] < 0.4
    assert features("how much") == features("how much")


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        ("south-east", ("ninth.south-east",)),
        ("SE corner", ("ninth.south-east",)),
        ("southeastern part", ("ninth.south-east",)),
        ("bottom-right cell", ("ninth.south-east",)),
        ("centre", ("ninth.centre",)),
        ("central ninth", ("ninth.centre",)),
        ("upper centre", ("ninth.north",)),
        ("north-central part", ("ninth.north",)),
        ("lower center", ("ninth.south",)),
        ("centre-south", ("ninth.south",)),
        ("southern central part", ("ninth.south",)),
        ("middle of the south", ("ninth.south",)),
        ("left middle", ("ninth.west",)),
        ("central west", ("ninth.west",)),
        ("east-central cell", ("ninth.east",)),
        ("right centre", ("ninth.east",)),
        ("south", ("part.south",)),
        ("northern third", ("part.north",)),
        ("centre, south and east", ("ninth.centre", "part.south", "part.east")),
        ("north, central and south", ("part.north", "ninth.centre", "part.south")),
        ("centre and the south", ("ninth.centre", "part.south")),
        ("north, east", ("part.north", "part.east")),
        ("north-west, the middle, the lower left", ("ninth.north-west", "ninth.centre", "ninth.south-west")),
        ("northern half", ("part.north", "other")),
        ("NE quadrant", ("ninth.north-east", "other")),
        ("south-south-east", ("other",)),
        ("WNW", ("other",)),
        ("central south-east", ("other",)),
        ("centre southwest cell", ("other",)),
        ("northern edge", ("part.north", "other")),
    ],
)
def test_every_place_of_the_compass_is_one_place(zoned: Book, place: str, keys: tuple[str, ...]) -> None:
    asked = read(f"How much changed in the {place}?", zoned, EN)
    assert asked.slots.places == keys
    assert asked.unknown == []


@pytest.mark.parametrize(
    "place", ["south-south-east", "central south-east", "northern half", "southern edge"]
)
def test_places_that_facts_are_not_kept_by_are_refused(runs: dict[str, Truth], place: str) -> None:
    answer = Conversation(runs["zones"].folder, "rules").ask(f"How much changed in the {place}?")
    assert "the facts are kept by ninths and thirds" in answer.text
    assert answer.facts == ()


@pytest.mark.parametrize(("place", "ninth"), [("lower centre", "south"), ("centre right", "east")])
def test_a_cell_is_answered_from_its_own_facts(runs: dict[str, Truth], place: str, ninth: str) -> None:
    answer = Conversation(runs["zones"].folder, "rules").ask(f"How much changed in the {place}?")
    assert [f["id"] for f in answer.facts] == [f"ninth.{ninth}.changed", f"ninth.{ninth}.share"]


def test_the_questions_of_cdvqa_are_understood_in_its_own_words(book: Book) -> None:
    if not CDVQA.exists():
        pytest.skip("needs ../shared/data/text_captions_vqa")
    with gzip.open(CDVQA, "rt", encoding="utf-8") as file:
        rows = {(r["type"], r["question"]) for r in json.load(file)}
    assert len(rows) > 250
    wrong = [(t, q) for t, q in sorted(rows) if parse(q, book, EN).kind not in TYPES[t]]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("How many acres of trees were lost?", Slots(classes=("tree",), unit="acre", moved="lost")),
        ("objects larger than 2 ha in the north-west", Slots(places=("ninth.north-west",), least=2e4)),
        ("more than 100 sq ft", Slots(least=9.290304)),
        ("how much woods became houses", Slots(classes=("tree", "building"), pair=("tree", "building"))),
        ("did the vegetation change", Slots(classes=("low_vegetation", "tree"))),
        ("are roads new", Slots(absent=("road",), moved="gained")),
        ("trees in the first image", Slots(classes=("tree",), side="before")),
        ("upper left", Slots(places=("ninth.north-west",))),
        ("the second largest object", Slots(rank=2)),
        ("object 4", Slots(objects=(4,))),
        ("in 2019", Slots(years=(2019,))),
        ("severely damaged houses", Slots(classes=("building",), grade="major")),
        ("not changed", Slots(unchanged=True)),
    ],
)
def test_slots(book: Book, text: str, slots: Slots) -> None:
    if slots.least is not None and book.unit == "px":
        book.unit = "m2"
    assert read(text, book, EN).slots == slots


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("chagned", "changed"), ("obejcts", "objects"), ("nroth", "north"), ("bulidings", "buildings"),
     ("hectars", "hectare"), ("percentge", "percentage"), ("aera", "area"), ("xyzzy", "xyzzy")],
)  # fmt: skip
def test_typos_are_mended(typed: str, meant: str) -> None:
    assert EN.mend([typed], EN.vocabulary) == [meant]


def test_names_of_zones_are_understood(zoned: Book) -> None:
    assert read("how much changed in old town?", zoned, EN).slots.places == ("zone.2",)
    assert read("zone Harbour", zoned, EN).slots.places == ("zone.1",)
    assert read("zone atlantis", zoned, EN).slots.missing_zone == "atlantis"


def test_a_text_of_several_questions_is_cut() -> None:
    assert split("How many objects are there, and where is the largest?") == [
        "How many objects are there",
        "where is the largest",
    ]
    assert split("What changed") == ["What changed"]
    assert len(split("Which object is the biggest and how large?")) == 1


def test_a_follow_up_takes_what_it_leaves_open(book: Book) -> None:
    last = Before(
        "area", Slots(classes=("tree",), moved="lost", places=("part.north",)), "how much <c> lost in the <p>"
    )
    q = parse("and water?", book, EN, last)
    assert (q.kind, q.slots.classes, q.slots.places) == ("area", ("water",), ("part.north",))
    q = parse("what about the south?", book, EN, last)
    assert (q.slots.classes, q.slots.places) == (("tree",), ("part.south",))
    assert parse("and in the north?", book, EN).why == "alone"


def test_a_word_that_nobody_knows_is_named(zoned: Book) -> None:
    q = parse("How many spiders are there?", zoned, EN)
    assert (q.why, q.what) == ("unknown-word", "spiders")


def test_plain_keeps_numbers_whole() -> None:
    assert plain("It's 1,234.5 m², isn't it?") == ["it", "1,234.5", "m²", "is", "not", "it"]
