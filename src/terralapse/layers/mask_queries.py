"""Queries that each predict a class and a mask: masked attention to a pyramid, layer by layer.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022,
arXiv:2112.01527, section 3.2; with the axial attention of Wang et al., "Anchor DETR", AAAI 2022,
arXiv:2109.07107, section 3.4, at the finest level, gated by the scene as CDMaskFormer (arXiv:2406.15320) has
it. Names of parameters are those of the latter's released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = 4  # levels of the pyramid, of which the last and finest one is attended to along its axes
BLOCKED = 0.15  # a pixel whose probability of being in the mask is below this is not attended to
PERIOD = 10_000.0  # of the slowest wave in the code of a position, in units of 2 pi


def projections(width: int, count: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of `count` linear maps that are stored as one."""
    weight = nn.Parameter(torch.empty(count * width, width))
    nn.init.xavier_uniform_(weight)
    return weight, nn.Parameter(torch.zeros(count * width))


class Attention(nn.Module):
    """Softmax attention with several heads, by the names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = projections(width, 3)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, Q, C] from query [B, Q, C], key and value [B, N, C]; `seen` bool [B, Q, N], in all heads."""
        q, k, v = (
            F.linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip(
                (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        )
        mask = None if seen is None else seen[:, None]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class SelfLayer(nn.Module):
    """Queries attend to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.norm = Attention(width, heads), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        return self.norm(x + self.self_attn(x + position, x + position, x))


class CrossLayer(nn.Module):
    """Queries attend to the pixels that they see."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn, self.norm = Attention(width, heads), nn.LayerNorm(width)

    def forward(self, x: Tensor, own: Tensor, memory: Tensor, position: Tensor, seen: Tensor) -> Tensor:
        """`own` [Q, C] are the positions of the queries, `memory` and `position` [B, C, h, w]."""
        pixels, place = (m.flatten(2).transpose(1, 2) for m in (memory, position))
        return self.norm(x + self.multihead_attn(x + own, pixels + place, pixels, seen))


class FeedForward(nn.Module):
    """An MLP with a residual, normalised after it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class AxialAttention(nn.Module):
    """Attention to a map whose weights are those of a column of rows times those of a row of columns."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = projections(width, 5)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)
        self.lin = nn.Linear(width, width)

    def weights(self, along: Tensor, down: Tensor, memory: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Over the W columns [B, heads, Q, W] and over the H rows [B, heads, Q, H] of the map."""
        weight, bias = self.in_proj_weight.chunk(5), self.in_proj_bias.chunk(5)
        keys = memory + position
        gate = torch.sigmoid(self.lin(memory.mean(dim=(2, 3))))[:, None]
        # A linear map of a mean is the mean of the linear map, and cheaper.
        row = F.linear(keys.mean(dim=2).transpose(1, 2), weight[2], bias[2]) * gate
        column = F.linear(keys.mean(dim=3).transpose(1, 2), weight[3], bias[3]) * gate
        found = []
        for i, (query, key) in enumerate(((along, row), (down, column))):
            q = F.linear(query, weight[i], bias[i]).unflatten(2, (self.heads, -1)).transpose(1, 2)
            k = key.unflatten(2, (self.heads, -1)).transpose(1, 2)
            found.append((q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1))
        return found[0], found[1]

    def forward(self, along: Tensor, down: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """[B, Q, C].

        Args:
            along, down: queries [B, Q, C] with the code of their x and of their y.
            memory, position: the map and its positions [B, C, H, W].
        """
        columns, rows = self.weights(along, down, memory, position)
        weight, bias = self.in_proj_weight.chunk(5)[4], self.in_proj_bias.chunk(5)[4]
        value = F.linear(memory.permute(0, 2, 3, 1), weight, bias).unflatten(3, (self.heads, -1))
        value = value.permute(0, 3, 1, 2, 4)  # [B, heads, H, W, D]
        size = value.shape[2:]
        down_first = (rows @ value.flatten(3)).unflatten(3, size[1:])  # [B, heads, Q, W, D]
        found = (columns[..., None, :] @ down_first).squeeze(3)  # [B, heads, Q, D]
        return self.out_proj(found.transpose(1, 2).flatten(2))


class AxialLayer(nn.Module):
    """Axial attention of the queries, each of which has a point as its position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn, self.norm = AxialAttention(width, heads), nn.LayerNorm(width)
        self.adapt_pos1d = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, points: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """`points` [Q, 2], x and y."""
        code = self.adapt_pos1d(waves(points, x.shape[-1]).to(x.dtype))  # [Q, 2, C]
        return self.norm(x + self.multihead_attn(x + code[:, 0], x + code[:, 1], memory, position))


def waves(at: Tensor, width: int) -> Tensor:
    """[..., width] of a number: sines and cosines in turn, of wavelengths from 1 to `PERIOD`."""
    pair = torch.arange(width // 2, device=at.device) * (2 / width)
    angle = 2 * math.pi * at.float()[..., None] / PERIOD**pair
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class MaskHead(nn.Module):
    """Three linear maps with ReLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(F.relu(second(F.relu(first(x)))))


class MaskQueries(nn.Module):
    """The decoder: `depth` layers of attention to a pyramid, to each other, and an MLP.

    Args:
        classes: with the class 0, which is no object.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, queries: int, classes: int = 2
    ) -> None:
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(
            (AxialLayer if i % SCALES == SCALES - 1 else CrossLayer)(width, heads) for i in range(depth)
        )
        self.transformer_self_attention_layers = nn.ModuleList(SelfLayer(width, heads) for _ in range(depth))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(width, hidden) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat, self.query_embed = nn.Embedding(queries, width), nn.Embedding(queries, width)
        self.query_pos_embed = nn.Embedding(queries, 2)
        nn.init.uniform_(self.query_pos_embed.weight)  # anywhere in the image, as anchors of Anchor DETR
        self.level_embed = nn.Embedding(SCALES, width)
        self.class_embed = nn.Linear(width, classes)
        # At the start each query is nothing with about nine tenths: the sum over queries is below one.
        nn.init.zeros_(self.class_embed.bias)
        nn.init.constant_(self.class_embed.bias[:1], math.log(9 * (classes - 1)))
        self.mask_embed = MaskHead(width)

    def forward(
        self, pyramid: Sequence[Tensor], positions: Sequence[Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of classes [P, B, Q, classes] and of masks [P, B, Q, h, w], of the queries as they start
        and after each layer: P is one more than the depth, and the last are the result.

        Args:
            pyramid, positions: maps [B, C, ., .] from coarse to fine, and the positions of their pixels.
            features: [B, C, h, w], of which the masks are made.
        """
        levels = [m + self.level_embed.weight[i][:, None, None] for i, m in enumerate(pyramid)]
        own = self.query_embed.weight
        x = self.query_feat.weight.expand(features.shape[0], -1, -1)
        logits, masks = [], []
        for i, (cross, among, mlp) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            said, mask = self.predict(x, features)
            logits.append(said)
            masks.append(mask)
            level, position = levels[i % SCALES], positions[i % SCALES]
            if isinstance(cross, AxialLayer):
                x = cross(x, self.query_pos_embed.weight, level, position)
            else:
                x = cross(x, own, level, position, seen(mask, level.shape[-2:]))
            x = mlp(among(x, own))
        said, mask = self.predict(x, features)
        return torch.stack([*logits, said]), torch.stack([*masks, mask])

    def predict(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes [B, Q, classes] and of masks [B, Q, h, w] of queries [B, Q, C]."""
        x = self.decoder_norm(x)
        return self.class_embed(x), torch.einsum("bqc,bchw->bqhw", self.mask_embed(x), features)


def seen(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Which pixels of a map a query attends to, bool [B, Q, h x w], from its mask [B, Q, H, W]: those that
    may be in it, or all where none may."""
    logits = F.interpolate(mask.detach().float(), size=tuple(size), mode="bilinear", align_corners=False)
    inside = logits.flatten(2).sigmoid() >= BLOCKED
    return inside | ~inside.any(dim=-1, keepdim=True)
