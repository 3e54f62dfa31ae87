"""Attention over the dates of a series, pixel by pixel, with one learned query for each head.

Source: Garnot and Landrieu 2020, "Lightweight Temporal Self-Attention for Classifying Satellite Image Time
Series", in the form that U-TAE (2021) uses. Without encoding of positions: the dates are a set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Queries(nn.Module):
    """The learned queries `Q` [heads, key] and the keys of a date, from its features."""

    def __init__(self, width: int, heads: int, key: int) -> None:
        super().__init__()
        self.heads, self.key = heads, key
        self.Q = nn.Parameter(torch.empty(heads, key))
        self.fc1_k = nn.Linear(width, heads * key)
        for weight in (self.Q, self.fc1_k.weight):
            nn.init.normal_(weight, std=math.sqrt(2.0 / key))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] to scores [N, heads, T]."""
        keys = self.fc1_k(x).unflatten(2, (self.heads, self.key))
        return torch.einsum("nthk,hk->nht", keys, self.Q) / math.sqrt(self.key)


class LTAE(nn.Module):
    """One map from those of T dates, and the attention that each head paid to each date.

    The values are the features themselves, split among the heads.

    Args:
        channels: of the maps; a multiple of `heads`.
        heads, key: of the attention; `key` is the length of a query.
        width: of the features inside, a multiple of `heads`.
        norm_sees_padding: the first norm takes padded dates for dates of zeros, as the published code does:
            then the result depends on how far a series was padded.
    """

    def __init__(
        self,
        channels: int = 128,
        heads: int = 16,
        key: int = 4,
        width: int = 256,
        dropout: float = 0.2,
        attention_dropout: float = 0.1,
        norm_sees_padding: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.norm_sees_padding = heads, norm_sees_padding
        self.in_norm = nn.GroupNorm(heads, channels)
        self.inconv = nn.Conv1d(channels, width, 1)
        self.attention_heads = Queries(width, heads, key)
        self.mlp = nn.Sequential(nn.Linear(width, channels), nn.BatchNorm1d(channels), nn.ReLU())
        self.out_norm = nn.GroupNorm(heads, channels)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

    def forward(self, x: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        """The map and the attention.

        Args:
            x: [B, T, C, H, W], zero where `padded`.
            padded: bool [B, T], dates that only fill up the batch.

        Returns:
            [B, C, H, W] and [heads, B, T, H, W], which is zero at padded dates and else sums to one (before
            the dropout of training).
        """
        batch, dates, channels, height, width = x.shape
        alone = x.permute(0, 3, 4, 2, 1).reshape(-1, channels, dates)  # [N, C, T], N pixels
        blank = padded[:, None, None].expand(-1, height, width, -1).reshape(-1, dates)
        normal = self.in_norm(alone) if self.norm_sees_padding else self._normed(alone, ~blank)
        values = self.inconv(normal).transpose(1, 2)  # [N, T, width]
        scores = self.attention_heads(values).masked_fill(blank[:, None], -1e3)
        attention = self.attention_dropout(scores.softmax(dim=2))
        heads = values.unflatten(2, (self.heads, -1))
        found = torch.einsum("nht,nthc->nhc", attention, heads).flatten(1)
        found = self.out_norm(self.dropout(self.mlp(found)))
        back = found.view(batch, height, width, channels).permute(0, 3, 1, 2)
        attention = attention.view(batch, height, width, self.heads, dates).permute(3, 0, 4, 1, 2)
        return back, attention * ~padded[None, :, :, None, None]

    def _normed(self, x: Tensor, seen: Tensor) -> Tensor:
        """`in_norm` of [N, C, T] over the dates that are there alone; `seen` bool [N, T]."""
        weight = seen[:, None, None].to(x.dtype)  # [N, 1, 1, T]
        groups = x.unflatten(1, (self.heads, -1))
        count = (weight.sum(dim=3, keepdim=True) * groups.shape[2]).clamp(min=1)
        mean = (groups * weight).sum(dim=(2, 3), keepdim=True) / count
        apart = (groups - mean) * weight
        spread = apart.square().sum(dim=(2, 3), keepdim=True) / count
        normal = (apart * (spread + self.in_norm.eps).rsqrt()).flatten(1, 2)
        return normal * self.in_norm.weight[:, None] + self.in_norm.bias[:, None]
