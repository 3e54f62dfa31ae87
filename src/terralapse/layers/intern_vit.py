"""InternViT: the image encoder of InternVL (Chen et al. 2024, arXiv:2312.14238), under its released names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.drop_path import DropPath


@dataclass(frozen=True)
class VitSize:
    """Widths, depth and the image that the position table was made for; the defaults are InternViT-300M."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    image: int = 448
    patch: int = 14
    qkv_bias: bool = True
    eps: float = 1e-6
    start: float = 0.1  # of the layer scale
    drop_path: float = 0.0


class Embeddings(nn.Module):
    """Patches and a class token with their places; the table is brought to the image by bicubic means."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        side = size.image // size.patch
        self.side = side
        self.class_embedding = nn.Parameter(torch.randn(1, 1, size.width))
        self.patch_embedding = nn.Conv2d(3, size.width, size.patch, size.patch)
        self.position_embedding = nn.Parameter(torch.randn(1, side * side + 1, size.width))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 1 + h w, C]."""
        patches = self.patch_embedding(images)  # [B, C, h, w]
        table = self.position_embedding[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        table = F.interpolate(table.float(), patches.shape[2:], mode="bicubic", align_corners=False)
        placed = patches + table.to(patches.dtype)
        first = (self.class_embedding + self.position_embedding[:, :1]).expand(len(images), -1, -1)
        return torch.cat([first.to(placed.dtype), placed.flatten(2).transpose(1, 2)], dim=1)


class Attention(nn.Module):
    """Of all tokens to all."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=size.qkv_bias)
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear maps."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Attention and perceptron, each scaled by channel before it is added."""

    def __init__(self, size: VitSize, drop: float) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(size), Perceptron(size.width, size.hidden)
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=size.eps) for _ in range(2))
        self.ls1, self.ls2 = (nn.Parameter(torch.full((size.width,), size.start)) for _ in range(2))
        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)) * self.ls1)
        return x + self.drop(self.mlp(self.norm2(x)) * self.ls2)


class Encoder(nn.Module):
    """The layers; there is no norm after the last one."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        drops = [size.drop_path * k / max(size.depth - 1, 1) for k in range(size.depth)]
        self.layers = nn.ModuleList(Layer(size, d) for d in drops)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class InternViT(nn.Module):
    """Images [B, 3, H, W] to tokens [B, 1 + h w, C], the class token first."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.size = size
        self.embeddings, self.encoder = Embeddings(size), Encoder(size)

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(self.embeddings(images))


def pixel_shuffle(x: Tensor, factor: int = 2, transposed: bool = False) -> Tensor:
    """[B, h, w, C] to [B, h / f, w / f, C f f]: each square of f x f places becomes one place. `transposed`
    exchanges rows and columns of the result, as version v1 of the released code does."""
    x = x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # [B, h', f, w', f, C]
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(3)
    return x.transpose(1, 2) if transposed else x


def pixel_unshuffle(x: Tensor, factor: int = 2) -> Tensor:
    """The inverse of `pixel_shuffle`, not transposed."""
    x = x.unflatten(3, (factor, factor, -1)).permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(1, 2)
