"""Cloud-optimised GeoTIFFs: valid, lossless, with legal overviews, and never half there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from terralapse.errors import OutputNotWritableError
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.labels import BINARY_CHANGE, VALIDITY


def grid(height: int, width: int, crs: str | None = "EPSG:32631") -> GeoBox:
    return GeoBox((height, width), Affine(10, 0, 500000, 0, -10, 4600000), crs)


def levels(path: Path) -> Iterator[np.ndarray]:
    with rasterio.open(path) as opened:
        count = len(opened.overviews(1))
    for level in range(count):
        with rasterio.open(path, overview_level=level) as opened:
            yield opened.read(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (100, 37), (512, 512), (1300, 2100)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_what_is_written_is_read_again(tmp_path: Path, height: int, width: int, dtype: str) -> None:
    array = (np.random.default_rng(0).random((height, width)) * 250).astype(dtype)
    path = write_cog(array, tmp_path / "a.tif", geobox=grid(height, width), kind="continuous", nodata=255)
    with rasterio.open(path) as opened:
        np.testing.assert_array_equal(opened.read(1), array)
        assert opened.dtypes[0] == dtype
        assert opened.nodata == 255
        assert opened.crs.to_epsg() == 32631
        assert tuple(opened.transform)[:6] == (10, 0, 500000, 0, -10, 4600000)
        assert len(opened.overviews(1)) == (0 if max(height, width) <= 512 else 3)
        assert opened.block_shapes[0] == (512, 512)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert valid, (errors, warnings)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_overviews_of_classes_hold_the_most_frequent_class_and_no_invented_one(tmp_path: Path) -> None:
    array = np.random.default_rng(0).choice(np.array([0, 4, 14], np.uint8), (2000, 2000), p=[0.2, 0.2, 0.6])
    array[:600, :600] = 4
    path = write_cog(array, tmp_path / "c.tif", geobox=grid(2000, 2000), kind="class", scheme=VALIDITY)
    for level in levels(path):
        assert set(np.unique(level)) <= {0, 4, 14}
        share = len(level) * 600 // 2000
        assert (level[: share - 1, : share - 1] == 4).all()
        assert (level[share + 1 :] == 14).mean() > 0.6


def test_overviews_of_measurements_are_means_of_what_is_known(tmp_path: Path) -> None:
    array = np.full((2048, 2048), 255, np.uint8)
    array[:, ::2] = 40  # every other column is nodata
    array[:1024] = np.where(array[:1024] == 40, 40, 80)
    path = write_cog(array, tmp_path / "p.tif", geobox=grid(2048, 2048), kind="continuous", nodata=255)
    for level in levels(path):
        half = len(level) // 2
        assert (level[:half] == 60).all()
        assert (level[half:] == 40).all()


def test_class_tables_palette_scale_and_tags_travel_with_the_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (700, 600))
    path = write_cog(
        array,
        tmp_path / "c.tif",
        geobox=grid(700, 600),
        kind="class",
        nodata=255,
        scheme=BINARY_CHANGE,
        descriptions=["change"],
        tags={"TERRALAPSE_MODEL": "x/y"},
    )
    with rasterio.open(path) as opened:
        palette = opened.colormap(1)
        assert {v: palette[v] for v in (0, 1)} == BINARY_CHANGE.palette()
        assert palette[255][3] == 0  # nodata is transparent
        assert opened.descriptions == ("change",)
        assert opened.tags()["TERRALAPSE_MODEL"] == "x/y"
        assert opened.tags()["TIFFTAG_SOFTWARE"].startswith("terralapse ")
        own = opened.tags(1)
        assert own["CLASS_0"] == "No change"
        assert [c["name"] for c in json.loads(own["CLASSES"])] == ["no_change", "change"]
    physical = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    path = write_cog(
        np.stack([physical, 1 - physical]),
        tmp_path / "f.tif",
        geobox=grid(8, 8),
        kind="continuous",
        nodata=float("nan"),
        scale=0.1,
        offset=-2.0,
        units=["m", "m"],
    )
    with rasterio.open(path) as opened:
        assert (opened.count, opened.scales, opened.offsets) == (2, (0.1, 0.1), (-2.0, -2.0))
        assert opened.units == ("m", "m")
        assert np.isnan(opened.nodata)
        np.testing.assert_array_equal(opened.read(2), 1 - physical)


def test_the_bytes_do_not_depend_on_how_it_is_cut_or_on_threads(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 50, (1500, 1300)).astype(np.uint8)

    def pieces(side: int) -> Iterator[tuple[Window, np.ndarray]]:
        for row in range(0, 1500, side):
            for col in range(0, 1300, side):
                piece = array[row : row + side, col : col + side]
                yield Window(row, col, *piece.shape), piece

    options: dict[str, Any] = {"geobox": grid(1500, 1300), "kind": "continuous", "nodata": 255}
    whole = write_cog(array, tmp_path / "a.tif", threads=1, **options).read_bytes()
    for side, threads in ((512, 2), (700, 1), (333, 2)):
        path = write_cog(pieces(side), tmp_path / "b.tif", dtype="uint8", threads=threads, **options)
        assert path.read_bytes() == whole


def test_rotated_and_south_up_grids_and_grids_without_a_crs_stay_what_they_are(tmp_path: Path) -> None:
    array = np.arange(30, dtype=np.uint8).reshape(5, 6)
    for affine, crs in (
        (Affine(1, 0.5, 100, 0.5, -1, 200), "EPSG:32631"),
        (Affine(0.1, 0, 10, 0, 0.1, 40), "EPSG:4326"),
        (Affine(2, 0, 7, 0, -2, 9), None),
    ):
        path = write_cog(array, tmp_path / "a.tif", geobox=GeoBox((5, 6), affine, crs), kind="continuous")
        with rasterio.open(path) as opened:
            assert tuple(opened.transform)[:6] == pytest.approx(tuple(affine)[:6])
            assert (opened.crs is None) == (crs is None)
            np.testing.assert_array_equal(opened.read(1), array)


def test_an_error_in_the_source_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"old")

    def broken() -> Iterator[tuple[Window, np.ndarray]]:
        yield Window(0, 0, 8, 8), np.zeros((8, 8), np.uint8)
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        write_cog(broken(), path, geobox=grid(8, 8), kind="class", dtype="uint8")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritableError, match=r"nowhere/a\.tif: cannot be written"):
        write_cog(np.zeros((4, 4), np.uint8), tmp_path / "nowhere" / "a.tif", geobox=grid(4, 4), kind="class")


@pytest.mark.slow
def test_more_than_four_gigabytes_become_a_bigtiff(tmp_path: Path) -> None:
    side = 68_000
    noise = np.random.default_rng(0).integers(0, 255, (512, side), np.uint8)

    def strips() -> Iterator[tuple[Window, np.ndarray]]:
        for row in range(0, side, 512):
            rows = min(512, side - row)
            yield Window(row, 0, rows, side), np.roll(noise, row, axis=1)[:rows]

    path = write_cog(
        strips(), tmp_path / "big.tif", geobox=grid(side, side), kind="continuous", dtype="uint8"
    )
    assert path.stat().st_size > 4 << 30
    with path.open("rb") as file:
        assert file.read(4) in (b"II+\x00", b"MM\x00+")  # the mark of BigTIFF
    assert cog_validate(path)[0]
