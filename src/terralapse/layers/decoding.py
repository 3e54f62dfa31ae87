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


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; the size of the image stays."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


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


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of `like`, with the corners aligned; as it is where it has them."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)
