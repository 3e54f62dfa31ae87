"""The inverted bottleneck of the EfficientNet-Lite family, and the convolutions around it.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", section 3; in the variant of
EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation, ReLU6 in place of swish), which makes it
strictly local: no pooling over the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.folding import folded, inferring
from terralapse.layers.strips import in_strips, strip_rows

BN_EPS = 1e-3  # of the published ImageNet weights


class ConvBN(nn.Module):
    """Convolution, batch normalisation, and ReLU6 unless `act` is False.

    In inference one convolution does the first two and the third is done in place: these are the largest
    features of a network, and how many of them are alive at once decides how large a tile fits in memory.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BN_EPS)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if inferring(self):
            c = self.conv
            weight, bias = folded(c.weight, self.bn)
            x = F.conv2d(x, weight, bias, c.stride, c.padding, c.dilation, c.groups)
            return F.relu6(x, inplace=True) if self.act else x
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
        if inferring(self):
            # Image by image and in strips: the expanded features are by far the largest.
            conv = self.depthwise.conv
            reach, stride = conv.kernel_size[0] // 2, conv.stride[0]
            rows = strip_rows(conv.in_channels * x.shape[-1] * stride * x.element_size())
            masks = [None] * len(x) if inside is None else inside.split(1)
            y = torch.cat(
                [
                    in_strips(self._bottleneck, one, rows, reach=reach, stride=stride)
                    for one in zip(x.split(1), masks, strict=True)
                ]
            )
            return y.add_(x) if self.residual else y
        y = self.project(self.depthwise(within(self.expand(x), inside)))
        return x + y if self.residual else y

    def _bottleneck(self, x: Tensor, inside: Tensor | None) -> Tensor:
        wide = self.expand(x)
        return self.project(self.depthwise(within(wide, inside, in_place=wide is not x)))


def within(x: Tensor, inside: Tensor | None, *, in_place: bool = False) -> Tensor:
    """Features with zeros where `inside` is zero: what a padded convolution has beyond its edge.

    Before every spatial convolution this makes the edge of the data, wherever it runs, the same as the edge
    of the image: a tile that was padded gives what the bare tile gives. None stands for no edge at all.
    `in_place` is for features that nobody else has and that need no gradient.
    """
    if inside is None:
        return x
    mask = inside.to(x.dtype)  # a mask of floats would make half precision whole
    return x.mul_(mask) if in_place else x * mask
