"""Tiles with their pixels, read ahead of whoever takes them.

Warping and decoding are what competes with the network for the processor, so every pixel of a lane is read
once: a tile takes from its neighbours, to the left and above, what both need.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future

import numpy as np

from terralapse.engine.memory import MIB
from terralapse.engine.plan import ScenePlan, Tile
from terralapse.grid.pair import Pair, PairBlock
from terralapse.grid.scene import Window

REUSE = 64 * MIB  # of pixels that are kept for the next row of tiles; where it takes more they are read again


class TileReader:
    """The tiles of some rows of a lane, in order, with what they read.

    Args:
        plan: the cut of the scene.
        pair: what is read.
        rows: of tiles, ascending.
        lane: whose tiles are wanted, with those that it needs of its neighbours.
        readers: the threads that read.
        ahead: tiles that are read before they are needed.

    Attributes:
        seconds: that reading took, summed over the threads.
    """

    def __init__(
        self, plan: ScenePlan, pair: Pair, rows: Sequence[int], lane: int, readers: Executor, ahead: int
    ) -> None:
        self.plan, self.pair, self.readers, self.ahead = plan, pair, readers, ahead
        self.seconds = 0.0
        first, end = plan.lane_reach(lane)
        self._cols = range(first, end)
        self._tiles = [(row, col) for row in rows for col in self._cols]
        width = min((end - first) * plan.core_width, plan.width) + 2 * plan.halo
        row_bytes = width * (2 * len(pair.bands) * 4 + 1)
        self._below: set[int] = set()  # rows that take from the row above them
        if 0 < 2 * plan.halo * row_bytes <= REUSE:
            self._below = {row + 1 for row in rows} & set(rows)

    def __iter__(self) -> Iterator[tuple[Tile, PairBlock]]:
        coming: deque[Future[tuple[PairBlock, float]]] = deque()
        asked = 0
        left: PairBlock | None = None
        above: dict[int, PairBlock] = {}
        for number, (row, col) in enumerate(self._tiles):
            while asked < len(self._tiles) and asked <= number + self.ahead:
                coming.append(self.readers.submit(self._read, self._new(*self._tiles[asked])))
                asked += 1
            new, seconds = coming.popleft().result()
            self.seconds += seconds
            tile = self.plan.tile(row, col)
            block = _assembled(tile.read, new, left, above.pop(col, None))
            halos = 2 * self.plan.halo
            left = None
            if halos and col + 1 in self._cols:
                left = _part(block, slice(None), slice(tile.read.width - halos, None))
            if row + 1 in self._below:
                own = block.reason.shape[1] - new.reason.shape[1]
                above[col] = _part(block, slice(tile.read.height - halos, None), slice(own, None))
            yield tile, block

    def _new(self, row: int, col: int) -> Window:
        """What of a tile its neighbours, to the left and above, have not read."""
        read = self.plan.tile(row, col).read
        down = 2 * self.plan.halo if row in self._below else 0
        right = 2 * self.plan.halo if col > self._cols.start else 0
        return Window(read.row + down, read.col + right, read.height - down, read.width - right)

    def _read(self, window: Window) -> tuple[PairBlock, float]:
        since = time.perf_counter()
        return self.pair.read(window), time.perf_counter() - since


def _part(block: PairBlock, rows: slice, cols: slice) -> PairBlock:
    """A copy, so that the rest of the block is not held in memory."""
    return PairBlock(block.images[..., rows, cols].copy(), block.reason[rows, cols].copy())


def _assembled(read: Window, new: PairBlock, left: PairBlock | None, above: PairBlock | None) -> PairBlock:
    """A whole tile: `left` are its first columns, `above` the first rows of the others, `new` the rest."""
    if left is None and above is None:
        return new
    images = np.empty((*new.images.shape[:2], read.height, read.width), np.float32)
    reason = np.empty((read.height, read.width), np.uint8)
    rows, cols = (whole - own for whole, own in zip(reason.shape, new.reason.shape, strict=True))
    images[..., rows:, cols:], reason[rows:, cols:] = new.images, new.reason
    if left is not None:
        images[..., :cols], reason[:, :cols] = left.images, left.reason
    if above is not None:
        images[..., :rows, cols:], reason[:rows, cols:] = above.images, above.reason
    return PairBlock(images, reason)
