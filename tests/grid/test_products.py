"""Sentinel-2, Landsat and STAC: numbers, offsets, masks, and metadata that cannot be trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fixtures_eo import S2_BANDS_10, S2_BANDS_20, Truth, make_landsat, make_safe, make_stac, serve, write_tif
from terralapse.errors import BandError, FileMissingError, HostileFileError, UnreadableFileError
from terralapse.grid.inspect import inspect
from terralapse.grid.landsat import qa_codes
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Block, Scene, Window
from terralapse.grid.sentinel2 import scl_codes
from terralapse.labels import SceneMask
from terralapse.sensors import SENTINEL2, Unit

VALID, NODATA, CLOUD, SHADOW, SNOW, SATURATED = 0, 2, 3, 4, 5, 6


def read_all(scene: Scene, **options) -> Block:
    h, w = scene.info.geobox.shape
    return scene.read(Window(0, 0, h, w), **options)


def codes(scene: Scene) -> set[str]:
    return {n.code for n in scene.info.notes}


def check_reflectance(scene: Scene, truth: Truth, offset: float) -> None:
    block = read_all(scene)
    size = scene.info.geobox.shape.y
    good = block.mask == VALID
    for i, band in enumerate(scene.info.bands):
        dn = truth.dn[band.id].astype(np.float64)
        replicated = np.kron(dn, np.ones((size // dn.shape[0],) * 2))
        np.testing.assert_allclose(block.data[i][good], ((replicated + offset) / 10000)[good], atol=1e-6)
        assert np.isnan(block.data[i][~good]).all()


# --- Sentinel-2 ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("baseline", "listed", "offset", "code"),
    [
        ("04.00", -1000, -1000, "s2-offset-applied"),
        ("05.09", -1000, -1000, "s2-offset-applied"),  # old data, reprocessed: the date says nothing
        ("02.07", None, 0, "s2-offset-none"),
        ("05.10", None, -1000, "s2-offset-from-baseline"),
        ("03.01", -500, -500, "s2-offset-applied"),  # what the XML states wins
    ],
)
def test_the_offset_is_by_the_xml_or_the_baseline(tmp_path: Path, baseline, listed, offset, code) -> None:
    truth = make_safe(tmp_path, baseline=baseline, offset=listed, day="20180601")
    with open_scene(truth.path) as scene:
        check_reflectance(scene, truth, offset)
        assert code in codes(scene)
        assert scene.info.level == f"L2A, baseline {baseline}"


@pytest.mark.parametrize("zipped", [False, True])
def test_level_2a_folder_and_zip(tmp_path: Path, zipped: bool) -> None:
    truth = make_safe(tmp_path, zipped=zipped)
    with open_scene(truth.path) as scene:
        info = scene.info
        check_reflectance(scene, truth, -1000)
        block = read_all(scene)
    assert info.sensor is SENTINEL2
    assert info.unit is Unit.REFLECTANCE
    assert f"{info.time:%Y-%m-%dT%H:%M}" == "2021-06-01T10:00"
    assert {b.id for b in info.bands} == {*S2_BANDS_10, *S2_BANDS_20, "B01", "B09"}
    assert info.cloud_mask == "SCL"
    assert info.geobox.crs.epsg == 32633
    assert tuple(info.geobox.affine)[:6] == (10, 0, 600000, 0, -10, 5000040)
    assert "nir09" in next(n.text for n in info.notes if n.code == "replicated")
    # B02 has four nodata pixels and one saturated; SCL says the rest, two rows and columns a class pixel.
    assert (block.mask[0, :4] == NODATA).all()
    assert block.mask[0, 6] == SATURATED
    assert (block.mask[8:10, :2] == NODATA).all()
    assert (block.mask[10:12, :2] == SATURATED).all()
    assert block.mask[60, 60] == CLOUD
    assert (block.mask[-2:, :6] == SNOW).all()
    assert len(info.sources) == (1 if zipped else 13)


def test_cloud_and_shadow_are_grown_by_100_m(tmp_path: Path) -> None:
    truth = make_safe(tmp_path)
    y, x = np.ogrid[-5:6, -5:6]
    disk = x * x + y * y <= 25
    cloud = np.kron(ndimage.binary_dilation(truth.classes == 9, disk), np.ones((2, 2))) > 0
    shadow = np.kron(ndimage.binary_dilation(truth.classes == 3, disk), np.ones((2, 2))) > 0
    with open_scene(truth.path) as scene:
        mask = read_all(scene, bands=["red"]).mask
        np.testing.assert_array_equal(mask == CLOUD, cloud)
        np.testing.assert_array_equal(mask == SHADOW, shadow & ~cloud)
        # The same whatever window it is read by.
        pieces = [
            [scene.read(Window(r, c, 37, 31), ["red"]).mask for c in range(0, 120, 31)]
            for r in range(0, 120, 37)
        ]
        np.testing.assert_array_equal(np.block(pieces)[:120, :120], mask)


def test_level_1c_with_its_cloud_mask(tmp_path: Path) -> None:
    truth = make_safe(tmp_path, level="L1C", classi=True)
    with open_scene(truth.path) as scene:
        assert scene.info.cloud_mask == "MSK_CLASSI"
        assert "cirrus" in {b.name for b in scene.info.bands}
        check_reflectance(scene, truth, -1000)
        mask = read_all(scene).mask
    assert mask[60, 60] == CLOUD
    assert (mask[:6, :6] == SNOW).all()


def test_level_1c_without_a_cloud_mask_says_so(tmp_path: Path) -> None:
    truth = make_safe(tmp_path, level="L1C", baseline="02.07", offset=None)
    with open_scene(truth.path) as scene:
        assert scene.info.cloud_mask == "none"
        assert "no-cloud-mask" in codes(scene)


def test_a_product_decimated_by_its_overviews(tmp_path: Path) -> None:
    truth = make_safe(tmp_path)
    with open_scene(truth.path) as scene:
        block = read_all(scene, decimation=6, bands=["red", "swir16", "coastal"])
        assert block.data.shape == (3, 20, 20)
        clean = (block.mask == 0) & (np.arange(20) > 1)[:, None] & (np.arange(20) > 1)
        expected = (truth.dn["B01"] - 1000.0) / 10000
        np.testing.assert_allclose(block.data[2][clean], expected[clean], atol=1e-6)
        reduced = (truth.dn["B04"].reshape(20, 6, 20, 6).mean(axis=(1, 3)) - 1000) / 10000
        far = np.zeros((20, 20), bool)
        far[4:6, 4:16] = True  # far from every mask
        np.testing.assert_allclose(block.data[0][far], reduced[far], atol=1e-5)


def test_every_class_of_scl() -> None:
    expected = [NODATA, SATURATED, VALID, SHADOW, VALID, VALID, VALID, VALID, CLOUD, CLOUD, CLOUD, SNOW]
    assert scl_codes(np.arange(12, dtype=np.uint8)).tolist() == expected


def test_two_granules_are_a_mosaic(tmp_path: Path) -> None:
    truth = make_safe(tmp_path)
    granules = truth.path / "GRANULE"
    first = next(granules.iterdir())
    import shutil

    shutil.copytree(first, granules / first.name.replace("T33UUP", "T33UVP"))
    with open_scene(truth.path) as scene:
        assert isinstance(scene, MosaicScene)
        assert len(scene.parts()) == 2


def test_products_that_are_not_whole(tmp_path: Path) -> None:
    truth = make_safe(tmp_path)
    xml = next(truth.path.glob("MTD*.xml"))
    text = xml.read_text()
    xml.write_text(text[:200])
    with pytest.raises(UnreadableFileError, match="not well-formed"):
        open_scene(truth.path)
    xml.write_text(text.replace("BOA_QUANTIFICATION_VALUE", "OTHER"))
    with pytest.raises(UnreadableFileError, match="reflectance"):
        open_scene(truth.path)
    xml.write_text('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + text)
    with pytest.raises(HostileFileError, match="entities"):
        open_scene(truth.path)
    xml.unlink()
    with pytest.raises(UnreadableFileError, match="MTD_MSIL"):
        open_scene(truth.path)


# --- Landsat ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("mtl", ["txt", "json"])
def test_level_2_surface_reflectance(tmp_path: Path, mtl: str) -> None:
    truth = make_landsat(tmp_path / "p", mtl=mtl)
    with open_scene(truth.path) as scene:
        assert [b.name for b in scene.info.bands] == [
            "coastal",
            "blue",
            "green",
            "red",
            "nir",
            "swir16",
            "swir22",
        ]
        assert scene.info.sensor.slug == "landsat-oli"
        assert scene.info.name == "LC08_L2SP_190027_20210601_20210608_02_T1"
        assert f"{scene.info.time:%Y-%m-%dT%H:%M:%S}" == "2021-06-01T09:46:12"
        block = read_all(scene)
        red = truth.dn["B4"]
        good = block.mask == 0
        np.testing.assert_allclose(block.data[3][good], (red * 2.75e-5 - 0.2)[good], atol=1e-6)
        assert block.data[3, 0, 3] == pytest.approx(7.5e-6, abs=1e-6)
        assert block.data[3, 0, 4] == pytest.approx(0.99999, abs=1e-6)
        assert (block.mask[0, :3] == NODATA).all()


def test_every_bit_of_qa_pixel_and_saturation(tmp_path: Path) -> None:
    with open_scene(make_landsat(tmp_path / "p").path) as scene:
        mask = read_all(scene).mask
        assert scene.info.cloud_mask == "QA_PIXEL"
    # fill, dilated cloud, cirrus, cloud, shadow, snow, clear, water
    assert mask[1, :8].tolist() == [NODATA, CLOUD, CLOUD, CLOUD, SHADOW, SNOW, VALID, VALID]
    assert mask[2, :2].tolist() == [SATURATED, VALID]


def test_bits_are_tested_and_not_values() -> None:
    """21824 is a clear pixel with its confidence bits; 55052 is cloud and shadow at once."""
    values = np.array([21824, 22280, 23888, 55052, 54596, 1], np.uint16)
    assert qa_codes(values, cirrus=True).tolist() == [VALID, CLOUD, SHADOW, CLOUD, CLOUD, NODATA]
    assert qa_codes(np.array([4], np.uint16), cirrus=False).tolist() == [
        VALID
    ]  # no cirrus band before Landsat 8


@pytest.mark.parametrize("elevation", [30.0, 65.0])
def test_level_1_is_divided_by_the_sine_of_the_sun(tmp_path: Path, elevation: float) -> None:
    truth = make_landsat(tmp_path / "p", level="L1TP", craft="LANDSAT_5", sun_elevation=elevation)
    with open_scene(truth.path) as scene:
        assert scene.info.sensor.slug == "landsat-tm"
        block = read_all(scene, bands=["red"])
        expected = (truth.dn["B3"] * 2e-5 - 0.1) / math.sin(math.radians(elevation))
        good = block.mask == 0
        np.testing.assert_allclose(block.data[0][good], expected[good], atol=1e-6)


def test_file_names_in_the_mtl_lead_nowhere_else(tmp_path: Path) -> None:
    truth = make_landsat(tmp_path / "p")
    write_tif(tmp_path / "other.TIF", np.full((1, 60, 60), 9999, np.uint16))
    mtl = next(truth.path.glob("*_MTL.txt"))
    name = "LC08_L2SP_190027_20210601_20210608_02_T1_SR_B4.TIF"
    mtl.write_text(mtl.read_text().replace(f'"{name}"', '"../other.TIF"'))
    with open_scene(truth.path) as scene:
        assert all(Path(s.path).parent == truth.path.resolve() for s in scene.info.sources)
        assert "red" in {b.name for b in scene.info.bands}  # found by its usual name


def test_landsat_folders_that_are_not_whole(tmp_path: Path) -> None:
    truth = make_landsat(tmp_path / "p")
    mtl = next(truth.path.glob("*_MTL.txt"))
    text = mtl.read_text()
    mtl.write_text(text.replace("LANDSAT_8", "LANDSAT_1").replace("OLI_TIRS", "MSS"))
    with pytest.raises(UnreadableFileError, match="LANDSAT_1 MSS"):
        open_scene(truth.path)
    mtl.write_text(text.replace("2.75e-05", "banana"))
    with pytest.raises(UnreadableFileError, match="banana"):
        open_scene(truth.path)
    mtl.write_text("nothing here")
    with pytest.raises(UnreadableFileError, match="not a Landsat MTL"):
        open_scene(truth.path)
    mtl.write_text(text)
    for file in truth.path.glob("*_SR_B*.TIF"):
        file.unlink()
    with pytest.raises(BandError, match="none of the reflectance bands"):
        open_scene(truth.path)


# --- STAC ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("case", "warned"),
    [
        ({"raw": True, "stated_offset": -0.1, "baseline": "05.00"}, False),  # Planetary Computer, c1
        ({"raw": False, "stated_offset": None, "baseline": "02.08"}, False),  # before the offset
        ({"raw": False, "stated_offset": -0.1, "applied_flag": True}, False),  # earth-search, told right
        ({"raw": False, "stated_offset": -0.1, "applied_flag": False}, True),  # earth-search, told wrong
        ({"raw": True, "stated_offset": None, "applied_flag": True}, True),  # the flag is wrong
        ({"raw": True, "stated_offset": None, "baseline": "05.09"}, False),  # only the baseline says it
        ({"raw": True, "stated_offset": 0.0, "baseline": "05.09"}, True),  # states none, and it is there
    ],
)
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_every_mirror_gives_the_same_reflectance(tmp_path: Path, case, warned: bool, version: str) -> None:
    truth = make_stac(tmp_path, version=version, **case)
    with open_scene(truth.path) as scene:
        assert [b.name for b in scene.info.bands] == ["blue", "red", "nir", "swir16"]
        block = read_all(scene)
        good = block.mask == 0
        assert good.mean() > 0.9
        for i, band in enumerate(scene.info.bands):
            dn = truth.dn[band.name]
            expected = np.kron(dn, np.ones((120 // dn.shape[0],) * 2)) / 10000
            np.testing.assert_allclose(block.data[i][good], expected[good], atol=1e-6)
        assert ("s2-offset-contradiction" in codes(scene)) == warned
        assert block.mask[60, 60] == CLOUD
        assert block.mask[0, 0] == NODATA


def test_bright_ground_without_water_contradicts_nothing(tmp_path: Path) -> None:
    """Desert: nothing is dark although the offset was taken off. The metadata must be believed."""
    truth = make_stac(tmp_path, raw=False, applied_flag=True, water=False, low=1500)
    with open_scene(truth.path) as scene:
        assert "s2-offset-contradiction" not in codes(scene)
        block = read_all(scene, bands=["red"])
        assert block.data[0, 50, 5] == pytest.approx(truth.dn["red"][50, 5] / 10000, abs=1e-6)


def test_the_user_decides_the_offset_over_everything(tmp_path: Path) -> None:
    truth = make_stac(tmp_path, raw=True)
    with open_scene(truth.path, s2_offset=0.0) as scene:
        assert read_all(scene, bands=["red"]).data[0, 50, 5] == pytest.approx(
            (truth.dn["red"][50, 5] + 1000) / 10000, abs=1e-6
        )


def test_an_item_over_http_with_assets_beside_it(tmp_path: Path) -> None:
    truth = make_stac(tmp_path)
    with serve(tmp_path) as address, open_scene(f"{address}/item.json") as scene:
        assert scene.info.name == "S2A_33UUP_20220601"
        assert f"{scene.info.time:%Y-%m-%d}" == "2022-06-01"
        block = scene.read(Window(40, 10, 5, 5), ["red"])
        np.testing.assert_allclose(block.data[0], truth.dn["red"][40:45, 10:15] / 10000, atol=1e-6)
        assert all(s.path.startswith(address) for s in scene.info.sources)


@pytest.mark.parametrize("text", ["{text}", "\n  {text}", "\ufeff{text}"], ids=["plain", "space", "bom"])
def test_a_stac_item_behind_an_address_without_an_ending(text: str, tmp_path: Path) -> None:
    make_stac(tmp_path)
    item = (tmp_path / "item.json").read_text()
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "S2A_32UME").write_text(text.replace("{text}", item.replace('"./', '"../')))
    with serve(tmp_path) as address, open_scene(f"{address}/items/S2A_32UME") as scene:
        assert f"{scene.info.time:%Y-%m-%d}" == "2022-06-01"
        assert inspect(f"{address}/items/S2A_32UME").format == "STAC item, GeoTIFF"


@pytest.mark.parametrize(
    ("href", "error"),
    [
        ("file:///etc/passwd.tif", HostileFileError),
        ("s3://bucket/key.tif", HostileFileError),
        ("/vsicurl/http://x/y.tif", FileMissingError),  # only ever a path on the item's own server
    ],
)
def test_a_remote_item_names_no_local_files(tmp_path: Path, href: str, error: type[Exception]) -> None:
    truth = make_stac(tmp_path)
    item = json.loads(truth.path.read_text())
    item["assets"]["red"]["href"] = href
    truth.path.write_text(json.dumps(item))
    with serve(tmp_path) as address, pytest.raises(error):
        open_scene(f"{address}/item.json")


def test_assets_of_one_file_and_duplicates(tmp_path: Path) -> None:
    """One asset with four described bands; a second form of the same band is not read twice."""
    data = np.random.default_rng(0).integers(1, 3000, (4, 32, 32)).astype(np.uint16)
    write_tif(tmp_path / "all.tif", data)
    bands = [{"name": f"band{i}", "common_name": n} for i, n in enumerate(("blue", "green", "red", "nir"), 1)]
    asset = {"href": "all.tif", "type": "image/tiff", "roles": ["data"], "eo:bands": bands}
    asset["raster:bands"] = [{"scale": 0.001, "offset": 0.5, "nodata": 7}] * 4
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "x",
        "properties": {"datetime": "2020-02-03T00:00:00Z"},
    }
    item["assets"] = {
        "analytic": asset,
        "visual": {"href": "v.tif", "type": "image/tiff", "roles": ["visual"]},
    }
    (tmp_path / "item.json").write_text(json.dumps(item))
    with open_scene(tmp_path / "item.json") as scene:
        assert [b.name for b in scene.info.bands] == ["blue", "green", "red", "nir"]
        block = read_all(scene)
        good = (data != 7).all(axis=0)
        np.testing.assert_allclose(block.data[:, good], (data * 0.001 + 0.5)[:, good], rtol=1e-5)


def test_json_that_is_no_item(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{}", '{"type": "FeatureCollection", "features": []}', "[1, 2]", "not json"):
        path.write_text(text)
        with pytest.raises(UnreadableFileError):
            open_scene(path)
    path.write_text(json.dumps({"type": "Feature", "id": "x", "properties": {}, "assets": {}}))
    with pytest.raises(UnreadableFileError, match="no image asset"):
        open_scene(path)


def test_mask_codes_are_those_of_the_contract() -> None:
    assert [int(c) for c in SceneMask] == [0, 1, 2, 3, 4, 5, 6]
