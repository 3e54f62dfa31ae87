"""Hostile, broken and mistaken files: refused before pixels are allocated, with what, why and what next."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures_eo import raw_tiff, write_jp2, write_tif
from terralapse.errors import (
    FileMissingError,
    HostileFileError,
    NoGeoreferenceError,
    TerralapseError,
    TruncatedFileError,
    UnreadableFileError,
)
from terralapse.grid._safety import check_image, check_zip
from terralapse.grid.inspect import inspect
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Window

BLOCK_BOMBS = {
    "10^6 x 10^6 in one strip": {"width": 10**6, "height": 10**6},
    "10^6 x 10^6 in one deflated strip": {"width": 10**6, "height": 10**6, "compression": 8},
    "10^6 x 10^6 in tiles, one of them listed": {"width": 10**6, "height": 10**6, "tile": (512, 512)},
    "tile of 2^30": {"width": 1, "height": 1, "tile": (2**30, 2**30)},
    "tile of 2^30, LERC": {"width": 1, "height": 1, "tile": (2**30, 2**30), "compression": 34887},
    "65,529 samples": {"samples": 65529},
    "deflate that cannot": {"width": 8192, "height": 8192, "tile": (8192, 8192), "compression": 8},
    "tiles of no width": {"tile": (0, 16)},
    "no pixels": {"width": 0},
}


@pytest.mark.parametrize("case", BLOCK_BOMBS)
def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path, case: str) -> None:
    path = raw_tiff(tmp_path / "bomb.tif", **BLOCK_BOMBS[case])
    assert path.stat().st_size < 1024
    with pytest.raises(HostileFileError) as caught:
        open_scene(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_bomb_is_refused_under_an_address_limit(tmp_path: Path) -> None:
    """The same in a process that may not have more than 1.5 GB of addresses: nothing tries to allocate."""
    import subprocess
    import sys

    paths = [str(raw_tiff(tmp_path / f"{i}.tif", **kw)) for i, kw in enumerate(BLOCK_BOMBS.values())]
    code = (
        "import sys\n"
        "from terralapse.errors import HostileFileError\n"
        "from terralapse.grid.open import open_scene\n"
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        open_scene(path)\n"
        "    except HostileFileError:\n        continue\n"
        "    sys.exit(path)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_large_sparse_image_is_not_hostile(tmp_path: Path) -> None:
    """GDAL makes such files with SPARSE_OK: large is fine as long as the blocks are reasonable."""
    path = tmp_path / "large.tif"
    write_options = {"width": 200_000, "height": 100_000, "count": 1, "dtype": "uint8", "nodata": 255}
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 500000, 0, -1, 5000000)}
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", driver="GTiff", **write_options, **grid, **tiling) as dst:
        dst.write(np.full((1, 512, 512), 7, np.uint8), window=rasterio.windows.Window(51200, 512, 512, 512))
    with open_scene(path) as scene:
        assert scene.info.geobox.shape == (100_000, 200_000)
        block = scene.read(Window(512, 51200 - 2, 4, 4))
    assert (block.mask == [[2, 2, 0, 0]] * 4).all()
    assert block.data[0, 0, 2] == 7


@pytest.mark.parametrize(("content", "fault"), [(b"", "empty"), (b"not an image, only words\n" * 20, "text")])
def test_empty_and_text_named_tif(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=fault):
        open_scene(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"nowhere\.tif: does not exist"):
        open_scene(tmp_path / "nowhere.tif")


def test_a_png_named_tif_is_read_and_said(tmp_path: Path) -> None:
    data = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    png = write_tif(tmp_path / "a.png", data, crs=None, driver="PNG")
    path = png.rename(tmp_path / "a.tif")
    for side in tmp_path.glob("*.aux.xml"):
        side.unlink()
    with pytest.raises(NoGeoreferenceError):
        open_scene(path)
    with open_scene(path, pixel_grid=True) as scene:
        assert (scene.read(Window(0, 0, 8, 8)).data == data).all()
        assert "content-is-not-extension" in {n.code for n in scene.info.notes}


def _image(path: Path, driver: str) -> Path:
    data = np.random.default_rng(0).integers(1, 255, (3, 700, 700)).astype(np.uint8)
    if driver == "JP2OpenJPEG":
        wide = np.random.default_rng(0).integers(1, 9999, (700, 700)).astype(np.uint16)
        return write_jp2(path, wide, 10, block=256)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256} if driver == "GTiff" else {}
    return write_tif(path, data, driver=driver, **options)


@pytest.mark.parametrize(
    ("name", "driver"), [("a.tif", "GTiff"), ("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.jp2", "JP2OpenJPEG")]
)
def test_a_file_cut_in_the_middle_is_found_when_it_is_opened(tmp_path: Path, name: str, driver: str) -> None:
    path = _image(tmp_path / name, driver)
    assert check_image(path).driver == driver
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(TruncatedFileError, match="band 1") as caught:
        open_scene(path, pixel_grid=True)
    assert path.name in str(caught.value)


def test_the_first_block_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = _image(tmp_path / "a.tif", "GTiff")
    layout = check_image(path).layouts[0]
    cut_at = int(layout.offsets[5]) + 10
    path.write_bytes(path.read_bytes()[:cut_at])
    with pytest.raises(TruncatedFileError, match=r"band 1, block \(2, 1\)"):
        open_scene(path)


@pytest.mark.parametrize("keep", [6, 10, 40, 120, 300])
def test_a_file_cut_in_its_header(tmp_path: Path, keep: int) -> None:
    path = write_tif(
        tmp_path / "cog.tif",
        np.ones((1, 2048, 2048), np.uint8),
        driver="COG",
        blocksize=256,
        compress="deflate",
    )
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((TruncatedFileError, HostileFileError)):
        open_scene(path)


def test_a_broken_block_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "a.tif",
        np.random.default_rng(0).integers(0, 9999, (2, 512, 512)).astype(np.uint16),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
        interleave="band",
    )
    layout = check_image(path).layouts[0]
    raw = bytearray(path.read_bytes())
    start = int(layout.offsets[6])  # second plane, block row 1, column 0
    raw[start : start + 64] = bytes(64)
    path.write_bytes(raw)
    with open_scene(path) as scene:
        good = scene.read(Window(0, 0, 256, 512))
        assert np.isfinite(good.data).all()
        with pytest.raises(TruncatedFileError, match=r"a\.tif: band 2, block \(0, 1\)"):
            scene.read(Window(256, 0, 10, 10))


def test_a_broken_jpeg2000_block_is_an_error(tmp_path: Path) -> None:
    path = _image(tmp_path / "a.jp2", "JP2OpenJPEG")
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"\xff\x90\x00\x0a")  # the last tile part: its bit stream becomes nonsense
    raw[at + 14 : at + 200] = b"\xff" * 186
    path.write_bytes(raw)
    with open_scene(path) as scene, pytest.raises(TruncatedFileError, match="band 1"):
        scene.read(Window(0, 0, 700, 700))


def test_chains_of_directories_that_do_not_end(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "loop.tif", width=4, height=4)
    raw = bytearray(path.read_bytes())
    entries = int.from_bytes(raw[8:10], "little")
    raw[10 + 12 * entries : 14 + 12 * entries] = (8).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(HostileFileError, match="does not end"):
        open_scene(path)


def test_a_png_bomb(tmp_path: Path) -> None:
    header = (10**6).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunk = b"IHDR" + header
    raw = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(raw + (0).to_bytes(4, "big") + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    with pytest.raises(HostileFileError, match="1000000 x 1000000"):
        open_scene(path, pixel_grid=True)


@pytest.mark.parametrize(
    "body",
    [
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        "<SourceFilename>inner.bin</SourceFilename></VRTRasterBand>",
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename relativeToVRT='0'>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand>",
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename relativeToVRT='1'>../outside.tif</SourceFilename></SimpleSource></VRTRasterBand>",
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>/vsicurl/http://127.0.0.1/x.tif</SourceFilename></SimpleSource></VRTRasterBand>",
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage></VRTRasterBand>",
    ],
    ids=["raw band", "absolute path", "path upwards", "network", "code"],
)
def test_a_vrt_reaches_nothing_outside_of_its_folder(tmp_path: Path, body: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_tif(tmp_path / "outside.tif", np.ones((1, 4, 4), np.uint8))
    head = '<VRTDataset rasterXSize="4" rasterYSize="4"><GeoTransform>0,1,0,0,0,-1</GeoTransform>'
    for name in ("a.vrt", "a.tif"):  # the name does not matter: the content does
        path = folder / name
        path.write_text(f"{head}<SRS>EPSG:32633</SRS>{body}</VRTDataset>")
        with pytest.raises(HostileFileError):
            open_scene(path)


def test_a_vrt_of_its_own_folder_is_read(tmp_path: Path) -> None:
    write_tif(tmp_path / "inner.tif", np.arange(16, dtype=np.uint8).reshape(1, 4, 4))
    path = tmp_path / "a.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename relativeToVRT='1'>inner.tif</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with open_scene(path) as scene:
        assert scene.read(Window(0, 0, 4, 4)).data.tolist() == [np.arange(16).reshape(4, 4).tolist()]


def test_xml_entities_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.vrt"
    path.write_text('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><VRTDataset/>')
    with pytest.raises(HostileFileError, match="entities"):
        open_scene(path)


@pytest.mark.parametrize("name", ["../evil.jp2", "/etc/evil.jp2", "a\\..\\evil.jp2", "C:/evil.jp2"])
def test_zip_names_that_lead_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "S2A.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MTD_MSIL2A.xml", "<a/>")
        archive.writestr(name, "x")
    with pytest.raises(HostileFileError, match="leads out"):
        open_scene(path)


def test_zip_links_bombs_and_torn_ends(tmp_path: Path) -> None:
    link = tmp_path / "link.zip"
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("MTD_MSIL2A.xml")
        entry.external_attr = 0xA1FF << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(HostileFileError, match="link"):
        check_zip(link)
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("MTD_MSIL2A.xml", b"\0" * 20_000_000)
    with pytest.raises(HostileFileError, match="bomb"):
        check_zip(whole)
    torn = tmp_path / "torn.zip"
    torn.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(TruncatedFileError, match="not a whole archive"):
        open_scene(torn)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a.tif", "/vsicurl/http://x/a.tif", "NETCDF:a.nc:v", "GTIFF_DIR:1:a.tif"]
)
def test_other_addresses_are_not_read(text: str) -> None:
    with pytest.raises(UnreadableFileError):
        open_scene(text)


@pytest.fixture(scope="module")
def small_tiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.arange(2 * 32 * 32, dtype=np.uint16).reshape(2, 32, 32)
    tiling = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    return write_tif(tmp_path_factory.mktemp("whole") / "whole.tif", data, **tiling)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_header_is_a_crash(tmp_path: Path, small_tiff: Path, data: st.DataObject) -> None:
    """Bytes of a small GeoTIFF changed at random: it opens, or an error of ours says why not."""
    raw = bytearray(small_tiff.read_bytes())
    end = data.draw(st.sampled_from([64, 256, len(raw) - 1]))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.tif"
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw)
    with suppress(TerralapseError):
        inspect(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=400),
    head=st.sampled_from(
        [
            b"",
            b"II*\0",
            b"II+\0",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"\xff\x4f\xff\x51",
            b"\x89HDF\r\n\x1a\n",
            b"CDF\x01",
            b"PK\x03\x04",
            b"<VRTDataset",
        ]
    ),
    name=st.sampled_from(["a.tif", "a.jp2", "a.nc", "a.json", "a.zip", "noname"]),
)
def test_no_garbage_is_a_crash(tmp_path: Path, content: bytes, head: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(head + content)
    with pytest.raises(TerralapseError):
        inspect(path)
