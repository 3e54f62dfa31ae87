"""Two dates on one grid: bands, units, masks, windows, previews, the record."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.ndimage import gaussian_filter, map_coordinates

from terralapse.errors import BandError, NoOverlapError
from terralapse.grid._positions import compose
from terralapse.grid.align import align
from terralapse.grid.match import match_bands
from terralapse.grid.scene import ArrayScene, SceneInfo, Source, Window
from terralapse.grid.warp import read_onto
from terralapse.labels import Reason, SceneMask
from terralapse.sensors import RGB, SENTINEL1, SENTINEL2, UNKNOWN, Band, Unit

UTM = Affine(10, 0, 600_000, 0, -10, 5_200_000)
TIMES = (datetime(2020, 5, 1, tzinfo=UTC), datetime(2021, 5, 1, tzinfo=UTC))


def named(*names: str) -> tuple[Band, ...]:
    return tuple(Band(n, n) for n in names)


def scene(data, geobox, bands, *, date=0, mask=None, unit=Unit.RAW, sensor=UNKNOWN, name=None) -> ArrayScene:
    name = name or ("before.tif", "after.tif")[date]
    info = SceneInfo(name, f"memory:{name}", sensor, bands, unit, geobox, TIMES[date])
    return ArrayScene(info, data, mask)


def ground(size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (100 + 60 * gaussian_filter(rng.normal(size=(channels, size, size)), (0, 1.5, 1.5))).astype(
        np.float32
    )


def pair_of(before=None, after=None, shape=(200, 200), **options):
    grid = GeoBox(shape, UTM, "EPSG:32632")
    data = ground(max(shape))[:, : shape[0], : shape[1]]
    bands = named("red", "green", "blue")
    one = before or scene(data, grid, bands)
    two = after or scene(data, grid, bands, date=1)
    return align(one, two, **({"coregister": False} | options))


def around(crs: str, lon: float, lat: float, size: int, pixel: float, turn: float = 0.0) -> GeoBox:
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    affine = compose(Affine.translation(x, y), compose(Affine.rotation(turn), Affine.scale(pixel, -pixel)))
    return GeoBox((size, size), compose(affine, Affine.translation(-size / 2, -size / 2)), crs)


def seen_from(geobox: GeoBox, image: np.ndarray, of: GeoBox, shift=(0.0, 0.0)) -> np.ndarray:
    """What a sensor with one grid sees of ground given on another, by exact projection and a cubic spline.
    `shift` moves the content on the ground by (down, right) pixels of the ground's grid."""
    row, col = np.mgrid[0 : geobox.shape.y, 0 : geobox.shape.x] + 0.5
    a = geobox.affine
    x, y = a.a * col + a.b * row + a.c, a.d * col + a.e * row + a.f
    if geobox.crs != of.crs:
        x, y = Transformer.from_crs(geobox.crs.proj, of.crs.proj, always_xy=True).transform(x, y)
    a = ~of.affine
    u, v = a.a * x + a.b * y + a.c - 0.5 - shift[1], a.d * x + a.e * y + a.f - 0.5 - shift[0]
    out = np.stack([map_coordinates(band, [v, u], order=3, cval=np.nan) for band in image])
    out[:, (u < 3) | (v < 3) | (u > of.shape.x - 4) | (v > of.shape.y - 4)] = np.nan
    return out.astype(np.float32)


# --- reading ---------------------------------------------------------------------------------------
def test_the_date_on_the_grid_is_read_bit_for_bit():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    data = ground(200)
    other = around("EPSG:32633", 10.33, 46.93, 300, 9.0)
    pair = align(
        scene(data, grid, named("red", "green", "blue")),
        scene(ground(300), other, named("red", "green", "blue"), date=1),
        coregister=False,
    )
    block = pair.read(Window(0, 0, *pair.shape))
    offset = compose(~grid.affine, pair.geobox.affine)
    row, col = round(offset.f), round(offset.c)
    np.testing.assert_array_equal(
        block.images[0], data[:, row : row + pair.shape[0], col : col + pair.shape[1]]
    )
    assert pair.report.as_dict()["before"]["resampling"] == "none (pixels as they are)"
    assert pair.report.as_dict()["after"]["resampling"] == "bilinear"


GRIDS = {
    "same": (GeoBox((150, 160), UTM, "EPSG:32632"), GeoBox((150, 160), UTM, "EPSG:32632")),
    "offset": (
        GeoBox((150, 160), UTM, "EPSG:32632"),
        GeoBox((150, 160), compose(UTM, Affine.translation(3.4, -7.7)), "EPSG:32632"),
    ),
    "zones": (around("EPSG:32632", 12.0, 47.0, 150, 10.0), around("EPSG:32633", 12.0, 47.0, 150, 10.0)),
    "resolutions": (around("EPSG:32632", 12.0, 47.0, 150, 10.0), around("EPSG:32632", 12.0, 47.0, 300, 4.1)),
    "degrees and turned": (
        around("EPSG:4326", 12.0, 47.0, 150, 9e-5),
        around("EPSG:32633", 12.0, 47.0, 150, 9.0, turn=30),
    ),
}
PAIRS = {}
for _name, (_one, _two) in GRIDS.items():
    _rng = np.random.default_rng(1)
    _masks = [
        _rng.choice([0] * 40 + [2, 3, 4, 5], size=tuple(g.shape)).astype(np.uint8) for g in (_one, _two)
    ]
    PAIRS[_name] = align(
        scene(
            ground(max(_one.shape))[:, : _one.shape.y, : _one.shape.x],
            _one,
            named("red", "nir", "x"),
            mask=_masks[0],
        ),
        scene(
            ground(max(_two.shape))[:, : _two.shape.y, : _two.shape.x],
            _two,
            named("x", "nir", "red"),
            date=1,
            mask=_masks[1],
        ),
        coregister=False,
    )
WHOLES = {name: pair.read(Window(0, 0, *pair.shape)) for name, pair in PAIRS.items()}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(PAIRS)),
    row=st.integers(-40, 170),
    col=st.integers(-40, 170),
    height=st.integers(1, 130),
    width=st.integers(1, 130),
)
def test_any_window_is_a_cut_of_the_whole(name, row, col, height, width):
    pair, whole = PAIRS[name], WHOLES[name]
    block = pair.read(Window(row, col, height, width))
    assert block.images.shape == (2, 3, height, width)
    inside = Window(row, col, height, width).clip(*pair.shape)
    here = Window(inside.row - row, inside.col - col, inside.height, inside.width).slices
    np.testing.assert_array_equal(block.reason[here], whole.reason[inside.slices])
    np.testing.assert_allclose(
        block.images[:, :, here[0], here[1]],
        whole.images[:, :, inside.slices[0], inside.slices[1]],
        atol=1e-4,
    )
    beyond = np.ones((height, width), bool)
    beyond[here] = False
    assert np.isnan(block.images[:, :, beyond]).all()
    assert (block.reason[beyond] == Reason.OUTSIDE_BEFORE).all()


@pytest.mark.parametrize("name", list(PAIRS))
def test_reading_from_threads_is_the_same(name):
    pair, whole = PAIRS[name], WHOLES[name]
    windows = [
        Window(r, c, 37, 41)
        for r in range(0, pair.shape[0] - 37, 37)
        for c in range(0, pair.shape[1] - 41, 41)
    ]
    with ThreadPoolExecutor(6) as pool:
        for window, block in zip(windows, pool.map(pair.read, windows), strict=True):
            np.testing.assert_array_equal(block.reason, whole.reason[window.slices])


def test_where_a_date_cannot_be_used_it_is_nan_and_only_there():
    for whole in WHOLES.values():
        for date in (0, 1):
            unusable = np.isnan(whole.images[date])
            assert (unusable == unusable[0]).all()  # all bands together
        both = np.isnan(whole.images[:, 0]).any(axis=0)
        np.testing.assert_array_equal(whole.reason != 0, both)


def test_one_broken_pixel_stays_one_broken_pixel():
    data = ground(200)
    broken = data.copy()
    broken[1, 50, 60] = np.nan
    broken[2, 90, 90] = np.inf
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    bands = named("red", "green", "blue")
    clean, hurt = (pair_of(scene(d, grid, bands)).read(Window(0, 0, 200, 200)) for d in (data, broken))
    assert list(zip(*np.nonzero(hurt.reason), strict=True)) == [(50, 60), (90, 90)]
    assert set(hurt.reason[hurt.reason > 0]) == {Reason.NODATA_BEFORE}
    rest = hurt.reason == 0
    np.testing.assert_array_equal(hurt.images[:, :, rest], clean.images[:, :, rest])


def test_reasons_of_both_dates_are_combined_the_lowest_code_first():
    masks = [np.zeros((200, 200), np.uint8) for _ in range(2)]
    masks[0][10:20], masks[1][15:25] = SceneMask.CLOUD, SceneMask.NODATA
    masks[1][40:50], masks[0][45:55] = SceneMask.SHADOW, SceneMask.SHADOW
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    scenes = [scene(ground(200), grid, named("a", "b", "c"), date=d, mask=masks[d]) for d in (0, 1)]
    reason = pair_of(*scenes).read(Window(0, 0, 200, 200)).reason
    expected = np.zeros((200, 200), np.uint8)
    expected[10:15], expected[15:25] = Reason.CLOUD_BEFORE, Reason.NODATA_AFTER
    expected[40:45], expected[45:55] = Reason.SHADOW_AFTER, Reason.SHADOW_BEFORE
    np.testing.assert_array_equal(reason, expected)


def test_outside_of_the_area_is_masked_but_not_blanked(tmp_path):
    to_lonlat = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    ring = [(600_500, 5_199_500), (601_500, 5_199_500), (600_500, 5_198_500), (600_500, 5_199_500)]
    geometry = {"type": "Polygon", "coordinates": [[list(to_lonlat.transform(*p)) for p in ring]]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    pair = pair_of(aoi=path)
    assert pair.shape == (100, 100)
    block = pair.read(Window(-5, 0, 105, 100))
    assert (block.reason[:5] == Reason.OUTSIDE_AOI).all()
    assert block.reason[10, 5] == Reason.VALID
    assert block.reason[100, 95] == Reason.OUTSIDE_AOI
    assert np.isfinite(block.images[:, :, 5:]).all()
    preview, _ = pair.preview(50)
    assert preview.reason[5, 5] == Reason.VALID
    assert preview.reason[48, 48] == Reason.OUTSIDE_AOI
    assert pair.report.as_dict()["aoi"]["path"].endswith("area.geojson")
    far = tmp_path / "far.geojson"
    far.write_text(path.read_text().replace("10.", "50."))
    with pytest.raises(NoOverlapError, match=r"far\.geojson"):
        pair_of(aoi=far)


# --- bands and units -------------------------------------------------------------------------------
def info(bands, unit=Unit.RAW, name="x.tif") -> SceneInfo:
    return SceneInfo(name, name, UNKNOWN, bands, unit, GeoBox((1, 1), UTM, "EPSG:32632"))


S2 = tuple(b for b in SENTINEL2.bands if b.name in ("blue", "green", "red", "nir"))
OLI = (Band("blue", "B2"), Band("green", "B3"), Band("red", "B4"), Band("nir", "B5"), Band("swir16", "B6"))
FOUR, THREE = named("b1", "b2", "b3", "b4"), named("b1", "b2", "b3")


@pytest.mark.parametrize(
    ("one", "two", "wanted", "names"),
    [
        (S2, OLI, None, [("blue", "blue"), ("green", "green"), ("red", "red"), ("nir", "nir")]),
        (OLI, S2[::-1], ["red", "nir"], [("red", "red"), ("nir", "nir")]),
        (S2, OLI, ["B08", "B4"], [("nir", "nir"), ("red", "red")]),
        (FOUR, FOUR, None, [("b1", "b1"), ("b2", "b2"), ("b3", "b3"), ("b4", "b4")]),
        (FOUR, THREE, ["3", "1"], [("b3", "b3"), ("b1", "b1")]),
        (FOUR, S2, ["1", "4"], [("b1", "blue"), ("b4", "nir")]),
    ],
)
def test_bands_are_matched(one, two, wanted, names):
    match = match_bands(info(one), info(two), wanted)
    assert list(zip(match.before, match.after, strict=True)) == names
    assert len(match.bands) == len(names)


def test_a_band_known_in_one_date_gives_its_name():
    assert [b.name for b in match_bands(info(FOUR), info(S2), ["1", "4"]).bands] == ["blue", "nir"]


@pytest.mark.parametrize(
    ("one", "two", "wanted", "text"),
    [
        (named("b1"), FOUR, None, "1 in the image before.*4 in the image after.*--bands"),
        (FOUR, THREE, None, "4 in the image before"),
        (S2, FOUR, None, "blue, green, red, nir"),
        (S2, OLI, ["swir16"], "has no band 'swir16'.*blue, green, red, nir"),
        (S2, OLI, ["9"], "has no band '9'"),
        (S2, OLI, ["red", "B04"], "red is asked for twice"),
        (S2, OLI, [], "empty"),
    ],
)
def test_bands_that_cannot_be_matched(one, two, wanted, text):
    with pytest.raises(BandError, match=text):
        match_bands(info(one), info(two), wanted)


def test_bands_come_in_the_order_asked_for():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    data = ground(200)
    after = scene(data[::-1], grid, named("blue", "green", "red"), date=1)
    pair = pair_of(after=after, bands=["blue", "red"])
    block = pair.read(Window(0, 0, 200, 200))
    np.testing.assert_array_equal(block.images[0], data[[2, 0]])
    np.testing.assert_array_equal(block.images[1], block.images[0])


def test_power_and_decibels_meet_in_decibels():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    power = np.random.default_rng(0).uniform(0.001, 1, (2, 200, 200)).astype(np.float32)
    power[0, 3, 4] = 0
    bands = named("vv", "vh")
    before = scene(power, grid, bands, unit=Unit.POWER, sensor=SENTINEL1)
    after = scene(10 * np.log10(np.maximum(power, 1e-6)), grid, bands, date=1, unit=Unit.DB, sensor=SENTINEL1)
    pair = pair_of(before, after)
    assert pair.unit is Unit.DB
    block = pair.read(Window(0, 0, 200, 200))
    assert block.reason[3, 4] == Reason.NODATA_BEFORE
    np.testing.assert_allclose(block.images[0][:, block.valid], block.images[1][:, block.valid], atol=1e-4)


def test_unlike_units_are_fitted_and_said():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    data = ground(200)
    pair = pair_of(
        scene(data / 10_000, grid, named("red", "green", "blue"), unit=Unit.REFLECTANCE),
        scene(data * 2 + 5, grid, named("red", "green", "blue"), date=1, unit=Unit.RGB255, sensor=RGB),
    )
    assert pair.unit is Unit.REFLECTANCE
    codes = {n.code: n.level for n in pair.notes}
    assert codes["units-differ"] == "warning"
    assert codes["radiometry-fitted"] == "info"
    block = pair.read(Window(0, 0, 200, 200))
    np.testing.assert_allclose(block.images[0], block.images[1], atol=1e-5)
    assert pair.fingerprint()["radiometry"]["bands"][0]["gain"] == pytest.approx(1 / 20_000, rel=1e-3)


def test_normalise_is_applied_only_when_asked():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    after = scene(ground(200) * 0.5 + 3, grid, named("red", "green", "blue"), date=1)
    plain, fitted = (pair_of(after=after, normalise=n).read(Window(0, 0, 200, 200)) for n in (False, True))
    assert np.abs(plain.images[0] - plain.images[1]).mean() > 10
    np.testing.assert_allclose(fitted.images[0], fitted.images[1], atol=1e-2)


# --- notes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("times", "code"),
    [
        (TIMES, None),
        (TIMES[::-1], "dates-swapped"),
        ((TIMES[0],) * 2, "dates-equal"),
        ((TIMES[0], None), "dates-unknown"),
    ],
)
def test_dates_that_look_wrong_are_warned_about(times, code):
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    scenes = [scene(ground(200), grid, named("a", "b", "c"), date=d) for d in (0, 1)]
    for one, time in zip(scenes, times, strict=True):
        one.info = replace(one.info, time=time)
    notes = {n.code: n.level for n in pair_of(*scenes).notes}
    assert notes == ({} if code is None else {code: "warning"})


def test_the_same_bytes_under_two_names(tmp_path):
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    paths = [tmp_path / n for n in ("a.tif", "b.tif", "c.tif")]
    for path, content in zip(paths, (b"same", b"same", b"else"), strict=True):
        path.write_bytes(content)
    scenes = []
    for path, date in zip(paths, (0, 1, 1), strict=True):
        scenes.append(scene(ground(200), grid, named("a", "b", "c"), date=date))
        scenes[-1].info = replace(scenes[-1].info, sources=[Source(str(path), 4)])
    assert "identical-inputs" in {n.code for n in pair_of(scenes[0], scenes[1]).notes}
    assert "identical-inputs" not in {n.code for n in pair_of(scenes[0], scenes[2]).notes}


# --- preview ---------------------------------------------------------------------------------------
def test_a_preview_shows_the_same_place_decimated():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    row, col = np.mgrid[0:200, 0:200] + 0.5
    data = np.stack([col, row, row]).astype(np.float32)
    pair = pair_of(scene(data, grid, named("x", "y", "z")), scene(data, grid, named("x", "y", "z"), date=1))
    block, small = pair.preview(50)
    assert small.shape == (50, 50)
    assert small.affine.a == 40
    np.testing.assert_allclose(
        block.images[0, 0], np.broadcast_to(np.arange(50) * 4 + 2, (50, 50)), atol=1e-3
    )
    np.testing.assert_allclose(
        block.images[1, 1].T, np.broadcast_to(np.arange(50) * 4 + 2, (50, 50)), atol=1e-3
    )
    assert pair.preview(64)[1].shape == (50, 50)
    assert pair.preview(200)[1].shape == (200, 200)


def test_a_preview_shows_what_there_is_where_analysis_is_strict():
    grid = GeoBox((200, 200), UTM, "EPSG:32632")
    mask = np.zeros((200, 200), np.uint8)
    mask[::4, ::4] = SceneMask.CLOUD  # a sixteenth of each preview pixel
    mask[100:, 100:] = SceneMask.CLOUD
    data = ground(200)
    pair = pair_of(scene(data, grid, named("red", "green", "blue"), mask=mask))
    block, _ = pair.preview(50)
    assert (block.reason[:25] == 0).all()
    assert (block.reason[25:, 25:] == Reason.CLOUD_BEFORE).all()
    usable = np.where(mask[:100] == 0, data[0, :100], np.nan).reshape(25, 4, 50, 4)
    np.testing.assert_allclose(block.images[0, 0, :25], np.nanmean(usable, axis=(1, 3)), rtol=1e-4)


def test_a_preview_may_show_bands_that_are_not_compared():
    pair = pair_of(bands=["red"])
    block, _ = pair.preview(100, ["blue", "green", "red"])
    assert block.images.shape == (2, 3, 100, 100)
    with pytest.raises(BandError, match="swir16"):
        pair.preview(100, ["swir16"])


# --- shift -----------------------------------------------------------------------------------------
FINE = around("EPSG:32632", 12.0, 47.0, 420, 10.0)


@pytest.mark.parametrize(
    ("other", "tolerance"),
    [
        (around("EPSG:32632", 12.0, 47.0, 400, 10.0), 0.05),
        (around("EPSG:32633", 12.0, 47.0, 400, 10.0), 0.1),
        (around("EPSG:32632", 12.0, 47.0, 300, 13.0), 0.1),
        (around("EPSG:4326", 12.0, 47.0, 400, 1e-4), 0.1),
        (around("EPSG:32632", 12.0, 47.0, 380, 10.0, turn=25), 0.1),
    ],
    ids=["same grid", "other zone", "other resolution", "degrees", "turned"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_known_shift_between_grids_is_found_and_undone(other, tolerance, swapped):
    image = ground(420, 1)
    shift = (1.4, -0.8)  # of the ground's content, in pixels of 10 m, down and right
    one = scene(image, FINE, named("red"))
    two = scene(seen_from(other, image, FINE, shift), other, named("red"))
    for s, date in ((one, int(swapped)), (two, int(not swapped))):
        s.info = replace(s.info, time=TIMES[date], name=("before", "after")[date])
    pair = align(two, one) if swapped else align(one, two)
    record = pair.report.as_dict()["coregistration"]
    scale = 10.0 / pair.geobox.affine.a * (-1 if swapped else 1)
    expected = (shift[0] * scale, shift[1] * scale)
    found = record["shift_px"]
    if pair.geobox.crs == FINE.crs:  # on the grid of another zone north is turned by a few degrees
        assert (found["dy"], found["dx"]) == pytest.approx(expected, abs=tolerance)
    assert np.hypot(found["dy"], found["dx"]) == pytest.approx(np.hypot(*expected), abs=tolerance)
    assert record["status"] == "corrected"
    assert record["residual_median_px"] < 0.1
    assert record["shift_size_m"] == pytest.approx(10 * np.hypot(*shift), rel=0.1)
    assert "after correcting" in pair.report.verdict
    assert "shift-found" in {n.code for n in pair.notes}
    block = pair.read(Window(60, 60, *(n - 120 for n in pair.shape)))
    apart = np.abs(block.images[0] - block.images[1])[0][block.valid]
    raw = align(two, one, coregister=False) if swapped else align(one, two, coregister=False)
    block = raw.read(Window(60, 60, *(n - 120 for n in raw.shape)))
    assert apart.mean() < 0.35 * np.abs(block.images[0] - block.images[1])[0][block.valid].mean()


def test_the_date_that_lies_on_the_grid_is_not_the_one_that_is_moved():
    image = ground(420, 1)
    coarse = around("EPSG:32632", 12.0, 47.0, 130, 30.0)
    averaged = read_onto(scene(image, FINE, named("red")), coarse).data
    pair = align(
        scene(seen_from(FINE, image, FINE, (2.0, 1.0)), FINE, named("red")),
        scene(averaged, coarse, named("red"), date=1),
    )
    assert pair.report.as_dict()["coregistration"]["moved"] == "before"
    assert pair.report.as_dict()["coregistration"]["status"] == "corrected"
    block = pair.read(Window(20, 20, 80, 80))
    offset = compose(~coarse.affine, pair.geobox.affine)
    row, col = round(offset.f) + 20, round(offset.c) + 20
    np.testing.assert_array_equal(block.images[1], averaged[:, row : row + 80, col : col + 80])
    assert np.abs(block.images[0] - block.images[1]).mean() < 1.0


def test_windows_agree_after_a_correction_too():
    image = ground(420, 1)
    row, col = np.indices((420, 420)) - 210
    bent = map_coordinates(
        image[0], [row + 210 - 1 - 0.004 * col, col + 210 + 0.5 - 0.004 * row], order=3, mode="nearest"
    )
    pair = align(scene(image, FINE, named("red")), scene(bent[None], FINE, named("red"), date=1))
    assert pair.report.coregistration.model == "affine"
    whole = pair.read(Window(0, 0, *pair.shape))
    for window in (Window(0, 0, 100, 90), Window(133, 57, 201, 77), Window(300, 320, 90, 80)):
        block = pair.read(window)
        np.testing.assert_array_equal(block.reason, whole.reason[window.slices])
        cut = whole.images[:, :, window.slices[0], window.slices[1]]
        np.testing.assert_allclose(block.images, cut, atol=1e-4)


def test_a_displaced_part_is_masked_in_reads_and_previews():
    image = ground(512, 1)
    grid = GeoBox((512, 512), UTM, "EPSG:32632")
    after = image.copy()
    after[:, 128:384, 128:384] = image[:, 132:388, 124:380]
    pair = align(scene(image, grid, named("red")), scene(after, grid, named("red"), date=1))
    reason = pair.read(Window(0, 0, 512, 512)).reason
    assert (reason[200:312, 200:312] == Reason.MISREGISTERED).mean() > 0.7
    assert (reason[:60] == 0).all()
    assert "misregistered" in {n.code for n in pair.notes}
    preview, _ = pair.preview(128)
    agree = preview.reason == reason[2::4, 2::4]
    assert agree.mean() > 0.97


def test_no_coregister_measures_nothing():
    pair = pair_of()
    assert pair.report.as_dict()["coregistration"]["status"] == "skipped"
    assert "not measured" in pair.report.verdict


def test_images_without_any_coordinate_system_are_compared_by_pixels():
    bare = GeoBox((200, 200), Affine.identity(), None)
    data = ground(200)
    pair = pair_of(
        scene(data, bare, named("a", "b", "c")),
        scene(data, bare, named("a", "b", "c"), date=1),
        coregister=True,
    )
    assert pair.report.resolution_m is None
    assert pair.read(Window(0, 0, 200, 200)).valid.all()
    assert json.loads(json.dumps(pair.report.as_dict()))["coregistration"]["shift_size_m"] is None


# --- the record ------------------------------------------------------------------------------------
def test_the_record_can_be_written_and_says_what_was_done():
    pair = PAIRS["zones"]
    record = json.loads(json.dumps(pair.report.as_dict()))
    assert record["grid"]["epsg"] == 32632
    assert record["grid"]["size"] == list(pair.shape)
    assert record["after"]["grid"]["epsg"] == 32633
    assert record["rule"] == "the grid of the image before, because pixels of both dates are alike"
    assert record["bands"][0] == {"name": "red", "before": "red", "after": "red"}
    assert len(record["grid"]["transform"]) == 6


def test_the_fingerprint_changes_with_what_changes_the_pixels():
    prints = [
        json.dumps(pair.fingerprint(), sort_keys=True)
        for pair in (pair_of(), pair_of(bands=["red"]), pair_of(grid=20), pair_of(normalise=True))
    ]
    assert len(set(prints)) == 4
    assert prints[0] == json.dumps(pair_of().fingerprint(), sort_keys=True)


# --- real ------------------------------------------------------------------------------------------
def test_the_joplin_example(root):
    from terralapse.grid.open import open_scene

    with (
        open_scene(str(root / "examples/joplin/before/*.tif")) as before,
        open_scene(str(root / "examples/joplin/after/*.tif")) as after,
    ):
        pair = align(before, after)
        record = pair.report.as_dict()
        assert record["grid"]["epsg"] == 26915
        assert record["before"]["resampling"] == "none (pixels as they are)"
        assert record["before"]["parts"] == 4
        assert record["after"]["parts"] == 6
        assert record["coregistration"]["status"] == "corrected"
        assert 0.7 < record["coregistration"]["shift_size_px"] < 2.0
        assert (
            record["coregistration"]["residual_median_px"]
            < 0.8 * record["coregistration"]["median_before_px"]
        )
        block, _ = pair.preview(400)
        # No hairline of missing pixels where tiles meet.
        inner = block.reason[20:-20, 25:-25]
        assert np.isin(inner, [Reason.VALID, Reason.MISREGISTERED]).all()
        whole = pair.read(Window(700, 900, 300, 300))
        part = pair.read(Window(750, 1011, 120, 90))
        np.testing.assert_allclose(part.images, whole.images[:, :, 50:170, 111:201], atol=1e-4)
