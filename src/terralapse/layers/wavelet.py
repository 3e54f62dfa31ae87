"""The two-dimensional Haar wavelet on maps, orthonormal: nothing is lost, and energy stays.

The filters are (1, 1) / sqrt 2 and (1, -1) / sqrt 2 along each axis, with a step of two (Haar 1910; Mallat
1989). The four bands of a block of 2 x 2 pixels are a symmetric orthogonal matrix times its four values, so
that the way back is the same sum with the blocks put together again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def haar(x: Tensor) -> Tensor:
    """The bands [B, 4, C, H / 2, W / 2] of maps [B, C, H, W].

    In order: LL (twice the mean of the block), LH (upper minus lower row), HL (left minus right column), HH
    (one diagonal minus the other).

    Raises:
        ValueError: a side is odd.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"the wavelet halves a map, and {x.shape[-2]} x {x.shape[-1]} has an odd side")
    corners = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))
    return torch.stack(_butterfly(*corners.unbind(2)), dim=1)


def inverse_haar(bands: Tensor) -> Tensor:
    """The maps [B, C, 2h, 2w] whose bands [B, 4, C, h, w] these are."""
    corners = torch.stack(_butterfly(*bands.unbind(1)), dim=2)
    return F.pixel_shuffle(corners.flatten(1, 2), 2)


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LL, LH, HL, HH of the corners: a upper left, b upper right, c lower left, d lower right; and the
    corners of the bands, since the matrix is its own inverse."""
    upper, lower, left, right = a + b, c + d, a - b, c - d
    return (upper + lower) / 2, (upper - lower) / 2, (left + right) / 2, (left - right) / 2
