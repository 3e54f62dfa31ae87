"""Atrous spatial pyramid pooling: one map seen with several reaches at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.fpn import ConvModule


class ASPP(nn.Module):
    """A 1 x 1 convolution, dilated 3 x 3 ones and the mean of the map, side by side, then brought together.

    Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation". The branch of the mean
    has a bias and no normalisation: it has one place, which a batch of one pair could not be normalised over.
    """

    def __init__(self, inputs: int, outputs: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.point = ConvModule(inputs, width, 1, norm="batch")
        self.dilated = nn.ModuleList(_dilated(inputs, width, rate) for rate in rates)
        self.mean = nn.Conv2d(inputs, width, 1)
        self.project = ConvModule(width * (len(rates) + 2), outputs, 1, norm="batch")

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, H, W] from [B, inputs, H, W]."""
        whole = F.relu(self.mean(x.mean(dim=(2, 3), keepdim=True)))
        branches = [self.point(x), *(conv(x) for conv in self.dilated), whole.expand(-1, -1, *x.shape[2:])]
        return self.project(torch.cat(branches, dim=1))


def _dilated(inputs: int, outputs: int, rate: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
