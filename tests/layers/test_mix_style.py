"""Styles are mixed in training only, and only styles."""

from __future__ import annotations

import torch

from terralapse.layers.mix_style import MixStyle


def test_only_the_style_changes() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8, 8) * torch.arange(1, 7).view(6, 1, 1, 1) + torch.arange(6).view(6, 1, 1, 1)
    layer = MixStyle(share=1.0)
    assert (layer.eval()(x) == x).all()
    mixed = layer.train()(x)
    assert (mixed - x).abs().max() > 0.1

    def normal(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(dim=(2, 3), keepdim=True)) / y.std(dim=(2, 3), keepdim=True)

    assert torch.allclose(normal(mixed), normal(x), atol=1e-4), "what is where stays"
    low, high = x.mean(dim=(2, 3)).amin(dim=0), x.mean(dim=(2, 3)).amax(dim=0)
    means = mixed.mean(dim=(2, 3))
    assert (means >= low - 1e-4).all()
    assert (means <= high + 1e-4).all()


def test_never_with_a_share_of_zero() -> None:
    x = torch.randn(3, 2, 4, 4)
    assert (MixStyle(share=0.0).train()(x) == x).all()
