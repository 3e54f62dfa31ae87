"""The cut of a scene covers it once, keeps the phase of the network's strides, and is plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terralapse.engine.plan import PART_PIXELS, ScenePlan, Seams, digest, plan_scene
from terralapse.errors import SettingError

SIDE = st.integers(1, 3000)


@settings(max_examples=150, deadline=None)
@given(
    height=SIDE,
    width=SIDE,
    halo=st.integers(0, 130),
    multiple=st.sampled_from([1, 2, 8, 14, 32]),
    tile=st.none() | st.integers(1, 1500),
    seams=st.sampled_from(list(Seams)),
)
def test_cores_and_parts_cover_every_pixel_once(
    height: int, width: int, halo: int, multiple: int, tile: int | None, seams: Seams
) -> None:
    if tile is not None:
        tile = max(tile, height // 40, width // 40)  # keeps the number of tiles small
    plan = plan_scene((height, width), halo=halo, multiple=multiple, tile=tile, seams=seams)
    cores, parts = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for row in range(plan.rows):
        for col in range(plan.cols):
            t = plan.tile(row, col)
            cores[t.core.slices] += 1
            for read, core, at in (
                (t.read.height, t.core.height, (t.read.row, t.core.row)),
                (t.read.width, t.core.width, (t.read.col, t.core.col)),
            ):
                assert read % multiple == 0
                assert at[0] % multiple == 0  # the same phase everywhere
                assert at[1] - at[0] >= halo
                assert at[0] + read >= at[1] + core + halo
    for part in plan.parts():
        parts[part.window.slices] += 1
        first, last = plan.tile(part.row0, part.col0).core, plan.tile(part.row1 - 1, part.col1 - 1).core
        assert (part.window.row, part.window.col) == (first.row, first.col)
        assert part.window.row + part.window.height == last.row + last.height
        assert part.window.col + part.window.width == last.col + last.width
    assert (cores == 1).all()
    assert (parts == 1).all()


def test_a_plan_survives_json_unchanged() -> None:
    plan = plan_scene((10980, 10980), halo=37, multiple=8, seams=Seams.BLEND)
    again = ScenePlan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again == plan
    assert again.seams is Seams.BLEND
    assert digest(again.as_dict()) == digest(plan.as_dict())
    assert digest(plan_scene((10980, 10981), halo=37).as_dict()) != digest(plan.as_dict())


def test_cores_are_round_numbers_and_tiles_fit_in_memory() -> None:
    for per_pixel in (50.0, 500.0, 1200.0, 2600.0):
        plan = plan_scene((10980, 10980), halo=32, multiple=8, bytes_per_pixel=per_pixel, memory=640 << 20)
        assert plan.core_height % 128 == 0
        assert plan.core_width % 128 == 0
        read = plan.tile(1, 1).read
        assert read.height * read.width * per_pixel <= 640 << 20
        assert plan.computed_pixels() < 1.45 * 10980**2


def test_more_memory_means_less_repeated_work() -> None:
    work = [
        plan_scene((20000, 20000), halo=96, bytes_per_pixel=1000, memory=m << 20).computed_pixels()
        for m in (200, 400, 800, 3000)
    ]
    assert work == sorted(work, reverse=True)
    assert work[-1] < 0.8 * work[0]


def test_a_small_scene_gets_one_small_tile() -> None:
    plan = plan_scene((300, 410), halo=16, multiple=8)
    assert (plan.rows, plan.cols) == (1, 1)
    tile = plan.tile(0, 0)
    assert (tile.read.height, tile.read.width) == (304 + 32, 416 + 32)
    assert (tile.core.height, tile.core.width) == (300, 410)


def test_blending_never_has_more_than_two_tiles_on_a_side() -> None:
    plan = plan_scene((5000, 5000), halo=100, tile=64, seams=Seams.BLEND)
    assert plan.core_height >= 200


def test_parts_and_lanes_do_not_grow_with_the_scene() -> None:
    plan = plan_scene((200_000, 200_000), halo=32, bytes_per_pixel=300)
    assert plan.lanes > 10
    assert max(p.window.height * p.window.width for p in plan.parts(0)) <= PART_PIXELS
    tiny = plan_scene((100_000, 100_000), halo=0, tile=16)
    part = next(tiny.parts())
    assert part.window.height >= 512  # many rows of tiles are gathered
    assert part.window.height * part.window.width <= PART_PIXELS


def test_a_tile_without_pixels_is_refused() -> None:
    with pytest.raises(SettingError, match="tile 0"):
        plan_scene((10, 10), halo=0, tile=0)
