"""Tiles that are read quickly are those that a warp by GDAL gives; what cannot be read so is warped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.transform import from_origin

from terralapse.labels import BINARY_CHANGE
from terralapse.serve.layers import Layer
from terralapse.serve.tiles import Tiler, Wanted

SIDE = 1600
_WHERE = from_origin(380_000, 4_110_000, 1, 1)


def cog(path: Path, data: np.ndarray, **profile: object) -> Path:
    kept = {"driver": "COG", "width": data.shape[2], "height": data.shape[1], "count": len(data)}
    kept |= {"dtype": data.dtype, "crs": "EPSG:32615", "transform": _WHERE, "blocksize": 256}
    with rasterio.open(path, "w", **(kept | profile)) as file:
        file.write(data)
    return path


@pytest.fixture(scope="module")
def ground() -> np.ndarray:
    """uint8 [3, SIDE, SIDE], smooth, so that a shift by half a pixel would be seen."""
    y, x = np.mgrid[:SIDE, :SIDE] / 9.0
    return np.stack([127 + 110 * np.sin(x + k) * np.cos(y - k) for k in range(3)]).astype(np.uint8)


def tile_at(
    tiler: Tiler, layer: Layer, zoom: int, scale: int = 1, at: tuple[float, float] = (0.5, 0.5)
) -> Wanted:
    """The tile of a place, which is given in shares of the layer from its south-western corner."""
    west, south, east, north = tiler.extent(layer, Affine.identity()).bounds
    lon, lat = np.radians((west + (east - west) * at[0], south + (north - south) * at[1]))
    x = int((1 + lon / np.pi) / 2 * 2**zoom)
    return Wanted(zoom, x, int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**zoom), scale)


def both(
    layer: Layer, wanted: Wanted, monkeypatch: pytest.MonkeyPatch, there: tuple[float, float] = (0.5, 1.0)
) -> list[np.ndarray]:
    """The pixels that the quick and the warped tile have both, of which there are so many."""
    tiler = Tiler(2**20, 4, 4)
    quick = tiler._quick(layer, wanted)
    assert quick is not None
    monkeypatch.setattr(tiler, "_quick", lambda *_: None)
    warped = tiler._read(layer, Affine.identity(), wanted)
    assert quick[0].shape == warped[0].shape == (len(quick[0]), 256 * wanted.scale, 256 * wanted.scale)
    assert np.mean(quick[1] != warped[1]) < 0.01
    common = quick[1] & warped[1]
    assert there[0] < common.mean() <= there[1]
    return [quick[0][:, common].astype(int), warped[0][:, common].astype(int)]


@pytest.mark.parametrize(("zoom", "scale"), [(18, 1), (17, 1), (17, 2)])
def test_a_picture_is_that_of_a_warp(tmp_path, ground, monkeypatch, zoom, scale):
    layer = Layer("before", "Before", cog(tmp_path / "a.tif", ground, photometric="rgb"), "picture")
    quick, warped = both(layer, tile_at(Tiler(0, 4, 4), layer, zoom, scale), monkeypatch)
    assert np.abs(quick - warped).max() <= 3
    assert abs(np.mean(quick - warped)) < 0.75  # a level of 256 at the most, by rounding


@pytest.mark.parametrize(("zoom", "scale"), [(18, 1), (17, 1), (16, 1), (17, 2)])
def test_classes_are_those_of_a_warp(tmp_path, ground, monkeypatch, zoom, scale):
    classes = (ground[:1] > 127).astype(np.uint8)
    classes[ground[1:2] > 200] = 255
    path = cog(tmp_path / "a.tif", classes, nodata=255, overview_resampling="nearest")
    table = np.zeros((256, 4), np.uint8)
    layer = Layer("change", BINARY_CHANGE.title, path, "class", table=table)
    quick, warped = both(layer, tile_at(Tiler(0, 4, 4), layer, zoom, scale), monkeypatch)
    assert np.mean(quick != warped) < 0.01  # positions on the edge of a pixel


@pytest.mark.parametrize("corner", [(0.01, 0.01), (0.99, 0.99), (0.5, 0.999), (0.999, 0.5)])
def test_a_picture_ends_where_it_does_in_a_warp(tmp_path, ground, monkeypatch, corner):
    layer = Layer("before", "Before", cog(tmp_path / "a.tif", ground, photometric="rgb"), "picture")
    quick, warped = both(layer, tile_at(Tiler(0, 4, 4), layer, 17, at=corner), monkeypatch, (0.001, 0.95))
    assert np.abs(quick - warped).max() <= 6  # at the edge one weighs by what lies inside, one repeats it
    assert np.abs(quick - warped).mean() < 1


def test_what_is_masked_has_no_part_in_the_colours_beside_it(tmp_path, ground, monkeypatch):
    holes = np.maximum(ground, 100)
    holes[:, 700:900, 700:900] = 0
    layer = Layer("b", "B", cog(tmp_path / "b.tif", holes, nodata=0, photometric="rgb"), "picture")
    quick, warped = both(layer, tile_at(Tiler(0, 4, 4), layer, 17), monkeypatch, (0.3, 0.95))
    assert quick.min() >= 97  # black would show as a dark line around the hole
    assert np.abs(quick - warped).mean() < 1


@pytest.mark.parametrize(("zoom", "overviews"), [(15, "NONE"), (14, "NONE"), (13, "AUTO"), (12, "NONE")])
def test_a_picture_from_afar_is_made_of_all_its_pixels(tmp_path, ground, monkeypatch, zoom, overviews):
    noisy = np.random.default_rng(0).integers(0, 256, ground.shape, np.uint8)
    noisy[:, :, SIDE // 2 :] //= 4
    layer = Layer("b", "B", cog(tmp_path / "b.tif", noisy, overviews=overviews), "picture")
    quick, _warped = both(layer, tile_at(Tiler(0, 8, 4), layer, zoom), monkeypatch, (0.01, 1.0))
    means = np.sort(quick.mean(0))
    # Every tile pixel stands for so many of the image that noise is gone, and both halves have their mean.
    assert abs(np.median(means[: len(means) // 4]) - 31.5) < 6
    assert abs(np.median(means[-len(means) // 4 :]) - 127.5) < 20


def test_what_is_turned_is_warped(tmp_path, ground):
    tiler = Tiler(2**20, 4, 4)
    whole = Layer("a", "A", cog(tmp_path / "a.tif", ground), "picture")
    middle = tile_at(tiler, whole, 18)
    assert tiler._quick(whole, middle) is not None
    turned = _WHERE @ Affine.rotation(10)
    bent = Layer("c", "C", cog(tmp_path / "c.tif", ground, transform=turned, driver="GTiff"), "picture")
    assert tiler._quick(bent, middle) is None
