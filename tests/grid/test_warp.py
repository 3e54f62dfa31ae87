"""Warping: right position, right mask, and the same pixel in every window."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from terralapse.errors import NoGeoreferenceError
from terralapse.grid._positions import Mapping, Target, compose
from terralapse.grid.scene import ArrayScene, Block, Scene, SceneInfo, Window
from terralapse.grid.warp import layers, read_onto, warp
from terralapse.labels import SceneMask
from terralapse.sensors import UNKNOWN, Band, Unit


def scene(data, geobox, mask=None, unit=Unit.RAW) -> ArrayScene:
    bands = tuple(Band(f"b{i + 1}", f"b{i + 1}") for i in range(len(data)))
    return ArrayScene(SceneInfo("test", "memory:test", UNKNOWN, bands, unit, geobox), data, mask)


def positions(geobox: GeoBox) -> ArrayScene:
    """Two bands that hold each pixel's own (x, y) position: linear kernels give positions back exactly."""
    h, w = geobox.shape.y, geobox.shape.x
    y, x = np.mgrid[0:h, 0:w] + 0.5
    return scene(np.stack([x, y]), geobox)


def expected_positions(source: GeoBox, target: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Source positions of target pixel centres, straight from the projection library."""
    row, col = np.mgrid[0 : target.shape.y, 0 : target.shape.x] + 0.5
    a = target.affine
    x, y = a.a * col + a.b * row + a.c, a.d * col + a.e * row + a.f
    if source.crs != target.crs:
        x, y = Transformer.from_crs(target.crs.proj, source.crs.proj, always_xy=True).transform(x, y)
    a = ~source.affine
    return a.a * x + a.b * y + a.c, a.d * x + a.e * y + a.f


def centred(crs: str, lon: float, lat: float, size: int, pixel: float, turn: float = 0.0) -> GeoBox:
    """A grid of size x size pixels around a place."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    affine = compose(Affine.translation(x, y), compose(Affine.rotation(turn), Affine.scale(pixel, -pixel)))
    return GeoBox((size, size), compose(affine, Affine.translation(-size / 2, -size / 2)), crs)


DEGREE = 10 / 111_320
SOURCES = {
    "utm": centred("EPSG:32632", 11.9, 47.0, 150, 10.0),
    "geographic": centred("EPSG:4326", 11.9, 47.0, 150, DEGREE),
    "web mercator": centred("EPSG:3857", 11.9, 47.0, 150, 14.0),
    "rotated": centred("EPSG:32632", 11.9, 47.0, 150, 10.0, turn=31.0),
    "equal area": centred("EPSG:3035", 11.9, 47.0, 150, 10.0),
}
_UTM = SOURCES["utm"]
SOURCES["south-up"] = GeoBox(
    (150, 150), Affine(10, 0, _UTM.affine.c, 0, 10, _UTM.affine.f - 1500), "EPSG:32632"
)
TARGETS = {
    "next zone": centred("EPSG:32633", 11.9, 47.0, 90, 10.0),
    "same crs": GeoBox((90, 90), compose(_UTM.affine, Affine.translation(23.4, 31.7)), "EPSG:32632"),
    "geographic": centred("EPSG:4326", 11.9, 47.0, 90, DEGREE * 1.1),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("kernel", ["bilinear", "cubic", "average"])
def test_every_pixel_comes_from_where_the_projection_says(source, target, kernel):
    block = read_onto(positions(source), target, resampling=kernel)
    x, y = expected_positions(source, target)
    inner = (x > 3) & (x < 147) & (y > 3) & (y < 147)
    assert inner.mean() > 0.5
    # A box of 1.1 pixels over flat pixels climbs a ramp in steps; the kernels that are exact must be exact.
    tolerance = 0.13 if kernel == "average" else 2e-3
    assert np.abs(block.data[0] - x)[inner].max() < tolerance
    assert np.abs(block.data[1] - y)[inner].max() < tolerance
    assert abs((block.data[0] - x)[inner].mean()) < 2e-3
    assert abs((block.data[1] - y)[inner].mean()) < 2e-3
    outside = (x < 0) | (x >= 150) | (y < 0) | (y >= 150)
    assert (block.mask[outside] == SceneMask.OUTSIDE).all()
    assert not block.mask[inner].any()


def test_same_grid_is_copied_bit_for_bit():
    data = np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32)
    data[:, 5, 7] = np.nan
    mask = np.zeros((40, 50), np.uint8)
    mask[10, 11] = SceneMask.CLOUD
    grid = GeoBox((40, 50), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    source = scene(data, grid, mask)
    block = read_onto(source, grid)
    reference = source.read(Window(0, 0, 40, 50))
    np.testing.assert_array_equal(block.data, reference.data)
    np.testing.assert_array_equal(block.mask, reference.mask)
    moved = GeoBox((40, 50), compose(grid.affine, Affine.translation(-3, 4)), "EPSG:32632")
    block = read_onto(source, moved)
    np.testing.assert_array_equal(block.data[:, :36, 3:], reference.data[:, 4:, :47])
    assert (block.mask[36:] == SceneMask.OUTSIDE).all()
    assert (block.mask[:, :3] == SceneMask.OUTSIDE).all()


def test_south_up_rows_are_turned_round_without_resampling():
    data = np.random.default_rng(0).normal(size=(1, 20, 30)).astype(np.float32)
    north = GeoBox((20, 30), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    south = GeoBox((20, 30), Affine(10, 0, 6e5, 0, 10, 5e6 - 200), "EPSG:32632")
    block = read_onto(scene(data[:, ::-1], south), north)
    np.testing.assert_array_equal(block.data, data)


@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (1, 4)])
def test_whole_pixel_shift_moves_content_and_copies(shift):
    data = np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    grid = GeoBox((30, 30), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    block = read_onto(scene(data, grid), grid, shift=shift)
    dy, dx = shift
    assert block.data[0, 15, 15] == data[0, 15 - dy, 15 - dx]
    assert (block.mask == 0).sum() == (30 - abs(dy)) * (30 - abs(dx))


def test_fractional_shift_is_part_of_the_one_resampling():
    grid = GeoBox((40, 40), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    source = positions(grid)
    block = read_onto(source, grid, shift=(0.3, -0.7))
    y, x = np.mgrid[0:40, 0:40] + 0.5
    inner = slice(2, -2), slice(2, -2)
    np.testing.assert_allclose(block.data[0][inner], (x + 0.7)[inner], atol=1e-5)
    np.testing.assert_allclose(block.data[1][inner], (y - 0.3)[inner], atol=1e-5)


def test_a_field_displaces_content():
    grid = GeoBox((200, 200), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")

    def field(x, y):
        return 0.5 * np.sin(y / 60), 0.002 * x

    block = warp(positions(grid), Target(grid.affine, grid.crs, (200, 200), field))
    y, x = np.mgrid[0:200, 0:200] + 0.5
    inner = slice(3, -3), slice(3, -3)
    assert np.abs(block.data[0] - (x - 0.5 * np.sin(y / 60)))[inner].max() < 2e-3
    assert np.abs(block.data[1] - (y - 0.002 * x))[inner].max() < 2e-3
    part = warp(
        positions(grid),
        Target(
            compose(grid.affine, Affine.translation(37, 55)),
            grid.crs,
            (80, 70),
            field,
            Affine.translation(37, 55),
        ),
    )
    np.testing.assert_allclose(part.data, block.data[:, 55:135, 37:107], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(-20, 150),
    col=st.integers(-20, 150),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    crs=st.sampled_from(["EPSG:32632", "EPSG:32633", "EPSG:4326", "EPSG:3857"]),
    kernel=st.sampled_from(["nearest", "bilinear", "cubic", "average"]),
    seed=st.integers(0, 3),
)
@example(row=55, col=0, height=13, width=88, crs="EPSG:32633", kernel="average", seed=0)
def test_a_window_is_a_cut_of_the_whole(row, col, height, width, crs, kernel, seed):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 30, (2, 130, 140)).astype(np.float32)
    mask = rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4], size=(130, 140)).astype(np.uint8)
    mask[40:80, 30:90] = 0
    source = scene(data, GeoBox((130, 140), Affine(10, 0, 7.2e5, 0, -10, 5.2e6), "EPSG:32632"), mask)
    pixel = {"EPSG:4326": DEGREE, "EPSG:3857": 13.0}.get(crs, 10.0) * (2.3 if kernel == "average" else 1.0)
    whole_grid = GeoBox((150, 160), centred(crs, 11.9, 46.907, 160, pixel).affine, crs)
    whole = read_onto(source, whole_grid, resampling=kernel)
    cut = Window(row, col, height, width)
    grid = GeoBox((height, width), compose(whole_grid.affine, Affine.translation(col, row)), crs)
    part = read_onto(source, grid, resampling=kernel)
    inside = cut.clip(150, 160)
    here = Window(inside.row - row, inside.col - col, inside.height, inside.width).slices
    np.testing.assert_array_equal(part.mask[here], whole.mask[inside.slices])
    np.testing.assert_allclose(
        part.data[:, here[0], here[1]], whole.data[:, inside.slices[0], inside.slices[1]], atol=1e-4
    )


@pytest.mark.parametrize("kernel", ["bilinear", "cubic", "average"])
def test_a_masked_pixel_lends_no_weight(kernel):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(2, 60, 60)).astype(np.float32)
    grid = GeoBox((60, 60), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    target = GeoBox((55, 55), compose(grid.affine, Affine.translation(2.3, 1.6)), grid.crs)
    whole = read_onto(scene(data, grid), target, resampling=kernel)
    holed = data.copy()
    holed[:, 30, 20] = np.nan
    holed[1, 40, 40] = np.nan  # one band is enough
    block = read_onto(scene(holed, grid), target, resampling=kernel)
    touched = np.zeros((60, 60), bool)
    touched[[30, 40], [20, 40]] = True
    x, y = expected_positions(grid, target)
    reach = 2 if kernel == "cubic" else 1
    near = np.zeros(target.shape, bool)
    for r, c in ((30, 20), (40, 40)):
        near |= (np.abs(x - c - 0.5) < reach) & (np.abs(y - r - 0.5) < reach)
    np.testing.assert_array_equal(block.mask != 0, near)
    np.testing.assert_array_equal(np.isnan(block.data), np.broadcast_to(near, block.data.shape))
    np.testing.assert_array_equal(block.data[:, ~near], whole.data[:, ~near])


@pytest.mark.parametrize("code", [c for c in SceneMask if c > SceneMask.OUTSIDE])
@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "cubic", "average"])
def test_the_reason_survives(code, kernel):
    grid = GeoBox((60, 60), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = code
    target = GeoBox((60, 60), compose(grid.affine, Affine.translation(0.4, 0.4)), grid.crs)
    block = read_onto(scene(np.ones((1, 60, 60)), grid, mask), target, resampling=kernel)
    assert set(np.unique(block.mask[1:-1, 1:-1])) == {0, code}
    assert (block.mask[20:39, 20:39] == code).all()
    assert np.isnan(block.data[0][block.mask != 0]).all()
    assert (block.data[0][block.mask == 0] == 1).all()


def test_pixels_at_the_edge_of_an_image_are_kept():
    grid = GeoBox((50, 50), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    target = GeoBox((60, 60), compose(grid.affine, Affine.translation(-4.75, -4.75)), grid.crs)
    block = read_onto(scene(np.full((1, 50, 50), 7.0), grid), target)
    x, y = expected_positions(grid, target)
    inside = (x >= 0) & (x < 50) & (y >= 0) & (y < 50)
    np.testing.assert_array_equal(block.mask == 0, inside)
    np.testing.assert_allclose(block.data[0][inside], 7.0, rtol=1e-6)


@pytest.mark.parametrize(("factor", "offset"), [(2, 0.0), (3, 0.0), (3, 0.5), (5, 0.25)])
def test_average_is_the_area_weighted_mean(factor, offset):
    data = np.random.default_rng(2).normal(size=(1, 60, 60)).astype(np.float32)
    grid = GeoBox((60, 60), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    count = 60 // factor - 1
    target = GeoBox(
        (count, count),
        compose(grid.affine, compose(Affine.translation(offset, offset), Affine.scale(factor))),
        grid.crs,
    )
    fine = 20  # the mean by brute force on a grid twenty times finer
    dense = np.kron(data[0].astype(np.float64), np.ones((fine, fine)))
    start, step = round(offset * fine), factor * fine
    dense = dense[start : start + count * step, start : start + count * step]
    means = dense.reshape(count, step, count, step).mean(axis=(1, 3))
    block = read_onto(scene(data, grid), target)
    np.testing.assert_allclose(block.data[0], means, atol=1e-5)


def test_downsampling_averages_and_upsampling_interpolates_by_default():
    checker = np.indices((64, 64)).sum(axis=0)[None] % 2 * 2.0
    grid = GeoBox((64, 64), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    coarse = GeoBox((16, 16), compose(grid.affine, Affine.scale(4)), grid.crs)
    np.testing.assert_allclose(read_onto(scene(checker, grid), coarse).data, 1.0)
    fine = GeoBox((128, 128), compose(grid.affine, Affine.scale(0.5)), grid.crs)
    assert 0.2 < read_onto(scene(checker, grid), fine).data[0, 8:-8, 8:-8].std() < 0.9


class Counting(ArrayScene):
    """A scene that decimates by averaging, as the readers do, and keeps what it was asked."""

    def read(self, window, bands=None, decimation=1):
        self.asked = [*getattr(self, "asked", []), (window, decimation)]
        if decimation == 1:
            return super().read(window, bands)
        block = super().read(window, bands)
        h, w = (n - n % decimation for n in block.mask.shape)
        shape = h // decimation, decimation, w // decimation, decimation
        data = block.data[:, :h, :w].reshape(len(block.data), *shape).mean(axis=(2, 4))
        mask = block.mask[:h, :w].reshape(shape).max(axis=(1, 3))
        return Block(data, mask)


def test_large_ratios_read_overviews_and_still_average():
    data = np.random.default_rng(0).normal(size=(1, 640, 640)).astype(np.float32)
    grid = GeoBox((640, 640), Affine(1, 0, 6e5, 0, -1, 5e6), "EPSG:32632")
    source = Counting(scene(data, grid).info, data)
    target = GeoBox((40, 40), Affine(16, 0, 6e5, 0, -16, 5e6), grid.crs)
    block = read_onto(source, target)
    assert {d for _, d in source.asked} == {4}
    np.testing.assert_allclose(block.data[0], data[0].reshape(40, 16, 40, 16).mean(axis=(1, 3)), atol=1e-5)
    part = read_onto(source, GeoBox((7, 9), compose(target.affine, Affine.translation(11, 20)), grid.crs))
    np.testing.assert_allclose(part.data, block.data[:, 20:27, 11:20], atol=1e-6)


def test_memory_of_a_piece_is_bounded(monkeypatch):
    grid = GeoBox((512, 512), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    data = np.random.default_rng(0).normal(size=(2, 512, 512)).astype(np.float32)
    source = Counting(scene(data, grid).info, data)
    target = GeoBox((500, 500), compose(grid.affine, Affine.translation(3.5, 3.5)), grid.crs)
    whole = read_onto(source, target)
    monkeypatch.setattr("terralapse.grid.warp._BUDGET", 30_000)
    source.asked = []
    pieces = read_onto(source, target)
    assert max(w.height * w.width for w, _ in source.asked) < 25_000
    np.testing.assert_array_equal(pieces.data, whole.data)


def test_decibels_are_averaged_as_power():
    data = np.where(np.indices((40, 40)).sum(axis=0) % 2, -30.0, -10.0)[None]
    grid = GeoBox((40, 40), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    coarse = GeoBox((20, 20), compose(grid.affine, Affine.scale(2)), grid.crs)
    block = read_onto(scene(data, grid, unit=Unit.DB), coarse)
    np.testing.assert_allclose(block.data, 10 * np.log10((1e-3 + 1e-1) / 2), atol=1e-3)


class Mosaic(Scene):
    def __init__(self, *parts: Scene) -> None:
        self.info, self._parts = parts[0].info, list(parts)

    def read(self, window, bands=None, decimation=1):
        raise AssertionError("warping reads the parts")

    def parts(self):
        return self._parts


def test_tiles_of_one_lattice_are_warped_as_one_image():
    data = np.random.default_rng(0).normal(size=(2, 80, 100)).astype(np.float32)
    grid = GeoBox((80, 100), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    tiles = [
        scene(data[:, r : r + 40, c : c + 50], grid[r : r + 40, c : c + 50]) for r in (0, 40) for c in (0, 50)
    ]
    target = centred("EPSG:32633", 10.2775, 45.14, 120, 9.0)
    whole = read_onto(scene(data, grid), target)
    assert (whole.mask == 0).any()
    mosaic = Mosaic(*tiles)
    block = read_onto(mosaic, target)
    np.testing.assert_array_equal(block.mask, whole.mask)
    np.testing.assert_array_equal(block.data, whole.data)
    assert len(list(layers(mosaic, Target(target.affine, target.crs, (120, 120))))) == 1


def test_parts_of_two_projections_are_composed_first_valid_first():
    target = centred("EPSG:32633", 12.0, 47.0, 100, 10.0)
    west = centred("EPSG:32632", 11.9965, 47.0, 80, 10.0)
    east = centred("EPSG:32633", 12.0035, 47.0, 80, 10.0)
    first = np.ones((1, 80, 80), np.float32)
    first[:, 30:50, 60:70] = np.nan
    block = read_onto(Mosaic(scene(first, west), scene(np.full((1, 80, 80), 2.0), east)), target)
    alone = read_onto(scene(first, west), target)
    second = read_onto(scene(np.full((1, 80, 80), 2.0), east), target)
    np.testing.assert_array_equal(block.mask == 0, (alone.mask == 0) | (second.mask == 0))
    np.testing.assert_allclose(block.data[0][alone.mask == 0], 1.0)
    np.testing.assert_allclose(block.data[0][(alone.mask != 0) & (second.mask == 0)], 2.0)
    assert ((alone.mask == SceneMask.NODATA) & (block.mask == 0)).any()


def test_of_two_gaps_the_telling_reason_is_kept():
    grid = GeoBox((10, 10), Affine(10, 0, 6e5, 0, -10, 5e6), "EPSG:32632")
    cloud, empty = np.full((10, 10), int(SceneMask.CLOUD), np.uint8), np.full((1, 10, 10), np.nan)
    block = read_onto(Mosaic(scene(empty, grid), scene(np.ones((1, 10, 10)), grid, cloud)), grid)
    assert (block.mask == SceneMask.CLOUD).all()


@pytest.mark.parametrize("zone", ["EPSG:32660", "EPSG:32601"])
@pytest.mark.parametrize("turn", [0, -360])
def test_a_geographic_grid_across_the_antimeridian(zone, turn):
    source = centred(zone, 180.0, 50.0, 120, 10.0)
    step = 1.3e-4
    target = GeoBox((60, 60), Affine(step, 0, 180 + turn - 30 * step, 0, -step, 50 + 30 * step), "EPSG:4326")
    block = read_onto(positions(source), target)
    x, y = expected_positions(source, target)
    inner = (x > 2) & (x < 118) & (y > 2) & (y < 118)
    assert inner[:, :30].any()
    assert inner[:, 30:].any()
    assert np.abs(block.data[0] - x)[inner].max() < 2e-3
    assert not block.mask[inner].any()


@pytest.mark.parametrize("west", [-180.0, 0.0])
def test_a_global_geographic_image_on_a_grid_across_its_seam(west):
    h, w = 180, 360
    lon = (west + np.arange(w) + 0.5 + 180) % 360 - 180
    values = np.stack([np.cos(np.radians(lon)), np.sin(np.radians(lon))])[:, None, :].repeat(h, axis=1)
    source = scene(values, GeoBox((h, w), Affine(1, 0, west, 0, -1, 90), "EPSG:4326"))
    centre = 180.0 if west < 0 else 0.0
    zone = "EPSG:32601" if west < 0 else "EPSG:32631"
    target = centred(zone, centre, 10.0, 64, 10_000.0)
    block = read_onto(source, target)
    row, col = np.mgrid[0:64, 0:64] + 0.5
    a = target.affine
    true_lon, _ = Transformer.from_crs(zone, "EPSG:4326", always_xy=True).transform(
        a.a * col + a.c, a.e * row + a.f
    )
    assert not block.mask.any()
    error = np.hypot(
        block.data[0] - np.cos(np.radians(true_lon)), block.data[1] - np.sin(np.radians(true_lon))
    )
    assert error.max() < 0.01


def test_two_geographic_grids_that_count_longitudes_differently():
    source = positions(GeoBox((40, 60), Affine(0.1, 0, 177, 0, -0.1, 2), "EPSG:4326"))
    target = GeoBox((40, 20), Affine(0.1, 0, -180, 0, -0.1, 2), "EPSG:4326")
    block = read_onto(source, target)
    assert not block.mask.any()
    np.testing.assert_allclose(block.data[0][0], np.arange(20) + 30.5, atol=1e-3)


def test_the_pole_is_a_place_like_any_other():
    lat = 90 - (np.arange(100) + 0.5) * 0.1
    lon = -180 + (np.arange(720) + 0.5) * 0.5
    values = np.broadcast_to(90 - lat[:, None], (100, 720))[None] + 0 * lon
    source = scene(values, GeoBox((100, 720), Affine(0.5, 0, -180, 0, -0.1, 90), "EPSG:4326"))
    target = GeoBox((80, 80), Affine(10_000, 0, -400_000, 0, -10_000, 400_000), "EPSG:3995")
    block = read_onto(source, target)
    row, col = np.mgrid[0:80, 0:80] + 0.5
    _, true = Transformer.from_crs("EPSG:3995", "EPSG:4326", always_xy=True).transform(
        10_000 * col - 400_000, 400_000 - 10_000 * row
    )
    assert not block.mask.any()
    away = 90 - true > 0.1  # nearer the pole the first row of pixels is all that there is
    assert np.abs(block.data[0] - (90 - true))[away].max() < 0.01


def test_a_grid_beyond_the_domain_of_a_projection_is_outside():
    source = positions(centred("EPSG:32632", 9.0, 47.0, 50, 10.0))
    target = GeoBox((18, 36), Affine(10, 0, -180, 0, -10, 90), "EPSG:4326")
    assert (read_onto(source, target).mask == SceneMask.OUTSIDE).all()


def test_positions_do_not_depend_on_the_window():
    source, target = SOURCES["rotated"], TARGETS["next zone"]
    whole = Mapping(source, Target(target.affine, target.crs, (90, 90))).centres()
    part = Mapping(
        source, Target(compose(target.affine, Affine.translation(41, 3)), target.crs, (20, 30))
    ).centres()
    for a, b in zip(whole, part, strict=True):
        assert np.abs(a[3:23, 41:71] - b).max() < 2e-6


def test_agrees_with_gdal():
    from rasterio.warp import Resampling, reproject
    from scipy.ndimage import gaussian_filter

    data = gaussian_filter(np.random.default_rng(0).normal(size=(1, 200, 200)), (0, 3, 3)).astype(np.float32)
    source, target = (
        centred("EPSG:32632", 11.9, 47.0, 200, 10.0),
        centred("EPSG:32633", 11.9, 47.0, 120, 10.0),
    )
    theirs = np.empty((1, 120, 120), np.float32)
    reproject(
        data,
        theirs,
        src_transform=source.affine,
        src_crs="EPSG:32632",
        dst_transform=target.affine,
        dst_crs="EPSG:32633",
        resampling=Resampling.bilinear,
        src_nodata=np.nan,
        dst_nodata=np.nan,
    )
    ours = read_onto(scene(data, source), target).data
    # GDAL approximates positions to an eighth of a pixel.
    assert np.abs(ours - theirs).max() < 0.15 * np.abs(np.diff(data)).max()
    assert np.abs(ours - theirs).mean() < 0.02 * data.std()


def test_reads_from_many_threads_are_the_same():
    rng = np.random.default_rng(0)
    source = scene(rng.normal(size=(2, 150, 150)).astype(np.float32), SOURCES["rotated"])
    grids = [
        GeoBox((40, 40), compose(TARGETS["next zone"].affine, Affine.translation(c, r)), "EPSG:32633")
        for r in range(0, 50, 10)
        for c in range(0, 50, 10)
    ]
    alone = [read_onto(source, g).data for g in grids]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda g: read_onto(source, g).data, grids))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_side_without_a_coordinate_system_is_refused():
    with pytest.raises(NoGeoreferenceError, match="assume-crs"):
        read_onto(positions(GeoBox((5, 5), Affine.identity(), None)), TARGETS["next zone"])
