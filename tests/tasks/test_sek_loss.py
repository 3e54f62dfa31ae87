"""The SeK loss: the score that it stands for, and the two faults that it must not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from terralapse.tasks.metrics import per_date_matrix, semantic_scores
from terralapse.tasks.sek_loss import sek_loss

K = 7


def labels(seed: int = 0, classes: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    changed = rng.random((2, 12, 10)) < 0.5
    before, after = (np.where(changed, rng.choice(classes, changed.shape), 0) for _ in range(2))
    return torch.from_numpy(before), torch.from_numpy(after), torch.from_numpy(changed.astype(np.int64))


def sure(label: Tensor, by: float = 40.0) -> Tensor:
    return by * torch.nn.functional.one_hot(label, K).movedim(-1, 1).float()


def test_a_perfect_prediction_costs_nothing() -> None:
    before, after, changed = labels()
    assert float(sek_loss(sure(before), sure(after), before, after, changed)) == 0
    assert float(sek_loss(sure(before), sure(after), before, after, changed, faithful=True)) == 0


def test_hard_predictions_give_the_kappa_of_the_score() -> None:
    """With certain predictions the soft matrix is the counted one: kappa is that of the metric."""
    before, _, changed = labels(1)
    guess = torch.where(torch.rand(before.shape, generator=torch.Generator().manual_seed(0)) < 0.3, before, 1)
    guess = guess * changed
    loss = sek_loss(sure(guess), sure(guess), before, before, changed)
    matrix = per_date_matrix([before.numpy()], [guess.numpy()], K - 1)
    kappa = semantic_scores(matrix).kappa_n0
    hits, rows, columns = np.diag(matrix)[1:], matrix.sum(1)[1:], matrix.sum(0)[1:]
    weight = 1 / np.log(rows + 1)
    iou = float((weight / weight.sum() * hits / (rows + columns - hits)).sum())
    expected = -np.log(kappa * np.exp(1.5 * iou)) - 0.5 * np.log(iou)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_a_kappa_below_zero_is_finite_and_has_a_gradient() -> None:
    before, after, changed = labels(2)
    wrong = (sure(before % 6 + 1, 6.0)).requires_grad_()
    wrong_after = sure(after % 6 + 1, 6.0)
    assert torch.isnan(sek_loss(wrong, wrong_after, before, after, changed, faithful=True))
    loss = sek_loss(wrong, wrong_after, before, after, changed)
    loss.backward()
    assert torch.isfinite(loss)
    assert wrong.grad is not None
    assert torch.isfinite(wrong.grad).all()
    assert wrong.grad.abs().sum() > 0


def test_an_absent_class_takes_no_weight() -> None:
    before, after, changed = labels(3, classes=(1, 2, 4))
    good = sek_loss(sure(before, 8.0), sure(after, 8.0), before, after, changed)
    published = sek_loss(sure(before, 8.0), sure(after, 8.0), before, after, changed, faithful=True)
    assert float(good) < 0.05
    assert float(published) > 5


def test_what_is_ignored_or_unchanged_does_not_count() -> None:
    before, after, changed = labels(4)
    logits = [torch.randn(2, K, 12, 10, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    loss = sek_loss(*logits, before, after, changed)
    noisy = [torch.where(changed[:, None] == 0, 9.0 * torch.randn(2, K, 12, 10), x) for x in logits]
    assert torch.allclose(sek_loss(*noisy, before, after, changed), loss)
    hidden = torch.where(torch.arange(10) < 3, 255, changed)
    kept = torch.where(torch.arange(10) < 3, 0, changed)
    assert torch.equal(sek_loss(*logits, before, after, hidden), sek_loss(*logits, before, after, kept))


def test_no_change_is_zero() -> None:
    before, after, changed = labels(5)
    logits = torch.randn(2, K, 12, 10, requires_grad=True)
    loss = sek_loss(logits, logits, before, after, torch.zeros_like(changed))
    assert float(loss) == 0
    assert not loss.requires_grad


def test_half_precision_is_computed_in_float() -> None:
    before, after, changed = labels(6)
    logits = torch.randn(2, K, 12, 10, generator=torch.Generator().manual_seed(9)).bfloat16()
    half = sek_loss(logits, logits, before, after, changed)
    assert half.dtype is torch.float32
    assert torch.equal(half, sek_loss(logits.float(), logits.float(), before, after, changed))
