"""A map of any grid over an aligned pair: the right class at the right place, whatever is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject

from fixtures_eo import write_tif
from terralapse.errors import FileMissingError, ModelInputError, UnreadableFileError
from terralapse.grid.map_before import MapFile, PairWithMap
from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Window
from terralapse.labels import HRSCD

SIZE, ORIGIN = 96, (500000.0, 5000000.0)


def pair() -> ArrayPair:
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, SIZE, SIZE)).astype(np.float32)
    images[1, :, 10:20, 10:20] = np.nan
    grid = GeoBox((SIZE, SIZE), Affine(2, 0, ORIGIN[0], 0, -2, ORIGIN[1]), "EPSG:32633")
    return ArrayPair(images, bands=("red", "green", "blue"), geobox=grid)


def classes(cell: int = 8) -> np.ndarray:
    drawn = np.random.default_rng(1).integers(0, 5, (SIZE // cell, SIZE // cell), dtype=np.uint8)
    return drawn.repeat(cell, 0).repeat(cell, 1)


def written(path: Path, values: np.ndarray, pixel: float = 2.0, **options: object) -> Path:
    options = {"transform": from_origin(*ORIGIN, pixel, pixel), **options}
    return write_tif(path, values[None], **options)  # type: ignore[arg-type]


def whole(mapped: PairWithMap) -> np.ndarray:
    return mapped.read(Window(0, 0, SIZE, SIZE)).images


def test_the_map_is_the_last_band_of_both_dates(tmp_path: Path) -> None:
    bare = pair()
    mapped = PairWithMap(bare, MapFile(written(tmp_path / "map.tif", classes()), HRSCD))
    assert [b.name for b in mapped.bands] == ["red", "green", "blue", "map"]
    block, plain = mapped.read(Window(0, 0, SIZE, SIZE)), bare.read(Window(0, 0, SIZE, SIZE))
    assert np.array_equal(block.images[:, :3], plain.images, equal_nan=True)
    assert np.array_equal(block.reason, plain.reason)
    for date in (0, 1):
        assert np.array_equal(block.images[date, 3], classes())
    assert mapped.shape == bare.shape
    assert mapped.before is bare.before


def test_another_pixel_size_is_taken_by_nearest_neighbour(tmp_path: Path) -> None:
    coarse = classes()[::8, ::8]
    mapped = PairWithMap(pair(), MapFile(written(tmp_path / "map.tif", coarse, 16.0), HRSCD))
    assert np.array_equal(whole(mapped)[0, 3], classes())


def test_another_crs_lands_in_its_place(tmp_path: Path) -> None:
    here = from_origin(*ORIGIN, 2, 2)
    bounds = rasterio.transform.array_bounds(SIZE, SIZE, here)
    there, width, height = calculate_default_transform(
        "EPSG:32633", "EPSG:4326", SIZE, SIZE, *bounds, resolution=0.5 / 111_000
    )
    moved = np.full((height, width), 255, np.uint8)
    reproject(
        classes(), moved, src_transform=here, src_crs="EPSG:32633", dst_transform=there, dst_crs="EPSG:4326",
        resampling=Resampling.nearest, src_nodata=255, dst_nodata=255,
    )  # fmt: skip
    path = written(tmp_path / "map.tif", moved, crs="EPSG:4326", transform=there, nodata=255)
    found = whole(PairWithMap(pair(), MapFile(path, HRSCD)))[0, 3]
    assert (found == classes()).mean() > 0.9
    assert np.isin(found, [0, 1, 2, 3, 4, 255]).all()


def test_where_the_map_says_nothing_there_is_255_and_never_a_gap(tmp_path: Path) -> None:
    values = classes()
    values[:16] = 255
    values[16:32] = 99
    mapped = PairWithMap(pair(), MapFile(written(tmp_path / "m.tif", values[:, :48], nodata=99), HRSCD))
    block = mapped.read(Window(-8, -8, SIZE + 16, SIZE + 16))
    band = block.images[:, 3]
    assert np.isfinite(band).all()
    assert (band[:, :40] == 255).all()
    assert (band[:, :, 56:] == 255).all()
    assert np.array_equal(band[0, 40:-8, 8:56], classes()[32:, :48])


def test_zeros_in_a_corner_are_a_class(tmp_path: Path) -> None:
    values = classes()
    values[:24, :24] = 0
    options = {"nodata": 255}
    found = whole(PairWithMap(pair(), MapFile(written(tmp_path / "m.tif", values, **options), HRSCD)))[0, 3]
    assert np.array_equal(found, values)


def test_a_palette_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tif", classes())
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, HRSCD.palette())
    assert np.array_equal(whole(PairWithMap(pair(), MapFile(path, HRSCD)))[0, 3], classes())


def test_any_window_from_any_thread_gives_the_same_pixels(tmp_path: Path) -> None:
    mapped = PairWithMap(pair(), MapFile(written(tmp_path / "m.tif", classes()[::4, ::4], 8.0), HRSCD))
    expected = whole(mapped)[0, 3]
    windows = [Window(r, c, 31, 17) for r in range(0, 60, 13) for c in range(0, 70, 9)]
    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(mapped.read, windows))
    for window, block in zip(windows, blocks, strict=True):
        assert np.array_equal(block.images[0, 3], expected[window.slices])


def test_a_preview_has_it_too(tmp_path: Path) -> None:
    mapped = PairWithMap(pair(), MapFile(written(tmp_path / "m.tif", classes()), HRSCD))
    block, grid = mapped.preview(24)
    assert block.images.shape == (2, 4, *grid.shape)
    assert mapped.preview(24, ["red"])[0].images.shape[1] == 1


def test_another_map_is_another_run(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tif", classes())
    first = PairWithMap(pair(), MapFile(path, HRSCD)).fingerprint()
    assert first == PairWithMap(pair(), MapFile(path, HRSCD)).fingerprint()
    changed = classes()
    changed[0, 0] = (changed[0, 0] + 1) % 5
    written(path, changed)
    assert first != PairWithMap(pair(), MapFile(path, HRSCD)).fingerprint()


def test_strange_values_are_listed_with_the_classes(tmp_path: Path) -> None:
    values = classes()
    values[3, 3], values[4, 4] = 10, 80
    with pytest.raises(ModelInputError, match=r"0, 1, 2, 3, 4, 10, 80.*hrscd are 0 artificial.*4 water"):
        MapFile(written(tmp_path / "m.tif", values), HRSCD)


def test_files_that_are_no_map(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"nowhere\.tif"):
        MapFile(tmp_path / "nowhere.tif", HRSCD)
    three = write_tif(tmp_path / "rgb.tif", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(UnreadableFileError, match="has 3 bands"):
        MapFile(three, HRSCD)
