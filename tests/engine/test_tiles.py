"""Tiles read ahead: whole, in order, and every pixel once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stand_ins import WavePair
from terralapse.engine import tiles
from terralapse.engine.plan import Seams, plan_scene
from terralapse.engine.tiles import TileReader
from terralapse.grid.pair import PairBlock
from terralapse.grid.scene import Window


class Watched(WavePair):
    """Remembers what was read."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(height, width, hole=Window(30, 40, 25, 70))
        self.windows: list[Window] = []

    def read(self, window: Window) -> PairBlock:
        self.windows.append(window)
        return super().read(window)


@pytest.mark.parametrize("halo", [0, 8])
@pytest.mark.parametrize("seams", list(Seams))
def test_a_tile_put_together_is_the_tile_read_at_once_and_no_pixel_is_read_twice(halo: int, seams: Seams):
    pair = Watched(150, 230)
    plan = plan_scene(pair.shape, halo=halo, multiple=4, seams=seams, tile=48)
    with ThreadPoolExecutor(2) as readers:
        found = list(TileReader(plan, pair, range(plan.rows), 0, readers, 3))
    assert [(t.row, t.col) for t, _ in found] == [(r, c) for r in range(plan.rows) for c in range(plan.cols)]
    last = plan.tile(plan.rows - 1, plan.cols - 1).read
    area = (last.row + last.height + halo) * (last.col + last.width + halo)
    assert sum(w.height * w.width for w in pair.windows) == area
    for tile, block in found:
        alone = WavePair.read(pair, tile.read)
        assert np.array_equal(block.images, alone.images, equal_nan=True)
        assert np.array_equal(block.reason, alone.reason)


def test_rows_that_do_not_follow_each_other_share_nothing():
    pair = Watched(400, 100)
    plan = plan_scene(pair.shape, halo=8, tile=48)
    with ThreadPoolExecutor(1) as readers:
        found = list(TileReader(plan, pair, [0, 1, 4], 0, readers, 1))
    assert sorted({w.row for w in pair.windows}) == [-8, 48 + 8, 4 * 48 - 8]
    for tile, block in found:
        assert np.array_equal(block.images, WavePair.read(pair, tile.read).images, equal_nan=True)


def test_rows_too_wide_to_be_kept_are_read_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "REUSE", 1000)
    pair = Watched(100, 100)
    plan = plan_scene(pair.shape, halo=8, tile=48)
    with ThreadPoolExecutor(1) as readers:
        found = list(TileReader(plan, pair, range(plan.rows), 0, readers, 1))
    assert {w.height for w in pair.windows} == {plan.tile(r, 0).read.height for r in range(plan.rows)}
    for tile, block in found:
        assert np.array_equal(block.images, WavePair.read(pair, tile.read).images, equal_nan=True)


def test_no_more_is_read_ahead_than_asked_for():
    pair = Watched(48, 48 * 20)
    plan = plan_scene(pair.shape, halo=0, tile=48)
    with ThreadPoolExecutor(1) as readers:
        coming = iter(TileReader(plan, pair, [0], 0, readers, 2))
        next(coming)
        readers.submit(lambda: None).result()  # after everything that was given to the thread
        assert len(pair.windows) == 3
