"""Sides that a network of stride s can take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of [..., H, W] until both sides are multiples of `multiple`.

    The caller cuts the result back to H x W. Also for images smaller than `multiple`. Where a graph is
    exported and its sides are symbols, it pads by as much as the image that it will get needs.
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
    side = x.shape[dim]
    if _certain(side % multiple == 0):
        return x
    last = torch.arange((side + multiple - 1) // multiple * multiple, device=x.device).clamp(max=side - 1)
    return x.index_select(dim, last)


def cut_to(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of maps [..., H, W], as `pad_to_multiple` had them."""
    if not torch.compiler.is_exporting():
        return x[..., :height, :width]
    # A slice would be taken for the whole map, or for a part of it, as it was for the traced size.
    for dim, side in ((-2, height), (-1, width)):
        if isinstance(side, torch.SymInt) or isinstance(x.shape[dim], torch.SymInt):
            same = _certain(x.shape[dim] == side)
            x = x if same else x.index_select(dim, torch.arange(side, device=x.device))
        else:
            x = x.narrow(dim, 0, side)
    return x


def _certain(fact: bool | torch.SymBool) -> bool:
    """Whether something holds for every size that a graph is traced for."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # seconds, and for exports alone

    return statically_known_true(fact)
