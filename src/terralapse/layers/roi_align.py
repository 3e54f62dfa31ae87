"""RoIAlign: a grid of bilinear samples inside boxes.

Source: He et al., "Mask R-CNN", ICCV 2017. The aligned variant: a box edge at pixel x lies at x * scale - 0.5
between the centres of the map's pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float, sampling: int = 2) -> Tensor:
    """The mean of `sampling` x `sampling` samples in each of size x size cells of each box.

    A sample more than a pixel outside of the map is 0; one nearer takes the edge.

    Args:
        features: [B, C, H, W].
        rois: float [R, 5]: image index, x1, y1, x2, y2 in pixels of the image.
        size: cells along each side.
        scale: pixels of the map per pixel of the image, 1/stride.

    Returns:
        [R, C, size, size] in the type of `features`.
    """
    _, channels, height, width = features.shape
    if len(rois) == 0:
        return features.new_zeros(0, channels, size, size)
    boxes = rois[:, 1:].float() * scale - 0.5
    steps = (torch.arange(size * sampling, device=rois.device, dtype=boxes.dtype) + 0.5) / (size * sampling)
    x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * steps  # [R, size * sampling]
    y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * steps
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels)
    image = rois[:, 0].long()[:, None, None] * height * width
    total = torch.zeros((), device=features.device)
    for row, wy in _corners(y, height):
        for column, wx in _corners(x, width):
            index = image + row[:, :, None] * width + column[:, None, :]
            total = total + pixels[index] * (wy[:, :, None] * wx[:, None, :])[..., None]
    cells = total.unflatten(2, (size, sampling)).unflatten(1, (size, sampling)).mean(dim=(2, 4))
    return cells.permute(0, 3, 1, 2).to(features.dtype)


def _corners(at: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels beside each place along one axis, with their weights."""
    inside = (at >= -1) & (at <= length)
    place = at.clamp(0, length - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=length - 1)
    part = place - low
    return [(low, (1 - part) * inside), (high, part * inside)]
