"""Sums over the ninths of a grid (`north-west` ... `south-east`), pixel by pixel, in one streamed pass.

Which ninth a pixel is in follows `terralapse.grid.areas.Compass`: true directions, so the borders are not
lines of the raster. Directions are worked out at the corners of blocks; a block whose corners agree is summed
as a whole, and only along the borders is each pixel looked at (linear between the corners of its block).
"""

from __future__ import annotations

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.grid.areas import Compass, on_ground

_SIDE = 32  # pixels of a block

NINTHS = (
    "south-west",
    "south",
    "south-east",
    "west",
    "centre",
    "east",
    "north-west",
    "north",
    "north-east",
)
"""Names in the order of the codes: row (from the south) times three plus column (from the west)."""
PARTS = {
    "north": ("north-west", "north", "north-east"),
    "south": ("south-west", "south", "south-east"),
    "west": ("north-west", "west", "south-west"),
    "east": ("north-east", "east", "south-east"),
}
"""The thirds of the grid by compass, each of three ninths."""


class Ninths:
    """The ninths of a grid. Memory: one value a block of 32 x 32 pixels.

    Args:
        geobox: the grid.
        strip: rows of the strips that it will be asked for, the first of which starts at row 0.
    """

    def __init__(self, geobox: GeoBox, strip: int) -> None:
        self.shape = (geobox.shape.y, geobox.shape.x)
        compass = Compass(geobox)
        height, width = self.shape
        down = np.unique([*range(0, height, _SIDE), *range(0, height, strip), height])
        across = np.unique([*range(0, width, _SIDE), width])
        cols, rows = np.meshgrid(across, down)
        east, north = compass.offsets(*on_ground(geobox.affine, cols.ravel(), rows.ravel()))
        self._down, self._across = down, across
        # 0..3 from west to east and from south to north: the whole part is the number of the third.
        self._east = (east.reshape(cols.shape) / compass.half[0] + 1) * 1.5
        self._north = (north.reshape(cols.shape) / compass.half[1] + 1) * 1.5
        corners = _code(self._east, self._north)
        first = corners[:-1, :-1]
        same = (first == corners[1:, :-1]) & (first == corners[:-1, 1:]) & (first == corners[1:, 1:])
        self._blocks = np.where(same, first, len(NINTHS))

    def codes(self, start: int, rows: int) -> np.ndarray:
        """uint8 [rows, width]: the code of each pixel of a strip."""
        first, last = self._range(start, rows)
        blocks = self._blocks[first:last]
        sizes = np.diff(self._down)[first:last], np.diff(self._across)
        codes = blocks.astype(np.uint8).repeat(sizes[0], axis=0).repeat(sizes[1], axis=1)
        for r, c in np.argwhere(blocks == len(NINTHS)):
            top, left = self._down[first + r], self._across[c]
            height, width = sizes[0][r], sizes[1][c]
            codes[top - start : top - start + height, left : left + width] = self._block(first + r, c)
        return codes

    def add(self, start: int, layers: list[np.ndarray], total: np.ndarray) -> None:
        """Adds the sums of the layers [rows, width] of a strip to `total` [9, number of layers]."""
        rows = len(layers[0])
        first, last = self._range(start, rows)
        blocks = self._blocks[first:last]
        edges = self._down[first:last] - start, self._across[:-1]
        mixed = np.argwhere(blocks == len(NINTHS))
        where = [self._block(first + r, c) for r, c in mixed]
        whole = blocks < len(NINTHS)
        for k, layer in enumerate(layers):
            sums = np.add.reduceat(
                np.add.reduceat(layer, edges[0], axis=0, dtype=np.float64), edges[1], axis=1
            )
            total[:, k] += np.bincount(blocks[whole], sums[whole], minlength=len(NINTHS))
            for (r, c), code in zip(mixed, where, strict=True):
                top, left = edges[0][r], edges[1][c]
                part = layer[top : top + code.shape[0], left : left + code.shape[1]]
                total[:, k] += np.bincount(code.ravel(), part.ravel(), minlength=len(NINTHS))

    def _range(self, start: int, rows: int) -> tuple[int, int]:
        first, last = np.searchsorted(self._down, (start, start + rows))
        if self._down[first] != start or self._down[last] != start + rows:
            raise ValueError(f"the strip {start}..{start + rows} is none that was announced")
        return int(first), int(last)

    def _block(self, r: int, c: int) -> np.ndarray:
        """Codes of the pixels of one block."""
        height = self._down[r + 1] - self._down[r]
        width = self._across[c + 1] - self._across[c]
        y = ((np.arange(height) + 0.5) / height)[:, None]
        x = ((np.arange(width) + 0.5) / width)[None]

        def at(v: np.ndarray) -> np.ndarray:
            upper = v[r, c] * (1 - x) + v[r, c + 1] * x
            return upper * (1 - y) + (v[r + 1, c] * (1 - x) + v[r + 1, c + 1] * x) * y

        return _code(at(self._east), at(self._north))


def _code(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    column = np.clip(np.floor(east), 0, 2).astype(np.intp)
    return np.clip(np.floor(north), 0, 2).astype(np.intp) * 3 + column
