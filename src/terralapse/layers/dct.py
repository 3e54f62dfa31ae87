"""Channels summarised by cosine frequencies of their maps, and attention from that.

Qin et al. 2021, "FcaNet: Frequency Channel Attention Networks", ICCV. A global average is the frequency
(0, 0) of a discrete cosine transform; further ones summarise a channel by fixed filters, never learned.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

# FcaNet's frequencies on a 7 x 7 grid as "row column", in order: the best on ImageNet one by one,
# the lowest ones, and those that did worst.
_RANKED = {
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
}


def frequencies(name: str) -> list[tuple[int, int]]:
    """The (row, column) frequencies of FcaNet's lists: `top16` the first sixteen of `top`, and so on.

    Raises:
        ValueError: no such list, or more than its 32.
    """
    found = re.fullmatch(r"(top|low|bot)(\d+)", name)
    if found is None or not 1 <= int(found[2]) <= 32:
        raise ValueError(f"{name} is no list of frequencies; one is top, low or bot with a number of 1..32")
    return [(int(p[0]), int(p[1])) for p in _RANKED[found[1]].split()[: int(found[2])]]


def dct_basis(size: int) -> Tensor:
    """The orthonormal cosine basis float64 [size, size], frequency by position:
    c_u cos(pi u (i + 1/2) / size), c_0 = 1 / sqrt(size), otherwise sqrt(2 / size)."""
    u, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    scale = torch.where(u == 0, math.sqrt(1 / size), math.sqrt(2 / size))
    return scale * torch.cos(math.pi * u * (i + 0.5) / size)


def dct_filters(pairs: list[tuple[int, int]], height: int, width: int) -> Tensor:
    """float32 [n, height, width]: the product of the two bases for each pair of frequencies, which are of a
    7 x 7 grid and multiplied by size // 7 on a larger one."""
    rows, columns = dct_basis(height), dct_basis(width)
    return torch.stack(
        [torch.outer(rows[u * (height // 7)], columns[v * (width // 7)]) for u, v in pairs]
    ).float()


class DCTPool(nn.Module):
    """One number for each channel: the sum of its map, pooled to a grid, times fixed cosine filters.

    Args:
        channels: C.
        size: of the grid, at least 7 x 7; other maps are brought to it by averages.
        names: a list of `frequencies`.
        split: FcaNet's form, the channels cut into as many groups as there are frequencies, one for each;
            otherwise every channel is weighed by the mean of all of them.

    Raises:
        ValueError: `split`, and the channels cannot be cut into groups of one size.
    """

    weight: Tensor

    def __init__(
        self, channels: int, size: tuple[int, int] = (7, 7), names: str = "top16", split: bool = False
    ) -> None:
        super().__init__()
        filters = dct_filters(frequencies(names), *size)
        if split and channels % len(filters):
            raise ValueError(f"{channels} channels cannot be split among {len(filters)} frequencies")
        weight = (
            filters.repeat_interleave(channels // len(filters), dim=0) if split else filters.mean(0, True)
        )
        self.size = size
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W] to [B, C]; summed in float32."""
        with torch.autocast(x.device.type, enabled=False):
            grid = x.float() if x.shape[-2:] == self.size else pool_to(x.float(), self.size)
            return (grid * self.weight.float()).sum(dim=(2, 3)).to(x.dtype)


class MultiSpectralAttention(nn.Module):
    """FcaNet's layer: each channel of `x` [B, C, H, W] times a gate from its frequency. Names are official,
    but the filters are made, not loaded."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int] = (7, 7),
        names: str = "top16",
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.dct_layer = DCTPool(channels, size, names, split=True)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(self.dct_layer(x))[:, :, None, None]


def pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The averages of adaptive pooling of [B, C, H, W], as two products with fixed matrices: the same
    numbers, also where a graph is exported and the sides are no multiples."""
    rows, columns = (
        _averages(side, to, x) for side, to in zip((x.shape[-2], x.shape[-1]), size, strict=True)
    )
    return rows @ x @ columns.T


def _averages(side: int, to: int, like: Tensor) -> Tensor:
    """[to, side]: row i holds the mean over positions floor(i side / to) .. ceil((i + 1) side / to) - 1."""
    at, row = torch.arange(side, device=like.device), torch.arange(to, device=like.device)[:, None]
    inside = ((at >= row * side // to) & (at < -(-(row + 1) * side // to))).to(like)
    return inside / inside.sum(dim=1, keepdim=True)


def channel_kernel(channels: int) -> int:
    """The odd length of ECA-Net's convolution across channels: (log2 C + 1) / 2, rounded down, plus one
    where that is even (96: 3, 128 to 1024: 5)."""
    length = int(abs((math.log2(channels) + 1) / 2))
    return length if length % 2 else length + 1


class ChannelConv(nn.Module):
    """A convolution across the channels of a vector [B, C], without a bias (ECA-Net, Wang et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        length = channel_kernel(channels)
        self.conv = nn.Conv1d(1, 1, length, padding=length // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])[:, 0]
