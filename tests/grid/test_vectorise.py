"""Streamed polygonisation: exact before simplification, seam-free, honest about areas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from rasterio import features
from scipy import ndimage

from terralapse.errors import SettingError
from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import Window
from terralapse.grid.vectorise import VectoriseSettings, vectorise

UTM = "EPSG:32615"
TEN = Affine(10, 0, 400000, 0, -10, 4100000)
PIXEL = 100.0


def write(folder: Path, array: np.ndarray, affine: Affine = TEN, crs: str = UTM) -> tuple[Path, GeoBox]:
    path = folder / "classes.tif"
    profile = {
        "driver": "GTiff",
        "width": array.shape[1],
        "height": array.shape[0],
        "count": 1,
        "dtype": "uint8",
        "crs": crs,
        "transform": affine,
        "nodata": 255,
    }
    with rasterio.open(path, "w", **profile) as sink:
        sink.write(array.astype(np.uint8), 1)
    return path, GeoBox(array.shape, affine, crs)


def write_probability(folder: Path, stored: np.ndarray, affine: Affine = TEN) -> Path:
    path, _ = write(folder, stored, affine)
    target = path.with_name("prob.tif")
    path.rename(target)
    with rasterio.open(target, "r+") as sink:
        sink.scales = (0.005,)
    return target


def burn(frame, box: GeoBox, column: str | None = None) -> np.ndarray:
    values = frame[column] if column else [1] * len(frame)
    pairs = list(zip(frame.geometry, values, strict=True))
    if not pairs:
        return np.zeros(box.shape, np.uint8)
    return features.rasterize(pairs, out_shape=tuple(box.shape), transform=box.affine, dtype="uint8")


def blobs(shape: tuple[int, int], seed: int, share: float = 0.3, sigma: float = 2.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (noise > np.quantile(noise, 1 - share)).astype(np.uint8)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14),
        elements=st.sampled_from([0, 1, 1, 2, 255]),
    ),
    rows=st.integers(1, 6),
    connectivity=st.sampled_from([4, 8]),
)
def test_raster_to_polygons_to_raster_is_the_identity(tmp_path, array, rows, connectivity):
    path, box = write(tmp_path, array)
    how = VectoriseSettings((1, 2), connectivity=connectivity, simplify=False, strip_rows=rows)
    frame = vectorise(path, None, box, how)
    assert np.array_equal(burn(frame, box, "class_value"), np.where(array == 255, 0, array))
    assert frame.geometry.is_valid.all()
    structure = np.ones((3, 3)) if connectivity == 8 else None
    assert len(frame) == sum(ndimage.label(array == v, structure)[1] for v in (1, 2))
    assert frame.pixels.sum() == np.isin(array, (1, 2)).sum()
    assert np.allclose(frame.area / PIXEL, frame.pixels)


@pytest.mark.parametrize("simplify", [False, True])
def test_strips_make_no_difference(tmp_path, simplify):
    array = blobs((150, 130), seed=3)
    array[40:50, 60:90] = 255
    path, box = write(tmp_path, array)
    frames = [
        vectorise(path, None, box, VectoriseSettings(min_area_m2=900, simplify=simplify, strip_rows=rows))
        for rows in (7, 64, 1000)
    ]
    for other in frames[1:]:
        assert np.array_equal(frames[0].pixels, other.pixels)
        assert np.allclose(shapely.area(shapely.symmetric_difference(frames[0].geometry, other.geometry)), 0)
        assert np.allclose(frames[0].area_m2, other.area_m2)


def test_a_ring_over_many_strips_keeps_its_hole(tmp_path):
    array = np.zeros((60, 60), np.uint8)
    array[5:55, 5:55] = 1
    array[20:40, 20:40] = 0
    path, box = write(tmp_path, array)
    how = VectoriseSettings(simplify=False, strip_rows=8, min_area_m2=300 * PIXEL)
    frame = vectorise(path, None, box, how)
    assert len(frame) == 1
    ring = frame.geometry[0]
    assert len(ring.interiors) == 1
    assert len(ring.exterior.coords) == 5, "the seams have left vertices behind"
    assert ring.area == (50 * 50 - 20 * 20) * PIXEL


def test_minimum_mapping_unit_drops_specks_and_fills_holes(tmp_path):
    array = np.zeros((40, 40), np.uint8)
    array[2:22, 2:22] = 1
    array[10:12, 10:12] = 0  # 4 px hole: filled
    array[15, 15] = 255  # nodata: never filled
    array[5:8, 15:18] = 0  # 9 px hole with a speck of 1 px in it: filled together
    array[6, 16] = 1
    array[30:32, 30:31] = 1  # 2 px: dropped
    array[30:32, 34:37] = 1  # 6 px: kept
    path, box = write(tmp_path, array)
    frame = vectorise(path, None, box, VectoriseSettings(min_area_m2=5 * PIXEL, simplify=False, strip_rows=6))
    assert frame.pixels.tolist() == [20 * 20 - 1 - 9, 6]  # 8 px of hole and the dropped speck: over 5
    how = VectoriseSettings(min_area_m2=9.5 * PIXEL, simplify=False, strip_rows=6)
    frame = vectorise(path, None, box, how)
    assert frame.pixels.tolist() == [20 * 20 - 1]
    assert len(frame.geometry[0].interiors) == 1


def test_a_hole_at_the_edge_or_between_two_is_not_filled(tmp_path):
    array = np.zeros((20, 20), np.uint8)
    array[0:6, 0:6] = 1
    array[0, 2] = 0  # open to the edge of the raster
    path, box = write(tmp_path, array)
    frame = vectorise(path, None, box, VectoriseSettings(min_area_m2=4 * PIXEL, simplify=False))
    assert frame.pixels.tolist() == [35]


def test_diagonal_squares_are_two_or_one(tmp_path):
    array = np.zeros((8, 8), np.uint8)
    array[1:4, 1:4] = array[4:7, 4:7] = 1
    path, box = write(tmp_path, array)
    for connectivity, count in ((4, 2), (8, 1)):
        frame = vectorise(path, None, box, VectoriseSettings(connectivity=connectivity, strip_rows=4))
        assert len(frame) == count
        assert frame.geometry.is_valid.all()
        assert frame.pixels.sum() == 18


def test_probabilities_are_those_of_the_pixels_inside(tmp_path):
    array = np.zeros((30, 30), np.uint8)
    array[3:13, 3:13] = 1
    array[20:24, 20:24] = 1
    stored = np.full((30, 30), 20, np.uint8)
    stored[3:13, 3:13] = 120
    stored[3, 3], stored[4, 4] = 200, 255  # certain, and unknown
    stored[20:24, 20:24] = 150
    prob = write_probability(tmp_path, stored)
    path, box = write(tmp_path, array)
    frame = vectorise(path, prob, box, VectoriseSettings(strip_rows=5))
    assert frame.mean_prob.tolist() == pytest.approx([(98 * 0.6 + 1.0) / 99, 0.75])
    assert frame.max_prob.tolist() == pytest.approx([1.0, 0.75])
    assert frame[["row", "col", "height", "width"]].values.tolist() == [[3, 3, 10, 10], [20, 20, 4, 4]]


@pytest.mark.parametrize("seed", range(4))
def test_smoothing_removes_the_staircase_and_keeps_area_and_place(tmp_path, seed):
    array = blobs((200, 200), seed, share=0.15, sigma=4)
    path, box = write(tmp_path, array)
    rough = vectorise(path, None, box, VectoriseSettings(simplify=False, min_area_m2=4 * PIXEL))
    fine = vectorise(path, None, box, VectoriseSettings(min_area_m2=4 * PIXEL))
    assert fine.geometry.is_valid.all()
    big = rough.pixels > 30
    assert np.allclose(fine.area[big] / rough.area[big], 1, atol=0.012)
    assert fine.area.sum() == pytest.approx(rough.area.sum(), rel=0.003)
    assert shapely.hausdorff_distance(rough.geometry, fine.geometry).max() < 1.5 * 10
    assert (
        shapely.get_num_coordinates(fine.geometry).sum()
        < 0.5 * shapely.get_num_coordinates(rough.geometry).sum()
    )
    assert fine.length.sum() < 0.88 * rough.length.sum()
    union = shapely.union_all(fine.geometry.values).area
    assert union == pytest.approx(fine.area.sum(), rel=1e-6), "smoothed outlines overlap"


def test_a_disc_gets_the_area_and_length_of_a_circle(tmp_path):
    y, x = np.mgrid[:101, :101]
    array = ((y - 50) ** 2 + (x - 50) ** 2 <= 40**2).astype(np.uint8)
    path, box = write(tmp_path, array)
    disc = vectorise(path, None, box, VectoriseSettings()).geometry[0]
    assert disc.area == pytest.approx(np.pi * 400**2, rel=0.01)
    assert disc.length == pytest.approx(2 * np.pi * 400, rel=0.01)  # by pixels it would be 8 * 400


def test_classes_that_touch_leave_no_sliver(tmp_path):
    array = blobs((120, 120), 5, share=0.5, sigma=4) + 1
    path, box = write(tmp_path, array)
    frame = vectorise(path, None, box, VectoriseSettings((1, 2)))
    whole = shapely.union_all(frame.geometry.values)
    assert whole.area == pytest.approx(frame.area.sum(), rel=1e-9)
    holes = sum(shapely.get_num_interior_rings(shapely.get_parts(whole)))
    assert holes == 0


def test_a_turned_building_becomes_a_rectangle_and_a_ragged_one_does_not(tmp_path):
    y, x = np.mgrid[:80, :160] - 39.5
    turned = (np.abs(0.8 * y + 0.6 * (x - 0)) < 9) & (np.abs(-0.6 * y + 0.8 * (x - 0)) < 20)
    cross = ((np.abs(x - 80) < 4) & (np.abs(y) < 25)) | ((np.abs(y) < 4) & (np.abs(x - 80) < 25))
    path, box = write(tmp_path, (turned | cross).astype(np.uint8))
    frame = vectorise(path, None, box, VectoriseSettings(rectangles=True))
    by_shape = {row["shape"]: row.geometry for _, row in frame.iterrows()}
    assert set(by_shape) == {"rectangle", "outline"}
    corners = shapely.get_coordinates(by_shape["rectangle"])
    assert len(corners) == 5
    sides = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    assert sorted(sides)[0] == pytest.approx(180, rel=0.05)
    assert sorted(sides)[-1] == pytest.approx(400, rel=0.05)
    assert by_shape["rectangle"].area == pytest.approx(turned.sum() * PIXEL, rel=1e-6)


def test_area_is_that_of_the_ellipsoid(tmp_path):
    array = np.ones((100, 100), np.uint8)
    box_utm = Affine(10, 0, 500000, 0, -10, 4649776)  # on the central meridian, scale 0.9996
    path, box = write(tmp_path, array, box_utm)
    frame = vectorise(path, None, box, VectoriseSettings())
    assert frame.area_m2[0] == pytest.approx(1e6 / 0.9996**2, rel=1e-6)
    path, box = write(tmp_path, array, Affine(10, 0, 0, 0, -10, 8399737.9), "EPSG:3857")  # 60 degrees north
    frame = vectorise(path, None, box, VectoriseSettings())
    assert frame.area_m2[0] == pytest.approx(1e6 / 3.98, rel=0.01)
    path, box = write(tmp_path, array, Affine(0.01, 0, 10, 0, -0.01, 1.0), "EPSG:4326")
    frame = vectorise(path, None, box, VectoriseSettings())
    assert frame.area_m2[0] == pytest.approx(
        PixelArea(box).block(Window(0, 0, 100, 100)).sum() * 100, rel=3e-6
    )


@pytest.mark.parametrize(
    ("affine", "crs"),
    [
        (Affine(0.001, 0, 179.95, 0, -0.001, 0.05), "EPSG:4326"),
        (Affine(100, 0, 828000, 0, -100, 5000), "EPSG:32660"),
    ],
)
def test_the_antimeridian_changes_no_area(tmp_path, affine, crs):
    path, box = write(tmp_path, np.ones((100, 100), np.uint8), affine, crs)
    frame = vectorise(path, None, box, VectoriseSettings())
    assert frame.area_m2[0] == pytest.approx(1.0e8 if crs != "EPSG:4326" else 1.2309e8, rel=3e-3)


def test_south_up_is_a_grid_like_any_other(tmp_path):
    array = np.zeros((20, 20), np.uint8)
    array[2:6, 3:10] = 1
    path, box = write(tmp_path, array, Affine(10, 0, 400000, 0, 10, 4100000))
    frame = vectorise(path, None, box, VectoriseSettings())
    assert frame.geometry[0].bounds == (400030, 4100020, 400100, 4100060)
    assert shapely.is_ccw(frame.geometry[0].exterior)


def test_nothing_found_is_an_empty_table_with_the_same_columns(tmp_path):
    path, box = write(tmp_path, np.zeros((30, 30), np.uint8))
    empty = vectorise(path, None, box, VectoriseSettings())
    array = np.zeros((30, 30), np.uint8)
    array[5:9, 5:9] = 1
    path, box = write(tmp_path, array)
    full = vectorise(path, None, box, VectoriseSettings())
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert (empty.dtypes == full.dtypes).all()
    assert empty.crs == full.crs


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="connectivity 6"):
        VectoriseSettings(connectivity=6)
    with pytest.raises(SettingError, match="min area"):
        VectoriseSettings(min_area_m2=-1)
