"""HRNet: its branches and its heads."""

from __future__ import annotations

import pytest
import torch

from terralapse.layers.hrnet import HRNet, without_head
from terralapse.layers.pyramid_pooling import FCNHead, PSPHead, PyramidPooling


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_widths() -> None:
    network = HRNet(18).eval()
    assert count(network) == 9_562_260
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 32, 64)).shape == (1, 270, 8, 16)


def test_any_bands_and_a_gradient_for_every_parameter() -> None:
    torch.manual_seed(0)
    network = HRNet(4, bands=5, small=True)
    network(torch.randn(2, 5, 64, 32)).square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_the_head_for_imagenet_is_left_out() -> None:
    weights = {"module.backbone.conv1.weight": torch.zeros(1), "classifier.bias": torch.zeros(1)}
    assert list(without_head(weights)) == ["conv1.weight"]


def test_averages_of_an_even_map_are_even() -> None:
    pooling = PyramidPooling(8).eval()
    with torch.no_grad():
        found = pooling(torch.ones(1, 8, 7, 9))
    assert found.shape == (1, 16, 7, 9)
    assert torch.allclose(found, found[..., :1, :1].expand_as(found), atol=1e-6)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("head", [FCNHead, PSPHead])
def test_heads(head: type[FCNHead] | type[PSPHead], separable: bool) -> None:
    built = head(8, 3, separable).eval()
    with torch.no_grad():
        assert built(torch.randn(1, 8, 6, 5)).shape == (1, 3, 6, 5)
    assert built.last.out_channels == 3
