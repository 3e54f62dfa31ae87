from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.layers.layer_exchange import (
    DifferenceWeighting,
    GatedFusion,
    difference_weights,
    exchange,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("sign", "wanted"), [(1, 0.07233), (-1, 0.53444)])
def test_weights_of_dates_that_agree_or_oppose(sign: int, wanted: float) -> None:
    x = normal(2, 5, 4, 3)
    weight = difference_weights(x, sign * x)
    assert weight.shape == x.shape
    assert wanted == pytest.approx(sigmoid(-sign) ** 2, abs=1e-5)
    assert torch.allclose(weight, torch.full_like(weight, wanted), atol=1e-5)


def test_weights_are_those_of_the_cosines() -> None:
    before, after = normal(2, 5, 4, 3), normal(2, 5, 4, 3, seed=1)
    pixel = 1 - torch.sigmoid(F.cosine_similarity(before, after, dim=1))
    channel = 1 - torch.sigmoid(F.cosine_similarity(before.flatten(2), after.flatten(2), dim=2))
    wanted = pixel[:, None] * channel[:, :, None, None]
    assert torch.allclose(difference_weights(before, after), wanted, atol=1e-6)
    assert wanted.min() > sigmoid(-1) ** 2
    assert wanted.max() < sigmoid(1) ** 2


def test_where_nothing_is_there_weights_and_gradients_are_finite() -> None:
    before, after = torch.zeros(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 3, 4, 4)
    weight = difference_weights(before, after)
    weight.sum().backward()
    assert torch.equal(weight, torch.full_like(weight, 0.25))
    assert before.grad is not None
    assert torch.isfinite(before.grad).all()


def test_weights_are_computed_in_float32() -> None:
    before, after = normal(1, 64, 32, 32).half() * 100, normal(1, 64, 32, 32, seed=1).half() * 100
    weight = difference_weights(before, after)
    assert weight.dtype == torch.float32
    assert torch.isfinite(weight).all()  # the squares would not fit


def test_each_date_has_a_block_of_its_own() -> None:
    torch.manual_seed(0)
    weigh = DifferenceWeighting(4).eval()
    before, after = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    with torch.no_grad():
        weight = difference_weights(before, after)
        one, other = weigh(before, after)
        assert torch.allclose(one, before + weigh.convA(before * weight), atol=1e-6)
        assert torch.allclose(other, after + weigh.convB(after * weight), atol=1e-6)
        assert not torch.allclose(weigh(after, before)[1], one)


def test_exchanging_takes_every_second_level_and_undoes_itself() -> None:
    before, after = ([normal(1, seed=seed + i) for i in range(4)] for seed in (0, 9))
    one, other = exchange(before, after)
    assert [x is y for x, y in zip(one, before, strict=True)] == [False, True, False, True]
    assert [x is y for x, y in zip(one, after, strict=True)] == [True, False, True, False]
    assert [x is y for x, y in zip(other, before, strict=True)] == [True, False, True, False]
    again = exchange(one, other)
    assert all(x is y for x, y in zip(again[0] + again[1], before + after, strict=True))


def test_a_fusion_gates_channels_by_their_mean_and_ends_between_0_and_1() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(8, reduction=4).eval()
    x = 5 * normal(2, 16, 5, 5)
    with torch.no_grad():
        found = fusion(x)
        gate = F.hardsigmoid(fusion.conv2(fusion.conv1(F.adaptive_avg_pool2d(x, 1))))
        wanted = ((fusion.conv3(x * gate) + 3) / 6).clamp(0, 1)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.shape == (2, 8, 5, 5)
    assert found.min() >= 0
    assert found.max() <= 1
