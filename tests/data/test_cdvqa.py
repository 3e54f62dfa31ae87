"""CDVQA: the texts of the released questions, the rules of their answers, and the released layout."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_trees import coloured, pairs, rows
from terralapse.data import cdvqa as m
from terralapse.data.catalogue import open_dataset
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import SECOND_MAMBA, SECOND_SCANNET, crosswalk

# Values of second-mamba: 1 low vegetation, 2 ground, 3 tree, 4 water, 5 building, 6 playground.
BEFORE = np.array([[2, 2, 2, 0], [1, 1, 0, 0], [3, 5, 0, 0], [0, 0, 0, 255]], np.uint8)
AFTER = np.array([[5, 5, 1, 0], [5, 2, 0, 0], [3, 5, 0, 0], [0, 0, 0, 0]], np.uint8)
AREAS = m.ChangeAreas.of(BEFORE, AFTER)


def says(text: str, areas: m.ChangeAreas = AREAS) -> str | None:
    return m.answer(m.read_question(text), areas)


@pytest.fixture(scope="module")
def released(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    shared: Path = request.getfixturevalue("shared_data")
    with gzip.open(shared / "text_captions_vqa/cdvqa_val_qa_part.json.gz", "rt") as file:
        return json.load(file)


# --- the rules -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Have the areas of buildings changed?", "yes"),
        ("Did the regions of water change?", "no"),
        ("Did the areas of low vegetation change in the post-change image?", "yes"),
        ("Have the regions of playgrounds changed in the first image?", "no"),
        ("Have the areas of buildings increased?", "yes"),  # 1 to 4
        ("Did the regions of trees increase?", "no"),  # 1 to 1
        ("Did the areas of low vegetation decrease?", "yes"),  # 2 to 1
        ("Have the areas of trees decreased?", "no"),
        ("What is the largest change in the pre-change image?", "NVG_surface"),
        ("What type of change is the largest in the second image?", "buildings"),
        ("What is the largest change?", "buildings"),  # 1 + 4, ground 3 + 1
        ("What type of change is the smallest?", "trees"),  # 1 + 1; absent classes are no smallest
        ("What have the areas of low vegetation in the first image mainly changed to?", "NVG_surface"),
        (
            "What have the regions of non-vegetated ground surface in the pre-event image mainly changed to?",
            "buildings",
        ),
        ("What have the areas of trees in the pre-event image mainly changed to?", "trees"),
        ("What have the areas of water in the first image mainly changed to?", None),
        ("How much of the area has changed?", "40_to_50"),  # 7 of 15
        ("What is the percentage of non-change regions?", "50_to_60"),  # 8 of 15
        ("What is the change ratio of water in the pre-event image?", "0"),
        ("How much area of low vegetation has changed in the pre-change image?", "10_to_20"),  # 2 of 15
        ("What is the change proportion of low vegetation in the post-event image?", "0_to_10"),  # 1 of 15
    ],
)
def test_answers(text: str, expected: str | None) -> None:
    assert says(text) == expected


def test_a_class_that_is_on_either_date_has_changed() -> None:
    areas = m.ChangeAreas.of(np.array([[1]], np.uint8), np.array([[4]], np.uint8))
    text = "Have the areas of water changed{}?"
    sides = ("", " in the first image", " in the second image")
    assert [says(text.format(s), areas) for s in sides] == ["yes", "no", "yes"]


def test_a_share_without_a_date_is_of_the_first() -> None:
    number = [c[0] for c in m.CLASSES].index("low_vegetation")
    assert m.answer(m.Question("change_ratio_types", number), AREAS) == "10_to_20"


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 100, "0"),
        (1e-9, 100, "0_to_10"),
        (10, 100, "0_to_10"),
        (10.0001, 100, "10_to_20"),
        (100, 100, "90_to_100"),
        (3, 30, "0_to_10"),
        (262_144 * 7 // 10, 262_144, "60_to_70"),
        (7, 10, "60_to_70"),
        (1, 10**15, "0_to_10"),
    ],
)
def test_edges_of_bins(part: float, whole: float, expected: str) -> None:
    assert m.ratio_bin(part, whole) == expected


@pytest.mark.parametrize(("part", "whole"), [(-1, 10), (11, 10), (0, 0)])
def test_what_is_no_share(part: int, whole: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        m.ratio_bin(part, whole)


def test_the_order_of_ids_does_not_matter() -> None:
    both = [crosswalk(x, SECOND_MAMBA, SECOND_SCANNET) for x in (BEFORE, AFTER)]
    found = m.ChangeAreas.of(both[0], both[1], SECOND_SCANNET)
    assert (found.joint == AREAS.joint).all()
    assert (found.changed, found.total) == (AREAS.changed, AREAS.total) == (7, 15)


def test_nothing_changed() -> None:
    still = m.ChangeAreas.of(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    assert says("How much of the area has changed?", still) == "0"
    assert says("What is the percentage of unchanged areas?", still) == "90_to_100"
    assert says("What is the largest change?", still) is None
    kinds = {a.kind for a in m.ask_all(still, np.random.default_rng(0))}
    assert kinds == set(m.KINDS) - {"largest_change", "smallest_change", "change_to_what"}


# --- the generator ---------------------------------------------------------------------------------------
def random_areas(seed: int) -> m.ChangeAreas:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(1, 7, (2, 16, 16)).astype(np.uint8)
    still = rng.random((16, 16)) < rng.random()
    return m.ChangeAreas.of(np.where(still, 0, before), np.where(still, 0, after))


def test_what_is_made_is_read_back_with_the_same_answer() -> None:
    for seed in range(20):
        areas = random_areas(seed)
        asked = m.ask_all(areas, np.random.default_rng(seed))
        assert len(asked) > 25
        for a in asked:
            assert m.read_question(a.question).kind == a.kind
            assert says(a.question, areas) == a.answer
            assert a.answer in m.ANSWERS
            assert not a.positional


def test_a_text_of_another_kind_is_refused() -> None:
    assert m.read_question(" What is  the largest change? ").kind == "largest_change"
    with pytest.raises(SettingError, match="no question of CDVQA"):
        m.read_question("How many ships are there?")


def wording(text: str) -> str:
    """A text without its class."""
    for _, words, _ in m.CLASSES:
        text = text.replace(words, "{c}")
    return text


# --- the released questions ------------------------------------------------------------------------------
def test_every_released_text_is_read_as_its_type(released: list[dict[str, Any]]) -> None:
    assert len(released) > 10_000
    assert {r["type"] for r in released} == set(m.KINDS)
    assert {r["answer"] for r in released} == set(m.ANSWERS)
    for r in released:
        assert m.read_question(r["question"]).kind == r["type"]
    # The other way round: nothing is made in a wording that was never used.
    assert {wording(q) for q in m.known_questions()} == {wording(r["question"]) for r in released}


def test_released_answers_keep_the_rules(released: list[dict[str, Any]]) -> None:
    """There are no maps here, but the answers to several questions on one pair bind each other."""
    by_pair: dict[str, dict[m.Question, str]] = defaultdict(dict)
    for r in released:
        by_pair[r["image"]][m.read_question(r["question"])] = r["answer"]
    checked: Counter[str] = Counter()

    def holds(rule: str, is_so: bool) -> None:
        checked[rule] += 1
        checked[f"{rule}, broken"] += not is_so

    for known in by_pair.values():
        for q, text in known.items():
            either = known.get(m.Question("change_or_not", q.number, ""))
            if q.kind == "change_or_not" and q.side and text == "yes" and either:
                holds("on a date is on either", either == "yes")
            if q.kind == "change_ratio_types":
                there = known.get(m.Question("change_or_not", q.number, q.side))
                if there:
                    holds("a share is 0 where nothing changed", (text == "0") == (there == "no"))
            if q.kind == "change_to_what":
                there = known.get(m.Question("change_or_not", q.number, "pre"))
                if there:
                    holds("what became something was there", there == "yes")
            if q.kind == "increase_or_not" and text == "yes":
                other = known.get(m.Question("decrease_or_not", q.number))
                if other:
                    holds("nothing grows and shrinks", other == "no")
            if q.kind in ("largest_change", "smallest_change"):
                number = [c[2] for c in m.CLASSES].index(text)
                there = known.get(m.Question("change_or_not", number, q.side))
                if there:
                    holds("largest and smallest are there", there == "yes")
            if q.kind == "change_ratio" and not q.unchanged:
                rest = known.get(m.Question("change_ratio", None, "", True))
                if rest:
                    low, high = m.BINS.index(text), m.BINS.index(rest)
                    holds("shares sum to all", low + high in (11, 10) and (text != "0" or high == 10))
    broken = {rule: n for rule, n in checked.items() if rule.endswith("broken") and n}
    # 6 of 1,544, on three pairs: one whose answers say both that all and that nothing changed, and two where
    # the smallest of one class that changed is another one.
    assert broken == {"largest and smallest are there, broken": 6}
    assert min(n for rule, n in checked.items() if not rule.endswith("broken")) > 100


def test_made_questions_are_as_many_as_the_released(released: list[dict[str, Any]]) -> None:
    pairs_there = len({r["image"] for r in released})
    theirs = Counter(r["type"] for r in released)
    ours: Counter[str] = Counter()
    for seed in range(200):
        ours.update(a.kind for a in m.ask_all(random_areas(seed), np.random.default_rng([7, seed])))
    for kind in set(m.KINDS) - {"change_to_what"}:  # that one asks about the classes that are there
        assert ours[kind] / 200 == pytest.approx(theirs[kind] / pairs_there, rel=0.06), kind


# --- readers ---------------------------------------------------------------------------------------------
def tree(root: Path, part: str = "Val", **change: Any) -> Path:
    """Two pairs and three questions as released, of which one is not active."""
    names = ["00003", "00017"]
    pairs(root / "SECOND", names, ("im1", "im2"))
    questions = [
        {"id": 0, "date_added": 1.0, "img_id": 0, "type": "change_or_not", "answers_ids": [0], "active": True}
        | {"question": "Have the areas of trees changed?"},
        {"id": 1, "date_added": 1.0, "img_id": 1, "type": "change_ratio", "answers_ids": [1], "active": False}
        | {"question": "How much of the area has changed?"},
        {
            "id": 2,
            "date_added": 1.0,
            "img_id": 1,
            "type": "largest_change",
            "answers_ids": [2],
            "active": True,
        }
        | {"question": "What is the largest change?"},
    ]
    answers = [
        {"id": i, "date_added": 1.0, "question_id": i, "answer": a, "active": True}
        for i, a in enumerate(["yes", "0", "water"])
    ]
    images = [
        {
            "id": i,
            "res_x": ".1m",
            "res_y": ".1m",
            "questions_ids": [i],
            "file_name": f"{n}.png",
            "active": True,
        }
        for i, n in enumerate(names)
    ]
    for key, value in {"questions": questions, "answers": answers, "images": images, **change}.items():
        text = value if isinstance(value, str) else json.dumps({key: value})
        (root / f"{part}_{key}.json").write_text(text)
    return root


def test_the_released_layout(tmp_path: Path) -> None:
    found = open_dataset("cdvqa", tree(tmp_path), "val", images=tmp_path / "SECOND")
    assert (len(found), found.names, found.title) == (2, ["00003", "00017"], "CDVQA val")
    one, two = found
    assert (one.asked.kind, one.asked.question) == ("change_or_not", "Have the areas of trees changed?")
    assert (one.asked.answer, two.asked.answer) == ("yes", "water")
    assert one.images[:, :, 0, 0].tolist() == [[10, 20, 30], [11, 21, 31]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"answers": []}, r"Val_answers.json: has nothing for question 0"),
        ({"images": []}, r"Val_images.json: has nothing for question 0"),
        ({"questions": "no json"}, r"Val_questions.json: is no file of questions"),
        ({"questions": [{"id": 3}]}, r"is no file of questions \(KeyError"),
        ({"questions": [{"id": 0, "img_id": 0, "type": "count", "question": "?"}]}, "has the type count"),
        ({"answers": [{"question_id": i, "answer": "maybe"} for i in range(3)]}, "has the answer maybe"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(UnreadableFileError, match=match):
        m.Cdvqa(tree(tmp_path, **change), "val", tmp_path / "SECOND")


def test_what_is_missing(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(SettingError, match=r"train, val, test, test2"):
        m.Cdvqa(tmp_path, "holdout")
    with pytest.raises(FileMissingError, match=r"Test2_questions\.json"):
        m.Cdvqa(tmp_path, "test2")
    with pytest.raises(FileMissingError, match=r"Give `images`"):
        m.Cdvqa(tmp_path, "val")
    (tmp_path / "SECOND/im2/00017.png").unlink()
    with pytest.raises(FileMissingError, match=r"im2/00017\.png: is not there, and 1 pair"):
        m.Cdvqa(tmp_path, "val", tmp_path / "SECOND")


def answers_to(answers: dict[str, str], question: m.Question) -> set[str]:
    return {a for q, a in answers.items() if m.read_question(q) == question}


def test_questions_from_the_maps_of_second(tmp_path: Path) -> None:
    ground, building, white = (128, 128, 128), (128, 0, 0), (255, 255, 255)
    labels = {
        "label1": coloured(*[ground] * 2, *[white] * 6),
        "label2": coloured(*[building] * 2, *[white] * 6),
    }
    pairs(tmp_path / "train", ["a", "b"], ("im1", "im2"), labels)
    found = open_dataset("second-vqa", tmp_path, "train")
    by_name = {n: [q.asked for q in found if q.name == n] for n in ("a", "b")}
    answers = {a.question: a.answer for a in by_name["a"]}
    assert answers_to(answers, m.Question("largest_change", None, "post")) == {"buildings"}
    assert answers_to(answers, m.Question("largest_change", None, "pre")) == {"NVG_surface"}
    assert answers_to(answers, m.Question("change_ratio")) == {"20_to_30"}
    assert [a.question for a in by_name["a"]] != [a.question for a in by_name["b"]], "wordings differ by pair"
    again = open_dataset("second-vqa", tmp_path, "train")
    assert [q.asked for q in again] == [q.asked for q in found]
    assert found[0].images.shape == (2, 3, 8, 8)
    ids = {"label1": rows(*[2] * 2, *[0] * 6), "label2": rows(*[5] * 2, *[0] * 6)}
    pairs(tmp_path / "test", ["a", "b"], ("im1", "im2"), ids)
    assert [q.asked for q in open_dataset("second-vqa", tmp_path, "test")] == [q.asked for q in found]
