"""Putting maps of classes together from tiles: probabilities are blended as those of change are, ids never.

A pixel that lies in one tile only is decided when that tile comes. What is held for the others are strips of
twice the halo: one below the tiles of a row over the width of a lane, and one beside the last tile. So memory
is that of the strips, planes x 2 halo x lane x 4 bytes, and not that of whole rows of tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from terralapse.engine.plan import ScenePlan, Tile
from terralapse.engine.stitch import inside, ramp
from terralapse.grid.scene import Window
from terralapse.tasks.class_maps import UNKNOWN, ClassRule


@dataclass(frozen=True)
class ClassPiece:
    """A finished rectangle: `ids` uint8 [kept, h, w], as `ClassRule.decide` gives them."""

    window: Window
    ids: np.ndarray


class ClassStitcher(Protocol):
    """Takes tiles in the order of the plan, gives pieces that are final; every pixel of a lane comes once."""

    def add(self, tile: Tile, planes: np.ndarray | None) -> Iterator[ClassPiece]:
        """One tile: `planes` float32 [planes, h, w] of what it reads, or None when it was skipped. The array
        is used up."""
        ...


class CropClasses:
    """Exact seams: each tile decides its core."""

    def __init__(self, rule: ClassRule) -> None:
        self._rule = rule

    def add(self, tile: Tile, planes: np.ndarray | None) -> Iterator[ClassPiece]:
        if planes is None:
            yield _nothing(self._rule, tile.core)
        else:
            yield ClassPiece(tile.core, self._rule.decide(planes[:, *inside(tile.core, tile.read)]))


class BlendClasses:
    """Blended seams: weighted sums where tiles overlap, with the ramps of `stitch.Blend`.

    A tile decides what no later one reaches: from where it begins to half a ramp before its core ends, along
    both sides.
    """

    def __init__(self, plan: ScenePlan, lane: int, rule: ClassRule) -> None:
        self._plan, self._rule = plan, rule
        self._first, self._end = plan.lane_reach(lane)
        self._x0 = self._first * plan.core_width
        self._x1 = min(self._end * plan.core_width, plan.width)
        self._below = np.zeros((rule.planes, 2 * plan.halo, self._x1 - self._x0), np.float32)
        self._beside: np.ndarray | None = None
        self._row = -2

    def add(self, tile: Tile, planes: np.ndarray | None) -> Iterator[ClassPiece]:
        plan = self._plan
        if tile.row != self._row:
            if tile.row != self._row + 1:  # a resumed run leaves rows out
                self._below[:] = 0
            self._row, self._beside = tile.row, None
        seen, final = self._seen(tile), self._final(tile)
        height, width = final.height, final.width
        carried = 0 if self._beside is None else self._beside.shape[2]
        above = self._below[
            :, : seen.height, seen.col + carried - self._x0 : seen.col + seen.width - self._x0
        ]
        if tile.row == 0:
            above = above[:, :0]
        if planes is None and self._beside is None and not above.any():
            self._below[:, :, final.col - self._x0 : final.col + width - self._x0] = 0
            yield _nothing(self._rule, final)
            return
        if planes is None:
            sums = np.zeros((self._rule.planes, seen.height, seen.width), np.float32)
        else:
            rows, cols = inside(seen, tile.read)
            sums = planes[:, rows, cols]
            down = ramp(tile.read.height, plan.halo, tile.row > 0, tile.row < plan.rows - 1)[rows]
            along = ramp(tile.read.width, plan.halo, tile.col > 0, tile.col < plan.cols - 1)[cols]
            sums *= down[:, None] * along
        if self._beside is not None:
            sums[:, :, :carried] += self._beside
        sums[:, : above.shape[1], carried:] += above
        yield ClassPiece(final, self._rule.decide(sums[:, :height, :width]))
        here = slice(final.col - self._x0, final.col + width - self._x0)
        self._below[:, : seen.height - height, here] = sums[:, height:, :width]
        self._beside = sums[:, :, width:].copy() if width < seen.width else None

    def _seen(self, tile: Tile) -> Window:
        """What a tile reads of the scene and of the lane."""
        top, left = max(0, tile.read.row), max(self._x0, tile.read.col)
        bottom = min(self._plan.height, tile.read.row + tile.read.height)
        right = min(self._x1, tile.read.col + tile.read.width)
        return Window(top, left, bottom - top, right - left)

    def _final(self, tile: Tile) -> Window:
        """What of that no tile reads that comes later."""
        plan, seen, core = self._plan, self._seen(tile), tile.core
        last = tile.row == plan.rows - 1, tile.col == self._end - 1
        bottom = seen.row + seen.height if last[0] else core.row + core.height - plan.halo
        right = seen.col + seen.width if last[1] else core.col + core.width - plan.halo
        return Window(seen.row, seen.col, bottom - seen.row, right - seen.col)


def _nothing(rule: ClassRule, window: Window) -> ClassPiece:
    return ClassPiece(window, np.full((rule.kept, window.height, window.width), UNKNOWN, np.uint8))
