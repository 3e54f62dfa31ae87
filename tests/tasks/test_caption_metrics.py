"""Scores of captions on the corpora of the sheet, and what must hold of any corpus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from terralapse.tasks.caption_metrics import (
    bleu,
    caption_scores,
    cider_d,
    cider_d_each,
    common_length,
    meteor_exact,
    meteor_exact_each,
    rouge_l,
    words,
)

REFERENCES = [
    [words(s) for s in several]
    for several in (
        ("a road is built in the forest", "trees are removed and a road appears"),
        ("the scene is the same as before", "there is no difference"),
        ("many houses are built along the road", "some villas are constructed beside the road"),
    )
]
SAID = [
    words(s)
    for s in (
        "a road is built and trees are removed",
        "the scene is the same as before",
        "many villas are built beside the road",
    )
]


def test_the_toy_corpus_of_the_sheet() -> None:
    assert bleu(SAID, REFERENCES) == pytest.approx([1.0, 0.888523, 0.762934, 0.642868], abs=1e-6)
    assert rouge_l(SAID, REFERENCES) == pytest.approx(0.751370, abs=1e-6)
    assert cider_d(SAID, REFERENCES) == pytest.approx(3.734534, abs=1e-6)


def test_one_image_alone() -> None:
    one = SAID[:1], REFERENCES[:1]
    assert bleu(*one) == pytest.approx([1, 0.845154, 0.709492, 0.516973], abs=1e-6)
    assert rouge_l(*one) == pytest.approx(0.539823, abs=1e-6)
    assert cider_d(*one) == pytest.approx(3.739519, abs=1e-6)


def test_a_right_sentence_is_not_worth_all_of_cider() -> None:
    right = [several[0] for several in REFERENCES]
    found = caption_scores(right, REFERENCES)
    assert [found.bleu1, found.bleu4, found.rouge_l, found.meteor_exact] == pytest.approx([1, 1, 1, 1])
    assert found.cider_d == pytest.approx(5.294214, abs=1e-6)
    assert found.s_m == pytest.approx((3 + 5.294214) / 4, abs=1e-6)


def test_constant_references_are_worth_nothing() -> None:
    """On the pairs without change every n-gram is in every image."""
    assert cider_d([SAID[1]] * 3, [REFERENCES[1]] * 3) == 0


def test_ids_score_as_words_do() -> None:
    number = {w: i for i, w in enumerate(sorted({w for rs in REFERENCES for r in rs for w in r}))}
    ids = [[number[w] for w in s] for s in SAID], [[[number[w] for w in r] for r in rs] for rs in REFERENCES]
    assert caption_scores(*ids) == caption_scores(SAID, REFERENCES)


def test_closest_reference_and_brevity() -> None:
    short = bleu([words("a b")], [[words("a b c"), words("a b c d e f")]])
    assert short[0] == pytest.approx(2.718281828 ** (1 - 3 / 2), abs=1e-6)
    assert bleu([words("a b c d")], [[words("a b c"), words("a b c d e")]])[0] == pytest.approx(1)


def test_longest_common_subsequence() -> None:
    assert common_length(words("a b c d e"), words("b x d a e")) == 3
    assert common_length([], ["a"]) == common_length(["a"], []) == 0


def test_meteor_counts_matches_in_the_fewest_chunks() -> None:
    """By hand, and as METEOR 1.5 itself counts them."""
    (found,) = meteor_exact_each([words("1 2 3 4")], [[words("3 4 1 2 5")]])
    assert (found.matches, found.hypothesis, found.reference, found.chunks) == (4, 4, 5, 2)
    recall, fragments = 4 / 5, 2 / 4
    mean = recall / (0.85 + 0.15 * recall)
    assert found.score == pytest.approx(mean * (1 - 0.6 * fragments**0.2))
    (twice,) = meteor_exact_each([words("the a the b")], [[words("x the b the")]])
    assert (twice.matches, twice.chunks) == (3, 2)  # "the b" is one piece
    (whole,) = meteor_exact_each([words("a b")], [[words("c"), words("a b")]])
    assert (whole.chunks, whole.score) == (0, 1.0)
    assert meteor_exact([words("a")], [[words("b")]]) == 0


def test_meteor_leaves_out_what_only_breaks_the_order() -> None:
    (found,) = meteor_exact_each([words("a b a c")], [[words("b a c")]])
    assert (found.matches, found.chunks) == (3, 1)


def test_a_corpus_must_be_whole() -> None:
    for hypotheses, references in (([], []), (SAID, REFERENCES[:2]), (SAID[:1], [[]])):
        for score in (bleu, rouge_l, cider_d, meteor_exact):
            with pytest.raises(ValueError, match="one hypothesis"):
                score(hypotheses, references)


def test_an_empty_sentence_scores_nothing() -> None:
    found = caption_scores([[], *SAID[1:]], REFERENCES)
    assert cider_d_each([[], *SAID[1:]], REFERENCES)[0] == 0
    assert 0 < found.rouge_l < caption_scores(SAID, REFERENCES).rouge_l


def test_people_against_each_other_on_the_real_captions(shared: Path) -> None:
    """The first of five captions against the other four; on a part of the validation split."""
    path = shared / "data/text_captions_vqa/levir_mci_change_captions.json.gz"
    captions = list(json.loads(gzip.decompress(path.read_bytes()))["val"].values())[:200]
    corpus = [[words(s) for s in five] for five in captions]
    people = caption_scores([c[0] for c in corpus], [c[1:] for c in corpus])
    same = caption_scores([SAID[1]] * len(corpus), corpus)
    assert 0.1 < people.bleu4 < 0.25  # 0.165 on the test split
    assert same.bleu4 > people.bleu4  # half of the pairs show no change
    assert same.cider_d > people.cider_d
