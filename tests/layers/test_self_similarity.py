from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.layers.self_similarity import labelled_content, official_content, structure_gap


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_gap_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 2, 1, 3)
    second = torch.tensor([[2.0, 3.0, -1.0], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    i, j = torch.tensor([0, 0]), torch.tensor([1, 2])
    assert structure_gap(first, second, i, j).tolist() == [[1.0, 2.0]]


def test_pairs_can_be_of_each_image() -> None:
    first, second = normal(2, 5, 4, 6), normal(2, 5, 4, 6, seed=1)
    i, j = (torch.randint(24, (2, 7), generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    together = structure_gap(first, second, i, j)
    for n in range(2):
        alone = structure_gap(first[n : n + 1], second[n : n + 1], i[n], j[n])
        assert torch.allclose(together[n : n + 1], alone)


def test_weights_in_space_change_nothing_so_that_the_released_losses_cancel() -> None:
    """With the same pairs, one minus the gap of what changed and the gap of what did not are 1 together."""
    first, second = normal(2, 5, 6, 9).double(), normal(2, 5, 6, 9, seed=1).double()
    focus = torch.tanh(1 + normal(2, 1, 6, 9, seed=2).double()).abs()
    i, j = (torch.randint(54, (20,), generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    changed, stayed = (structure_gap(first * w, second * w, i, j).mean() for w in (focus, 1 - focus))
    assert abs((1 - changed + stayed).item() - 1) < 1e-12


def test_the_released_losses_draw_anew_from_the_generator_of_torch() -> None:
    first, second, focus = normal(1, 5, 6, 9), normal(1, 5, 6, 9, seed=1), torch.full((1, 6, 9), 0.5)
    torch.manual_seed(0)
    found = official_content(first, second, focus)
    other = official_content(first, second, focus)
    torch.manual_seed(0)
    again = official_content(first, second, focus)
    assert torch.equal(torch.stack(found), torch.stack(again))
    assert not torch.equal(torch.stack(found), torch.stack(other))
    assert torch.stack(found).sum().item() != 1.0  # two draws, not one


def test_the_released_losses_are_expected_to_be_one() -> None:
    first, second, focus = normal(2, 5, 6, 9), normal(2, 5, 6, 9, seed=1), torch.full((2, 6, 9), 0.3)
    torch.manual_seed(0)
    mean = sum(float(sum(official_content(first, second, focus))) for _ in range(400)) / 400
    assert mean == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("size", [(16, 24), (13, 22)], ids=["whole cells", "padded"])
def test_labelled_places(size: tuple[int, int]) -> None:
    """Content that turns round where it changed costs nothing; the same content at both dates costs all of
    the part of what changed."""
    first = torch.zeros(1, 2, 4, 6)
    first[:, 0] = 1.0
    second = first.clone()
    second[0, :, 1, 2] = torch.tensor([0.0, 1.0])  # at a right angle
    label = torch.zeros(1, *size, dtype=torch.uint8)
    label[0, 4:8, 8:12] = 1
    apart, alike = labelled_content(first, second, label)
    assert (apart.item(), alike.item()) == pytest.approx((0.0, 0.0), abs=1e-6)
    apart, alike = labelled_content(first, first, label)
    assert (apart.item(), alike.item()) == pytest.approx((1.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_label_without_pairs_counts_nowhere(value: int) -> None:
    first, second = normal(2, 5, 4, 4).requires_grad_(), normal(2, 5, 4, 4, seed=1)
    apart, alike = labelled_content(first, second, torch.full((2, 16, 16), value, dtype=torch.uint8))
    assert apart.item() == 0.0
    assert (alike.item() > 0.0) == (value == 0)
    (apart + alike).backward()
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()


def test_the_labelled_losses_have_a_gradient_that_leads_somewhere() -> None:
    torch.manual_seed(0)
    first, second = normal(1, 4, 6, 6).requires_grad_(), normal(1, 4, 6, 6, seed=1).requires_grad_()
    label = torch.zeros(1, 24, 24, dtype=torch.uint8)
    label[0, :12, :12] = 1
    optimiser = torch.optim.Adam([first, second], lr=0.05)
    totals = []
    for _ in range(80):
        total = torch.stack(labelled_content(first, second, label)).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert sum(totals[-10:]) < 0.5 * sum(totals[:10])
