"""Real files, as their makers left them: what must be found in each. Skipped without ../shared."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fixtures_eo import write_jp2
from terralapse.errors import (
    BandError,
    NoGeoreferenceError,
    SettingError,
    UnreadableFileError,
    UnsupportedGeoreferenceError,
)
from terralapse.grid.inspect import inspect
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Block, Scene, Window
from terralapse.sensors import Unit


def read_all(scene: Scene, **options) -> Block:
    h, w = scene.info.geobox.shape
    return scene.read(Window(0, 0, h, w), **options)


def names(scene: Scene) -> list[str]:
    return [b.name for b in scene.info.bands]


def test_joplin_in_two_projections(joplin: tuple[Path, Path]) -> None:
    for folder, epsg, shape, count in (
        (joplin[0], 26915, (2048, 2048), 4),
        (joplin[1], 4326, (2048, 3072), 6),
    ):
        scene = open_scene(folder)
        assert isinstance(scene, MosaicScene)
        assert scene.info.geobox.crs.epsg == epsg
        assert scene.info.geobox.shape == shape
        assert len(scene.parts()) == count
        assert scene.info.unit is Unit.RGB255
        block = read_all(scene, decimation=8)
        assert not block.mask.any()
        # A tile read through the mosaic is the tile itself.
        tile = scene.parts()[-1]
        own = read_all(tile)
        a, b = tile.info.geobox.affine, scene.info.geobox.affine
        row, col = round((a.f - b.f) / b.e), round((a.c - b.c) / b.a)
        np.testing.assert_array_equal(scene.read(Window(row, col, 1024, 1024)).data, own.data)
    assert inspect(joplin[0]).resolution_m == pytest.approx(0.6, rel=1e-3)


def test_naip_of_several_years(shared_data: Path) -> None:
    folder = shared_data / "timeseries_naip_wetland"
    with open_scene(folder / "m_4709963_se_14_1_20150926.tif") as scene:
        assert names(scene) == ["red", "green", "blue", "nir"]
        assert scene.info.sensor.slug == "naip"
        assert f"{scene.info.time:%Y-%m-%d}" == "2015-09-26"
        with rasterio.open(folder / "m_4709963_se_14_1_20150926.tif") as src:
            assert (read_all(scene).data == src.read()).all()
    with pytest.raises(SettingError, match="same place"):
        open_scene(folder)


def test_naip_crops_in_an_archive(shared_data: Path, tmp_path: Path) -> None:
    archive = shared_data / "trees_naip_multiyear" / "test.zip"
    with pytest.raises(UnreadableFileError, match="not a Sentinel-2 product"):
        open_scene(archive)
    with zipfile.ZipFile(archive) as z:
        z.extract("images/santa_monica_2016_0.tif", tmp_path)
    with open_scene(tmp_path / "images/santa_monica_2016_0.tif") as scene:
        assert names(scene) == ["red", "green", "blue", "nir"]
        assert scene.info.sensor.slug == "naip"
        assert scene.info.geobox.crs.epsg == 26911


def test_a_landsat_stack_with_thermal_and_mask_bands(shared_data: Path) -> None:
    path = shared_data / "geo_landsat_pair" / "LE70220491999322EDC01_stack.tif"
    with open_scene(path) as scene:
        assert names(scene) == ["blue", "green", "red", "nir", "swir16", "swir22"]
        assert scene.info.unit is Unit.REFLECTANCE
        assert f"{scene.info.time:%Y-%m-%d}" == "1999-11-18"
        with rasterio.open(path) as src:
            stored = src.read((1, 6))
        block = read_all(scene, bands=["blue", "swir22"])
        good = block.mask == 0
        np.testing.assert_allclose(block.data[:, good], stored[:, good] * 1e-4, atol=1e-6)
        left = next(n.text for n in scene.info.notes if n.code == "bands-left-out")
        assert "band 6 temperature" in left


def test_cogs_of_others(shared_data: Path) -> None:
    folder = shared_data / "geotiff_stac_samples"
    with open_scene(folder / "cogeo.tif") as scene:
        assert scene.info.nodata == "mask band"
        assert scene.info.geobox.crs.epsg == 3857
    with open_scene(folder / "cog_landsat_uint16.tif") as scene:
        assert {"pixel-is-point", "unknown-scale"} <= {n.code for n in scene.info.notes}
        assert (
            scene.info.geobox.affine.c == 373185
        )  # as GDAL: the corner, not the centre that the file states
    with open_scene(folder / "landsat_bahamas_RGB.byte.tif") as scene, rasterio.open(scene.info.uri) as src:
        assert scene.info.nodata == "value 0"
        np.testing.assert_array_equal(read_all(scene).mask == 0, src.dataset_mask() > 0)


def test_landsat_before_collections(shared_data: Path) -> None:
    with open_scene(shared_data / "geotiff_stac_samples" / "landsat5_tm_1988") as scene:
        assert scene.info.sensor.slug == "landsat-tm"
        assert f"{scene.info.time:%Y-%m-%d}" == "1988-08-14"
        assert scene.info.unit is Unit.RAW  # its metadata has radiances only
        assert "no-reflectance-coefficients" in {n.code for n in scene.info.notes}


def test_a_patch_of_single_band_files(shared_data: Path) -> None:
    folder = shared_data / "geotiff_stac_samples" / "bigearthnet_patch"
    with open_scene(str(folder / "S2A*_B*.tiff")) as scene:
        assert len(names(scene)) == 12
        assert scene.info.geobox.shape == (120, 120)
        with rasterio.open(next(folder.glob("*_B09.tiff"))) as src:
            coarse = src.read(1)
        block = read_all(scene, bands=["nir09"])
        np.testing.assert_allclose(block.data[0], np.kron(coarse, np.ones((6, 6))) / 10000, rtol=1e-5)
    with pytest.raises(BandError, match="different sensors"):
        open_scene(folder)  # radar of another place lies beside it
    with open_scene(shared_data / "geo_s2_landcover") as scene:
        assert names(scene) == ["blue", "green", "red", "rededge1", "rededge3", "nir"]
        assert "display-scaled" in {n.code for n in scene.info.notes}


def test_three_resolutions_of_sentinel_2_as_a_product(shared_data: Path, tmp_path: Path) -> None:
    """Real numbers in a product made of them: 10, 20 and 60 m bands meet on one grid."""
    arrays = np.load(shared_data / "s2_multires" / "S2A_MSIL1C_20170527_T33UUB.npz")
    root = tmp_path / "S2A_MSIL1C_20170527T101031_N0205_R022_T33UUB_20170527T101301.SAFE"
    images = root / "GRANULE" / "L1C_T33UUB_A010073_20170527T101301" / "IMG_DATA"
    bands = {
        10: ("B02", "B03", "B04", "B08"),
        20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
        60: ("B01", "B09"),
    }
    for metres, ids in bands.items():
        n = 120 * 10 // metres
        for i, band in enumerate(ids):
            write_jp2(images / f"T33UUB_20170527T101031_{band}.jp2", arrays[f"im{metres}"][i, :n, :n], metres)
    (root / "MTD_MSIL1C.xml").write_text(
        "<a><PRODUCT_START_TIME>2017-05-27T10:10:31.027Z</PRODUCT_START_TIME>"
        "<PROCESSING_BASELINE>02.05</PROCESSING_BASELINE><QUANTIFICATION_VALUE>10000</QUANTIFICATION_VALUE></a>"
    )
    with open_scene(root) as scene:
        block = read_all(scene, bands=["green", "swir22", "coastal"])
    for k, (key, i, f) in enumerate((("im10", 1, 1), ("im20", 5, 2), ("im60", 0, 6))):
        n = 120 // f
        expected = np.kron(arrays[key][i, :n, :n], np.ones((f, f))) / 10000
        np.testing.assert_allclose(block.data[k], expected, rtol=1e-5)
    correlation = np.corrcoef(block.data[0].ravel(), block.data[2].ravel())[0, 1]
    assert correlation > 0.3  # the resolutions lie on each other


def test_netcdf_of_others(shared_data: Path) -> None:
    folder = shared_data / "netcdf_grib_samples"
    with open_scene(f"{folder / 'PLANET_SCOPE_3D.nc'}::2016-12-19") as scene:
        assert names(scene) == ["blue", "green"]
        assert scene.info.geobox.crs.epsg == 32722
    with open_scene(folder / "tmmx_20190121.nc") as scene:
        assert scene.info.unit is Unit.KELVIN
        assert 240 < np.nanmean(read_all(scene).data) < 300
        assert f"{scene.info.time:%Y-%m-%d}" == "2019-01-21"
    with open_scene(folder / "MODIS_ARRAY.nc") as scene:
        assert scene.info.nodata == "value -28672"
        assert 0 < (read_all(scene).mask > 0).mean() < 0.01
    with open_scene(folder / "sentinel_2_L1C_geographic.nc") as scene:
        assert names(scene) == ["red", "nir"]
    with pytest.raises(UnreadableFileError, match="GRIB"):
        open_scene(folder / "era5-2mt-2019-03-uk.grib")
    with pytest.raises(UnsupportedGeoreferenceError, match="RPC"):
        open_scene(folder / "test_rpcs.tif")


def test_files_without_a_place(shared_data: Path) -> None:
    with pytest.raises(NoGeoreferenceError):
        open_scene(shared_data / "stereo_rpc_pleiades" / "ventoux_left.tif")
    tile = next((shared_data / "geotiff_stac_samples" / "parking_tiles").rglob("*.webp"))
    assert "no-crs" in {p.code for p in inspect(tile).problems}
