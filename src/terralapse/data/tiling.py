"""An image as tiles of one size for an encoder that takes no other: a grid near its shape, and a thumbnail.

Source: InternVL 1.5 (Chen et al. 2024, arXiv:2404.16821), dynamic resolution; as EarthDial uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from terralapse.errors import SettingError


@dataclass(frozen=True)
class TilePlan:
    """`canvas` (width, height) is what the image is resized to; `boxes` (left, top, right, bottom) are cut
    out of it row by row; `thumbnail` says whether the whole image follows, as one more tile."""

    size: int
    canvas: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int], ...]
    thumbnail: bool

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.boxes) + self.thumbnail


def plan_tiles(
    width: int, height: int, size: int = 448, least: int = 1, most: int = 6, thumbnail: bool = True
) -> TilePlan:
    """The grid of `least` to `most` tiles whose aspect ratio is nearest to that of an image.

    Of grids that are equally near the larger one is taken where the image has more than half of its pixels,
    else the smaller one. One tile alone has no thumbnail.

    Raises:
        SettingError: sizes or numbers that make no grid.
    """
    if min(width, height, size) < 1 or not 1 <= least <= most:
        raise SettingError(
            f"tiles {least} to {most} of {size} for {width} x {height}",
            "make no grid",
            "Give positive sizes, and a number of tiles that is not above the largest.",
        )
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda g: g[0] * g[1]):
        off = abs(width / height - columns / rows)
        large = width * height > 0.5 * size * size * columns * rows
        if off < nearest or (off == nearest and large):
            best, nearest = (columns, rows), off
    columns, rows = best
    boxes = tuple(
        (c * size, r * size, (c + 1) * size, (r + 1) * size) for r in range(rows) for c in range(columns)
    )
    return TilePlan(size, (columns * size, rows * size), boxes, thumbnail and len(boxes) > 1)


def cut_tiles(image: Image.Image, plan: TilePlan) -> np.ndarray:
    """The tiles of a plan, uint8 [n, size, size, 3], bicubic as the encoder was trained on."""
    canvas = image.convert("RGB").resize(plan.canvas, Image.Resampling.BICUBIC)
    tiles = [canvas.crop(box) for box in plan.boxes]
    if plan.thumbnail:
        tiles.append(image.convert("RGB").resize((plan.size, plan.size), Image.Resampling.BICUBIC))
    return np.stack([np.asarray(t) for t in tiles])
