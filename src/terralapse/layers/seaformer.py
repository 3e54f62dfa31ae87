"""SeaFormer: mobile bottlenecks, and attention that squeezes a map to its rows and its columns.

Source: Wan, Huang, Lu, Yu and Zhang, "SeaFormer: Squeeze-enhanced Axial Transformer for Mobile Semantic
Segmentation", ICLR 2023, arXiv:2301.13156; the encoder, with the names of its released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.drop_path import DropPath

POSITIONS = 16  # entries of a table of positions, resized to the side of the map
VALUES = 2  # channels of a value for each channel of a key


@dataclass(frozen=True)
class Stage:
    """One level: bottlenecks (kernel, expansion, channels, stride), then `depth` transformer blocks with
    `key` channels a head and hidden layers of `ratio` times the channels."""

    bottlenecks: tuple[tuple[int, int, int, int], ...]
    depth: int = 0
    key: int = 16
    ratio: int = 2


LARGE = (
    Stage(((3, 3, 32, 1), (3, 4, 64, 2), (3, 4, 64, 1))),
    Stage(((5, 4, 128, 2), (5, 4, 128, 1))),
    Stage(((3, 4, 192, 2), (3, 4, 192, 1)), 3, 16, 2),
    Stage(((5, 4, 256, 2),), 3, 20, 4),
    Stage(((3, 6, 320, 2),), 3, 24, 6),
)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation; `zero` starts the scale at zero."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        if zero:
            nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, projection, with ReLU between; the identity where shapes allow."""

    def __init__(self, inputs: int, kernel: int, expansion: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [] if expansion == 1 else [ConvNorm(inputs, hidden), nn.ReLU()]
        self.conv = nn.Sequential(
            *widen,
            ConvNorm(hidden, hidden, kernel, stride, groups=hidden),
            nn.ReLU(),
            ConvNorm(hidden, outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class Positions(nn.Module):
    """Adds learned positions along a line [B, C, N]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, channels, POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.pos_embed, size=x.shape[-1], mode="linear", align_corners=False)


class SqueezeAttention(nn.Module):
    """Attention among the rows and among the columns of a map [B, C, H, W], each averaged to one token,
    which gates the detail that a depthwise convolution finds."""

    def __init__(self, width: int, heads: int, key: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, key**-0.5
        keys, values = heads * key, heads * key * VALUES
        self.to_q, self.to_k = ConvNorm(width, keys), ConvNorm(width, keys)
        self.to_v = ConvNorm(width, values)
        self.proj = nn.Sequential(nn.ReLU6(), ConvNorm(values, width, zero=True))
        for line in ("row", "column"):
            self.add_module(
                f"proj_encode_{line}", nn.Sequential(nn.ReLU6(), ConvNorm(values, values, zero=True))
            )
            self.add_module(f"pos_emb_{line}q", Positions(keys))
            self.add_module(f"pos_emb_{line}k", Positions(keys))
        both = 2 * keys + values
        self.dwconv = ConvNorm(both, both, 3, groups=both)
        self.pwconv = ConvNorm(both, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        detail = self.pwconv(F.relu6(self.dwconv(torch.cat([q, k, v], dim=1))))
        rows = self._along("row", q.mean(dim=3), k.mean(dim=3), v.mean(dim=3))
        columns = self._along("column", q.mean(dim=2), k.mean(dim=2), v.mean(dim=2))
        return F.hardsigmoid(self.proj(v + rows[..., None] + columns[..., None, :])) * detail

    def _along(self, line: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, values, N] of tokens [B, channels, N]."""
        q = self.get_submodule(f"pos_emb_{line}q")(q).unflatten(1, (self.heads, -1))
        k = self.get_submodule(f"pos_emb_{line}k")(k).unflatten(1, (self.heads, -1))
        weights = (q.transpose(2, 3) @ k * self.scale).softmax(dim=-1)  # [B, heads, N, N]
        found = (v.unflatten(1, (self.heads, -1)) @ weights.transpose(2, 3)).flatten(1, 2)
        return self.get_submodule(f"proj_encode_{line}")(found[..., None]).squeeze(3)


class ConvMLP(nn.Module):
    """Two 1 x 1 convolutions with a depthwise one and ReLU6 between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = ConvNorm(width, hidden), ConvNorm(hidden, width)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Squeeze-enhanced attention and the MLP, each with a residual."""

    def __init__(self, width: int, heads: int, key: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.attn, self.mlp = SqueezeAttention(width, heads, key), ConvMLP(width, width * ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(x))


class Blocks(nn.Module):
    """The transformer blocks of a stage, whose stochastic depth grows from 0 to `drop_path`."""

    def __init__(self, width: int, heads: int, stage: Stage, drop_path: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, stage.depth, device="cpu").tolist()
        self.transformer_blocks = nn.ModuleList(
            Block(width, heads, stage.key, stage.ratio, rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            x = block(x)
        return x


class SeaFormer(nn.Module):
    """A pyramid of maps at strides 4, 8, 16 and so on, one for each stage.

    Args:
        stages: what is at each level; the first one follows a strided 3 x 3 convolution to `stem` channels.
        bands: channels of the images.
    """

    def __init__(
        self, stages: Sequence[Stage], stem: int = 32, heads: int = 8, drop_path: float = 0.1, bands: int = 3
    ) -> None:
        super().__init__()
        self.depths = [stage.depth for stage in stages]
        width = stem
        for i, stage in enumerate(stages, start=1):
            level = nn.Module()
            if i == 1:
                level.stem_block = nn.Sequential(ConvNorm(bands, stem, 3, 2), nn.ReLU())
            for j, (kernel, expansion, outputs, stride) in enumerate(stage.bottlenecks, start=1):
                level.add_module(f"layer{j}", Bottleneck(width, kernel, expansion, outputs, stride))
                width = outputs
            self.add_module(f"smb{i}", level)
            if stage.depth:
                self.add_module(f"trans{self._turn(i)}", Blocks(width, heads, stage, drop_path))

    def _turn(self, i: int) -> int:
        """How many of the first `i` stages have transformer blocks."""
        return sum(depth > 0 for depth in self.depths[:i])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps [B, C, H / s, W / s] from images [B, bands, H, W]."""
        maps = []
        for i, depth in enumerate(self.depths, start=1):
            for part in self.get_submodule(f"smb{i}").children():
                x = part(x)
            if depth:
                x = self.get_submodule(f"trans{self._turn(i)}")(x)
            maps.append(x)
        return maps
