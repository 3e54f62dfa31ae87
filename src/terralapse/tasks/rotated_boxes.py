"""Rotated boxes in answers of dialogue models: read from texts, compared, and scored as EarthDial does.

A box is [x1, y1, x2, y2, degrees] on a grid of 0 to 100: the corners of an upright box, turned about its
middle. The score is called precision: the share of predicted boxes that match any true one, so that a true
box may be matched many times and one that is missed costs nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

Box = list[float]

_BOX = re.compile(r"\[\s*(-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+)\s*\]")


def parse_boxes(text: str) -> list[Box]:
    """All lists of numbers in a text, innermost brackets, in order; a box that is one has five of them."""
    return [[_number(n) for n in found.split(",")] for found in _BOX.findall(text)]


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def vertices(box: Sequence[float]) -> np.ndarray:
    """float64 [4, 2]: the corners of a box, its upright ones turned by minus its angle in a system whose y
    points up (rows times [[cos, -sin], [sin, cos]])."""
    x1, y1, x2, y2, degrees = box
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64) - centre
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return corners @ np.array([[cos, -sin], [sin, cos]]) + centre


def rotated_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 of boxes without area."""
    one, other = (shapely.make_valid(shapely.polygons(vertices(box))) for box in (a, b))
    union = shapely.area(shapely.union(one, other))
    return float(shapely.area(shapely.intersection(one, other)) / union) if union else 0.0


@dataclass(frozen=True)
class Matched:
    """`right` of `predicted` boxes match a true one; `precision` is 0 where none is right."""

    right: int
    predicted: int

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.right else 0.0


def match_boxes(
    answers: Sequence[str], truths: Sequence[str], threshold: float = 0.5, upright: bool = False
) -> Matched:
    """Counts over a corpus of texts with boxes.

    Args:
        answers, truths: one text an image each.
        threshold: of the IoU, which is enough.
        upright: takes the angle of predicted boxes, not of true ones, for 0, as that of changes does.
    """
    right = predicted = 0
    for answer, truth in zip(answers, truths, strict=True):
        true = [b for b in parse_boxes(truth) if len(b) == 5]
        for box in parse_boxes(answer):
            predicted += 1
            if len(box) != 5:  # counted, and matches nothing
                continue
            turned = [*box[:4], 0.0] if upright else box
            right += any(rotated_iou(turned, t) >= threshold for t in true)
    return Matched(right, predicted)
