"""Soft Dice: its closed forms, and what must not count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from terralapse.tasks.dice import dice_loss


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_nearly_all() -> None:
    label = torch.arange(128).reshape(2, 8, 8) % 3
    perfect = 60.0 * F.one_hot(label, 4).movedim(-1, 1).float()
    assert float(dice_loss(perfect, label)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(perfect.roll(1, dims=1), label)) > 0.97


def test_uniform_prediction_in_closed_form() -> None:
    """p = 1/2 everywhere, n0 and n1 pixels: dice_c = (n_c + 1) / (N / 2 + n_c + 1)."""
    label = torch.zeros(1, 4, 5, dtype=torch.int64)
    label[0, 0] = 1
    expected = 1 - ((15 + 1) / (10 + 15 + 1) + (5 + 1) / (10 + 5 + 1)) / 2
    assert float(dice_loss(torch.zeros(1, 2, 4, 5), label)) == pytest.approx(expected)


def test_it_is_over_the_batch_and_not_over_images() -> None:
    logits, label = (
        noise(2, 3, 6, 6),
        torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1)),
    )
    joined = dice_loss(torch.cat(list(logits), dim=-1)[None], torch.cat(list(label), dim=-1)[None])
    assert torch.allclose(dice_loss(logits, label), joined)


def test_absent_classes_and_ignored_pixels_do_not_count() -> None:
    label = torch.randint(0, 2, (1, 6, 6), generator=torch.Generator().manual_seed(2))
    logits = noise(1, 2, 6, 6, seed=3)
    wider = torch.cat([logits, torch.full((1, 2, 6, 6), -80.0)], dim=1)
    assert torch.allclose(dice_loss(wider, label), dice_loss(logits, label))
    label[0, :2] = 255
    changed = logits.clone()
    changed[..., :2, :] += noise(1, 2, 2, 6, seed=4)
    assert torch.allclose(dice_loss(changed, label), dice_loss(logits, label))


def test_nothing_known_is_zero_with_a_gradient_of_zero() -> None:
    logits = noise(1, 3, 4, 4).requires_grad_()
    loss = dice_loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
