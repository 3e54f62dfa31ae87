"""Means over the cells of a grid that is laid over a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid_means(x: Tensor, cells: int) -> Tensor:
    """[B, C, cells, cells] of [B, C, H, W]: cell i of a side of n pixels goes from floor(i n / cells) up to
    ceil((i + 1) n / cells), as in `F.adaptive_avg_pool2d`.

    Where a graph is exported for any size they are written as products with the shares of the pixels: torch's
    own operation would be fixed to the size that the graph is traced with.
    """
    if not torch.compiler.is_exporting() or all(isinstance(side, int) for side in x.shape[-2:]):
        return F.adaptive_avg_pool2d(x, cells)
    rows, columns = (_shares(side, cells, x) for side in x.shape[-2:])
    return rows @ x @ columns.t()


def _shares(side: int, cells: int, like: Tensor) -> Tensor:
    """[cells, side], what each pixel counts in the mean of each cell."""
    number = torch.arange(cells, device=like.device)[:, None]
    first, last = number * side // cells, ((number + 1) * side + cells - 1) // cells
    place = torch.arange(side, device=like.device)
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / (last - first)


class GridMeans(nn.Module):
    """`grid_means` as a module."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        return grid_means(x, self.cells)
