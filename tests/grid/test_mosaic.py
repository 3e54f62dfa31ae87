"""Tiles as one scene: order, several projections, the antimeridian, and what is not a mosaic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from fixtures_eo import write_tif
from terralapse.errors import BandError, FileMissingError, SettingError
from terralapse.grid._stack import StackScene
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Window
from terralapse.labels import SceneMask

SIZE = 60


def ramp(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """A smooth field over the ground, so that any projection of it can be checked."""
    return (1000 + 20000 * (lon - 9) + 10000 * (lat - 45)).astype(np.float32)


@pytest.fixture(scope="module")
def quarters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Four tiles cut from one grid, with a hole, and the whole."""
    folder = tmp_path_factory.mktemp("quarters")
    whole = np.random.default_rng(2).integers(1, 9000, (2, 2 * SIZE, 2 * SIZE)).astype(np.uint16)
    whole[:, 50:70, 10:30] = 0
    for r in (0, 1):
        for c in (0, 1):
            data = whole[:, r * SIZE : (r + 1) * SIZE, c * SIZE : (c + 1) * SIZE]
            origin = from_origin(500000 + c * SIZE * 0.6, 5000000 - r * SIZE * 0.6, 0.6, 0.6)
            write_tif(folder / f"tile_{r}_{c}.tif", data, transform=origin, nodata=0)
    return folder, whole


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(-10, 130), col=st.integers(-10, 130), h=st.integers(1, 130), w=st.integers(1, 130))
def test_tiles_of_one_grid_are_copied_exactly(quarters, row: int, col: int, h: int, w: int) -> None:
    folder, whole = quarters
    scene = open_scene(folder)
    assert scene.info.geobox.shape == (2 * SIZE, 2 * SIZE)
    block = scene.read(Window(row, col, h, w))
    padded = np.full((2, 400, 400), np.nan, np.float32)
    padded[:, 100 : 100 + 2 * SIZE, 100 : 100 + 2 * SIZE] = np.where(whole == 0, np.nan, whole)
    np.testing.assert_array_equal(block.data, padded[:, 100 + row : 100 + row + h, 100 + col : 100 + col + w])
    rows, cols = np.arange(row, row + h), np.arange(col, col + w)
    inside = ((rows >= 0) & (rows < 2 * SIZE))[:, None] & ((cols >= 0) & (cols < 2 * SIZE))
    assert (block.mask[~inside] == SceneMask.OUTSIDE).all()
    assert (block.mask[inside & np.isnan(block.data[0])] == SceneMask.NODATA).all()


@pytest.mark.parametrize("d", [2, 5, 7])
def test_a_decimated_mosaic_has_no_gaps(quarters, d: int) -> None:
    folder, whole = quarters
    block = open_scene(folder).read(Window(0, 0, 2 * SIZE, 2 * SIZE), decimation=d)
    n = -(-2 * SIZE // d)
    assert block.data.shape == (2, n, n)
    assert not (block.mask == SceneMask.OUTSIDE).any()
    assert np.nanmean(block.data) == pytest.approx(whole[whole > 0].mean(), rel=0.02)


def test_parts_are_the_members_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        data = np.full((1, 4, 4), i, np.uint8)
        write_tif(tmp_path / f"tile_{i}.tif", data, transform=from_origin(500000 + 30 * i, 5000000, 10, 10))
    scene = open_scene(tmp_path)
    assert [p.info.name for p in scene.parts()] == ["tile_1", "tile_9", "tile_10"]
    # Tiles 9 and 10 overlap by one column: the first wins.
    at = round((500000 + 300 - 500030) / 10)
    assert scene.read(Window(0, at, 1, 1)).data.item() == 9
    assert [p.info.name for p in open_scene(str(tmp_path / "tile_*.tif")).parts()] == [
        "tile_1",
        "tile_9",
        "tile_10",
    ]
    assert len(scene.info.sources) == 3


def test_the_next_member_fills_the_holes_of_the_first(tmp_path: Path) -> None:
    first, second = np.full((3, 6, 6), 5, np.uint8), np.full((3, 6, 6), 9, np.uint8)
    first[:, 2, 2] = first[:, 3, 3] = 0
    second[:, 3, 3] = 0
    for name, data in (("a", first), ("b", second)):
        write_tif(tmp_path / f"{name}.tif", data, nodata=0)
    block = open_scene(tmp_path).read(Window(0, 0, 6, 6))
    assert block.data[0, 2, 2] == 9
    assert block.data[0, 0, 0] == 5
    assert block.mask[3, 3] == SceneMask.NODATA
    assert (block.mask > 0).sum() == 1


def _projected(path: Path, crs: str, west: float, north: float, step: float, n: int) -> None:
    from pyproj import Transformer

    x, y = np.meshgrid(west + (np.arange(n) + 0.5) * step, north - (np.arange(n) + 0.5) * step)
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    write_tif(path, ramp(lon, lat)[None], crs=crs, transform=from_origin(west, north, step, step))


def test_tiles_in_two_zones(tmp_path: Path) -> None:
    """Two tiles of UTM 32 and one of UTM 33 over the zone border at 12 degrees east."""
    _projected(tmp_path / "a.tif", "EPSG:32632", 732000, 5100000, 20, 100)
    _projected(tmp_path / "b.tif", "EPSG:32632", 734000, 5100000, 20, 100)
    _projected(tmp_path / "c.tif", "EPSG:32633", 269000, 5100000, 20, 100)
    scene = open_scene(tmp_path)
    assert isinstance(scene, MosaicScene)
    box = scene.info.geobox
    assert box.crs.epsg == 32632
    assert abs(box.affine.a) == 20
    assert (box.affine.c - 732000) % 20 == 0
    for d in (1, 4):
        block = scene.read(Window(0, 0, *box.shape), decimation=d)
        h, w = block.mask.shape
        x, y = np.meshgrid(
            (np.arange(w) + 0.5) * 20 * d + box.affine.c, box.affine.f - (np.arange(h) + 0.5) * 20 * d
        )
        lon, lat = box.crs.transformer_to_crs("EPSG:4326")(x, y)
        # A pixel is 2.6e-4 degrees of longitude, thus 5 units of the field. Half of one may be lost at the
        # edges of tiles, where bilinear resampling has one neighbour only.
        error = np.abs(block.data[0] - ramp(lon, lat)) / (5.3 * d)
        assert np.nanpercentile(error, 98) < 0.2
        assert np.nanmax(error) < 0.7
        assert (block.mask == 0).mean() > 0.7
    assert {p.info.geobox.crs.epsg for p in scene.parts()} == {32632, 32633}
    assert "several-projections" in {n.code for n in scene.info.notes}


def test_tiles_on_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    for name, west, value in (("a", 179.9, 3), ("b", -180.0, 4)):
        data = np.full((1, 10, 10), value, np.uint8)
        write_tif(
            tmp_path / f"{name}.tif", data, crs="EPSG:4326", transform=from_origin(west, -16, 0.01, 0.01)
        )
    scene = open_scene(tmp_path)
    assert scene.info.geobox.shape == (10, 20)  # and not 36,000 columns around the world
    assert scene.read(Window(0, 8, 1, 4)).data.ravel().tolist() == [3, 3, 4, 4]


def test_dates_of_one_place_are_not_a_mosaic(tmp_path: Path) -> None:
    for day in ("20200101", "20210101"):
        write_tif(tmp_path / f"a_{day}.tif", np.ones((3, 8, 8), np.uint8))
    with pytest.raises(SettingError, match=r"same place on 2020-01-01 and 2021-01-01"):
        open_scene(tmp_path)


def test_neighbours_of_several_dates_are_a_mosaic_with_a_warning(tmp_path: Path) -> None:
    for i, day in enumerate(("20200101", "20200103", "20200108")):
        grid = from_origin(500000 + 80 * i, 5000000, 10, 10)
        write_tif(tmp_path / f"a_{day}.tif", np.ones((3, 8, 8), np.uint8), transform=grid)
    info = open_scene(tmp_path).info
    assert f"{info.time:%Y-%m-%d}" == "2020-01-03"
    assert "several-dates" in {n.code for n in info.notes}


def test_members_must_agree(tmp_path: Path) -> None:
    write_tif(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8))
    write_tif(
        tmp_path / "b.tif", np.ones((3, 8, 8), np.uint16), transform=from_origin(500080, 5000000, 10, 10)
    )
    with pytest.raises(BandError, match="raw"):
        open_scene(tmp_path)


def test_single_band_files_of_one_scene_are_stacked(tmp_path: Path) -> None:
    truth = {}
    for band, step, n in (("B04", 10, 12), ("B08", 10, 12), ("B11", 20, 6)):
        truth[band] = np.random.default_rng(n).integers(1, 9999, (n, n)).astype(np.uint16)
        name = f"S2A_MSIL2A_20180601T100031_N0208_R122_T33UUP_20180601T120000_{band}.tif"
        write_tif(
            tmp_path / name, truth[band][None], transform=from_origin(500000, 5000000, step, step), nodata=0
        )
    scene = open_scene(tmp_path)
    assert isinstance(scene, StackScene)
    assert [b.name for b in scene.info.bands] == ["red", "nir", "swir16"]
    block = scene.read(Window(0, 0, 12, 12))
    np.testing.assert_allclose(block.data[2], np.kron(truth["B11"], np.ones((2, 2))) / 10000, rtol=1e-6)
    assert "replicated" in {n.code for n in scene.info.notes}


def test_single_bands_without_names_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tif(tmp_path / f"{name}.tif", np.ones((1, 8, 8), np.uint16))
    with pytest.raises(BandError, match="2 single-band images of the same place"):
        open_scene(tmp_path)


def test_empty_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileMissingError, match="holds no images"):
        open_scene(tmp_path)
    with pytest.raises(FileMissingError, match="matches no image"):
        open_scene(str(tmp_path / "*.tif"))
