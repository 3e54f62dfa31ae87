"""How sentences are written, taught and counted, with networks made of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from terralapse.cards import Task
from terralapse.data.words import END, NULL, START
from terralapse.tasks.caption_metrics import caption_scores
from terralapse.tasks.captions import (
    CaptionOutput,
    MaskedCaptionOutput,
    balanced,
    beam_search,
    caption_loss,
    counted_sentences,
    greedy,
    padded_rows,
    read_sentences,
)
from terralapse.tasks.measures import CaptionMeasure, measure_for

CPU = torch.device("cpu")


def by_last_word(table: dict[int, dict[int, float]], words: int = 8) -> Callable[[Tensor], Tensor]:
    """A step that knows the probabilities of what follows each word."""

    def step(ids: Tensor) -> Tensor:
        logits = torch.full((len(ids), words), -1e9)
        for row, last in enumerate(ids[:, -1].tolist()):
            for word, probability in table.get(last, {END: 1.0}).items():
                logits[row, word] = math.log(probability)
        return logits

    return step


# --- writing -----------------------------------------------------------------------------------------------
def test_greedy_takes_the_likeliest_word_and_stops() -> None:
    step = by_last_word({START: {4: 0.6, 5: 0.4}, 4: {6: 0.9, END: 0.1}, 6: {END: 1.0}})
    assert greedy(step, 1, 10, CPU).tolist() == [[START, 4, 6, END]]
    assert greedy(step, 1, 2, CPU).tolist() == [[START, 4, 6]]  # no more words than asked for


def test_greedy_sentences_of_a_batch_end_by_themselves() -> None:
    turn = 0

    def step(ids: Tensor) -> Tensor:
        nonlocal turn
        turn += 1
        logits = torch.zeros(2, 8)
        logits[0, END if turn == 1 else 7] = 1
        logits[1, 5 if turn < 3 else END] = 1
        return logits

    assert greedy(step, 2, 10, CPU).tolist() == [[START, END, NULL, NULL], [START, 5, 5, END]]


def test_a_beam_finds_what_greedy_misses() -> None:
    step = by_last_word({START: {4: 0.55, 5: 0.45}, 4: {6: 0.6, 7: 0.4}, 5: {END: 1.0}})
    assert greedy(step, 1, 10, CPU)[0, 1] == 4
    assert beam_search(step, 1, 10, CPU).tolist() == greedy(step, 1, 10, CPU)[0].tolist()
    assert beam_search(step, 2, 10, CPU).tolist() == [START, 5, END]  # 0.45 is more than 0.55 x 0.6


def test_a_beam_without_an_end_returns_the_best_that_it_has() -> None:
    step = by_last_word({START: {4: 0.7, 5: 0.3}, 4: {4: 1.0}, 5: {5: 1.0}})
    assert beam_search(step, 2, 3, CPU).tolist() == [START, 4, 4, 4]


def test_rows_are_filled_up() -> None:
    rows = padded_rows([torch.tensor([2, 4, 3]), torch.tensor([2, 3])])
    assert rows.tolist() == [[2, 4, 3], [2, 3, NULL]]


# --- teaching ----------------------------------------------------------------------------------------------
def test_the_loss_counts_words_up_to_the_end() -> None:
    tokens = torch.tensor([[START, 4, END, NULL], [START, END, NULL, NULL]])
    words = torch.zeros(2, 4, 6)
    assert float(caption_loss(words, tokens)) == pytest.approx(math.log(6))
    words[0, 0, 4] = words[0, 1, END] = words[1, 0, END] = 50
    assert float(caption_loss(words, tokens)) == pytest.approx(0, abs=1e-6)
    other = words.clone()
    other[0, 2:], other[1, 1:] = 9, -9  # what follows an end
    assert torch.equal(caption_loss(other, tokens), caption_loss(words, tokens))


def test_balanced_losses_are_one_each_and_weigh_alike() -> None:
    x = torch.tensor([3.0, 0.01], requires_grad=True)
    total = balanced(x[0] * 2, x[1] * 5)
    total.backward()
    assert float(total.detach()) == 2
    assert x.grad is not None
    assert (x.grad * x).tolist() == pytest.approx([1, 1])


# --- counting ----------------------------------------------------------------------------------------------
def batch(
    said: Sequence[Sequence[int]], silent: Sequence[bool], **more: Any
) -> tuple[Any, dict[str, Tensor]]:
    output = MaskedCaptionOutput(
        ids=torch.tensor(said), unchanged=torch.tensor(silent), mask=more.pop("mask", None)
    )
    captions = [[[2, 5, 6, 3, 0], [2, 5, 3, 0, 0]], [[2, 7, 8, 9, 3], [0, 0, 0, 0, 0]]]
    return output, {"captions": torch.tensor(captions), "changed": torch.tensor([True, False]), **more}


def test_sentences_survive_as_numbers() -> None:
    output, target = batch([[2, 5, 6, 3], [2, 7, 3, 9]], [False, True])
    rows = list(counted_sentences(output, target))
    one, other = read_sentences([n for row in rows for n in row])
    assert (one.said, one.references, one.says_change, one.changed) == ([5, 6], [[5, 6], [5]], True, True)
    assert (other.said, other.references, other.says_change, other.changed) == (
        [7],
        [[7, 8, 9]],
        False,
        False,
    )
    assert read_sentences([]) == []


def test_the_measure_scores_the_corpus_and_its_parts() -> None:
    mask = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [2, 0]]] * 2), 3).permute(0, 3, 1, 2).float()
    label = torch.tensor([[[0, 1], [2, 2]], [[0, 255], [2, 0]]])
    output, target = batch([[2, 5, 6, 3], [2, 7, 3, 9]], [False, False], mask=mask, label=label)
    measure = measure_for(Task.LANGUAGE, 3)
    assert isinstance(measure, CaptionMeasure)
    measure.update(output, target)
    found = measure.compute()
    both = caption_scores([[5, 6], [7]], [[[5, 6], [5]], [[7, 8, 9]]])
    assert found["captions"].items() >= both.as_dict().items()
    assert found["changed"]["bleu1"] == pytest.approx(1)
    assert [found[p]["images"] for p in ("captions", "changed", "unchanged")] == [2, 1, 1]
    assert [found[p]["change_or_not"] for p in ("captions", "changed", "unchanged")] == [0.5, 1, 0]
    iou = found["segmentation"]["miou"]
    assert iou == pytest.approx((3 / 4 + 1 + 2 / 3) / 3)
    assert found["captions"]["selection"] == both.bleu4 + iou == measure.main_score(found)


def test_parts_of_a_corpus_join_to_the_whole() -> None:
    output, target = batch([[2, 5, 6, 3], [2, 7, 3, 9]], [False, True])
    whole, parts = CaptionMeasure(3), []
    whole.update(output, target)
    for i in range(2):
        part = CaptionMeasure(3)
        assert output.ids is not None
        one = CaptionOutput(ids=output.ids[i : i + 1], unchanged=output.unchanged[i : i + 1])
        part.update(one, {k: v[i : i + 1] for k, v in target.items()})  # pyright: ignore[reportArgumentType]
        parts.append(part.counts())
    joined = whole.joined(parts)
    assert np.array_equal(joined["stream"], whole.counts()["stream"])
    assert whole.scores(joined) == whole.compute()
    assert "segmentation" not in whole.compute()
    whole.reset()
    assert whole.counts()["stream"].size == 0
    assert whole.main_score(whole.scores(whole.counts())) == -1


def test_the_change_of_a_mask_is_that_of_any_class() -> None:
    mask = torch.tensor([2.0, 1.0, 0.5])[None, :, None, None]
    probability = MaskedCaptionOutput(mask=mask).change().probability()
    assert float(probability) == pytest.approx(1 - float(mask.softmax(dim=1)[0, 0]))
