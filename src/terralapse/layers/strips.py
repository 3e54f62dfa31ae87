"""Layers computed in strips of rows, so that what they hold on the way stays small.

The features between the layers of a block are by far the largest of a network. In strips they fit into the
cache of the processor, which is faster, and a tile of a scene can be larger in the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

STRIP_BYTES = 16 << 20  # of the widest features of a strip: they stay in the cache that cores share
LEAST_ROWS = 8  # of output: fewer would compute the rows beyond a strip too often


def strip_rows(row_bytes: int) -> int:
    """Rows of output in a strip whose widest features take `row_bytes` for each of them."""
    return max(LEAST_ROWS, STRIP_BYTES // max(1, row_bytes) // LEAST_ROWS * LEAST_ROWS)


def in_strips(
    run: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], rows: int, *, reach: int, stride: int = 1
) -> Tensor:
    """What `run(*inputs)` gives, computed strip by strip.

    Args:
        run: local layers with zero padding: its row r depends on the rows `stride r - reach` to
            `stride r + stride - 1 + reach` of its inputs, and where these end it pads with zeros.
        inputs: [N, C, H, W] with one H, a multiple of `stride`; or coarser, with a part of it: H / 2 for a
            map of half the resolution. None stays None.
        rows: of output in a strip, a multiple of what inputs are coarser by.
        reach: rows of input beyond those of the strip.
        stride: rows of input to a row of output.

    Returns:
        the same as in one piece, [N, C', H / stride, W'].
    """
    height = max(x.shape[-2] for x in inputs if x is not None)
    wanted = -(-height // stride)
    if wanted <= rows:
        return run(*inputs)
    # Strips begin where the stride and the coarser maps do.
    unit = math.lcm(stride, *(height // x.shape[-2] for x in inputs if x is not None))
    margin = -(-reach // unit) * unit
    found: Tensor | None = None
    for start in range(0, wanted, rows):
        end = min(start + rows, wanted)
        top, bottom = max(0, start * stride - margin), min(height, end * stride + margin)
        part = run(*(None if x is None else _rows(x, top, bottom, height) for x in inputs))
        if found is None:
            shape = (*part.shape[:-2], wanted, part.shape[-1])
            found = torch.empty(
                shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last
            )
        skipped = start - top // stride
        found[..., start:end, :] = part[..., skipped : skipped + end - start, :]
    assert found is not None  # there is a row
    return found


def _rows(x: Tensor, top: int, bottom: int, height: int) -> Tensor:
    coarser = height // x.shape[-2]
    return x[..., top // coarser : bottom // coarser, :]
