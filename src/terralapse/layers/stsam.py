"""STSAM: two dates look at each other over space, and each at itself along its rows and columns.

Source: FSG-Net, arXiv:2509.06482, module STSAM as in the code that its authors published (the only part of
their network that is), whose parameters it has by name. Differs from it in: the attention is computed without
the matrix of all pairs of places where a kernel can do so; the numbers are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 8  # of the channels of queries and keys


class CrossDateAttention(nn.Module):
    """Every place of a date reads the other date: queries of date 2 read keys and values of date 1 for the
    answer of date 1, and the other way round, without the usual scale of 1 / sqrt(d).

    The learned embeddings tell the dates apart; they are in the queries, keys and values, and not in what the
    answer is added to. `gamma`, which weighs the answer, starts at 0.

    The work grows with the square of the number of places, and memory does not: the values are given to the
    attention kernel as `REDUCTION` heads that share one set of queries and keys, since kernels that keep no
    matrix of weights take values as narrow as the keys only.

    Args:
        channels: a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % REDUCTION:
            raise ValueError(f"{channels} channels are no multiple of {REDUCTION}")
        self.t_embedding1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.t_embedding2 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.query_conv = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.key_conv = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps [B, C, H, W] with what the other date adds to them."""
        dates = first + self.t_embedding1, second + self.t_embedding2
        return (
            self.gamma * self._read(dates[1], dates[0]) + first,
            self.gamma * self._read(dates[0], dates[1]) + second,
        )

    def _read(self, asks: Tensor, answers: Tensor) -> Tensor:
        """[B, C, H, W]: at each place of `asks`, the values of `answers` by the softmax over its keys."""
        value = self.value_conv(answers)
        # The kernels want the values of a place side by side.
        query, key = (
            conv(x).flatten(2).transpose(1, 2).contiguous()[:, None].expand(-1, REDUCTION, -1, -1)
            for conv, x in ((self.query_conv, asks), (self.key_conv, answers))
        )
        heads = value.flatten(2).unflatten(1, (REDUCTION, -1)).transpose(2, 3).contiguous()
        found = F.scaled_dot_product_attention(query, key, heads, scale=1.0)
        return found.transpose(2, 3).reshape(value.shape)


class CoordinateAttention(nn.Module):
    """Each row and each column of a map weighed by what its mean says: Hou et al. 2021, "Coordinate Attention
    for Efficient Mobile Network Design", with a ReLU."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        inner = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv_h = nn.Conv2d(inner, channels, 1)
        self.conv_w = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W]."""
        height = x.shape[2]
        rows, columns = x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True).transpose(2, 3)
        both = F.relu(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))
        along, across = both[:, :, :height], both[:, :, height:].transpose(2, 3)
        return x * self.conv_w(across).sigmoid() * self.conv_h(along).sigmoid()


class STSAM(nn.Module):
    """Attention between the dates beside attention to rows and columns, fused; all weights are those of both
    dates, but for their embeddings."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        self.branch1 = CrossDateAttention(channels)
        self.branch2 = CoordinateAttention(channels, reduction)
        self.fusion_conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The maps [B, C, H, W] of both dates, as wide and as large as they were."""
        crossed = self.branch1(first, second)
        one, two = (
            self.fusion_conv(torch.cat([x, self.branch2(own)], dim=1))
            for x, own in zip(crossed, (first, second), strict=True)
        )
        return one, two
