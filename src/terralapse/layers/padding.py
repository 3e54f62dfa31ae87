"""Sides that a network of stride s can take."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of [..., H, W] until both sides are multiples of `multiple`.

    The caller cuts the result back to H x W. Also for images smaller than `multiple`.
    """
    down, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (down or right):
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.pad(flat, (0, right, 0, down), mode="replicate")
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])
