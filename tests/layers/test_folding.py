"""Inference with folded normalisations and overwritten features says what the plain way says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from terralapse.layers.folding import folded, inferring
from terralapse.layers.mbconv import ConvBN, InvertedResidual
from terralapse.layers.pairing import SymmetricFusion
from terralapse.models.change.lapsenet import LapseNet


def with_statistics(module: nn.Module) -> nn.Module:
    """In evaluation, with normalisations that do something."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                assert isinstance(tensor, Tensor)
                tensor.data = 0.3 + torch.rand(tensor.shape, generator=generator)
            assert layer.running_var is not None
            layer.running_var.data = 0.5 + torch.rand(layer.running_var.shape, generator=generator)
    return module.eval()


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def mask(*shape: int) -> Tensor:
    inside = torch.ones(shape)
    inside[..., :3, :] = 0
    inside[1:, ..., 5:] = 0
    return inside


MODULES = {
    "convolution": (ConvBN(6, 8, 3, stride=2), False),
    "linear": (ConvBN(6, 8, act=False), False),
    "depthwise": (ConvBN(6, 6, 5, groups=6), False),
    "bottleneck": (InvertedResidual(6, 6, 3), True),
    "smaller": (InvertedResidual(6, 8, 5, stride=2), True),
    "without expansion": (InvertedResidual(6, 4, 3, expansion=1), True),
    "fusion": (SymmetricFusion(6, 4), False),
}


CASES = [(name, masked) for name, (_, takes_mask) in MODULES.items() for masked in {False, takes_mask}]


@pytest.mark.parametrize(("name", "masked"), sorted(CASES))
def test_a_module_gives_the_same_in_inference_and_leaves_its_input_alone(name: str, masked: bool):
    module = with_statistics(MODULES[name][0])
    x = features(4, 6, 10, 12)
    given = (x, mask(4, 1, 10, 12)) if masked else (x,)
    before = x.clone()
    assert not inferring(module)
    plain = module(*given)
    with torch.inference_mode():
        assert inferring(module)
        fast = module(*given)
    assert torch.allclose(fast, plain, atol=2e-5, rtol=1e-5)
    assert torch.equal(x, before)
    if masked:
        assert torch.equal(given[1], mask(4, 1, 10, 12))


@pytest.mark.parametrize("zoom", [1, 2])
def test_a_whole_network_gives_the_same_in_inference(zoom: int):
    network = with_statistics(LapseNet(4, zoom, widths=(8, 16, 32)))
    images, valid = features(2, 2, 4, 32, 48), mask(2, 32, 48) > 0
    images = images * valid[:, None, None]
    for given in ((images,), (images, valid)):
        plain = network(*given)
        with torch.inference_mode():
            fast = network(*given)
        assert torch.allclose(fast, plain, atol=1e-4 * float(plain.detach().abs().max()))


def test_weights_that_change_are_seen_and_training_is_left_as_it_was():
    module = with_statistics(ConvBN(3, 4, 3, act=False))
    x = features(2, 3, 8, 8)
    with torch.no_grad():
        before = module(x)
        module.bn.bias += 1.0
        assert torch.allclose(module(x), before + 1.0, atol=1e-5)
    module.train()
    with torch.no_grad():
        mean = module.bn.running_mean.clone()
        module(x)
    assert not torch.equal(module.bn.running_mean, mean)


def test_a_normalisation_without_statistics_is_refused():
    with pytest.raises(ValueError, match="without statistics"):
        folded(torch.ones(2, 3, 1, 1), nn.BatchNorm2d(2, track_running_stats=False))
