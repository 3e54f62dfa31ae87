"""A mask of what changed from the tokens of two dates: the side branch of DeltaVLM's released code.

Source: `ChangeMaskDecoder` of hanlinwu/DeltaVLM, whose names the parameters have; it follows the feature
unification of AnyUp. It takes features of any number of channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 5
WINDOW = 7
HEADS = 4
LEAST = 32  # channels of a stage


class FeatureUnification(nn.Module):
    """Maps [B, C, h, w] of any C to [B, F, h, w]: each channel is filtered with F learned kernels, and these
    compete at every place; the mean over the channels.

    Quirk of the released code: the filtered maps come channel by channel, and are read as if they came
    filter by filter, so that it is mixtures of both that compete. Weights that were trained so need it.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(filters, 1, KERNEL, KERNEL))
        nn.init.kaiming_normal_(self.basis, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        filters, channels, around = len(self.basis), x.shape[1], KERNEL // 2
        padded = F.pad(x, (around,) * 4, mode="reflect")
        found = F.conv2d(padded, self.basis.repeat(channels, 1, 1, 1), groups=channels)
        inside = F.pad(x.new_ones(1, 1, *x.shape[2:]), (around,) * 4)
        found = found / F.conv2d(inside, x.new_ones(1, 1, KERNEL, KERNEL))  # pixels of the map under a kernel
        return found.view(len(x), filters, channels, *x.shape[2:]).softmax(dim=1).mean(dim=2)


class Residual(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)

        self.block = nn.Sequential(_norm(width), nn.SiLU(), conv(), _norm(width), nn.SiLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class WindowAttention(nn.Module):
    """Attention within windows of 7 x 7 of a map [B, H, W, C], with a bias for each relative place; the map
    is filled up with zeros, which are attended to like all others."""

    index: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rpb = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.rpb, std=0.02)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        row, column = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        place = torch.stack([row.flatten(), column.flatten()])
        apart = place[:, :, None] - place[:, None] + WINDOW - 1  # [2, 49, 49]
        self.register_buffer("index", apart[0] * (2 * WINDOW - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        cut = x.unflatten(1, (rows, WINDOW)).unflatten(3, (columns, WINDOW)).permute(0, 1, 3, 2, 4, 5)
        cut = cut.flatten(3, 4).flatten(0, 2)  # [windows, 49, C]
        q, k, v = self.qkv(cut).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        bias = self.rpb[self.index].permute(2, 0, 1)[None]
        found = self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        found = found.unflatten(0, (len(x), rows, columns)).unflatten(3, (WINDOW, WINDOW))
        return found.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)[:, :height, :width]


class Stage(nn.Module):
    """Twice the side, and with `attends` the attention within windows."""

    def __init__(self, inputs: int, width: int, attends: bool) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(inputs, width, 4, 2, 1), _norm(width), nn.SiLU())
        self.ref = Residual(width)
        self.attn = WindowAttention(width) if attends else None
        self.norm = nn.LayerNorm(width) if attends else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.ref(self.up(x))
        if self.attn is not None and self.norm is not None:
            x = x + self.attn(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x


class ChangeMaskDecoder(nn.Module):
    """Tokens of differences, or of both dates, to the probability of change.

    Args:
        hidden: filters of the unification, and channels after it.
        side: of the mask, in pixels.
        stages: that each double the side.
        attends: whether all stages but the last attend within windows.
    """

    def __init__(self, hidden: int = 128, side: int = 256, stages: int = 4, attends: bool = True) -> None:
        super().__init__()
        self.side = side
        self.lfu = FeatureUnification(hidden)
        self.proj = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.GroupNorm(8, hidden), nn.SiLU(), Residual(hidden)
        )
        widths = [hidden, *(max(hidden // 2 ** (i + 1), LEAST) for i in range(stages))]
        self.stages = nn.ModuleList(
            Stage(widths[i], widths[i + 1], attends and i < stages - 1) for i in range(stages)
        )
        last = widths[-1]
        self.head = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1), _norm(last), nn.SiLU(), nn.Conv2d(last, 1, 1)
        )

    @staticmethod
    def maps(tokens: Tensor) -> Tensor:
        """Tokens [B, N, C] as maps of differences [B, C, h, w].

        N is that of one square map, with a class token before it or without; or twice one with a class token:
        both dates, of which the earlier is taken from the later.

        Raises:
            ValueError: N is none of these.
        """
        number = tokens.shape[1]
        half = math.isqrt(max(number // 2 - 1, 0))
        if number % 2 == 0 and half > 1 and number == 2 * (half**2 + 1):
            before, after = tokens.chunk(2, dim=1)
            tokens = (after - before)[:, 1:]
        elif math.isqrt(number) ** 2 != number:
            tokens = tokens[:, 1:]
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1]:
            raise ValueError(f"{number} tokens are no square map")
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-odds of change [B, 1, side, side] for tokens [B, N, C] as `maps` takes them."""
        x = self.proj(self.lfu(self.maps(tokens)))
        for stage in self.stages:
            x = stage(x)
        return F.interpolate(self.head(x), (self.side, self.side), mode="bilinear", align_corners=False)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(8, width), width)
