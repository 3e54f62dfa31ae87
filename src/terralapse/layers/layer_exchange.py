"""How LENet lets two dates meet: weights from their difference, exchanged layers, and crossed decoders.

Source: dyzy41/lenet (IEEE JSTARS 2025, doi:10.1109/JSTARS.2025.3576831); parameters are named as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.decoding import ResBlock
from terralapse.layers.fpn import ConvModule

SMALLEST = 1e-16  # of the product of two squared norms: where nothing is there the cosine is 0


def difference_weights(before: Tensor, after: Tensor) -> Tensor:
    """How much two maps [B, C, H, W] differ: per pixel times per channel, as broad as the maps.

    Each factor is 1 - sigmoid(cosine), from 0.269 where the dates agree to 0.731 where they oppose; over the
    channels of a pixel for the one, over the pixels of a channel for the other. In float32.
    """
    first, second = before.float(), after.float()
    products = first * second, first * first, second * second

    def cosine(dims: tuple[int, ...]) -> Tensor:
        inner, one, other = (p.sum(dim=dims, keepdim=True) for p in products)
        return inner * (one * other).clamp(min=SMALLEST).rsqrt()

    return torch.sigmoid(-cosine((1,))) * torch.sigmoid(-cosine((2, 3)))


class DifferenceWeighting(nn.Module):
    """Channel-spatial difference weighting: each date gets what a block of its own makes of it where the two
    differ, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convA, self.convB = ResBlock(width), ResBlock(width)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        weight = difference_weights(before, after).to(before.dtype)
        return before + self.convA(before * weight), after + self.convB(after * weight)


def exchange(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Two pyramids with every second level, from the finest on, in the place of the other's; its own
    inverse."""
    pairs = [(b, a) if level % 2 else (a, b) for level, (b, a) in enumerate(zip(before, after, strict=True))]
    return [p[0] for p in pairs], [p[1] for p in pairs]


class GatedFusion(nn.Module):
    """Two maps stacked to 2C channels, each channel weighed by what all say on average, and brought to C
    channels of 0 to 1 by a hard sigmoid, as published."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        both = 2 * width
        self.conv1 = ConvModule(both, max(1, both // reduction), 1)
        self.conv2 = ConvModule(max(1, both // reduction), both, 1, activation=False)
        self.conv3 = ConvModule(both, width, 1, norm="batch", activation=False, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.conv2(self.conv1(x.mean(dim=(2, 3), keepdim=True))))
        return F.hardsigmoid(self.conv3(x * gate))
