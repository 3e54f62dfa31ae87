"""Plain raster files: pixels, nodata of every form, scaling, names, georeference, threads, http."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin

from fixtures_eo import serve, write_tif
from terralapse.errors import (
    BandError,
    FileMissingError,
    NoGeoreferenceError,
    SettingError,
    TruncatedFileError,
    UnreadableFileError,
    UnsupportedGeoreferenceError,
)
from terralapse.grid import _gdal
from terralapse.grid._georef import resolution_m
from terralapse.grid._guess import parse_time, time_of
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Block, Scene, Window, reduce_codes
from terralapse.labels import SceneMask
from terralapse.sensors import Unit

NODATA, OUTSIDE = int(SceneMask.NODATA), int(SceneMask.OUTSIDE)


def read_all(scene: Scene, **options) -> Block:
    h, w = scene.info.geobox.shape
    return scene.read(Window(0, 0, h, w), **options)


def codes(scene: Scene) -> set[str]:
    return {n.code for n in scene.info.notes}


# --- pixels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_stored_numbers_come_back_exactly(tmp_path: Path, dtype: str) -> None:
    data = np.random.default_rng(1).integers(0, 120, (2, 70, 45)).astype(dtype)
    with open_scene(write_tif(tmp_path / "a.tif", data, tiled=True, blockxsize=32, blockysize=16)) as scene:
        block = read_all(scene)
        assert scene.info.dtype == dtype
    assert block.data.dtype == np.float32
    assert (block.data == data).all()
    assert not block.mask.any()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A three-band int16 file with holes of -9999, its values with NaN, and its mask."""
    rng = np.random.default_rng(7)
    data = rng.integers(-500, 9000, (3, 97, 131)).astype(np.int16)
    data[:, 20:40, 50:90] = -9999
    data[1, rng.random((97, 131)) < 0.05] = -9999
    path = tmp_path_factory.mktemp("ref") / "ref.tif"
    write_tif(path, data, nodata=-9999, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    mask = np.where((data == -9999).any(axis=0), NODATA, 0)
    return path, np.where(mask[None] > 0, np.nan, data).astype(np.float32), mask


windows = st.builds(
    Window, st.integers(-40, 120), st.integers(-40, 150), st.integers(1, 150), st.integers(1, 180)
)


def cut(values: np.ndarray, window: Window, fill: float) -> np.ndarray:
    """The numpy way to read a window that may reach outside."""
    rows = np.arange(window.row, window.row + window.height)
    cols = np.arange(window.col, window.col + window.width)
    inside = ((rows >= 0) & (rows < 97))[:, None] & ((cols >= 0) & (cols < 131))[None]
    picked = values[..., rows.clip(0, 96)[:, None], cols.clip(0, 130)[None]]
    return np.where(inside, picked, fill)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows)
def test_any_window_is_what_numpy_cuts_out(reference, window: Window) -> None:
    path, values, mask = reference
    block = open_scene(path).read(window)
    np.testing.assert_array_equal(block.data, cut(values, window, np.nan))
    np.testing.assert_array_equal(block.mask, cut(mask, window, OUTSIDE))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows, d=st.integers(2, 9))
def test_a_decimated_window_holds_means_over_valid_pixels(reference, window: Window, d: int) -> None:
    path, values, mask = reference
    block = open_scene(path).read(window, ["b2", "b1"], decimation=d)
    full, codes_ = cut(values, window, np.nan)[[1, 0]], cut(mask, window, OUTSIDE)
    h, w = -(-window.height // d), -(-window.width // d)
    assert block.data.shape == (2, h, w)
    for i in range(h):
        for j in range(w):
            square = codes_[i * d : i * d + d, j * d : j * d + d]
            inside = square[square != OUTSIDE]
            if not inside.size:
                assert block.mask[i, j] == OUTSIDE
            elif 2 * (inside == 0).sum() >= inside.size:
                assert block.mask[i, j] == 0
                expected = np.nanmean(full[:, i * d : i * d + d, j * d : j * d + d], axis=(1, 2))
                np.testing.assert_allclose(block.data[:, i, j], expected, rtol=1e-5)
                continue
            else:
                assert block.mask[i, j] == NODATA
            assert np.isnan(block.data[:, i, j]).all()


def test_the_most_frequent_reason_is_kept() -> None:
    squares = np.array([[0, 0, 3, 3, 1, 1, 1], [5, 5, 3, 2, 1, 0, 1]], np.uint8)
    assert reduce_codes(squares, 2).tolist() == [[0, 3, 0, 1]]


def test_overviews_are_used_only_where_they_fit(tmp_path: Path) -> None:
    """The overview is made to differ from the full resolution, so that one sees which one was read."""
    path = write_tif(tmp_path / "a.tif", np.full((1, 256, 256), 10, np.float32), tiled=True)
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([4], Resampling.nearest)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=0) as dst:
        dst.write(np.full((1, 64, 64), 99, np.float32))
    with open_scene(path) as scene:
        assert (read_all(scene).data == 10).all()
        assert (read_all(scene, decimation=4).data == 99).all()
        assert (read_all(scene, decimation=8).data == 99).all()
        assert (read_all(scene, decimation=3).data == 10).all()
        assert (scene.read(Window(2, 0, 64, 64), decimation=4).data == 10).all()


def test_bands_by_name_and_a_name_that_is_not_there(tmp_path: Path) -> None:
    data = np.stack([np.full((4, 4), v, np.uint8) for v in (1, 2, 3)])
    with open_scene(write_tif(tmp_path / "a.tif", data, photometric="RGB")) as scene:
        assert scene.read(Window(0, 0, 1, 1), ["blue", "red"]).data.ravel().tolist() == [3, 1]
        with pytest.raises(BandError, match=r"nir.*red, green, blue"):
            scene.read(Window(0, 0, 1, 1), ["nir"])


def test_reading_from_many_threads_gives_the_same_pixels(reference) -> None:
    path, values, _ = reference
    scene = open_scene(path)
    rng = np.random.default_rng(5)
    jobs = [Window(int(r), int(c), 40, 40) for r, c in rng.integers(-20, 110, (200, 2))]
    handle = scene.layers[0].handle
    seen: set[int] = set()
    barrier = threading.Barrier(4, timeout=30)

    def started() -> None:
        barrier.wait()
        with _gdal.gdal_env():
            seen.add(id(_gdal.dataset(handle)))
        barrier.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: started(), range(4)))
        blocks = list(pool.map(scene.read, jobs))
    assert len(seen) == 4  # one handle a thread
    for window, block in zip(jobs, blocks, strict=True):
        np.testing.assert_array_equal(block.data, cut(values, window, np.nan))
    scene.close()
    np.testing.assert_array_equal(read_all(scene).data, values)  # opens again


# --- nodata of every form --------------------------------------------------------------------------
HOLE = np.zeros((12, 16), bool)
HOLE[3:6, 4:9] = True


def check_hole(path: Path, told: str) -> Scene:
    scene = open_scene(path)
    block = read_all(scene)
    np.testing.assert_array_equal(block.mask, np.where(HOLE, NODATA, 0))
    assert np.isnan(block.data[:, HOLE]).all()
    assert np.isfinite(block.data[:, ~HOLE]).all()
    assert told in scene.info.nodata
    return scene


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("int16", -9999),
        ("uint16", 0),
        ("float32", -9999.0),
        ("float32", np.nan),
        ("float64", -3.4028234663852886e38),
        ("uint8", 255),
    ],
)
def test_a_nodata_value(tmp_path: Path, dtype: str, nodata: float) -> None:
    data = np.random.default_rng(0).integers(1, 200, (2, 12, 16)).astype(dtype)
    data[:, HOLE] = nodata
    check_hole(write_tif(tmp_path / "a.tif", data, nodata=nodata), "nan" if np.isnan(nodata) else "value")


def test_nan_without_a_nodata_value_and_infinity(tmp_path: Path) -> None:
    data = np.ones((2, 12, 16), np.float32)
    data[0, HOLE] = np.nan
    data[1, HOLE] = np.inf
    check_hole(write_tif(tmp_path / "a.tif", data), "nan")


def test_nodata_in_one_band_masks_the_pixel_when_that_band_is_read(tmp_path: Path) -> None:
    data = np.ones((2, 12, 16), np.int16)
    data[1, HOLE] = -1
    scene = check_hole(write_tif(tmp_path / "a.tif", data, nodata=-1), "value -1")
    assert not read_all(scene, bands=["b1"]).mask.any()


def test_a_nodata_value_for_each_band(tmp_path: Path) -> None:
    write_tif(tmp_path / "inner.tif", np.stack([np.where(HOLE, 5, 1), np.where(HOLE, 7, 5)]).astype(np.uint8))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i}"><NoDataValue>{v}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">inner.tif</SourceFilename><SourceBand>{i}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for i, v in ((1, 5), (2, 7))
    )
    path = tmp_path / "a.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="16" rasterYSize="12"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    check_hole(path, "value 5, value 7")


def test_an_alpha_band_is_a_mask_and_no_data(tmp_path: Path) -> None:
    data = np.full((4, 12, 16), 90, np.uint8)
    data[3] = np.where(HOLE, 0, 255)
    path = write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="YES")
    scene = check_hole(path, "alpha")
    assert [b.name for b in scene.info.bands] == ["red", "green", "blue"]


def test_an_alpha_band_that_holds_data_is_a_band(tmp_path: Path) -> None:
    """GDAL calls the fourth band of NAIP alpha when the writer said nothing."""
    data = np.random.default_rng(0).integers(1, 255, (4, 64, 64)).astype(np.uint8)
    grid = {"crs": "EPSG:26914", "transform": from_origin(480000, 5200000, 0.6, 0.6)}
    path = write_tif(
        tmp_path / "m_4709963_se_14_1_20090818.tif", data, photometric="RGB", alpha="YES", **grid
    )
    with open_scene(path) as scene:
        assert [b.name for b in scene.info.bands] == ["red", "green", "blue", "nir"]
        assert scene.info.sensor.slug == "naip"
        assert "alpha-is-data" in codes(scene)
        assert f"{scene.info.time:%Y-%m-%d}" == "2009-08-18"
        block = read_all(scene)
    assert (block.data == data).all()
    assert not block.mask.any()


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_band_inside_and_beside_the_file(tmp_path: Path, internal: bool) -> None:
    path = tmp_path / "a.tif"
    write_tif(path, np.full((3, 12, 16), 90, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dst:
        dst.write_mask(~HOLE)
    assert (tmp_path / "a.tif.msk").exists() is not internal
    check_hole(path, "mask band")


def test_blocks_that_were_never_written_are_nodata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    profile = {
        "driver": "GTiff",
        "width": 64,
        "height": 48,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32633",
    }
    tiling = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True}
    with rasterio.open(path, "w", transform=from_origin(0, 100, 1, 1), **profile, **tiling) as dst:
        dst.write(np.full((1, 16, 32), 9, np.uint8), window=rasterio.windows.Window(16, 16, 32, 16))
    with open_scene(path) as scene:
        block = read_all(scene)
        small = read_all(scene, decimation=16)
        assert "unwritten-blocks" in codes(scene)
    expected = np.full((48, 64), NODATA)
    expected[16:32, 16:48] = 0
    assert (block.mask == expected).all()
    assert small.mask.tolist() == [[2, 2, 2, 2], [2, 0, 0, 2], [2, 2, 2, 2]]


def test_zero_in_one_band_of_a_picture_is_a_dark_colour(tmp_path: Path) -> None:
    data = np.full((3, 12, 16), 40, np.uint8)
    data[:, HOLE] = 0
    data[0, 0, 0] = data[1, 0, 1] = 0
    scene = check_hole(write_tif(tmp_path / "a.tif", data, photometric="RGB", nodata=0), "value 0")
    assert scene.read(Window(0, 0, 1, 1), ["red"]).data.item() == 0


def test_a_black_collar_without_a_nodata_value(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (4, 64, 64)).astype(np.uint8)
    data[:, :20, :20] = 0
    data[:, 40, 40] = 0, 0, 0, 7
    path = write_tif(tmp_path / "m_4709963_se_14_1_20090818.tif", data)
    with open_scene(path) as scene:
        assert "black-collar" in codes(scene)
        mask = read_all(scene).mask
    assert (mask[:20, :20] == NODATA).all()
    assert mask.sum() == 400 * NODATA
    data[:, :20, :20] = 1
    with open_scene(write_tif(path, data)) as scene:
        assert "black-collar" not in codes(scene)


# --- what the numbers mean -------------------------------------------------------------------------
def test_scale_and_offset_of_the_file_are_applied_once(tmp_path: Path) -> None:
    data = np.array([[[0, 1000], [2000, 10000]]], np.uint16)
    path = write_tif(tmp_path / "a.tif", data)
    with rasterio.open(path, "r+") as dst:
        dst.scales, dst.offsets = (1e-4,), (-0.1,)
    with open_scene(path) as scene:
        np.testing.assert_allclose(read_all(scene).data[0], [[-0.1, 0], [0.1, 0.9]], atol=1e-7)
        assert "file-scale" in codes(scene)


@pytest.mark.parametrize(
    ("count", "dtype", "options", "names", "unit", "sensor"),
    [
        (3, "uint8", {}, "red green blue", Unit.RGB255, "rgb"),
        (3, "uint8", {"photometric": "RGB"}, "red green blue", Unit.RGB255, "rgb"),
        (1, "uint16", {}, "b1", Unit.RAW, "unknown"),
        (5, "uint16", {}, "b1 b2 b3 b4 b5", Unit.RAW, "unknown"),
        (4, "uint16", {"photometric": "RGB"}, "red green blue b4", Unit.RAW, "unknown"),
        (
            3,
            "uint16",
            {"descriptions": ("B04", "B08", "B8A")},
            "red nir nir08",
            Unit.REFLECTANCE,
            "sentinel2",
        ),
        (2, "float32", {"descriptions": ("VV", "VH")}, "vv vh", Unit.POWER, "sentinel1"),
        (3, "uint16", {"descriptions": ("Red", "NIR", "thing")}, "red nir b3", Unit.RAW, "unknown"),
        (2, "uint16", {"descriptions": ("red", "red")}, "red red_2", Unit.RAW, "unknown"),
    ],
)
def test_names_sensor_and_unit(tmp_path: Path, count, dtype, options, names, unit, sensor) -> None:
    data = np.random.default_rng(0).integers(1, 200, (count, 8, 8)).astype(dtype)
    with open_scene(write_tif(tmp_path / "a.tif", data, **options)) as scene:
        assert " ".join(b.name for b in scene.info.bands) == names
        assert scene.info.unit is unit
        assert scene.info.sensor.slug == sensor
        assert ("unknown-scale" in codes(scene)) == (unit is Unit.RAW)


def test_four_bands_of_aerial_resolution_are_naip_like(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (4, 32, 32)).astype(np.uint8)
    path = write_tif(
        tmp_path / "a.tif", data, transform=from_origin(0, 0, 0.6, 0.6), photometric="RGB", alpha="NO"
    )
    with open_scene(path) as scene:
        assert scene.info.sensor.slug == "naip"


def test_decibel_is_told_from_power_by_its_sign(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(-12, 3, (2, 8, 8)).astype(np.float32)
    with open_scene(write_tif(tmp_path / "a.tif", data, descriptions=("VV", "VH"))) as scene:
        assert scene.info.unit is Unit.DB


@pytest.mark.parametrize(
    ("name", "dtype", "dn", "value"),
    [
        ("T33UUP_20210601T100031_B04_10m.tif", "uint16", 2500, 0.25),
        ("S2A_MSIL2A_20220601T100031_N0400_R122_T33UUP_20220601T120000_B04.tif", "uint16", 2500, 0.15),
        ("S2A_MSIL2A_20180601T100031_N0208_R122_T33UUP_20180601T120000_B04.tif", "uint16", 2500, 0.25),
        ("LC08_L2SP_190027_20210601_20210608_02_T1_SR_B4.TIF", "uint16", 18182, 0.300005),
        ("LC08_L1TP_190027_20210601_20210608_01_T1_sr_band4.tif", "int16", 2500, None),
    ],
)
def test_product_ids_in_names_say_how_to_scale(tmp_path: Path, name: str, dtype: str, dn: int, value) -> None:
    data = np.full((1, 40, 40), dn).astype(dtype)
    data[0, :20] = 150
    with open_scene(write_tif(tmp_path / name, data)) as scene:
        if value is None:
            assert scene.info.unit is Unit.RAW
        else:
            assert [b.name for b in scene.info.bands] == ["red"]
            assert scene.info.unit is Unit.REFLECTANCE
            assert read_all(scene).data[0, 30, 0] == pytest.approx(value, abs=1e-6)


def test_an_offset_that_no_metadata_states_is_said_and_not_guessed(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1100, 3000, (2, 64, 64)).astype(np.uint16)
    path = write_tif(tmp_path / "a.tif", data, descriptions=("B04", "B08"))
    with open_scene(path) as scene:
        assert "s2-offset-unknown" in codes(scene)
        assert read_all(scene).data[0, 0, 0] == pytest.approx(data[0, 0, 0] / 10000)
    with open_scene(path, s2_offset=-0.1) as scene:
        assert "s2-offset-unknown" not in codes(scene)
        assert read_all(scene).data[0, 0, 0] == pytest.approx(data[0, 0, 0] / 10000 - 0.1)


def test_a_palette_becomes_colours(tmp_path: Path) -> None:
    data = np.array([[[0, 1], [2, 0]]], np.uint8)
    path = write_tif(tmp_path / "a.tif", data, photometric="PALETTE")
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, {0: (0, 0, 0, 255), 1: (10, 20, 30, 255), 2: (250, 0, 1, 255)})
    with open_scene(path) as scene:
        assert [b.name for b in scene.info.bands] == ["red", "green", "blue"]
        assert read_all(scene).data.tolist() == [[[0, 10], [250, 0]], [[0, 20], [0, 0]], [[0, 30], [1, 0]]]
        assert "palette-expanded" in codes(scene)


def test_one_bit_and_complex(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 2, (1, 9, 13)).astype(np.uint8)
    with open_scene(write_tif(tmp_path / "bit.tif", data, nbits=1)) as scene:
        assert (read_all(scene).data == data).all()
    path = write_tif(tmp_path / "c.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(UnreadableFileError, match="complex"):
        open_scene(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m_4709963_se_14_1_20090818.tif", "2009-08-18"),
        ("T33UUP_20210601T100031_B04.jp2", "2021-06-01"),
        ("LC08_L2SP_190027_20210601_20210608_02_T1_SR_B4.TIF", "2021-06-01"),
        ("LT52240631988227CUB02_B1.TIF", "1988-08-14"),
        ("scene-2017-03-09.tif", "2017-03-09"),
        ("tile_99999999_12345678.tif", None),
        ("tile_31500-6161.tif", None),
        ("20211345.tif", None),
    ],
)
def test_dates_in_names(name: str, expected: str | None) -> None:
    found, where = time_of(name)
    assert (f"{found:%Y-%m-%d}" if found else None) == expected
    assert where == ("name" if expected else "")


def test_dates_in_tags(tmp_path: Path) -> None:
    data = np.ones((1, 4, 4), np.uint8)
    tags = {"ACQUISITIONDATETIME": "2015-02-03T04:05:06Z", "TIFFTAG_DATETIME": "2020:01:01 00:00:00"}
    with open_scene(write_tif(tmp_path / "a.tif", data, tags=tags)) as scene:
        assert scene.info.time == parse_time("20150203T040506")
    with open_scene(
        write_tif(tmp_path / "b.tif", data, tags={"TIFFTAG_DATETIME": "2020:01:01 00:00:00"})
    ) as scene:
        assert f"{scene.info.time:%Y}" == "2020"
        assert "date-from-writing" in codes(scene)
    folder = tmp_path / "flight_20190304"
    for name, day, said in (("a.tif", "2019-03-04", True), ("b_20180101.tif", "2018-01-01", False)):
        with open_scene(write_tif(folder / name, data)) as scene:
            assert f"{scene.info.time:%Y-%m-%d}" == day
            assert ("date-from-folder" in codes(scene)) == said


def test_a_date_that_is_given_wins_and_is_said(tmp_path: Path) -> None:
    data = np.ones((1, 4, 4), np.uint8)
    for name, level in (("plain.tif", "info"), ("a_20200101.tif", "warning")):
        with open_scene(write_tif(tmp_path / name, data), time="2021-06-01") as scene:
            assert f"{scene.info.time:%Y-%m-%d}" == "2021-06-01"
            assert next(n.level for n in scene.info.notes if n.code == "given-date") == level
    with open_scene(write_tif(tmp_path / "a_20200101.tif", data), time="2020-01-01") as scene:
        assert "given-date" not in codes(scene)


# --- georeference ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("transform", "code"),
    [
        (Affine(10, 0, 500000, 0, 10, 4999000), "south-up"),
        (Affine(8, 3, 500000, 3, -8, 5000000), "rotated"),
    ],
)
def test_legal_grids_that_are_not_north_up(tmp_path: Path, transform: Affine, code: str) -> None:
    data = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    with open_scene(write_tif(tmp_path / "a.tif", data, transform=transform)) as scene:
        assert tuple(scene.info.geobox.affine)[:6] == tuple(transform)[:6]
        assert (read_all(scene).data == data).all()  # rows as stored
        assert code in codes(scene)


def test_pixel_is_point_is_moved_by_half_a_pixel_once(tmp_path: Path) -> None:
    """The file states the centre of its first pixel; the corner of the grid lies half a pixel up and left."""
    path = write_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8), tags={"AREA_OR_POINT": "Point"})
    with rasterio.Env(GTIFF_POINT_GEO_IGNORE=True), rasterio.open(path) as src:
        assert (src.transform.c, src.transform.f) == (500005, 4999995)  # what is in the tie point
    with open_scene(path) as scene:
        assert (scene.info.geobox.affine.c, scene.info.geobox.affine.f) == (500000, 5000000)
        assert "pixel-is-point" in codes(scene)


def test_geographic_axes_are_longitude_then_latitude(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        np.ones((1, 4, 8), np.uint8),
        crs="EPSG:4326",
        transform=from_origin(10, 50, 0.1, 0.1),
    )
    with open_scene(path) as scene:
        box = scene.info.geobox.extent.boundingbox
        assert (box.left, box.top) == (10, 50)
        assert box.right == pytest.approx(10.8)
        east, north = scene.info.geobox.extent.to_crs("EPSG:32632", resolution="auto").boundingbox[:2]
        assert 500_000 < east < 700_000
        assert 5_400_000 < north < 5_600_000


def test_a_tile_across_the_antimeridian_opens(tmp_path: Path) -> None:
    data = np.arange(32, dtype=np.uint8).reshape(1, 4, 8) + 1
    grids = {
        "geo": ("EPSG:4326", from_origin(179.9, 0, 0.05, 0.05)),
        "utm": ("EPSG:32660", from_origin(830000, 2e6, 1e4, 1e4)),
    }
    for name, (crs, transform) in grids.items():
        with open_scene(write_tif(tmp_path / f"{name}.tif", data, crs=crs, transform=transform)) as scene:
            assert (read_all(scene).data == data).all()
            assert 1000 < resolution_m(scene.info.geobox) < 11000


def test_resolution_is_the_ground_size_of_a_pixel(tmp_path: Path) -> None:
    """Web Mercator at 60 degrees: 10 units are 5 m on the ground."""
    path = write_tif(
        tmp_path / "a.tif",
        np.ones((1, 8, 8), np.uint8),
        crs="EPSG:3857",
        transform=from_origin(0, 8399737.9, 10, 10),
    )
    assert resolution_m(open_scene(path).info.geobox) == pytest.approx(5, rel=0.01)


def test_control_points_are_warped_to_a_north_up_grid(tmp_path: Path) -> None:
    """A ramp that grows eastwards, stored turned by 90 degrees: the warp turns it back."""
    n = 64
    ramp = np.broadcast_to(np.arange(1, n + 1, dtype=np.float32)[:, None], (n, n))  # grows down the rows
    path = tmp_path / "a.tif"
    points = [
        GroundControlPoint(row=r, col=c, x=10 + r * 1e-4, y=50 + c * 1e-4)
        for r in (0, n / 2, n)
        for c in (0, n / 2, n)
    ]
    with rasterio.open(path, "w", driver="GTiff", width=n, height=n, count=1, dtype="float32") as dst:
        dst.write(ramp[None])
        dst.gcps = (points, rasterio.CRS.from_epsg(4326))
    with open_scene(path) as scene:
        assert "gcp-warp" in codes(scene)
        box = scene.info.geobox.extent.boundingbox
        assert box.left == pytest.approx(10, abs=2e-4)
        assert box.top == pytest.approx(50 + n * 1e-4, abs=2e-4)
        block = read_all(scene)
        h, w = block.mask.shape
    assert (block.mask == 0).mean() > 0.9
    # Row r lies at 10 + r / 10000 degrees, and the value at a row's centre is one more than its number.
    x = scene.info.geobox.affine.c + (np.arange(w) + 0.5) * scene.info.geobox.affine.a
    expected = np.broadcast_to((x - 10) * 1e4 + 0.5, (h, w))
    inner = np.zeros((h, w), bool)
    inner[2:-2, 2:-2] = block.mask[2:-2, 2:-2] == 0
    np.testing.assert_allclose(block.data[0][inner], expected[inner], atol=0.1)


def test_control_points_without_a_crs(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    points = [GroundControlPoint(r, c, 10 + c * 1e-4, 50 - r * 1e-4) for r in (0, 4, 8) for c in (0, 4, 8)]
    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8") as dst:
        dst.write(np.ones((1, 8, 8), np.uint8))
        dst.gcps = (points, rasterio.CRS())
    with pytest.raises(NoGeoreferenceError, match="no CRS for them"):
        open_scene(path)
    with open_scene(path, assume_crs="EPSG:4326") as scene:
        assert scene.info.geobox.affine.c == pytest.approx(10, abs=1e-6)
        assert not read_all(scene).mask.any()


def test_rpc_only_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16), crs=None, transform=Affine.identity())
    with pytest.raises(NoGeoreferenceError, match="neither a CRS nor a position"):
        open_scene(path)
    one = [1.0] + [0.0] * 19
    with rasterio.open(path, "r+") as dst:
        dst.rpcs = RPC(0, 1, 0, 1, one, one, 0, 1, 0, 1, one, one, 0, 1)
    with pytest.raises(UnsupportedGeoreferenceError, match="RPC") as caught:
        open_scene(path)
    assert "terrain model" in caught.value.hint


def test_a_png_with_a_world_file_needs_a_crs(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (3, 8, 8)).astype(np.uint8)
    path = write_tif(tmp_path / "a.png", data, crs=None, transform=Affine.identity(), driver="PNG")
    for side in tmp_path.glob("*.aux.xml"):
        side.unlink()
    with pytest.raises(NoGeoreferenceError):
        open_scene(path, assume_crs="EPSG:32633")  # a CRS alone is no position
    # A world file states the centre of the first pixel.
    (tmp_path / "a.pgw").write_text("10\n0\n0\n-10\n500005\n4999995\n")
    with pytest.raises(NoGeoreferenceError, match="no CRS"):
        open_scene(path)
    with pytest.raises(SettingError, match="not a coordinate reference system"):
        open_scene(path, assume_crs="EPSG:banana")
    with open_scene(path, assume_crs="EPSG:32633") as scene:
        assert (scene.info.geobox.affine.c, scene.info.geobox.affine.f) == (500000, 5000000)
        assert scene.info.geobox.crs.epsg == 32633
        assert (read_all(scene).data == data).all()
    (tmp_path / "a.prj").write_text(rasterio.CRS.from_epsg(32634).to_wkt("WKT1_ESRI"))
    with open_scene(path) as scene:
        assert scene.info.geobox.crs.epsg == 32634


def test_plain_pictures_lie_on_one_arbitrary_grid(tmp_path: Path) -> None:
    boxes = []
    for name in ("a.png", "b.jpg"):
        data = np.random.default_rng(0).integers(1, 255, (3, 30, 40)).astype(np.uint8)
        driver = {"png": "PNG", "jpg": "JPEG"}[name[-3:]]
        path = write_tif(tmp_path / name, data, crs=None, transform=Affine.identity(), driver=driver)
        with pytest.raises(NoGeoreferenceError, match="--no-crs"):
            open_scene(path)
        with open_scene(path, pixel_grid=True) as scene:
            boxes.append(scene.info.geobox)
            assert "pixel-grid" in codes(scene)
            assert not read_all(scene).mask.any()
    assert boxes[0] == boxes[1]
    assert resolution_m(boxes[0]) == pytest.approx(1, rel=1e-3)


def test_a_crs_without_a_place_on_earth(tmp_path: Path) -> None:
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    path = write_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8), crs=local)
    with pytest.raises(NoGeoreferenceError):
        open_scene(path)


# --- http ------------------------------------------------------------------------------------------
def test_a_cog_over_http(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (3, 600, 600)).astype(np.uint8)
    write_tif(tmp_path / "a_20210601.tif", data, driver="COG", blocksize=256)
    with serve(tmp_path) as address, open_scene(f"{address}/a_20210601.tif") as scene:
        assert (scene.read(Window(250, 250, 20, 20)).data == data[:, 250:270, 250:270]).all()
        assert f"{scene.info.time:%Y-%m-%d}" == "2021-06-01"
        assert scene.info.sources[0].bytes == (tmp_path / "a_20210601.tif").stat().st_size


def test_faults_over_http(tmp_path: Path) -> None:
    (tmp_path / "page.tif").write_text("<html>sorry</html>")
    whole = write_tif(
        tmp_path / "a.tif", np.ones((1, 512, 512), np.uint8), driver="COG", blocksize=128
    ).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:500])
    with serve(tmp_path) as address:
        with pytest.raises(FileMissingError, match=r"nowhere\.tif"):
            open_scene(f"{address}/nowhere.tif")
        with pytest.raises(UnreadableFileError, match="not an image"):
            open_scene(f"{address}/page.tif")
        with pytest.raises(TruncatedFileError):
            open_scene(f"{address}/cut.tif")
    with pytest.raises(UnreadableFileError, match="cannot be reached"):
        open_scene(f"{address}/a.tif")


def test_colour_interpretation_names_near_infrared(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.ones((4, 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dst:
        dst.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined)
    with open_scene(path) as scene:
        assert [b.name for b in scene.info.bands] == ["blue", "green", "red", "b4"]
