"""EVA-CLIP's plain vision transformer, as BLIP-2 and its kin use it: all tokens, and no norm after the last
block.

Source: Sun et al., "EVA-CLIP: Improved Training Techniques for CLIP at Scale", arXiv:2303.15389, and the
vision transformer of LAVIS, whose names the parameters have. The class token comes first, positions are a
table for images of one size, and the keys have no bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class EvaSize:
    """`side` of the images and of a `patch` in pixels; the width of tokens and of the perceptrons."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int

    @property
    def tokens(self) -> int:
        """Of an image, with the class token."""
        return (self.side // self.patch) ** 2 + 1


EVA_G = EvaSize(224, 14, 1408, 39, 16, 6144)  # ViT-g/14 without its 40th block, as BLIP-2 takes it


class EvaAttention(nn.Module):
    """Self-attention with biases of queries and values alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EvaMlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EvaBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, size: EvaSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = EvaAttention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = EvaMlp(size.width, size.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """Images [B, 3, H, W] to [B, N, D], row by row."""

    def __init__(self, size: EvaSize) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch, stride=size.patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class EvaVit(nn.Module):
    """The whole encoder: normalised images [B, 3, side, side] to all tokens [B, 1 + N, D], class token first.

    `checkpointing` computes blocks again in the backward pass instead of keeping what they hold.

    Raises:
        ValueError: `side` is no multiple of `patch`, or `width` none of `heads`.
    """

    def __init__(self, size: EvaSize) -> None:
        super().__init__()
        if size.side % size.patch or size.width % size.heads:
            raise ValueError(f"{size} does not divide")
        self.size, self.checkpointing = size, False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, size.tokens, size.width))
        self.patch_embed = Patches(size)
        self.blocks = nn.ModuleList(EvaBlock(size) for _ in range(size.depth))
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x  # pyright: ignore[reportReturnType]
