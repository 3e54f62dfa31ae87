"""What inspection says, and the record of sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from fixtures_eo import make_cube, make_landsat, make_safe, make_stac, serve, write_tif
from terralapse.errors import FileMissingError, UnsupportedGeoreferenceError
from terralapse.grid._georef import geobox_of
from terralapse.grid.inspect import Inspection, bounds_lonlat, inspect
from terralapse.grid.open import open_scene
from terralapse.grid.sources import hash_sources, sha256_of

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def problems(found: Inspection) -> set[str]:
    assert all(p.text and p.hint for p in found.problems)
    json.dumps(found.as_dict(), allow_nan=False)
    return {p.code for p in found.problems}


def test_a_good_cog_has_no_problems(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (3, 600, 700)).astype(np.uint16)
    data[:, :300] = 0
    path = write_tif(
        tmp_path / "s2_20210601.tif",
        data,
        driver="COG",
        nodata=0,
        compress="deflate",
        descriptions=("B02", "B03", "B04"),
    )
    found = inspect(path)
    assert problems(found) == set()
    assert found.format == "GeoTIFF"
    assert found.layout == "COG, tiles of 512 x 512"
    assert found.sensor == "sentinel2"
    assert "B01..B12" in found.sensor_why
    assert (found.width, found.height, found.epsg, found.crs) == (700, 600, 32633, "WGS 84 / UTM zone 33N")
    assert found.resolution_m == pytest.approx(10, rel=1e-3)
    assert found.orientation == "north-up"
    assert found.overviews == [2]
    assert found.valid_share == pytest.approx(0.5, abs=0.01)
    assert found.masked_shares["nodata"] == pytest.approx(0.5, abs=0.01)
    assert [b["name"] for b in found.bands] == ["blue", "green", "red"]
    assert found.bands[2]["wavelength_nm"] == 665
    assert 0 <= found.ranges["red"]["min"] < found.ranges["red"]["p98"] <= 0.1
    assert found.as_dict()["time"].startswith("2021-06-01")
    west, south, east, north = found.bounds_lonlat
    assert 14.9 < west < east < 15.2
    assert 45.0 < south < north < 45.2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transform": Affine(8, 3, 500000, 3, -8, 5000000)}, "rotated"),
        ({"crs": None, "transform": Affine.identity()}, "no-crs"),
        ({"crs": None, "transform": Affine.identity(), "driver": "JPEG"}, "lossy"),
        ({}, "no-date"),
        ({"nodata": 9}, "no-valid-pixels"),
    ],
)
def test_problems_of_a_picture(tmp_path: Path, options: dict, expected: str) -> None:
    data = np.full((3, 64, 64), 9, np.uint8)
    name = "a.jpg" if options.get("driver") == "JPEG" else "a.tif"
    assert expected in problems(inspect(write_tif(tmp_path / name, data, **options)))


def test_problems_of_storage_and_scale(tmp_path: Path) -> None:
    data = np.ones((1, 40, 5000), np.uint16)
    found = inspect(write_tif(tmp_path / "a_20200101.tif", data))
    assert problems(found) == {"not-tiled", "no-overviews", "unknown-scale"}
    collar = np.random.default_rng(0).integers(1, 255, (3, 64, 64)).astype(np.uint8)
    collar[:, :30] = 0
    assert "black-collar" in problems(inspect(write_tif(tmp_path / "b.tif", collar)))


def test_every_kind_of_input(tmp_path: Path) -> None:
    safe, landsat, stac = make_safe(tmp_path / "s"), make_landsat(tmp_path / "l"), make_stac(tmp_path / "i")
    cube = make_cube(tmp_path / "c.zarr")
    for name in ("a", "b"):
        shift = 500000 + (80 if name == "b" else 0)
        write_tif(
            tmp_path / "t" / f"{name}.tif",
            np.ones((3, 8, 8), np.uint8),
            transform=from_origin(shift, 0, 10, 10),
        )
    cases = {
        str(safe.path): "Sentinel-2 SAFE, JPEG 2000",
        str(landsat.path): "Landsat folder, GeoTIFF",
        str(stac.path): "STAC item, GeoTIFF",
        f"{cube.path}::2021-06-01": "Zarr cube",
        str(tmp_path / "t"): "2 tiles, GeoTIFF",
    }
    for source, name in cases.items():
        found = inspect(source)
        problems(found)
        assert found.format == name
        assert found.valid_share > 0.5
        assert found.source == source
    assert inspect(safe.path).masked_shares["cloud"] > 0.05


def test_a_large_image_without_overviews_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from terralapse.grid import inspect as module

    monkeypatch.setattr(module, "MAX_WITHOUT_OVERVIEWS", 1e6)
    data = np.random.default_rng(0).integers(50, 60, (1, 2000, 2000)).astype(np.uint8)
    found = inspect(write_tif(tmp_path / "a.tif", data, tiled=True))
    assert found.statistics_from == "25 windows of 256 x 256"
    assert found.valid_share == 1
    assert found.ranges["b1"]["min"] == 50
    with rasterio.open(tmp_path / "a.tif", "r+") as dst:
        dst.build_overviews([2, 4])
    assert inspect(tmp_path / "a.tif").statistics_from == "every pixel, averaged 4 x 4"


def test_bounds_across_the_antimeridian() -> None:
    utm = geobox_of(100, 100, from_origin(700000, 2000000, 3000, 3000), "EPSG:32660")
    west, _, east, _ = bounds_lonlat(utm)
    assert 178 < west < 180
    assert -180 < east < -178


def test_what_cannot_be_described_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError):
        inspect(tmp_path / "nowhere.tif")
    path = write_tif(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16), crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as dst:
        one = [1.0] + [0.0] * 19
        dst.rpcs = rasterio.rpc.RPC(0, 1, 0, 1, one, one, 0, 1, 0, 1, one, one, 0, 1)
    with pytest.raises(UnsupportedGeoreferenceError):
        inspect(path)


def test_sources_are_hashed(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    with open_scene(path) as scene:
        assert scene.info.sources[0].sha256 is None  # only when asked for
        (source,) = hash_sources(scene.info)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.bytes == path.stat().st_size
    with serve(tmp_path) as address, open_scene(f"{address}/a.tif") as scene:
        (source,) = hash_sources(scene.info)
        assert (source.bytes, source.sha256, source.etag) == (path.stat().st_size, None, '"fixture"')


def test_a_folder_is_hashed_by_content(tmp_path: Path) -> None:
    truth = make_cube(tmp_path / "a.zarr")
    with open_scene(truth.path, time="2021-06-01") as scene:
        (source,) = hash_sources(scene.info)
    before = source.sha256
    assert before == sha256_of(truth.path)
    chunk = next(p for p in sorted(truth.path.rglob("*")) if p.is_file() and p.suffix != ".json")
    chunk.write_bytes(chunk.read_bytes() + b"x")
    assert sha256_of(truth.path) != before
    with pytest.raises(FileMissingError):
        sha256_of(tmp_path / "nowhere")
