"""Sides that a network of stride s can take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of [..., H, W] until both sides are multiples of `multiple`.

    The caller cuts the result back to H x W. Also for images smaller than `multiple`. Where a graph is exported
    and its sides are symbols, it pads by as much as the image that it will get needs.
    """
    if torch.compiler.is_exporting():
        return _padded_symbol(_padded_symbol(x, -2, multiple), -1, multiple)
    down, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (down or right):
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.pad(flat, (0, right, 0, down), mode="replicate")
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])


def _padded_symbol(x: Tensor, dim: int, multiple: int) -> Tensor:
    """By indices: their number is a multiple in so many words, which later steps can build on."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # seconds, and for exports alone

    side = x.shape[dim]
    if side % multiple == 0 if isinstance(side, int) else statically_known_true(side % multiple == 0):
        return x
    last = torch.arange((side + multiple - 1) // multiple * multiple, device=x.device).clamp(max=side - 1)
    return x.index_select(dim, last)
