"""Answers: what is counted, what the questions give away, and the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terralapse.data.questions import OUTSIDE, Asked
from terralapse.tasks import vqa as m

KINDS = ("present", "count", "never")


def output(*answers: int, number: int = 4) -> m.VqaOutput:
    return m.VqaOutput(5.0 * F.one_hot(torch.tensor(answers), number).float())


def test_accuracies_by_hand() -> None:
    # Three of four of the first type, one of two of the second: OA 4 / 6, AA (0.75 + 0.5) / 2.
    measure = m.VqaMeasure(KINDS)
    kind = torch.tensor([0, 0, 0, 1, 1, 0])
    answer = torch.tensor([1, 2, 0, 3, OUTSIDE, 1])
    guess = output(1, 2, 1, 3, 0, 1)
    for part in (slice(0, 2), slice(2, 6)):
        measure.update(m.VqaOutput(guess.logits[part]), {"kind": kind[part], "answer": answer[part]})
    found = measure.compute()["vqa"]
    assert found["oa"] == pytest.approx(4 / 6)
    assert found["aa"] == pytest.approx(0.625)
    assert (found["present"], found["count"]) == (0.75, 0.5)
    assert math.isnan(found["never"])
    assert measure.main_score(measure.compute()) == pytest.approx(4 / 6)
    measure.reset()
    assert measure.main_score(measure.compute()) == -1


def test_probabilities() -> None:
    p = output(2).probability(temperature=5.0)
    assert p.sum().item() == pytest.approx(1)
    assert p[0, 2].item() == pytest.approx(math.e / (math.e + 3))


def asked(kind: str, question: str, answer: str) -> Asked:
    return Asked(kind, question, answer)


def test_what_the_questions_give_away() -> None:
    training = [
        asked("present", "trees?", "yes"),
        asked("present", "trees?", "Yes "),
        asked("present", "trees?", "no"),
        asked("present", "water?", "no"),
        asked("present", "land?", "no"),
        asked("count", "how many trees?", "3"),
    ]
    guess = m.QuestionOnly(training)
    assert guess.answer(asked("present", "trees?", "")) == "yes"
    assert guess.answer(asked("present", "roads?", "")) == "no", "the most frequent of its type"
    assert guess.answer(asked("never", "why?", "")) == "no", "the most frequent of all"
    assert m.QuestionOnly([]).answer(training[0]) == ""
    found = guess.scores([*training[:3], training[5]], KINDS)
    assert (found["present"], found["count"]) == (pytest.approx(2 / 3), 1.0)
    assert found["oa"] == 0.75


def test_ties_do_not_depend_on_the_order() -> None:
    pair = [asked("present", "trees?", "yes"), asked("present", "trees?", "no")]
    assert m.QuestionOnly(pair).answer(pair[0]) == m.QuestionOnly(pair[::-1]).answer(pair[0]) == "no"


def test_an_answer_outside_trains_nothing() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answer = torch.tensor([1, OUTSIDE, 3])
    loss = m.answer_loss(logits, answer)
    assert loss.item() == pytest.approx(F.cross_entropy(logits[[0, 2]], answer[[0, 2]]).item())
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert m.answer_loss(logits, torch.full((3,), OUTSIDE)).item() == 0


def test_alignment_prefers_the_text_of_the_own_domain() -> None:
    texts = torch.eye(3)[[0, 0, 1, 2]]
    domain = torch.tensor([5, 5, 2, 9])
    right = m.alignment_loss(texts, texts, domain)
    wrong = m.alignment_loss(texts[[2, 2, 3, 0]], texts, domain)
    assert right < 0.01 < 5 < wrong
    one = m.alignment_loss(texts, texts, torch.zeros(4, dtype=torch.long))
    assert one.item() == 0
    # By hand: cosine 1 to its own text and 0 to two others, times 10.
    assert right.item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-3)


def test_coral_by_hand() -> None:
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    domain = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    a, b = (np.cov(values[domain == d].numpy().T) for d in (0, 1))
    expected = ((a - b) ** 2).sum() / (4 * 9)
    assert m.coral_loss(values, domain).item() == pytest.approx(expected, rel=1e-5)
    assert m.coral_loss(values, torch.zeros(9, dtype=torch.long)).item() == 0
    same = torch.cat([values[:4], values[:4]])
    assert m.coral_loss(same, domain[:8]).item() == pytest.approx(0, abs=1e-12)
