"""Dropout of whole squares of a map, which its neighbours cannot make up for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropBlock(nn.Module):
    """Sets squares of `size` x `size` places of all channels to zero and scales the others so that the mean
    stays; the identity in evaluation.

    Ghiasi, Lin and Le 2018, "DropBlock: A regularization method for convolutional networks". The share that
    is dropped rises from 0 to `rate` over the first `steps` passes in training, which `passes` counts.

    Args:
        rate: the share in [0, 1).
        size: odd.
    """

    passes: Tensor

    def __init__(self, rate: float = 0.15, size: int = 7, steps: int = 30) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0 or size % 2 == 0 or steps < 1:
            raise ValueError(f"no DropBlock of rate {rate}, size {size} and {steps} steps")
        self.rate, self.size, self.steps = rate, size, steps
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W]."""
        if not self.training or self.rate == 0.0:
            return x
        rate = self.rate * (self.passes / self.steps).clamp(max=1.0)
        self.passes += 1
        seeds = torch.rand(len(x), 1, *x.shape[2:], device=x.device) < rate / self.size**2
        dropped = F.max_pool2d(seeds.float(), self.size, stride=1, padding=self.size // 2)
        kept = 1.0 - dropped
        return x * (kept / kept.mean().clamp(min=1e-6)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, size={self.size}, steps={self.steps}"
