"""Small parts of decoders of two dates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))) with 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """1 x 1 convolution, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def interleave(before: Tensor, after: Tensor) -> Tensor:
    """[B, C, H, 2W]: even columns of the first date, odd ones of the second."""
    return (
        torch.stack([before.permute(0, 2, 3, 1), after.permute(0, 2, 3, 1)], dim=3)
        .flatten(2, 3)
        .permute(0, 3, 1, 2)
    )


def up_to(x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Bilinear, to the height and width that end `size`."""
    return F.interpolate(x, size=size[-2:], mode="bilinear", align_corners=False)
