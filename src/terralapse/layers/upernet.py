"""UPerNet and the plain convolutional head, for segmentation on a pyramid of maps.

Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018; names as in OpenMMLab.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.fpn import ConvModule
from terralapse.layers.grid_means import GridMeans


def _to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


class PoolAndConv(nn.Sequential):
    """Means over a grid of `bins` x `bins`, and a convolution of one pixel."""

    def __init__(self, inputs: int, channels: int, bins: int) -> None:
        super().__init__(GridMeans(bins), ConvModule(inputs, channels, 1, "batch"))


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid, and all levels joined at the finest.

    Args:
        inputs: channels of the maps, finest first.
        classes: of the logits.
        channels: inside.
        bins: grids of the pyramid pooling.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        classes: int,
        channels: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList([PoolAndConv(inputs[-1], channels, b) for b in bins])
        self.bottleneck = ConvModule(inputs[-1] + len(bins) * channels, channels, 3, "batch")
        self.lateral_convs = nn.ModuleList([ConvModule(c, channels, 1, "batch") for c in inputs[:-1]])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3, "batch") for _ in inputs[:-1]])
        self.fpn_bottleneck = ConvModule(len(inputs) * channels, channels, 3, "batch")
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, C_i, H_i, W_i] to logits [B, K, H_0, W_0]."""
        last = maps[-1]
        pooled = [_to(pool(last), last) for pool in self.psp_modules]
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + _to(levels[i], levels[i - 1])
        fine = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        fine.append(levels[-1])
        joined = self.fpn_bottleneck(torch.cat([_to(x, fine[0]) for x in fine], dim=1))
        return self.conv_seg(self.dropout(joined))


class FCNHead(nn.Module):
    """One convolution and the classes."""

    def __init__(self, inputs: int, classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inputs, channels, 3, "batch"))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, K, H, W]."""
        return self.conv_seg(self.dropout(self.convs(x)))
