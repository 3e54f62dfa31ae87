"""Scores of answers by type; the parsers of the released scripts are tested with the golden figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from terralapse.errors import FileMissingError
from terralapse.tasks.chat_metrics import (
    Said,
    change_scores,
    chat_scores,
    gpt2_tokens,
    selection,
    talk_counts,
    words,
    yes_or_no,
)


def test_yes_and_no_are_read() -> None:
    assert [yes_or_no(t) for t in ("Yes.", "no, nothing", "the scene", "", "yesterday")] == [
        True,
        False,
        None,
        None,
        None,
    ]


def test_answers_that_are_neither_count_as_wrong() -> None:
    found = change_scores([True, True, False, False], [True, None, False, None])
    # Named changed: the first and the last; right: the first and the third.
    assert found == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "f05": 0.5, "failures": 0.5}
    )
    found = change_scores([True, True, True, False], [True, False, False, False])
    assert (found["precision"], found["recall"], found["f1"]) == (1.0, pytest.approx(1 / 3), 0.5)
    assert found["f05"] == pytest.approx(1.25 * (1 / 3) / (0.25 + 1 / 3))
    assert change_scores([True], [False])["f1"] == 0
    with pytest.raises(ValueError, match="cannot be scored"):
        change_scores([], [])


def test_change_or_not_as_the_released_script(shared: Path) -> None:
    case = json.loads((shared / "golden/metrics/vqa.json").read_text())["change_or_not_from_caption"]
    said = [Said("caption", i["caption"], ("a",), bool(i["changed"])) for i in case["items"]]
    found = chat_scores(said)["binary_of_captions"]
    ours = [found[k] for k in ("accuracy", "precision", "recall", "f1", "f05")]
    assert ours == pytest.approx(
        [case[k] for k in ("accuracy", "precision", "recall", "F1", "F0.5")], abs=1e-9
    )


@pytest.mark.parametrize(
    ("text", "roads", "buildings"),
    [
        ("No roads has changed, and no buildings has changed.", 0, 0),
        ("2 roads has changed, and 13 buildings has changed.", 2, 13),
        ("no roads has changed, and 1 buildings has changed", 0, 1),
        ("there are 4 new roads and no new buildings", 4, 0),
        ("many things", 0, 0),
    ],
)
def test_counts_of_a_talk(text: str, roads: int, buildings: int) -> None:
    assert talk_counts(text) == {"road": roads, "building": buildings}


SAID = [
    Said(
        "caption",
        "a road is built in the forest",
        ("A road is built in the forest .", "trees are gone ."),
        True,
    ),
    Said("caption", "the scene is the same as before", ("there is no difference .",), False),
    Said("binary", "yes", ("Yes",), True),
    Said("binary", "yes", ("No",), None),
    Said(
        "count", "there are 2 new roads and 5 new buildings", ("There are 2 new roads and 4 new buildings.",)
    ),
    Said("count", "no new roads or buildings", ("There are no changes in roads or buildings.",)),
    Said("place", "roads ['top-left'] buildings []", ("roads: ['top-left', 'top-center'] buildings: []",)),
    Said("open", "in the north", ("In the north.",)),
    Said(
        "talk_count",
        "1 roads has changed, and no buildings has changed",
        ("1 roads has changed, and 2 buildings",),
    ),
]


def test_each_type_has_its_scores() -> None:
    found = chat_scores(SAID)
    assert set(found) == {
        "caption",
        "caption_changed",
        "caption_unchanged",
        "binary_of_captions",
        "binary",
        "count",
        "place",
        "open",
        "talk_count",
    }
    assert found["caption_changed"]["bleu4"] == pytest.approx(1, abs=1e-6)
    assert (found["caption"]["turns"], found["caption_unchanged"]["turns"]) == (2, 1)
    assert found["binary_of_captions"]["accuracy"] == 1
    assert found["binary"]["accuracy"] == 0.5
    assert (found["count"]["road_mae"], found["count"]["building_mae"]) == (0.0, 0.5)
    assert found["count"]["building_rmse"] == pytest.approx(math.sqrt(0.5))
    assert found["place"]["road_hamming"] == pytest.approx(1 / 9)
    assert found["place"]["road_recall_micro"] == 0.5
    assert found["place"]["building_jaccard_samples"] == 0
    assert found["place"]["building_jaccard_samples_empty_equals_one"] == 1
    assert found["open"]["rouge_l"] == pytest.approx(1)
    assert found["talk_count"]["building_mae"] == 2
    with pytest.raises(ValueError, match="cannot be scored"):
        chat_scores([Said("riddle", "a", ("b",))])


def test_one_number_to_choose_by() -> None:
    found = chat_scores(SAID)
    counts = (1.0 + 0.5) / 2  # both numbers of roads, one of two of buildings
    places = (0.5 + 1.0) / 2  # half of the cells of roads, and none where there are none
    expected = [found["caption"]["bleu4"], 0.5, counts, places, found["open"]["bleu4"], (1.0 + 0.0) / 2]
    assert selection(SAID) == pytest.approx(sum(expected) / 6)
    assert math.isnan(selection([]))
    perfect = [
        Said("binary", "no", ("No",)),
        Said("count", "no new roads or buildings", ("no new roads or buildings",)),
    ]
    assert selection(perfect) == 1


def test_sentences_can_be_cut_into_pieces_under_another_name(tmp_path: Path) -> None:
    assert list(words("A road, is built.")) == ["a", "road", ",", "is", "built"]
    found = chat_scores(SAID[:1], tokenise=list, tokens="gpt2")
    assert set(found) == {"caption_gpt2", "caption_changed_gpt2", "binary_of_captions"}
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.save(str(tmp_path / "tokenizer.json"))
    assert gpt2_tokens(tmp_path / "tokenizer.json")("ab ba") == ["ab", "b", "a"]
    with pytest.raises(FileMissingError, match=r"tokenizer\.json"):
        gpt2_tokens(tmp_path / "no.json")
