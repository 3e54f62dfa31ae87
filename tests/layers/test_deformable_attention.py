from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from terralapse.layers.deformable_attention import (
    DeformableAttention,
    DeformableLayer,
    centres,
    sample_levels,
)

SIDES = [(3, 4), (5, 2)]
TOKENS = 3 * 4 + 5 * 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """[C] of an image [C, H, W] at x and y in 0..1 of it; nothing outside."""
    _, height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(len(image))
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[:, i, j]
    return total


def test_samples_are_bilinear_and_weighted() -> None:
    value, weights = normal(2, TOKENS, 2, 3), normal(2, 4, 2, 2, 3, seed=1).softmax(-1)
    places = 1.4 * torch.rand(2, 4, 2, 2, 3, 2, generator=torch.Generator().manual_seed(2)) - 0.2
    found = sample_levels(value, SIDES, places, weights)
    wanted = torch.zeros(2, 4, 2, 3)
    for b in range(2):
        for head in range(2):
            start = 0
            for level, (height, width) in enumerate(SIDES):
                plane = value[b, start : start + height * width, head].T.unflatten(1, (height, width))
                start += height * width
                for n in range(4):
                    for p in range(3):
                        x, y = places[b, n, head, level, p].tolist()
                        wanted[b, n, head] += weights[b, n, head, level, p] * bilinear(plane, x, y)
    assert torch.allclose(found, wanted.flatten(2), atol=1e-5)


def test_the_centre_of_a_pixel_is_that_pixel() -> None:
    at = centres(SIDES, torch.device("cpu"))
    assert at.shape == (TOKENS, 2)
    assert at[1].tolist() == [pytest.approx(1.5 / 4), pytest.approx(0.5 / 3)]
    layer = DeformableAttention(6, 2, 2, 2)
    with torch.no_grad():
        layer.sampling_offsets.bias.zero_()
        layer.attention_weights.bias.copy_(torch.tensor([50.0, 50, 0, 0] * 2))  # the first level alone
        layer.value_proj.weight.copy_(torch.eye(6))
        layer.output_proj.weight.copy_(torch.eye(6))
        value = normal(1, TOKENS, 6)
        found = layer(value, at, value, SIDES)
    assert torch.allclose(found[:, :12], value[:, :12], atol=1e-5)


def test_each_head_starts_in_a_direction_of_its_own() -> None:
    bias = DeformableAttention(16, 4, 1, 2).sampling_offsets.bias.view(4, 2, 2)
    assert torch.allclose(bias[:, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    assert torch.allclose(bias[:, 1], 2 * bias[:, 0])


def test_bfloat16_places_are_exact() -> None:
    layer = DeformableLayer(8, 2, 2, 2, 16)
    x, position, at = normal(1, TOKENS, 8), normal(1, TOKENS, 8, seed=1), centres(SIDES, torch.device("cpu"))
    with torch.no_grad():
        wanted = layer(x, position, at, SIDES)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x, position, at, SIDES)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.02
