"""Stacks: how they are opened, dated, put on one grid and read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pyproj import CRS
from rasterio.transform import from_origin

from fixtures_eo import write_tif
from terralapse.errors import (
    BandError,
    FileMissingError,
    NoGeoreferenceError,
    NoOverlapError,
    SettingError,
    UnreadableFileError,
)
from terralapse.grid.indices import parse_index
from terralapse.grid.scene import Window
from terralapse.grid.series import expand, open_series, read_dates

NDVI, RED = parse_index("ndvi"), parse_index("red")
BANDS = ("red", "nir")


def write(folder: Path, name: str, value: float = 0.2, **more) -> Path:
    """Two bands of reflectance, 40 x 48 pixels; the first row is nodata."""
    shape = more.pop("shape", (40, 48))
    data = np.empty((2, *shape), np.float32)
    data[0], data[1] = value, 3 * value
    data[:, 0] = np.nan
    return write_tif(folder / name, data, descriptions=BANDS, nodata=np.nan, **more)


def test_a_folder_a_pattern_and_a_list_are_the_same_stack_in_order_of_time(tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    files = [write(stack, f"a_2021{m:02d}01.tif", m / 20) for m in (3, 1, 2)]
    opened = [open_series([s], NDVI) for s in (stack, stack / "*.tif")] + [open_series(files, NDVI)]
    for series in opened:
        assert [t.month for t in series.times] == [1, 2, 3]
        assert series.days[0] == 18628
        values, outside = series.values(Window(0, 0, *series.shape))
        assert values.shape == (3, 40, 48)
        assert not outside.any()
        assert np.isnan(values[:, 0]).all()
        assert np.allclose(values[:, 1:], 0.5)
        red = series.read(Window(5, 7, 3, 4), dates=[2, 0], bands=("red",)).data
        assert red.shape == (2, 1, 3, 4)
        assert np.allclose(red[:, 0, 0, 0], [0.15, 0.05])
        series.close()


def test_dates_come_from_a_table_before_the_names(tmp_path: Path) -> None:
    for m in (1, 2, 3):
        write(tmp_path / "s", f"a_2021{m:02d}01.tif")
    table = tmp_path / "dates.csv"
    table.write_text("file,date\na_20210101.tif,2022-05-04\na_20210201,2020-01-31\n")
    series = open_series([tmp_path / "s"], NDVI, dates=table)
    assert [f"{t:%Y-%m-%d}" for t in series.times] == ["2020-01-31", "2021-03-01", "2022-05-04"]
    table.write_text("file,date\nb.tif,2022-05-04\n")
    with pytest.raises(SettingError, match=r"b\.tif, which is not in the stack"):
        open_series([tmp_path / "s"], NDVI, dates=table)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("name,when\na,2020-01-01\n", UnreadableFileError, "no columns"),
        ("file,date\na,someday\n", SettingError, "line 2"),
        ("file,date\n,2020-01-01\n", SettingError, "line 2"),
        ("", UnreadableFileError, "no columns"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, error: type, said: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(error, match=said):
        read_dates(path)
    with pytest.raises(FileMissingError):
        read_dates(tmp_path / "none.csv")


def test_a_year_in_the_name_is_the_middle_of_that_year_and_nothing_is_no_date(tmp_path: Path) -> None:
    for name in ("1985", "1990", "1995"):
        write(tmp_path / "s", f"{name}.tif")
    series = open_series([tmp_path / "s"], NDVI)
    assert series.times[0] == datetime(1985, 7, 1, tzinfo=UTC)
    assert all(any(n.code == "year-only" for n in s.notes) for s in series.scenes)
    write(tmp_path / "s", "undated.tif")
    with pytest.raises(SettingError, match="no date that is known: undated"):
        open_series([tmp_path / "s"], NDVI)


def test_two_images_of_one_day_are_said(tmp_path: Path) -> None:
    for name in ("a_20210101", "b_20210101", "a_20210201"):
        write(tmp_path / "s", f"{name}.tif")
    series = open_series([tmp_path / "s"], NDVI)
    assert [n.code for n in series.notes] == ["index-not-of-reflectance", "days-twice"]
    assert "1 of the days have more than one image (2021-01-01 first)" in series.notes[1].text


def test_two_dates_are_no_series(tmp_path: Path) -> None:
    for m in (1, 2):
        write(tmp_path / "s", f"a_2021{m:02d}01.tif")
    with pytest.raises(SettingError, match="2 dates: are no series"):
        open_series([tmp_path / "s"], NDVI)
    with pytest.raises(FileMissingError, match="matches nothing"):
        expand([tmp_path / "s" / "*.jp2"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileMissingError, match="holds no image"):
        expand([tmp_path / "empty"])


def test_dates_of_different_grids_meet_on_the_coarser_one(tmp_path: Path) -> None:
    fine = from_origin(500000, 5000000, 10, 10)
    coarse = from_origin(499940, 5000060, 30, 30)
    write(tmp_path / "s", "a_20210101.tif", transform=fine)
    write(tmp_path / "s", "a_20210201.tif", transform=coarse, shape=(20, 20))
    write(tmp_path / "s", "a_20210301.tif", transform=fine)
    series = open_series([tmp_path / "s"], NDVI)
    a = series.geobox.affine
    assert (a.a, a.c, a.f) == (30, 499940, 5000060)
    assert series.shape == (20, 20)  # all the ground that any date covers
    values, _ = series.values(Window(0, 0, 20, 20))
    assert np.isfinite(values[1, 1:]).all()
    assert np.isnan(values[0, 0, 0])  # the fine dates do not reach here
    assert np.allclose(values[0, 6, 6], 0.5, atol=1e-6)
    first = open_series([tmp_path / "s"], NDVI, grid="first")
    assert first.geobox.affine.a == 10
    assert open_series([tmp_path / "s"], NDVI, grid=60).geobox.affine.a == 60


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    for m in (1, 2):
        write(tmp_path / "s", f"a_2021{m:02d}01.tif")
    far = write(tmp_path / "s", "a_20210301.tif", transform=from_origin(700000, 5000000, 10, 10))
    with pytest.raises(NoOverlapError, match="shares no ground with the first date"):
        open_series([tmp_path / "s"], NDVI)
    far.unlink()
    bare = write(tmp_path / "s", "a_20210401.tif", crs=None, transform=from_origin(0, 40, 1, 1))
    with pytest.raises(NoGeoreferenceError):
        open_series([tmp_path / "s"], NDVI)
    bare.unlink()
    data = np.full((1, 40, 48), 0.1, np.float32)
    write_tif(tmp_path / "s" / "a_20210501.tif", data, descriptions=("red",))
    with pytest.raises(BandError, match="no band 'nir', which ndvi needs"):
        open_series([tmp_path / "s"], NDVI)
    assert open_series([tmp_path / "s"], RED).bands == ("red",)


def test_windows_agree_where_they_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for m, left in ((1, 500000.0), (2, 500003.7), (3, 499998.1)):
        data = rng.uniform(0.1, 0.5, (2, 60, 70)).astype(np.float32)
        transform = from_origin(left, 5000000, 10, 10)
        write_tif(tmp_path / "s" / f"a_2021{m:02d}01.tif", data, descriptions=BANDS, transform=transform)
    series = open_series([tmp_path / "s"], NDVI)
    whole, _ = series.values(Window(0, 0, *series.shape))
    for window in (Window(0, 0, 32, 32), Window(32, 32, 20, 30), Window(17, 5, 9, 40)):
        part, _ = series.values(window)
        assert part.tobytes() == np.ascontiguousarray(whole[:, *window.slices]).tobytes()


def test_a_cube_is_a_stack_of_its_dates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (5, 30, 20)).astype(np.float32)
    values[2, 4, 4] = np.nan
    times = np.array(["2020-01-05", "2020-03-01", "2020-06-01", "2021-01-01", "2021-07-01"], "M8[ns]")
    dataset = xr.Dataset(
        {"ndvi": (("time", "y", "x"), values, {"grid_mapping": "spatial_ref"})},
        coords={
            "time": times,
            "y": 5e6 - 10 * (np.arange(30) + 0.5),
            "x": 5e5 + 10 * (np.arange(20) + 0.5),
            "spatial_ref": ((), 0, {"crs_wkt": CRS.from_epsg(32633).to_wkt()}),
        },
    )
    dataset.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    dataset.to_zarr(tmp_path / "cube.zarr")
    for name in ("cube.nc", "cube.zarr"):
        with open_series([tmp_path / name], NDVI) as series:
            assert [f"{t:%Y-%m-%d}" for t in series.times] == [str(t)[:10] for t in times]
            assert series.index.kind == "band"
            got, _ = series.values(Window(0, 0, 30, 20))
            assert np.array_equal(got, values, equal_nan=True)
            assert series.clear[0] == 1
            assert 0.99 < series.clear[2] < 1


def test_an_area_masks_and_cuts(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import Polygon

    for m in (1, 2, 3):
        write(tmp_path / "s", f"a_2021{m:02d}01.tif")
    corner = [(500100, 4999900), (500300, 4999900), (500100, 4999700)]
    geopandas.GeoDataFrame(geometry=[Polygon(corner)], crs="EPSG:32633").to_file(tmp_path / "a.gpkg")
    series = open_series([tmp_path / "s"], NDVI, aoi=tmp_path / "a.gpkg")
    assert series.shape == (20, 20)
    values, outside = series.values(Window(0, 0, 20, 20))
    assert 0.4 < outside.mean() < 0.6
    assert np.array_equal(np.isnan(values[0]), outside)


def test_the_picture_of_the_last_dates_does_not_depend_on_its_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    for m in (1, 2, 3):
        data = rng.uniform(0.1, 0.5, (2, 40, 48)).astype(np.float32)
        data[:, m : m + 9] = np.nan
        write_tif(tmp_path / "s" / f"a_2021{m:02d}01.tif", data, descriptions=BANDS, nodata=np.nan)
    series = open_series([tmp_path / "s"], NDVI)
    whole, coarse = series.latest((40, 48), dates=3), series.latest((13, 16), dates=3)
    monkeypatch.setattr("terralapse.grid.series._STRIP", 7)
    assert series.latest((40, 48), dates=3).tobytes() == whole.tobytes()
    assert np.allclose(series.latest((13, 16), dates=3), coarse, atol=1e-6, equal_nan=True)
    assert np.isfinite(whole).any()
    assert not np.isfinite(whole[3:10]).all()
