"""Captions as ids: the tokeniser and the vocabulary of the released captions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from terralapse.data.words import (
    END,
    NULL,
    SPECIAL,
    START,
    UNKNOWN,
    Vocabulary,
    encode_all,
    plain,
    says_change,
    tokens_of,
)
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

SMALL = Vocabulary((*SPECIAL, ",", "a", "road"))


def test_punctuation_is_kept_or_dropped_as_in_the_release() -> None:
    assert tokens_of(" a road, two houses; and T-junctions appear . ") == (
        ["a", "road", ",", "two", "houses", ";", "and", "T-junctions", "appear"]
    )
    assert tokens_of("is it gone?") == ["is", "it", "gone"]


def test_a_caption_there_and_back() -> None:
    row = SMALL.encode("a road, a river.", 9)
    assert row.tolist() == [START, 5, 6, 4, 5, UNKNOWN, END, NULL, NULL]
    assert SMALL.decode(row.tolist()) == "a road , a <UNK>"
    assert plain([START, 5, NULL, 6, END, 6]) == [5, 6]
    assert SMALL.encode("a road a road", 5).tolist() == [START, 5, 6, 5, END]  # cut, with its end
    assert encode_all(SMALL, ["a", "road"], 4).tolist() == [[2, 5, 3, 0], [2, 6, 3, 0]]


def test_words_that_are_rare_have_no_id() -> None:
    found = Vocabulary.of(["b a"] * 6 + ["c"] * 5)
    assert found.words == (*SPECIAL, "a", "b")
    assert Vocabulary.of(["c"], least=1).ids["c"] == 4


def test_the_own_vocabulary_is_that_of_the_real_captions(shared: Path) -> None:
    path = shared / "data/text_captions_vqa/levir_mci_change_captions.json.gz"
    captions = json.loads(gzip.decompress(path.read_bytes()))
    every = [s for split in captions.values() for sentences in split.values() for s in sentences]
    own = Vocabulary.own()
    assert own == Vocabulary.of(every)
    assert len(own) == 431
    ids = [own.ids[w] for s in every for w in tokens_of(s) if w in own.ids]
    assert len(ids) / sum(len(tokens_of(s)) for s in every) > 0.99
    assert max(len(tokens_of(s)) for s in every) + 2 == 41


def test_changes_are_told_but_by_five_sentences() -> None:
    assert not says_change(" The scene is the same as before .")
    assert not says_change("almost nothing has changed")
    assert says_change("nothing has changed")


def test_files_of_vocabularies(tmp_path: Path) -> None:
    words = list(SMALL.words)
    for name, text in (
        ("a.json", json.dumps({w: i for i, w in enumerate(words)})),
        ("b.json", json.dumps(words)),
        ("c.txt", "\n".join(words) + "\n"),
    ):
        (tmp_path / name).write_text(text)
        assert Vocabulary.read(tmp_path / name) == SMALL
    with pytest.raises(FileMissingError, match=r"vocab\.json"):
        Vocabulary.read(tmp_path / "none.json")
    for text, error, fault in (
        ("{", UnreadableFileError, "no vocabulary"),
        ('{"a": 1, "b": 2}', UnreadableFileError, "from 0 on"),
        ("[1, 2]", UnreadableFileError, "no list of words"),
        (json.dumps(words[1:]), SettingError, "does not begin with"),
        (json.dumps([*words, "a"]), SettingError, "twice"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(error, match=fault):
            Vocabulary.read(tmp_path / "bad.json")


def test_ids_are_whole_numbers_of_64_bits() -> None:
    assert SMALL.encode("", 2).dtype == np.int64
