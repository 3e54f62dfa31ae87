"""Boxes x1, y1, x2, y2 in pixels: overlap, suppression, and offsets between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Of boxes [..., 4]; 0 where a box is turned inside out."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def pair_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each of [N, 4] with each of [M, 4]: [N, M]."""
    a, b = first[:, None], second[None]
    corner = torch.cat([torch.maximum(a, b)[..., :2], torch.minimum(a, b)[..., 2:]], dim=-1)
    common = area(corner)
    return common / (area(a) + area(b) - common).clamp(min=1e-6)


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - generalised IoU of boxes [N, 4] one by one: [N], in 0..2 (Rezatofighi et al. 2019)."""
    low, high = torch.maximum(predicted, target), torch.minimum(predicted, target)
    common = area(torch.cat([low[:, :2], high[:, 2:]], dim=1))
    union = area(predicted) + area(target) - common
    hull = area(torch.cat([high[:, :2], low[:, 2:]], dim=1)).clamp(min=1e-7)
    return 1 - common / union.clamp(min=1e-7) + (hull - union) / hull


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [..., 4] cut to an image."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int) -> Tensor:
    """Numbers of the boxes that remain, best first, at most `most`: one is dropped when its IoU with a better
    one of the same group is above `threshold`. Equal scores keep their order.

    Args:
        boxes: [N, 4]; scores: [N]; groups: int [N], classes or levels.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, groups = boxes[order].float(), groups[order]
    rival = (pair_iou(boxes, boxes) > threshold) & (groups[:, None] == groups)
    beaten = rival.triu(diagonal=1).cpu().numpy()
    alive = [True] * len(order)
    kept: list[int] = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == most:
            break
        for j in beaten[i].nonzero()[0].tolist():
            alive[j] = False
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


# --- offsets -------------------------------------------------------------------------------------------
_MOST = abs(math.log(16 / 1000))  # no box grows by more than this, as exponent


def encode(anchors: Tensor, boxes: Tensor, std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Shifts of the centre in sizes of the anchor, and logarithms of the ratios of the sides, over `std`:
    [N, 4] (Ren et al. 2015)."""
    size, wanted = (b[:, 2:] - b[:, :2] for b in (anchors, boxes))
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / size.clamp(min=1e-6)
    scale = (wanted.clamp(min=1e-6) / size.clamp(min=1e-6)).log()
    return torch.cat([shift, scale], dim=1) / anchors.new_tensor(std)


def decode(anchors: Tensor, offsets: Tensor, std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes [N, 4] from anchors and what `encode` gave."""
    offsets = offsets * anchors.new_tensor(std)
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2 + offsets[:, :2] * size
    half = size * offsets[:, 2:].clamp(-_MOST, _MOST).exp() / 2
    return torch.cat([centre - half, centre + half], dim=1)
