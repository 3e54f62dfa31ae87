"""Attention that looks at a few learned places of several maps, and an encoder layer of it.

Source: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021,
arXiv:2010.04159, section 4.1; with the names of parameters of its released code. The samples are taken by
bilinear interpolation with zeros outside, by `grid_sample`: no kernel of its own is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Side = tuple[int, int]  # height and width of a map


def sample_levels(value: Tensor, sides: Sequence[Side], places: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the values at some places of each level.

    Args:
        value: [B, S, heads, D], the maps one after the other, each row by row; S is the sum of h x w.
        sides: height and width of each map.
        places: [B, N, heads, levels, points, 2], x and y in 0..1 of the whole map.
        weights: [B, N, heads, levels, points].

    Returns:
        [B, N, heads x D], in the type of `value`; computed in float32.
    """
    batch, _, heads, _ = value.shape
    grid = (2 * places.float() - 1).transpose(1, 2).flatten(0, 1)  # [B x heads, N, levels, points, 2]
    share = weights.float().transpose(1, 2).flatten(0, 1)[:, None]  # [B x heads, 1, N, levels, points]
    total = None
    for level, (plane, (height, width)) in enumerate(
        zip(value.float().split([h * w for h, w in sides], dim=1), sides, strict=True)
    ):
        image = plane.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        found = F.grid_sample(image, grid[:, :, level], align_corners=False)  # [B x heads, D, N, points]
        part = (found * share[:, :, :, level]).sum(dim=-1)
        total = part if total is None else total + part
    assert total is not None
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


class DeformableAttention(nn.Module):
    """Each token looks at `points` places of each of `levels` maps, in each head."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At the start each head looks in a direction of its own, 1, 2, ... pixels away."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        way = torch.stack([angle.cos(), angle.sin()], dim=-1)
        way = way / way.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        start = way[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(start.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, query: Tensor, places: Tensor, value: Tensor, sides: Sequence[Side]) -> Tensor:
        """[B, N, C].

        Args:
            query: [B, N, C], what decides where to look.
            places: [N, 2], x and y of each token in 0..1; offsets are in pixels of the map looked at.
            value: [B, S, C], the maps (see `sample_levels`).
            sides: height and width of each of them.
        """
        inner = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).float().unflatten(2, (*inner, 2))
        # A tensor made of the sides would fix them in an exported graph.
        one = torch.ones(1, device=query.device)
        pixel = torch.stack([torch.cat([one / w, one / h]) for h, w in sides])  # [levels, 2]
        at = places[None, :, None, None, None] + offsets * pixel[:, None]
        weights = self.attention_weights(query).unflatten(2, (self.heads, -1)).softmax(dim=-1)
        values = self.value_proj(value).unflatten(2, (self.heads, -1))
        return self.output_proj(sample_levels(values, sides, at, weights.unflatten(3, inner[1:])))


class DeformableLayer(nn.Module):
    """Deformable attention of the maps to themselves and an MLP, normalised after each residual."""

    def __init__(self, width: int, heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, levels, points)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, position: Tensor, places: Tensor, sides: Sequence[Side]) -> Tensor:
        """`x` and `position` [B, S, C], `places` [S, 2]."""
        x = self.norm1(x + self.self_attn(x + position, places, x, sides))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


def centres(sides: Sequence[Side], device: torch.device) -> Tensor:
    """x and y in 0..1 of the centre of every pixel of the maps, [S, 2] in their order."""
    found = []
    for height, width in sides:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        both = x[None].expand(height, width), y[:, None].expand(height, width)
        found.append(torch.stack(both, dim=-1).flatten(0, 1))
    return torch.cat(found)
