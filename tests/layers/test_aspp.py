"""Atrous spatial pyramid pooling."""

from __future__ import annotations

import torch

from terralapse.layers.aspp import ASPP


def test_shape_and_a_batch_of_one_in_training() -> None:
    aspp = ASPP(6, 10, 4, (2, 4)).train()
    x = torch.randn(1, 6, 2, 3, requires_grad=True)
    found = aspp(x)
    assert found.shape == (1, 10, 2, 3)
    found.square().mean().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_each_branch_has_its_reach() -> None:
    """Without the branch of the mean, a pixel reaches no farther than the largest dilation."""
    torch.manual_seed(0)
    aspp = ASPP(2, 3, 4, (1, 3)).eval()
    torch.nn.init.zeros_(aspp.mean.weight)
    x = torch.randn(1, 2, 11, 11)
    moved = x.clone()
    moved[0, :, 5, 5] += 3.0
    with torch.no_grad():
        apart = (aspp(moved) - aspp(x)).abs().amax(dim=(0, 1)) > 0
    reached = {(r - 5, c - 5) for r, c in apart.nonzero().tolist()}
    assert reached <= {(r, c) for d in (0, 1, 3) for r in (-d, 0, d) for c in (-d, 0, d)}
    assert (3, -3) in reached
