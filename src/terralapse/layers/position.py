"""Learned position tables of square token grids."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def resize_position(table: Tensor, height: int, width: int) -> Tensor:
    """A table [1, n * n, C] of a square grid for a grid of height x width, bicubically (corners not aligned);
    the very same numbers where the grid is the same.

    Raises:
        ValueError: the length of the table is no square.
    """
    length, channels = table.shape[1:]
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"a table of {length} positions is not of a square grid")
    if (height, width) == (side, side):
        return table
    grid = table.float().view(1, side, side, channels).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, height * width, channels).to(table.dtype)
