"""DropBlock: squares, their share, its rise and the mean."""

from __future__ import annotations

import pytest
import torch

from terralapse.layers.drop_block import DropBlock


def test_evaluation_is_the_identity() -> None:
    x = torch.randn(2, 3, 9, 9)
    assert DropBlock().eval()(x) is x
    assert DropBlock(0.0)(x) is x


def test_it_drops_squares_of_all_channels_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropBlock(0.15, 3, steps=1)
    drop(torch.ones(1, 1, 3, 3))
    found = drop(torch.ones(16, 2, 40, 40))
    assert torch.equal(found[:, 0], found[:, 1])
    share = (found == 0).float().mean().item()
    assert 0.1 < share < 0.18
    assert found.mean().item() == pytest.approx(1.0, abs=1e-4)
    gone = (found[:, :1] == 0).float()
    # Every place that is gone is in a full square of 3 x 3, but for squares that the border cuts.
    full = (torch.nn.functional.avg_pool2d(gone, 3, 1) > 0.999).float()
    grown = torch.nn.functional.max_pool2d(torch.nn.functional.pad(full, (1, 1, 1, 1)), 3, 1, 1)
    assert torch.equal(grown[..., 2:-2, 2:-2], gone[..., 2:-2, 2:-2])


def test_the_share_rises_with_the_passes() -> None:
    torch.manual_seed(0)
    drop, x, shares = DropBlock(0.5, 1, steps=10), torch.ones(4, 1, 100, 100), []
    for _ in range(12):
        shares.append((drop(x) == 0).float().mean().item())
    assert shares[0] == 0.0
    assert shares[5] == pytest.approx(0.25, abs=0.02)
    assert shares[11] == pytest.approx(0.5, abs=0.02)
    drop.eval()(x)
    assert drop.passes.item() == 12


def test_what_cannot_be_is_refused() -> None:
    for wrong in ((1.0, 7, 30), (0.1, 4, 30), (0.1, 7, 0)):
        with pytest.raises(ValueError, match="no DropBlock"):
            DropBlock(*wrong)
