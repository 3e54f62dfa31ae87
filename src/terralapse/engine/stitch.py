"""Putting tiles together: what leaves here is final, row after row, in memory that a lane bounds.

Both ways take tiles in the order of the plan and return pieces of the scene that no later tile changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from terralapse.engine.plan import ScenePlan, Tile
from terralapse.grid.scene import Window
from terralapse.labels import Reason

NODATA = 255
STEPS = 200  # prob.tif holds probability x 200


@dataclass(frozen=True)
class Piece:
    """A finished rectangle: `prob` float32 [h, w], NaN where not valid; `reason` uint8 [h, w]."""

    window: Window
    prob: np.ndarray
    reason: np.ndarray


class Stitcher(Protocol):
    """Takes tiles in order, gives pieces that are final."""

    def add(self, tile: Tile, prob: np.ndarray | None, reason: np.ndarray) -> Iterator[Piece]:
        """One tile: `prob` float32 [h, w] of what it reads, or None when it was skipped because nothing in
        its core is valid; `reason` uint8 [h, w] likewise."""
        ...

    def end_lane(self) -> Iterator[Piece]:
        """What is left when the last tile of a lane has been added."""
        ...


class Crop:
    """Exact seams: each tile keeps its core and throws the halo away."""

    def add(self, tile: Tile, prob: np.ndarray | None, reason: np.ndarray) -> Iterator[Piece]:
        rows, cols = inside(tile.core, tile.read)
        kept = reason[rows, cols]
        values = np.full(kept.shape, np.nan, np.float32) if prob is None else prob[rows, cols]
        yield Piece(tile.core, np.where(kept == Reason.VALID, values, np.float32(np.nan)), kept)

    def end_lane(self) -> Iterator[Piece]:
        return iter(())


class Blend:
    """Blended seams: probabilities are averaged where tiles overlap, with a ramp over twice the halo.

    The ramps of two neighbours add up to one; a side without a neighbour has no ramp, and sums are divided by
    the weights that were really added, so that neither borders nor skipped tiles darken anything. The band
    holds the rows that the current row of tiles reads, over the width of a lane.
    """

    def __init__(self, plan: ScenePlan, lane: int, first_row: int) -> None:
        self._plan = plan
        first, last = plan.lane_reach(lane)
        self._x0 = first * plan.core_width
        self._x1 = min(last * plan.core_width, plan.width)
        self._row = first_row
        self._y0 = max(0, first_row * plan.core_height - plan.halo)
        shape = (plan.core_height + 2 * plan.halo, self._x1 - self._x0)
        self._sum = np.zeros(shape, np.float32)
        self._weight = np.zeros(shape, np.float32)
        self._reason = np.full(shape, Reason.VALID, np.uint8)

    def add(self, tile: Tile, prob: np.ndarray | None, reason: np.ndarray) -> Iterator[Piece]:
        if tile.row != self._row:
            yield from self._roll(tile.core.row - self._plan.halo)
            self._row = tile.row
        here = Window(self._y0, self._x0, *self._sum.shape)
        core_rows, core_cols = inside(tile.core, tile.read)
        self._reason[inside(tile.core, here)] = reason[core_rows, core_cols]
        if prob is None:
            return
        plan = self._plan
        seen = tile.read.clip(plan.height, self._x1)
        left = max(seen.col, self._x0)
        seen = Window(seen.row, left, seen.height, seen.col + seen.width - left)
        down = ramp(tile.read.height, plan.halo, tile.row > 0, tile.row < plan.rows - 1)
        along = ramp(tile.read.width, plan.halo, tile.col > 0, tile.col < plan.cols - 1)
        rows, cols = inside(seen, tile.read)
        weight = down[rows, None] * along[None, cols]
        at = inside(seen, here)
        self._sum[at] += weight * prob[rows, cols]
        self._weight[at] += weight

    def end_lane(self) -> Iterator[Piece]:
        return self._roll(self._plan.height)

    def _roll(self, top: int) -> Iterator[Piece]:
        """Gives the rows above `top` and moves the band down to it."""
        count = top - self._y0
        if count <= 0:
            return
        reason = self._reason[:count].copy()
        weight = self._weight[:count]
        prob = np.full(reason.shape, np.nan, np.float32)
        np.divide(self._sum[:count], weight, out=prob, where=(reason == Reason.VALID) & (weight > 0))
        yield Piece(Window(self._y0, self._x0, *reason.shape), prob, reason)
        for band, empty in ((self._sum, 0), (self._weight, 0), (self._reason, Reason.VALID)):
            left = band.shape[0] - count
            band[: max(left, 0)] = band[count:]
            band[max(left, 0) :] = empty
        self._y0 = top


def ramp(length: int, halo: int, before: bool, after: bool) -> np.ndarray:
    """Weights along one side of a tile: up over `2 halo` pixels, one, down again. No neighbour, no ramp."""
    weights = np.ones(length, np.float32)
    if halo:
        up = (np.arange(2 * halo, dtype=np.float32) + 0.5) / (2 * halo)
        if before:
            weights[: 2 * halo] = up[: min(2 * halo, length)]
        if after:
            weights[length - 2 * halo :] *= up[::-1]
    return weights


def inside(part: Window, whole: Window) -> tuple[slice, slice]:
    """Where `part` lies in an array that holds `whole`."""
    return Window(part.row - whole.row, part.col - whole.col, part.height, part.width).slices


def quantise(prob: np.ndarray, reason: np.ndarray, threshold: float) -> np.ndarray:
    """Probability x 200 as uint8, 255 where not valid, rounded so that the threshold cuts stored values as it
    cuts true ones: `stored >= cut(threshold)` exactly where `prob >= threshold`."""
    at = cut(threshold)
    steps = np.rint(np.nan_to_num(prob) * STEPS)
    steps = np.where(prob >= threshold, np.maximum(steps, at), np.minimum(steps, at - 1))
    return np.where(reason == Reason.VALID, steps.clip(0, STEPS), NODATA).astype(np.uint8)


def cut(threshold: float) -> int:
    """The lowest stored value that counts as change."""
    return int(np.ceil(threshold * STEPS - 1e-6))
