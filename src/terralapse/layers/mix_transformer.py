"""MiT, the encoder of SegFormer: overlapping patches, attention over reduced keys, a 3 x 3 convolution in
each perceptron in place of position codes.

Source: Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers"
(arXiv:2105.15203), section 3.1 and table 6. Parameters have the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.errors import WeightsMismatchError
from terralapse.layers.drop_path import DropPath
from terralapse.layers.stem import RGB, inflate_stem
from terralapse.layers.weights import load_strict

EPS = 1e-6  # of the normalisations of blocks and stages; those of patches and keys have torch's default


@dataclass(frozen=True)
class MixSize:
    """For each of the four stages: channels, blocks, heads, and by how much the keys are reduced along each
    side; `mlp` is the width of the perceptrons in channels."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp: int = 4
    drop_path_rate: float = 0.1


B2 = MixSize((64, 128, 320, 512), (3, 4, 6, 3))  # 24,196,288 parameters


class OverlapPatches(nn.Module):
    """Patches that overlap their neighbours, as a strided convolution, normalised."""

    def __init__(self, inputs: int, dim: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, size, stride, padding=size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, H, W] to tokens [B, h w, dim] and their grid (h, w)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class ReducedAttention(nn.Module):
    """Attention of every position to the keys of a grid that is `reduction` times coarser."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, _, dim = x.shape
        keys = x
        if self.reduction > 1:
            plane = x.transpose(1, 2).reshape(batch, dim, *grid)
            keys = self.norm(self.sr(plane).flatten(2).transpose(1, 2))
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        k, v = self.kv(keys).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Depthwise(nn.Module):
    """A 3 x 3 convolution of each channel by itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.dwconv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class MixPerceptron(nn.Module):
    """Two linear maps with a depthwise convolution between them: the zeros around the image tell where a
    position is."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), _Depthwise(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), grid)))


class MixBlock(nn.Module):
    """Attention and perceptron, each normalised before and added."""

    def __init__(self, dim: int, heads: int, reduction: int, mlp: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attn, self.mlp = ReducedAttention(dim, heads, reduction), MixPerceptron(dim, mlp * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x), grid))


class MixTransformer(nn.Module):
    """Four stages at strides 4, 8, 16 and 32. Sides must be multiples of 32, so that the keys of every stage
    cover it.

    Args:
        size: widths and depths.
        bands: channels of the images.
    """

    def __init__(self, size: MixSize, bands: int = 3) -> None:
        super().__init__()
        self.dims = size.dims
        total = sum(size.depths)
        rates = [size.drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        inputs, first = bands, 0
        for stage, dim in enumerate(size.dims):
            patch, stride = (7, 4) if stage == 0 else (3, 2)
            blocks = nn.ModuleList(
                MixBlock(dim, size.heads[stage], size.reductions[stage], size.mlp, rate)
                for rate in rates[first : first + size.depths[stage]]
            )
            self.add_module(f"patch_embed{stage + 1}", OverlapPatches(inputs, dim, patch, stride))
            self.add_module(f"block{stage + 1}", blocks)
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim, EPS))
            inputs, first = dim, first + size.depths[stage]
        self.apply(_start)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features [B, dim, H / s, W / s] of images [B, bands, H, W], shallow first."""
        features = []
        for stage in range(1, 5):
            tokens, grid = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, grid)
            tokens = self.get_submodule(f"norm{stage}")(tokens)
            x = tokens.transpose(1, 2).unflatten(2, grid)
            features.append(x)
        return features


def both_dates(encoder: MixTransformer, before: Tensor, after: Tensor) -> list[list[Tensor]]:
    """The features of two dates [B, bands, H, W], from one pass over both."""
    both = [f.unflatten(0, (2, -1)) for f in encoder(torch.cat([before, after]))]
    return [[f[date] for f in both] for date in (0, 1)]


def _start(module: nn.Module) -> None:
    """Linear maps of deviation 0.02; convolutions by what they pass on, as the published code starts them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, (2.0 / fan) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def load_mix_transformer(
    encoder: MixTransformer, published: dict[str, Tensor], bands: Sequence[str] = RGB
) -> None:
    """Fills an encoder from a published one (`mit_b2.pth`), trained on ImageNet with RGB; its classifier is
    left out, and its first convolution follows `inflate_stem` for other bands.

    Raises:
        WeightsMismatchError: names or shapes are not those of this size.
    """
    tensors = {k.removeprefix("backbone."): v for k, v in published.items()}
    tensors = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    stem = "patch_embed1.proj.weight"
    if stem not in tensors:
        raise WeightsMismatchError(
            "the encoder", f"has no {stem}", "Give the weights of a MiT, such as mit_b2.pth."
        )
    tensors[stem] = inflate_stem(tensors[stem], bands)
    load_strict(encoder, tensors, "the published MiT")
