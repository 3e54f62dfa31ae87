"""Networks of one fixed size over images of any size: overlapping windows whose outputs are averaged.

The windows are those of OpenMMLab's sliding inference: they start every `stride` pixels, and the last of a
row or column is moved back to end at the border. Differs from it in: an image that is shorter than a window
is padded by repeating its last row and column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover a side of at least `window` pixels."""
    last = side - window
    return [*range(0, last, stride), last]


def pad_to_least(x: Tensor, least: int) -> Tensor:
    """Repeats the last row and column of [..., H, W] until both sides have at least `least` pixels."""
    down, right = max(0, least - x.shape[-2]), max(0, least - x.shape[-1])
    if not (down or right):
        return x
    flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (0, right, 0, down), mode="replicate")
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])


def slide(
    function: Callable[[Tensor], Sequence[Tensor]], images: Tensor, window: int, stride: int
) -> list[Tensor]:
    """What `function` says of images of any size, each pixel averaged over the windows that it lies in.

    Args:
        function: images [..., window, window] to maps [B, K_i, window, window].
        images: [..., H, W].
        window, stride: pixels; `stride` is at most `window`.

    Returns:
        One map [B, K_i, H, W] for each that `function` returns.
    """
    height, width = images.shape[-2:]
    padded = pad_to_least(images, window)
    rows, columns = (starts(side, window, stride) for side in padded.shape[-2:])
    if len(rows) == len(columns) == 1:
        return [m[..., :height, :width] for m in function(padded)]
    sums: list[Tensor] = []
    times = images.new_zeros(padded.shape[-2:], dtype=torch.float32)
    for row in rows:
        for column in columns:
            here = (..., slice(row, row + window), slice(column, column + window))
            maps = function(padded[here])
            if not sums:
                sums = [m.new_zeros(*m.shape[:-2], *padded.shape[-2:], dtype=torch.float32) for m in maps]
            for total, found in zip(sums, maps, strict=True):
                total[here] += found
            times[here] += 1
    return [(total / times)[..., :height, :width] for total in sums]
