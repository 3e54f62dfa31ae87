"""The median of many items: against numpy, and where the right answer is known by construction."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from odc.geo.geobox import GeoBox

from item_stacks import CRS, LEFT, PIXEL, SIDE, TOP, flat, put_item, sky
from terralapse.errors import SettingError, UnreadableFileError
from terralapse.grid import median as medians
from terralapse.grid.align import align
from terralapse.grid.common import cell_text
from terralapse.grid.composite import CompositeList
from terralapse.grid.median import BUDGET, MOST_ITEMS, MedianScene, median, side_of
from terralapse.grid.open import open_scene
from terralapse.grid.scene import ArrayScene, SceneInfo, Window
from terralapse.labels import SceneMask
from terralapse.sensors import UNKNOWN, Band, Unit

GRID = GeoBox((SIDE, SIDE), Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP), CRS)
WHOLE = Window(0, 0, SIDE, SIDE)


def opened(folder: Path, items: list[Path], least: int = 1, grid: GeoBox = GRID) -> MedianScene:
    """The median of items, through the list in a file as a job writes it."""
    listed = CompositeList(tuple(map(str, items)), "median", cell_text(grid, str(grid.crs)), least)
    scene = open_scene(listed.write(folder / "list.json"), s2_offset=0.0)
    assert isinstance(scene, MedianScene)
    return scene


def counts(scene: MedianScene) -> np.ndarray:
    return scene.counts(["red", "nir"]).read(WHOLE).data[0]


def made(data: np.ndarray, day: int, grid: GeoBox, mask: np.ndarray | None = None) -> ArrayScene:
    """A scene in memory."""
    bands = tuple(Band(f"b{i}", f"b{i}") for i in range(len(data)))
    time = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return ArrayScene(
        SceneInfo(f"d{day}", f"memory:d{day}", UNKNOWN, bands, Unit.RAW, grid, time), data, mask
    )


# --- against numpy ---------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.just(2), st.integers(1, 7), st.integers(1, 7)),
        elements=st.floats(-1000, 1000, width=32) | st.just(float("nan")),
    ),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_blocks_of_any_size_give_numpys_nanmedian(stack: np.ndarray, least: int, side: int) -> None:
    stack[np.isnan(stack).any(axis=1, keepdims=True).repeat(2, axis=1)] = np.nan
    height, width = stack.shape[2:]
    grid = GeoBox((height, width), Affine(10, 0, 0, 0, -10, 0), "EPSG:32632")
    scenes = [made(data, day, grid) for day, data in enumerate(stack)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medians, "SIDES", (side,))
        with MedianScene(scenes, grid, least, Path("m.json")) as scene:
            block = scene.read(Window(0, 0, height, width))
            looks = scene.counts(["b0", "b1"]).read(Window(0, 0, height, width)).data[0]
    clear = np.isfinite(stack).all(axis=1).sum(axis=0)
    enough = clear >= least
    np.testing.assert_array_equal(looks, clear)
    np.testing.assert_array_equal(block.mask == SceneMask.VALID, enough)
    assert np.isnan(block.data[:, ~enough]).all()
    np.testing.assert_array_equal(
        block.data[:, enough], np.nanmedian(stack[:, :, enough], axis=0).astype(np.float32)
    )


def test_the_median_of_nothing_is_nothing() -> None:
    values = np.array([[[1.0, np.nan]], [[4.0, np.nan]], [[np.nan, np.nan]]], np.float32)
    np.testing.assert_array_equal(median(values), [[2.5, np.nan]])


# --- known answers ---------------------------------------------------------------------------------
def test_an_outlier_is_outvoted(tmp_path: Path) -> None:
    """Haze that the mask missed, in one of five looks; the least cloudy look is the one that has it."""
    items = []
    for number, day in enumerate(("2021-06-01", "2021-06-11", "2021-06-21", "2021-07-01", "2021-07-11")):
        values = flat(1000 + 10 * number)
        if number == 1:
            values[:, 10:30, 10:30] = 9000
        items.append(put_item(tmp_path, day, values, sky()))
    with opened(tmp_path, items) as scene:
        block = scene.read(WHOLE)
        looks = counts(scene)
    assert (block.mask == SceneMask.VALID).all()
    assert (looks == 5).all()
    np.testing.assert_allclose(block.data[0, 40:], 0.102, rtol=1e-5)
    # Of 1000, 1020, 1030, 1040 and 9000 the middle one.
    for band, value in enumerate((0.103, 0.206)):
        np.testing.assert_allclose(block.data[band, 10:30, 10:30], value, rtol=1e-5)


def test_clouds_and_gaps_are_left_out_and_too_few_looks_are_no_data(tmp_path: Path) -> None:
    """Left half clouded at the first two of three looks; the last has no data at its lower rows."""
    left = (slice(None), slice(0, 8))
    last = flat(3000)
    last[:, 48:] = 0
    items = [
        put_item(tmp_path, "2021-06-01", flat(1000), sky(left)),
        put_item(tmp_path, "2021-06-11", flat(2000), sky(left)),
        put_item(tmp_path, "2021-06-21", last, sky()),
    ]
    with opened(tmp_path, items, least=2) as scene:
        block, looks = scene.read(WHOLE), counts(scene)
    right, clouded = np.s_[:, 40:], np.s_[:, :16]  # cloud is grown by 100 m, which lies between
    assert (looks[:48][right] == 3).all()
    assert (looks[48:][right] == 2).all()
    assert (looks[:48][clouded] == 1).all()
    assert (looks[48:][clouded] == 0).all()
    np.testing.assert_allclose(block.data[0, :48, 40:], 0.2, rtol=1e-5)
    np.testing.assert_allclose(block.data[0, 48:, 40:], 0.15, rtol=1e-5)
    assert (block.mask[:48][clouded] == SceneMask.NODATA).all()  # one clear look of the two that are needed
    assert (block.mask[48:][clouded] == SceneMask.CLOUD).all()  # none, and cloud is what there was
    assert np.isnan(block.data[:, block.mask != SceneMask.VALID]).all()


def test_all_cloudy_is_cloud(tmp_path: Path) -> None:
    items = [put_item(tmp_path, day, flat(1000), sky(np.s_[:, :])) for day in ("2021-06-01", "2021-06-11")]
    with opened(tmp_path, items) as scene:
        assert (scene.read(WHOLE).mask == SceneMask.CLOUD).all()
        assert (counts(scene) == 0).all()


def test_a_single_item_is_itself_where_one_look_is_enough(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(500, 4000, (2, SIDE, SIDE))
    item = put_item(tmp_path, "2021-06-01", values, sky())
    with opened(tmp_path, [item]) as scene:
        np.testing.assert_allclose(scene.read(WHOLE).data, values * 1e-4, rtol=1e-5)
    with opened(tmp_path, [item], least=2) as scene:
        assert (scene.read(WHOLE).mask == SceneMask.NODATA).all()


def test_items_of_one_day_are_one_look(tmp_path: Path) -> None:
    """Two tiles of a pass overlap in the middle: there the first of them counts, and counts once."""
    items = [
        put_item(tmp_path, "2021-06-01", flat(1000, 48), sky(side=48), name="west"),
        put_item(tmp_path, "2021-06-01", flat(1200, 48), sky(side=48), name="east", where=(LEFT + 160, TOP)),
        put_item(tmp_path, "2021-06-11", flat(2000), sky()),
        put_item(tmp_path, "2021-06-21", flat(3000), sky()),
    ]
    with opened(tmp_path, items) as scene:
        block, looks = scene.read(Window(0, 0, 48, SIDE)), counts(scene)
    assert (looks[:48] == 3).all()
    assert (looks[48:] == 2).all()
    np.testing.assert_allclose(block.data[0], 0.2, rtol=1e-5)


def test_items_of_two_projections_meet_on_one_grid(tmp_path: Path) -> None:
    """The neighbouring zone's item lies askew; a ramp over the ground must come out as that ramp."""
    from pyproj import Transformer

    _, cols = np.mgrid[:SIDE, :SIDE]
    ramp = 1000 + 10 * cols
    here = np.stack([ramp, 2 * ramp])
    to_zone = Transformer.from_crs(CRS, "EPSG:32633", always_xy=True)
    x, y = to_zone.transform(LEFT + SIDE * 5, TOP - SIDE * 5)
    n = 128
    left, top = round(x / 10) * 10 - n * 5, round(y / 10) * 10 + n * 5
    r, c = np.mgrid[:n, :n]
    back = Transformer.from_crs("EPSG:32633", CRS, always_xy=True)
    east, _ = back.transform(left + (c + 0.5) * 10, top - (r + 0.5) * 10)
    other = 1000 + 10 * ((east - LEFT) / 10 - 0.5)
    there = np.stack([other, 2 * other]).round()
    items = [
        put_item(tmp_path, "2021-06-01", here, sky()),
        put_item(tmp_path, "2021-06-11", there, sky(side=n), where=(left, top), crs="EPSG:32633"),
        put_item(tmp_path, "2021-06-21", here + 400, sky()),
        put_item(tmp_path, "2021-06-23", there - 400, sky(side=n), where=(left, top), crs="EPSG:32633"),
    ]
    with opened(tmp_path, items) as scene:
        block, looks = scene.read(WHOLE), counts(scene)
    assert scene.info.geobox == GRID
    assert (looks == 4).all()
    assert np.abs(block.data[0] - ramp * 1e-4).max() < 2e-4  # of a ramp of 10 units a pixel


# --- the same on any machine -----------------------------------------------------------------------
def test_windows_threads_and_the_order_of_items_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    items = [
        put_item(
            tmp_path, f"2021-06-{day:02d}", rng.integers(500, 4000, (2, SIDE, SIDE)), sky(np.s_[:day, :9])
        )
        for day in range(1, 10, 2)
    ]
    with opened(tmp_path, items, least=3) as scene:
        whole, looks = scene.read(WHOLE), counts(scene)
    monkeypatch.setattr(medians, "READERS", 2)
    monkeypatch.setattr(medians, "SIDES", (16,))
    windows = [Window(r, c, 24, 40) for r in range(-8, SIDE, 24) for c in range(-8, SIDE, 40)]
    with opened(tmp_path, items[::-1], least=3) as scene, ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(scene.read, windows))
        np.testing.assert_array_equal(counts(scene), looks)
    for window, part in zip(windows, parts, strict=True):
        inside = window.clip(SIDE, SIDE)
        here = Window(inside.row - window.row, inside.col - window.col, inside.height, inside.width).slices
        np.testing.assert_array_equal(part.data[:, *here], whole.data[:, *inside.slices])
        np.testing.assert_array_equal(part.mask[here], whole.mask[inside.slices])
        outside = np.ones(part.mask.shape, bool)
        outside[here] = False
        assert (part.mask[outside] == SceneMask.OUTSIDE).all()


def test_memory_is_that_of_a_block_whatever_the_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 1 MiB holds for 8 items and for the 200 that are allowed."""
    monkeypatch.setattr(medians, "BUDGET", 1 << 20)
    side = 96
    grid = GeoBox((side, side), Affine(10, 0, 0, 0, -10, 0), "EPSG:32632")
    peaks = []
    for number in (8, MOST_ITEMS):
        data = np.ones((1, side, side), np.float32)
        scenes = [made(data, day, grid) for day in range(number)]
        for scene in scenes:
            scene._data = data  # all show the same array, so that only the median's own memory counts
        with MedianScene(scenes, grid, 1, Path("m.json")) as scene:
            tracemalloc.start()
            assert (scene.read(Window(0, 0, side, side)).data == 1).all()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 6 << 20
    assert MOST_ITEMS * side * side * 4 > max(peaks)  # the whole stack would be more


@pytest.mark.parametrize("looks", [1, 30, MOST_ITEMS])
@pytest.mark.parametrize("bands", [1, 4, 12])
def test_a_block_of_all_looks_stays_within_the_budget(looks: int, bands: int) -> None:
    assert side_of(looks, bands) ** 2 * looks * bands * 4 <= BUDGET
    assert side_of(looks, bands) >= 64


def test_a_pixel_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [put_item(tmp_path, f"2021-06-{day:02d}", flat(day * 100), sky()) for day in (1, 3, 5)]
    calls: list[Window] = []
    plain = MedianScene._compute
    monkeypatch.setattr(MedianScene, "_compute", lambda s, w, n: (calls.append(w), plain(s, w, n))[1])
    with opened(tmp_path, items) as scene, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: scene.read(WHOLE), range(8)))
        scratch = Path(scene._scratch.name)
        assert len(calls) == 1
    assert not scratch.exists()


def test_looks_follow_the_date_that_is_moved(tmp_path: Path) -> None:
    """A pair of two medians tells the counts of both on its own grid."""
    left = (slice(None), slice(0, 8))
    first = [put_item(tmp_path, f"2021-06-0{d}", flat(1000), sky(left)) for d in (1, 5)]
    second = [put_item(tmp_path, f"2023-06-0{d}", flat(1500), sky()) for d in (1, 5, 9)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with opened(tmp_path / "a", first) as before, opened(tmp_path / "b", second) as after:
        pair = align(before, after, grid=cell_text(GRID, CRS), coregister=False)
        assert pair.has_looks
        found = pair.looks(Window(0, 0, *pair.shape))
        assert pair.fingerprint()["medians"] == [1, 1]  # a run that is resumed has the same rule
    assert pair.shape == (SIDE, SIDE)
    assert (found[0, :, 40:] == 2).all()
    assert (found[0, :, :16] == 0).all()
    assert (found[1] == 3).all()


# --- bad lists -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "mode"}, "has the rule 'mode'"),
        ({"sources": []}, "names no images"),
        ({"grid": ""}, "without its `grid`"),
        ({"least": "two"}, "without its `grid` or with a `least`"),
    ],
)
def test_a_list_that_says_nothing_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    import json

    path = CompositeList(("a.tif",), "median", cell_text(GRID, CRS), 2).write(tmp_path / "l.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnreadableFileError, match=said):
        open_scene(path)


def test_too_many_items_are_refused() -> None:
    grid = GeoBox((1, 1), Affine(10, 0, 0, 0, -10, 0), "EPSG:32632")
    scene = made(np.ones((1, 1, 1), np.float32), 0, grid)
    with pytest.raises(SettingError, match="at most 200"):
        MedianScene([scene] * (MOST_ITEMS + 1), grid, 1, Path("m.json"))


def test_an_item_that_is_gone_is_named_and_the_others_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terralapse.errors import FileMissingError
    from terralapse.grid._stack import StackScene

    closed: list[str] = []
    monkeypatch.setattr(StackScene, "close", lambda s: closed.append(s.info.name))
    item = put_item(tmp_path, "2021-06-01", flat(1000), sky())
    with pytest.raises(FileMissingError, match=r"gone\.json"):
        opened(tmp_path, [item, tmp_path / "gone.json"])
    assert closed == ["item-2021-06-01"]
