from __future__ import annotations

import torch

from terralapse.layers.cbam import CBAM, ChannelAttention, SpatialAttention


def test_the_number_of_parameters_of_four_widths() -> None:
    found = sum(p.numel() for width in (128, 64, 40, 24) for p in CBAM(width).parameters())
    assert found == 3160


def test_weights_that_are_zero_halve_twice() -> None:
    module, x = CBAM(32), torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        assert torch.allclose(module(x), x / 4)


def test_each_weight_is_of_its_own_axis() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 5, 7)
    with torch.no_grad():
        channels, places = ChannelAttention(32), SpatialAttention()
        assert channels(x).shape == (2, 32, 1, 1)
        assert places(x).shape == (2, 1, 5, 7)
        turned = x.flip(2)
        assert torch.allclose(channels(turned), channels(x), atol=1e-6)
        order = torch.randperm(32)
        assert torch.allclose(places(x[:, order]), places(x), atol=1e-6)
