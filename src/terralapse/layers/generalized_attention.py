"""Attention by content of the query and relative position of the key, over a small map.

Source: Zhu et al., "An Empirical Study of Spatial Attention Mechanisms in Deep Networks", ICCV 2019; the
variant that they call 0100. Parameter names as in OpenMMLab.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionAttention(nn.Module):
    """gamma * proj(attention(x)) + x, with as much of the channels as the heads divide evenly.

    Args:
        channels: of the map.
        heads: of the attention.
        stride: every how many pixels there is a key.
        wave: longest wavelength of the position code is 2 pi times this many pixels.
    """

    def __init__(self, channels: int = 256, heads: int = 6, stride: int = 2, wave: float = 1000.0) -> None:
        super().__init__()
        self.heads, self.stride, self.wave, self.channels = heads, stride, wave, channels
        inner = channels // heads * heads
        self.query_conv = nn.Conv2d(channels, inner, 1, bias=False)
        self.value_conv = nn.Conv2d(channels, inner, 1, bias=False)
        self.appr_geom_fc_x = nn.Linear(channels // 2, inner, bias=False)
        self.appr_geom_fc_y = nn.Linear(channels // 2, inner, bias=False)
        self.proj_conv = nn.Conv2d(inner, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        for conv in (self.query_conv, self.value_conv, self.proj_conv):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, n, n] to the same.

        Raises:
            ValueError: the map is not square; see the comment.
        """
        height, width = x.shape[-2:]
        if height != width:
            raise ValueError(f"the map is {height} x {width}, and this attention is of square maps")
        keys = x[..., :: self.stride, :: self.stride]
        query = self.query_conv(x).unflatten(1, (self.heads, -1))  # [B, n, d, h, w]
        value = self.value_conv(keys).unflatten(1, (self.heads, -1))
        along_x = self._code(self.appr_geom_fc_x, width, keys.shape[-1], x)  # [n, w, k, d]
        along_y = self._code(self.appr_geom_fc_y, height, keys.shape[-2], x)
        energy = (
            torch.einsum("bndhw,nwkd->bnhwk", query, along_x)[..., None, :]
            # The published code pairs row h with the query at the transposed place, and weights depend on it.
            + torch.einsum("bndwh,nhkd->bnhwk", query, along_y)[..., :, None]
        )  # [B, n, h, w, keys along y, keys along x]
        attention = energy.flatten(4).softmax(dim=-1)
        y = torch.einsum("bnhwk,bndk->bndhw", attention, value.flatten(3)).flatten(1, 2)
        return self.gamma * self.proj_conv(y) + x

    def _code(self, linear: nn.Module, queries: int, keys: int, like: Tensor) -> Tensor:
        """The projected code of the distance between each query and each key, along one axis."""
        at = torch.arange(queries, device=like.device, dtype=torch.float32)
        to = torch.arange(keys, device=like.device, dtype=torch.float32) * self.stride
        quarter = self.channels // 4
        powers = torch.arange(quarter, device=like.device, dtype=torch.float32) / quarter
        angle = (at[:, None] - to)[..., None] / self.wave**powers
        code = torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)
        return (linear(code) / math.sqrt(2)).unflatten(2, (self.heads, -1)).permute(2, 0, 1, 3)
