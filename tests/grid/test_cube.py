"""Zarr and NetCDF cubes: the grid, the date, scaling once, and what cannot be placed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fixtures_eo import make_cube, write_tif
from terralapse.errors import (
    BandError,
    NoGeoreferenceError,
    SettingError,
    UnreadableFileError,
    UnsupportedGeoreferenceError,
)
from terralapse.grid.cube import CubeScene
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Window
from terralapse.labels import SceneMask

SUFFIXES = ("zarr", "nc")
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("wanted", "index"), [("2021-06-01", 0), ("2021-06-11", 1), ("2021-07-01", 2)])
def test_a_date_of_a_cube(tmp_path: Path, suffix: str, wanted: str, index: int) -> None:
    truth = make_cube(tmp_path / f"a.{suffix}")
    for options in ({"source": f"{truth.path}::{wanted}"}, {"source": truth.path, "time": wanted}):
        with open_scene(**options) as scene:
            assert isinstance(scene, CubeScene)
            assert scene.info.geobox.crs.epsg == 32633
            assert tuple(scene.info.geobox.affine)[:6] == pytest.approx((10, 0, 500000, 0, -10, 5000000))
            assert f"{scene.info.time:%Y-%m-%d}" == wanted
            assert "nearest-date" not in {n.code for n in scene.info.notes}
            block = scene.read(Window(5, 38, 10, 12), ["nir", "red"])
            inside = np.stack([truth.dn["nir"][index, 5:15, 38:45], truth.dn["red"][index, 5:15, 38:45]])
            np.testing.assert_array_equal(block.data[:, :, :7], inside)
            assert (block.mask[:, 7:] == SceneMask.OUTSIDE).all()


def test_the_nearest_date_is_named(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.zarr")
    with open_scene(f"{truth.path}::2021-06-08") as scene:
        note = next(n for n in scene.info.notes if n.code == "nearest-date")
        assert note.level == "warning"
        assert "2021-06-11" in note.text


def test_a_date_must_be_named_and_be_one(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.nc")
    with pytest.raises(SettingError, match="3 dates, 2021-06-01 to 2021-07-01") as caught:
        open_scene(truth.path)
    assert "::2021-06-01" in caught.value.hint
    with pytest.raises(SettingError, match="not a date"):
        open_scene(f"{truth.path}::yesterday")
    image = write_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    with pytest.raises(SettingError, match="not a date"):
        open_scene(image, time="yesterday")
    with pytest.raises(SettingError, match="as well"):
        open_scene(f"{truth.path}::2021-06-01", time="2021-06-11")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_packed_values_are_scaled_once_and_fill_is_nodata(tmp_path: Path, suffix: str) -> None:
    truth = make_cube(tmp_path / f"a.{suffix}", packed=True)
    with open_scene(truth.path, time="2021-06-01") as scene:
        block = scene.read(Window(0, 0, 40, 45))
        names = [b.name for b in scene.info.bands]
        red = block.data[names.index("red")]
        np.testing.assert_allclose(red.ravel()[1:], truth.dn["red"][0].ravel()[1:], atol=6e-5)
        assert block.mask[0, 0] == SceneMask.NODATA
        assert block.mask.sum() == SceneMask.NODATA
        assert "file-scale" in {n.code for n in scene.info.notes}
        assert scene.info.dtype == "uint16"


def test_rows_from_south_to_north(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.nc", south_up=True)
    with open_scene(truth.path, time="2021-06-11") as scene:
        assert scene.info.geobox.affine.e == pytest.approx(10)
        assert scene.info.geobox.affine.f == pytest.approx(5000000 - 400)
        np.testing.assert_array_equal(
            scene.read(Window(0, 0, 3, 45), ["red"]).data[0], truth.dn["red"][1, :3]
        )


def test_a_decimated_read(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.zarr")
    with open_scene(truth.path, time="2021-06-01") as scene:
        block = scene.read(Window(0, 0, 40, 45), ["red"], decimation=5)
        np.testing.assert_allclose(
            block.data[0], truth.dn["red"][0].reshape(8, 5, 9, 5).mean(axis=(1, 3)), rtol=1e-5
        )


def test_a_cube_that_does_not_say_where_it_is(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.nc", crs=False)
    with pytest.raises(NoGeoreferenceError, match="does not say its CRS"):
        open_scene(truth.path, time="2021-06-01")
    with open_scene(truth.path, time="2021-06-01", assume_crs="EPSG:32634") as scene:
        assert scene.info.geobox.crs.epsg == 32634


def _save(path: Path, values: np.ndarray, coords: dict, dims: tuple[str, ...], **attrs) -> Path:
    xr.Dataset({"red": (dims, values, attrs)}, coords=coords).to_netcdf(path, engine="h5netcdf")
    return path


def test_degrees_without_a_crs_and_longitudes_to_360(tmp_path: Path) -> None:
    coords = {"lat": [10.0, 9.0], "lon": [200.5, 201.5, 202.5]}
    path = _save(tmp_path / "a.nc", np.arange(6.0).reshape(2, 3), coords, ("lat", "lon"))
    with open_scene(path) as scene:
        box = scene.info.geobox.extent.boundingbox
        assert (box.left, box.right, box.top) == (-160, -157, 10.5)
        assert scene.info.geobox.crs.epsg == 4326
        assert "assumed-crs" in {n.code for n in scene.info.notes}


def test_grids_that_are_not_regular(tmp_path: Path) -> None:
    coords = {"lat": [10.0, 9.0, 7.0], "lon": [1.0, 2.0, 3.0]}
    path = _save(tmp_path / "a.nc", np.ones((3, 3)), coords, ("lat", "lon"))
    with pytest.raises(UnsupportedGeoreferenceError, match="irregular"):
        open_scene(path)
    two = {"lat": (("j", "i"), np.ones((3, 3))), "lon": (("j", "i"), np.ones((3, 3)))}
    path = _save(tmp_path / "b.nc", np.ones((3, 3)), two, ("j", "i"))
    with pytest.raises(UnsupportedGeoreferenceError, match="curvilinear"):
        open_scene(path)


def test_a_band_dimension_and_a_class_band(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    scl = np.full((4, 5), 4, np.uint8)
    scl[1, 1] = 9
    cube = xr.Dataset(
        {"data": (("band", "lat", "lon"), values), "SCL": (("lat", "lon"), scl)},
        coords={"band": ["B04", "B08", "B11"], "lat": [3.0, 2.0, 1.0, 0.0], "lon": [0.0, 1.0, 2.0, 3.0, 4.0]},
    )
    cube.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with open_scene(tmp_path / "a.nc") as scene:
        assert [b.name for b in scene.info.bands] == ["red", "nir", "swir16"]
        assert scene.info.sensor.slug == "sentinel2"
        assert scene.info.cloud_mask == "SCL"
        block = scene.read(Window(0, 0, 4, 5))
        assert block.mask[1, 1] == SceneMask.CLOUD
        assert (block.mask > 0).sum() == 1
        np.testing.assert_array_equal(block.data[:, 0], values[:, 0])


def test_classic_netcdf(tmp_path: Path) -> None:
    cube = xr.Dataset(
        {"red": (("lat", "lon"), np.arange(6.0).reshape(2, 3))},
        coords={"lat": [1.0, 0.0], "lon": [0.0, 1.0, 2.0]},
    )
    cube.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with open_scene(tmp_path / "a.nc") as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, 2, 3)).data[0], np.arange(6.0).reshape(2, 3))


def test_cubes_without_images_and_damaged_ones(tmp_path: Path) -> None:
    coords = {"lat": [1.0, 0.0], "lon": [0.0, 1.0], "level": [1, 2]}
    path = _save(tmp_path / "a.nc", np.ones((2, 2, 2)), coords, ("level", "lat", "lon"))
    with pytest.raises(BandError, match="no variable that is an image"):
        open_scene(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableFileError, match="cannot be opened as a cube"):
        open_scene(path)
