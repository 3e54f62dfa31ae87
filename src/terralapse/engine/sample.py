"""What a detector sees of a scene before it starts: windows spread evenly over the grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from terralapse.grid.pair import Pair, PairBlock, PairSample
from terralapse.grid.scene import Window

SIDE = 256
VALUES = 16_000_000  # of both dates and all bands together, at most: 64 MB
ENOUGH = 65_536  # valid pixels below which a closer look is taken


def sample_of(
    pair: Pair, threads: int = 1, progress: Callable[[str, int, int], None] | None = None
) -> PairSample:
    """A systematic sample: the whole scene when it is small, otherwise windows of 256 x 256 on a lattice.

    Depends on the pair only. A scene that is nearly empty is sampled on ever closer lattices, at last
    whole, until enough valid pixels are found; windows without any are left out. When the sample is empty,
    nothing in the scene can be compared.
    """
    height, width = pair.shape
    rows, cols = math.ceil(height / SIDE), math.ceil(width / SIDE)
    most = max(1, VALUES // (2 * max(1, len(pair.bands)) * SIDE * SIDE))
    wanted, seen = most, set()
    kept: list[tuple[Window, PairBlock]] = []
    valid = looked = 0
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="sample") as pool:
        while True:
            windows = [w for w in lattice(height, width, min(wanted, rows * cols)) if w not in seen]
            for start in range(0, len(windows), 64):
                group = windows[start : start + 64]
                for window, block in zip(group, pool.map(pair.read, group), strict=True):
                    found = int(block.valid.sum())
                    valid, looked = valid + found, looked + window.height * window.width
                    if found and len(kept) < most:
                        kept.append((window, block))
                if progress is not None:
                    progress("fit", start + len(group), len(windows))
            seen.update(windows)
            if valid >= ENOUGH or len(kept) == most or wanted >= rows * cols:
                break
            wanted *= 4
    kept.sort(key=lambda pair: (pair[0].row, pair[0].col))
    fraction = min(1.0, looked / (height * width))
    return PairSample(pair, [w for w, _ in kept], fraction, [b for _, b in kept])


def lattice(height: int, width: int, count: int) -> list[Window]:
    """About `count` windows, evenly spaced, without overlap; all of the grid when it has no more."""
    rows, cols = math.ceil(height / SIDE), math.ceil(width / SIDE)
    if count >= rows * cols:
        down, across = rows, cols
    else:
        down = min(rows, max(1, round(math.sqrt(count * rows / cols))))
        across = min(cols, max(1, count // down))
    return [
        Window(y, x, min(SIDE, height - y), min(SIDE, width - x))
        for y in (_start(i, down, rows) for i in range(down))
        for x in (_start(i, across, cols) for i in range(across))
    ]


def _start(i: int, chosen: int, cells: int) -> int:
    """First pixel of the `i`-th of `chosen` cells, in the middle of its share of all `cells`."""
    return int((i + 0.5) * cells / chosen) * SIDE
