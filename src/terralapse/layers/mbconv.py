"""The inverted bottleneck of the EfficientNet-Lite family, and the convolutions around it.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", section 3; in the variant of
EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation, ReLU6 in place of swish), which makes it
strictly local: no pooling over the image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS = 1e-3  # of the published ImageNet weights


class ConvBN(nn.Module):
    """Convolution, batch normalisation, and ReLU6 unless `act` is False."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BN_EPS)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.act else x


class InvertedResidual(nn.Module):
    """1x1 expansion, k x k depthwise convolution, linear 1x1 projection; the identity where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvBN(inputs, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = ConvBN(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvBN(hidden, outputs, act=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """`inside` [B, 1, H, W], zero beyond the edge of the data (see `within`)."""
        y = self.project(self.depthwise(within(self.expand(x), inside)))
        return x + y if self.residual else y


def within(x: Tensor, inside: Tensor | None) -> Tensor:
    """Features with zeros where `inside` is zero: what a padded convolution has beyond its edge.

    Before every spatial convolution this makes the edge of the data, wherever it runs, the same as the edge
    of the image: a tile that was padded gives what the bare tile gives. None stands for no edge at all.
    """
    return x if inside is None else x * inside.to(x.dtype)  # a mask of floats would make half precision whole
