"""The feature pyramid: maps of several strides brought to one width, the coarse ones added to the fine ones.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; names as in OpenMMLab.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvModule(nn.Module):
    """A convolution, a norm where there is one, and a ReLU where there is one; named as in OpenMMLab.

    Args:
        norm: `batch`, `group` (32 groups), or None.
        bias: of the convolution; None gives it one where no norm follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: str | None = None,
        activation: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = norm is None if bias is None else bias
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(outputs) if norm == "batch" else None
        self.gn = nn.GroupNorm(32, outputs) if norm == "group" else None
        self.activation = activation
        gain = "relu" if activation else "linear"
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity=gain)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.gn is not None:
            x = self.gn(x)
        return F.relu(x) if self.activation else x


class FPN(nn.Module):
    """Maps of rising stride to as many of `outputs` channels, and `extra` coarser ones, each of every second
    pixel of the last."""

    def __init__(self, inputs: Sequence[int], outputs: int = 256, extra: int = 1) -> None:
        super().__init__()
        self.extra = extra
        self.lateral_convs = nn.ModuleList([ConvModule(c, outputs, 1, activation=False) for c in inputs])
        self.fpn_convs = nn.ModuleList([ConvModule(outputs, outputs, 3, activation=False) for _ in inputs])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, C_i, H_i, W_i], finest first, to [B, outputs, H_i, W_i]."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            fine = laterals[i - 1]
            laterals[i - 1] = fine + F.interpolate(laterals[i], fine.shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        for _ in range(self.extra):
            levels.append(levels[-1][..., ::2, ::2])
        return levels
