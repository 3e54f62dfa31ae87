"""Detection: boxes with classes on one image, and masks where a system has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Detections:
    """What was found on one image, best first: `boxes` float [N, 4] (x1, y1, x2, y2 in pixels), `scores`
    float [N] in 0..1, `labels` int64 [N], and `masks` bool [N, H, W] or None."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass
class DetectionOutput:
    """`raw` is what the losses of the system take; `decode` turns it into detections, which training does
    without."""

    raw: Any
    decode: Callable[[], list[Detections]]

    def detections(self) -> list[Detections]:
        """One entry for each image."""
        return self.decode()
