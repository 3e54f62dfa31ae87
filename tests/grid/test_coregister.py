"""Shifts between dates: recovered to a twentieth of a pixel, with the right sign, or not claimed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import fft
from scipy.ndimage import gaussian_filter, map_coordinates

from terralapse.grid import coregister
from terralapse.grid._phase import measure
from terralapse.grid._positions import Target, compose
from terralapse.grid._shiftmodel import Correction, fit_model
from terralapse.grid.coregister import coregister_dates
from terralapse.grid.scene import ArrayScene, SceneInfo
from terralapse.grid.warp import warp
from terralapse.sensors import UNKNOWN, Band, Unit

GRID = Affine(10, 0, 6e5, 0, -10, 5e6)


def texture(size: int, seed: int = 0) -> np.ndarray:
    """A landscape of fields and texture, free of frequencies that sampling would fold."""
    rng = np.random.default_rng(seed)
    rough = fft.rfft2(rng.normal(size=(size, size)))
    f = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None])
    land = fft.irfft2(rough / np.maximum(f, 2 / size) ** 1.3 * (f < 0.4), s=(size, size))
    patches = gaussian_filter(rng.normal(size=(size, size)), 6, mode="wrap")
    fields = np.digitize(patches / patches.std(), (-1.0, -0.3, 0.3, 1.0)).astype(float)
    image = land / land.std() + gaussian_filter(fields, 1.2, mode="wrap")
    return (100 + 20 * image).astype(np.float32)


def moved_by(image: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """The content moved down and right, exactly, by the phase of its spectrum (it wraps round)."""
    h, w = image.shape
    phase = np.exp(-2j * np.pi * (fft.fftfreq(h)[:, None] * dy + fft.fftfreq(w)[None] * dx))
    return fft.ifft2(fft.fft2(image) * phase).real.astype(np.float32)


def reader(before: np.ndarray, after: np.ndarray, moved: int = 1):
    grid = GeoBox(before.shape, GRID, "EPSG:32632")
    info = SceneInfo("x", "memory:x", UNKNOWN, (Band("b1", "b1"),), Unit.RAW, grid)
    scenes = [ArrayScene(info, image[None]) for image in (before, after)]

    def read(to_grid, shape, correction):
        blocks = []
        for date, scene in enumerate(scenes):
            move = correction if date == moved else Correction()
            affine = compose(GRID, compose(move.affine, to_grid))
            blocks.append(warp(scene, Target(affine, grid.crs, shape, move.field, to_grid)))
        return blocks[0], blocks[1]

    return read


def run(before: np.ndarray, after: np.ndarray, moved: int = 1):
    return coregister_dates(reader(before, after, moved), before.shape, moved)


@pytest.fixture(scope="module")
def land() -> np.ndarray:
    return texture(512)


@pytest.mark.parametrize("shift", [(0.3, -0.7), (-1.25, 0.5), (2.6, 3.4), (-5.2, 0.0)])
@pytest.mark.parametrize("moved", [0, 1])
def test_a_shift_is_recovered_with_its_sign_and_undone(land, shift, moved):
    result = run(land, moved_by(land, *shift), moved)
    assert result.status == "corrected"
    assert result.model == "shift"
    assert result.shift == pytest.approx(shift, abs=0.05)
    assert result.residual_median is not None
    assert result.residual_median < 0.05
    assert result.misregistered == []
    assert ("shift-found" in [n.code for n in result.notes()]) == (np.hypot(*shift) > 0.5)


def test_no_shift_is_left_alone(land):
    result = run(land, land.copy())
    assert result.status == "aligned"
    assert np.abs(result.shift).max() < 0.05
    assert result.correction.is_none
    assert result.notes() == []


@pytest.mark.parametrize("shift", [(0.04, -0.03)])
def test_a_shift_too_small_to_mend_is_reported_and_not_resampled(land, shift):
    result = run(land, moved_by(land, *shift))
    assert result.status == "aligned"
    assert result.correction.is_none
    assert result.shift == pytest.approx(shift, abs=0.03)


def disturbed(image: np.ndarray, how: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    out = image.copy()
    rough = gaussian_filter(rng.normal(size=image.shape), 25)
    cloud = rough > np.quantile(rough, 0.8)
    if how == "masked cloud":
        out[cloud] = np.nan
    elif how == "bright cloud":
        out[cloud] = 300 + 20 * gaussian_filter(rng.normal(size=image.shape), 2)[cloud]
    elif how == "noise":
        out += rng.normal(0, 0.5 * image.std(), image.shape)
    elif how == "brightness":
        out = 0.4 * out + 60
    elif how == "inverted":
        out = 255 - out
    elif how == "haze":
        out = out * (0.6 + 0.4 * (np.arange(image.shape[1]) / image.shape[1])) + 40
    return out.astype(np.float32)


@pytest.mark.parametrize("how", ["masked cloud", "bright cloud", "noise", "brightness", "inverted", "haze"])
def test_a_shift_is_recovered_under(land, how):
    shift = (1.3, -0.85)
    result = run(land, disturbed(moved_by(land, *shift), how))
    assert result.status == "corrected"
    assert result.shift == pytest.approx(shift, abs=0.1)
    assert result.misregistered == []


@pytest.mark.parametrize("shift", [(30.4, -25.7), (-31.0, 12.5)])
@pytest.mark.parametrize("size", [320, 512])
def test_large_shifts_are_found(shift, size):
    result = run(texture(size), moved_by(texture(size), *shift))
    assert result.status == "corrected"
    assert result.shift == pytest.approx(shift, abs=0.05)


def test_a_shift_of_more_than_a_block_is_found():
    land = texture(900, 3)
    result = run(land, moved_by(land, 190.3, -140.6))
    assert result.shift == pytest.approx((190.3, -140.6), abs=0.05)
    assert result.residual_median < 0.05


def test_the_look_at_the_whole_happens_once_and_does_not_depend_on_the_threads(monkeypatch):
    before, after = texture(1024, 1), texture(1024, 2)  # nothing in common: blocks of both sizes are tried
    looked: list[tuple[int, ...]] = []
    monkeypatch.setattr(coregister, "_COARSE", 256)
    monkeypatch.setattr(coregister, "measure", lambda *two: looked.append(two[0].shape) or measure(*two))

    found = {}
    for threads in (1, 3):
        looked.clear()
        found[threads] = coregister_dates(reader(before, after), before.shape, threads=threads).as_dict(10)
        assert looked.count((256, 256)) >= 1
        whole = [shape for shape in looked if shape == (256, 256)]
        blocks = len(list(coregister._sample(before.shape, 256)))
        assert len(whole) == blocks + 1, "blocks of 256 pixels, and one look at 256 x 256 of the whole"
    assert found[1] == found[3]


@pytest.mark.parametrize("seed", range(1, 5))
def test_unrelated_images_are_not_forced_together(land, seed):
    result = run(land, texture(512, seed))
    assert result.status in ("unknown", "inconsistent")
    assert result.correction.is_none
    assert result.misregistered == []
    assert any(n.level == "warning" and n.code.startswith("shift-") for n in result.notes())
    assert "nothing was corrected" in result.verdict


@pytest.mark.parametrize("kind", ["flat", "one flat", "noise", "empty"])
def test_nothing_to_hold_on_to_is_unknown_and_not_misregistered(land, kind):
    rng = np.random.default_rng(0)
    images = {
        "flat": (np.full((512, 512), 7.0), np.full((512, 512), 7.0)),
        "one flat": (land, np.full((512, 512), 7.0)),
        "noise": (rng.normal(size=(512, 512)), rng.normal(size=(512, 512))),
        "empty": (land, np.full((512, 512), np.nan)),
    }[kind]
    result = run(*(i.astype(np.float32) for i in images))
    assert result.status == "unknown"
    assert result.unreliable_share == 1.0
    assert result.misregistered == []
    assert result.correction.is_none


@pytest.mark.parametrize("shape", [(20, 400), (5, 5)])
def test_an_image_too_small_to_measure(shape):
    result = run(np.ones(shape, np.float32), np.ones(shape, np.float32))
    assert result.status == "unknown"


@pytest.mark.parametrize("shape", [(64, 64), (100, 300), (48, 900)])
def test_small_and_narrow_images(shape):
    land = texture(900, 2)
    shift = (0.6, -1.4)
    result = run(land[: shape[0], : shape[1]], moved_by(land, *shift)[: shape[0], : shape[1]])
    assert result.status == "corrected"
    assert result.shift == pytest.approx(shift, abs=0.15)


def warped(image: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Content at p moved to p + d(p), nearly: sampled at p - d(p) with a fifth-order spline."""
    row, col = np.indices(image.shape)
    return map_coordinates(image, [row - dy, col - dx], order=5, mode="nearest").astype(np.float32)


def test_a_turned_and_stretched_image_gets_an_affine_map():
    land = texture(900, 4)
    row, col = np.indices(land.shape) - 450
    dy, dx = 1.0 + 0.002 * row - 0.003 * col, -0.5 + 0.003 * row + 0.001 * col
    result = run(land, warped(land, dy, dx))
    assert result.model == "affine"
    assert result.residual_p90 < 0.1
    assert result.misregistered == []
    corner = compose(result.correction.affine, Affine.translation(800, 100))
    # The pixel there must be taken from where the content went.
    assert corner.c == pytest.approx(800 + dx[100, 800], abs=0.1)
    assert corner.f == pytest.approx(100 + dy[100, 800], abs=0.1)


def test_a_wavy_image_gets_a_local_field():
    land = texture(1280, 6)
    row, col = np.indices(land.shape)
    dy, dx = 1.5 * np.sin(2 * np.pi * col / 1280), 1.5 * np.sin(2 * np.pi * row / 1280 + 1)
    result = run(land, warped(land, dy, dx))
    assert result.model == "local"
    assert result.before_median > 1.0
    assert result.residual_median < 0.25
    assert result.correction.as_dict()["local"]["centres"]


def test_a_part_that_is_displaced_is_masked_and_nothing_else():
    land = texture(1024, 7)
    after = land.copy()
    after[400:800, 100:500] = moved_by(land, 3.0, -4.0)[400:800, 100:500]
    result = run(land, after)
    assert result.status == "aligned"
    flagged = np.zeros(land.shape, bool)
    for w in result.misregistered:
        flagged[w.slices] = True
    assert flagged[500:700, 200:400].mean() > 0.7
    outside = flagged.copy()
    outside[272:928, :628] = False  # blocks that lie in the part by half or more
    assert not outside.any()
    assert "misregistered" in [n.code for n in result.notes()]


def test_two_halves_that_contradict_each_other():
    land = texture(1024, 8)
    after = land.copy()
    after[:, 512:] = moved_by(land, 9.0, 9.0)[:, 512:]
    result = run(land, after)
    # One half may be aligned, but then the other is masked: it is never compared as if it were.
    if result.status in ("aligned", "corrected"):
        flagged = np.zeros(land.shape, bool)
        for w in result.misregistered:
            flagged[w.slices] = True
        assert flagged.mean() > 0.3
    else:
        assert result.correction.is_none
    assert [n for n in result.notes() if n.level == "warning"]


def test_the_report_is_plain_and_in_metres(land):
    result = run(land, moved_by(land, 0.6, 0.8))
    record = json.loads(json.dumps(result.as_dict(10.0)))
    assert record["shift_size_px"] == pytest.approx(1.0, abs=0.05)
    assert record["shift_size_m"] == pytest.approx(10.0, abs=0.5)
    assert record["blocks_measured"] == len(record["blocks"]) > 9
    assert record["unreliable_share"] == 0
    assert set(record["blocks"][0]) >= {"window", "state", "shift_px", "residual_px", "score", "correlation"}
    said = re.search(r"within 0.05 px .* after correcting ([\d.]+) px", record["verdict"])
    assert said is not None
    assert float(said[1]) == pytest.approx(1.0, abs=0.05)
    assert result.as_dict(None)["shift_size_m"] is None


def test_the_result_is_the_same_every_time(land):
    after = disturbed(moved_by(land, 1.3, 0.4), "noise")
    assert run(land, after).as_dict(1.0) == run(land, after).as_dict(1.0)


def test_one_block_measures_what_is_visible_only(land):
    before, after = land[:256, :256].copy(), moved_by(land, 0.7, -0.4)[:256, :256].copy()
    after[60:150, 80:200] = np.nan
    peak, _ = measure(before, after)
    assert (peak.dy, peak.dx) == pytest.approx((0.7, -0.4), abs=0.05)
    assert peak.reliable
    assert peak.valid == pytest.approx(1 - 90 * 120 / 256**2, abs=1e-6)
    after[:, :200] = np.nan
    assert measure(before, after) is None


def test_models_ignore_outliers_and_do_not_flatter_themselves():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 1000, (40, 2))
    shifts = np.array([1.5, -0.5]) + rng.normal(0, 0.1, (40, 2))
    shifts[:12] = rng.uniform(-30, 30, (12, 2))
    model = fit_model(centres, shifts, np.ones(40), (1000, 1000))
    assert model.kind == "shift"
    assert model.at_centre() == pytest.approx((1.5, -0.5), abs=0.08)
    scattered = rng.uniform(-30, 30, (40, 2))
    assert fit_model(centres, scattered, np.ones(40), (1000, 1000)) is None
    assert fit_model(centres[:2], shifts[:2], np.ones(2), (1000, 1000)) is None


# --- real images -----------------------------------------------------------------------------------
def real(shared_data, name: str) -> np.ndarray:
    import rasterio

    with rasterio.open(shared_data / name) as file:
        return file.read(1).astype(np.float32)


def averaged(image: np.ndarray, factor: int, row: int, col: int, size: int) -> np.ndarray:
    cut = image[row : row + size * factor, col : col + size * factor]
    return cut.reshape(size, factor, size, factor).mean(axis=(1, 3))


@pytest.mark.parametrize("offset", [(1, 2), (-3, 5), (6, -7)])
@pytest.mark.parametrize("how", ["clean", "masked cloud", "noise", "brightness"])
def test_a_real_image_sampled_at_two_offsets(shared_data, offset, how):
    image = real(shared_data, "disaster_joplin_geotiff/pre/tile_337-9136.tif")
    before = averaged(image, 4, 16, 16, 240)
    after = averaged(image, 4, 16 + offset[0], 16 + offset[1], 240)
    result = run(before, after if how == "clean" else disturbed(after, how))
    assert result.status == "corrected"
    truth = (-offset[0] / 4, -offset[1] / 4)
    assert result.shift == pytest.approx(truth, abs=0.05 if how == "clean" else 0.1)


@pytest.mark.parametrize(
    ("year", "offset"), [("20120731", (0, 0)), ("20150926", (7, -4)), ("20200831", (-12, 9))]
)
def test_two_real_dates_and_a_known_extra_shift(shared_data, year, offset):
    """The true shift of two dates is not known; what a cut at another place adds to it is."""
    before = real(shared_data, "timeseries_naip_wetland/m_4709963_se_14_1_20180716.tif")
    after = real(shared_data, f"timeseries_naip_wetland/m_4709963_se_14_1_{year}.tif")
    inner = before[20:300, 20:300]
    plain = run(inner, after[20:300, 20:300])
    r, c = offset
    cut = run(inner, after[20 + r : 300 + r, 20 + c : 300 + c])
    assert plain.shift is not None
    assert np.abs(plain.shift).max() < 3
    assert cut.shift == pytest.approx((plain.shift[0] - r, plain.shift[1] - c), abs=0.15)


@pytest.fixture
def places(shared_data) -> list[tuple[np.ndarray, np.ndarray]]:
    """Red bands of ten places in 2016 and 2020, 256 x 256 pixels of 0.6 m."""
    import zipfile

    import rasterio

    found = []
    with zipfile.ZipFile(shared_data / "trees_naip_multiyear/train.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".tif") and "_2016_" in n)[:10]
        for name in names:
            dates = []
            for year in ("2016", "2020"):
                with (
                    rasterio.MemoryFile(archive.read(name.replace("2016", year))) as memory,
                    memory.open() as file,
                ):
                    dates.append(file.read(1).astype(np.float32))
            found.append((dates[0], dates[1]))
    return found


def test_one_place_four_years_apart_is_measured(places):
    results = [run(*dates) for dates in places]
    assert sum(r.status in ("aligned", "corrected") for r in results) == len(places)
    assert all(np.hypot(*r.shift) < 3 for r in results)
    assert np.median([r.residual_median for r in results]) < 0.4


def test_two_places_are_never_forced_together(places):
    for i, (before, _) in enumerate(places):
        for step in (1, 4):
            result = run(before, places[(i + step) % len(places)][1])
            assert result.status == "unknown"
            assert result.correction.is_none
