"""How a scene is cut: an immutable plan that any worker can read and that fixes the result.

The scene is a regular grid of *cores*, anchored to the first pixel of the grid, so that any sub-window, any
split over workers and any resumed run sees the same tiles. A tile reads its core and `halo` pixels on each
side of it. With `exact` seams the halo is thrown away; with `blend` seams neighbouring tiles are averaged
across it. Tiles are gathered in *parts*, the units of storage and of resuming: whole rows of tiles within a
*lane* of columns, so that no part and no buffer grows with the size of the scene.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import product
from typing import Any

from terralapse.errors import SettingError
from terralapse.grid.scene import Window

BLOCK = 512  # the block size of what is written, and of most of what is read
PART_PIXELS = 16 << 20  # of a part, at most where tiles allow it
SMALL_PART = 4 << 20  # rows of tiles are gathered up to this many pixels
LANE_WIDTH = 16384  # pixels, at most
TILE_PIXELS = 1 << 20  # of a core, where the choice is free
_SIDES = (*range(BLOCK // 2, 2 * BLOCK, BLOCK // 8), *range(2 * BLOCK, 4 * BLOCK + 1, BLOCK))
_LITTLE = 1.01  # times the least work, which is well spent on a more convenient tile


class Seams(StrEnum):
    """What happens where tiles meet."""

    EXACT = "exact"  # the halo is cut off; right when it covers the receptive field
    BLEND = "blend"  # probabilities are averaged across the overlap with a linear ramp


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the grid of cores, the pixels it owns, the pixels it reads."""

    row: int
    col: int
    core: Window
    read: Window


@dataclass(frozen=True)
class Part:
    """A rectangle of tiles that is stored as one file: tile rows `[row0, row1)`, columns `[col0, col1)`."""

    index: int
    row0: int
    row1: int
    col0: int
    col1: int
    window: Window


@dataclass(frozen=True)
class ScenePlan:
    """The cut of one scene. All numbers are pixels except `part_rows` and `lane_cols`, which count tiles.

    `core_height` and `core_width` are multiples of `multiple`, and so is `halo`: the first pixel of every
    tile then has the same phase in the strides of a network.
    """

    height: int
    width: int
    core_height: int
    core_width: int
    halo: int
    multiple: int
    seams: Seams
    part_rows: int
    lane_cols: int

    @property
    def rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.height // self.core_height)

    @property
    def cols(self) -> int:
        """Number of columns of tiles."""
        return -(-self.width // self.core_width)

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return -(-self.cols // self.lane_cols)

    def tile(self, row: int, col: int) -> Tile:
        """The tile at a place in the grid of cores. At the far edges it is cut to the scene."""
        y, x = row * self.core_height, col * self.core_width
        core = Window(y, x, min(self.core_height, self.height - y), min(self.core_width, self.width - x))
        read = Window(
            y - self.halo,
            x - self.halo,
            _up(core.height, self.multiple) + 2 * self.halo,
            _up(core.width, self.multiple) + 2 * self.halo,
        )
        return Tile(row, col, core, read)

    def lane(self, lane: int) -> tuple[int, int]:
        """First and one past the last tile column that a lane owns."""
        return lane * self.lane_cols, min((lane + 1) * self.lane_cols, self.cols)

    def lane_reach(self, lane: int) -> tuple[int, int]:
        """The tile columns that must be computed for a lane: blending needs its neighbours' edges too."""
        first, last = self.lane(lane)
        reach = 1 if self.seams is Seams.BLEND else 0
        return max(0, first - reach), min(self.cols, last + reach)

    def parts(self, lane: int | None = None) -> Iterator[Part]:
        """The parts from top to bottom, lane after lane (or those of one lane)."""
        per_lane = -(-self.rows // self.part_rows)
        for number in range(self.lanes) if lane is None else (lane,):
            col0, col1 = self.lane(number)
            x0, x1 = col0 * self.core_width, min(col1 * self.core_width, self.width)
            for i in range(per_lane):
                row0, row1 = i * self.part_rows, min((i + 1) * self.part_rows, self.rows)
                y0, y1 = row0 * self.core_height, min(row1 * self.core_height, self.height)
                window = Window(y0, x0, y1 - y0, x1 - x0)
                yield Part(number * per_lane + i, row0, row1, col0, col1, window)

    def computed_pixels(self) -> int:
        """Pixels that go through the network when no tile is skipped, halos included."""
        return _computed(self.height, self.core_height, self.halo, self.multiple) * _computed(
            self.width, self.core_width, self.halo, self.multiple
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `ScenePlan.from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> ScenePlan:
        """The plan that `as_dict` was called on."""
        return cls(**{**plan, "seams": Seams(plan["seams"])})


def plan_scene(
    shape: tuple[int, int],
    *,
    halo: int,
    multiple: int = 1,
    seams: Seams = Seams.EXACT,
    tile: int | None = None,
    bytes_per_pixel: float = 0.0,
    memory: int = 640 << 20,
) -> ScenePlan:
    """Cuts a scene.

    Args:
        shape: height and width of the scene.
        halo: what a tile needs around its core; rounded up to `multiple`.
        multiple: the sides of a tile are multiples of this, in pixels.
        seams: `exact` or `blend`; blending uses the halo as half of the overlap.
        tile: side of the core that the user asks for; rounded up to `multiple`. None chooses the one with
            the least work (halos are computed twice) whose tile fits in `memory`.
        bytes_per_pixel: of the working memory of one tile.
        memory: bytes for one tile.

    Raises:
        SettingError: `tile` is not positive.
    """
    if tile is not None and tile < 1:
        raise SettingError(f"tile {tile}", "is not positive", "Leave it out to have it chosen.")
    height, width = shape
    halo = _up(halo, multiple)
    smallest = max(2 * halo, 1) if seams is Seams.BLEND else 1  # a ramp must end before the next one begins
    if tile is not None:
        core_height = core_width = _up(max(tile, smallest), multiple)
    else:
        core_height, core_width = _best_core(shape, halo, multiple, smallest, bytes_per_pixel, memory)
    # One tile is enough along a side that is shorter than a core.
    core_height, core_width = min(core_height, _up(height, multiple)), min(core_width, _up(width, multiple))
    lane_cols = max(1, min(LANE_WIDTH, PART_PIXELS // core_height) // core_width)
    row_pixels = core_height * min(lane_cols * core_width, width)
    part_rows = max(1, -(-BLOCK // core_height), SMALL_PART // row_pixels)
    return ScenePlan(height, width, core_height, core_width, halo, multiple, seams, part_rows, lane_cols)


def _best_core(
    shape: tuple[int, int], halo: int, multiple: int, smallest: int, per_pixel: float, memory: int
) -> tuple[int, int]:
    """Height and width of the core: of those whose tile fits in memory and whose work is within 1 % of the
    least, the one whose area is nearest to `TILE_PIXELS`, and of those the squarest."""
    sides = sorted({_up(max(side, smallest), multiple) for side in _SIDES})
    fitting: list[tuple[int, int, int]] = []  # work, height, width
    for core_height, core_width in product(sides, sides):
        tile_height = min(core_height, _up(shape[0], multiple)) + 2 * halo
        tile_width = min(core_width, _up(shape[1], multiple)) + 2 * halo
        if fitting and tile_height * tile_width * per_pixel > memory:
            continue  # the smallest core is taken whether it fits or not
        work = _computed(shape[0], core_height, halo, multiple)
        work *= _computed(shape[1], core_width, halo, multiple)
        fitting.append((work, core_height, core_width))
    most = _LITTLE * min(work for work, _, _ in fitting)

    def preference(core: tuple[int, int]) -> tuple[int, int, int]:
        return abs(core[0] * core[1] - TILE_PIXELS), abs(core[0] - core[1]), core[0]

    return min(((h, w) for work, h, w in fitting if work <= most), key=preference)


def _computed(side: int, core: int, halo: int, multiple: int) -> int:
    """Pixels along one side that are computed, halos included."""
    count, rest = divmod(side, core)
    return count * (core + 2 * halo) + (_up(rest, multiple) + 2 * halo if rest else 0)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def digest(record: Any) -> str:
    """A hash of anything JSON-ready, the same in every process."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
