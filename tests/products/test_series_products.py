"""What a series writes beside its rasters, from rasters whose content is known."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from pystac import STACObjectType
from pystac.extensions.datacube import DatacubeExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from terralapse.engine.breaks import BreakModel
from terralapse.engine.series import NO_DAY, RASTERS, SeriesScene
from terralapse.errors import MissingExtraError, SettingError
from terralapse.grid.cog import write_cog
from terralapse.grid.common import GridChoice
from terralapse.grid.indices import parse_index
from terralapse.grid.scene import ArrayScene, SceneInfo
from terralapse.grid.series import Series
from terralapse.labels import SERIES_QUALITY
from terralapse.products import series as products
from terralapse.products.imagery import rgb
from terralapse.products.series_map import (
    FALL,
    SeriesView,
    base_layer,
    date_marks,
    how_layer,
    rooms,
    when_layer,
)
from terralapse.products.series_polygons import break_polygons
from terralapse.products.sheet import RIGHT
from terralapse.sensors import UNKNOWN, Band, Unit

SIDE = 120
BOX = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
STARTED = datetime(2026, 1, 2, tzinfo=UTC)


def day(text: str) -> int:
    return int(np.datetime64(text).astype("datetime64[D]").astype(int))


def write_rasters(folder: Path, box: GeoBox, days: np.ndarray, size: np.ndarray, prob: np.ndarray) -> None:
    """The rasters that polygons and pictures are made from; the first five columns are not known."""
    valid = np.zeros(days.shape, np.uint8)
    valid[:, :5] = 11
    broken = days > NO_DAY
    text = np.datetime_as_string(np.where(broken, days, 0).astype("datetime64[D]"))
    date = np.where(broken, np.char.replace(text, "-", "").astype(np.int64), 0).astype(np.int32)
    date[:, :5] = -1
    stored = np.where(broken, np.rint(prob * 200), 0).astype(np.uint8)
    stored[:, :5] = 255
    layers = {
        "break_date": date,
        "break_days": days.astype(np.int32),
        "magnitude": np.where(broken, size, np.nan).astype(np.float32),
        "probability": stored,
        "valid": valid,
        "breaks": broken.astype(np.uint8),
        "observations": np.full(days.shape, 30, np.uint16),
        "deviation": np.full(days.shape, 0.02, np.float32),
    }
    for name, values in layers.items():
        r = RASTERS[name]
        write_cog(
            values,
            folder / f"{name}.tif",
            geobox=box,
            kind="class" if r.kind == "class" else "continuous",
            nodata=r.nodata,
            scheme=r.scheme,
            scale=r.scale,
        )


def made(folder: Path, box: GeoBox = BOX, empty: bool = False, **fields: Any) -> products.SeriesRun:
    """A run with three breaks: a square of 2019 that falls, at two dates and with a hole of three pixels that
    broke another year; beside it, touching, one of 2020 that falls; apart, one of 2020 that rises. A speck of
    two pixels is too small."""
    folder.mkdir()
    shape = (box.shape.y, box.shape.x)
    days = np.full(shape, NO_DAY, np.int64)
    size, prob = np.full(shape, -0.3), np.full(shape, 0.9)
    if not empty:
        days[20:60, 20:50] = day("2019-03-05")
        days[20:60, 20:30] = day("2019-04-06")
        days[40, 40:43] = day("2021-07-01")
        days[20:60, 50:60] = day("2020-05-05")
        size[20:60, 50:60], prob[20:60, 50:60] = -0.5, 0.8
        days[80:100, 80:90] = day("2020-05-05")
        size[80:100, 80:90] = 0.2
        days[5, 100:102] = day("2018-01-01")
    write_rasters(folder, box, days, size, prob)
    rng = np.random.default_rng(0)
    bands = (Band("red", "red"), Band("nir", "nir"))
    scenes = []
    for year in range(2017, 2023):
        data = np.stack([np.full(shape, 0.1), 0.3 + 0.1 * rng.random(shape)])
        time = datetime(year, 6, 1, 10, tzinfo=UTC)
        info = SceneInfo(f"s{year}", f"memory:s{year}", UNKNOWN, bands, Unit.REFLECTANCE, box, time)
        scenes.append(ArrayScene(info, data))
    model = BreakModel(2, 4, 6, 365.0)
    run = products.SeriesRun(
        run_id="0123456789ab",
        folder=folder,
        series=Series(scenes, GridChoice(box, "the grid of the test", 10.0), parse_index("ndvi", 1.0), None),
        scene=SeriesScene(model, 256, 1, 0, {}, 0),
        composites=[],
        settings={"geoparquet": True},
        command="terralapse series stack -o OUT",
        started=STARTED,
        name="Dark Forest",
    )
    for key, value in fields.items():
        setattr(run, key, value)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> products.SeriesRun:
    """One run with all its products. Not to be changed."""
    found = made(tmp_path_factory.mktemp("series") / "run")
    products.write_products(found)
    return found


# --- polygons --------------------------------------------------------------------------------------
def test_polygons_are_ground_that_broke_in_one_year_in_one_direction(run: products.SeriesRun) -> None:
    frame = gpd.read_file(run.folder / "breaks.gpkg", layer="breaks")
    assert frame.crs == "EPSG:32633"
    assert frame["id"].tolist() == [1, 2, 3]
    assert frame["year"].tolist() == [2019, 2020, 2020]
    assert frame["direction"].tolist() == ["falling", "falling", "rising"]
    # The hole of three pixels is filled, but is no part of what the polygon says of its break.
    assert frame["pixels"].tolist() == [30 * 40 - 3, 400, 200]
    assert frame["area_m2"].tolist() == pytest.approx([120_000, 40_000, 20_000], rel=0.01)
    # Of 1,197 pixels 400 broke at the later date: the median is the earlier one.
    assert frame["date"].tolist() == ["2019-03-05", "2020-05-05", "2020-05-05"]
    assert frame["date_first"].tolist() == ["2019-03-05", "2020-05-05", "2020-05-05"]
    assert frame["date_last"].tolist() == ["2019-04-06", "2020-05-05", "2020-05-05"]
    assert frame["magnitude"].tolist() == pytest.approx([-0.3, -0.5, 0.2], abs=1e-4)
    assert frame["mean_prob"].tolist() == pytest.approx([0.9, 0.8, 0.9], abs=1e-4)
    assert frame["location"].tolist()[2] == "south-east"
    assert set(frame["index"]) == {"ndvi"}
    assert frame.geometry.is_valid.all()
    assert frame.geometry.union_all().area == pytest.approx(frame.geometry.area.sum(), rel=1e-6)


def test_geoparquet_holds_the_same(run: products.SeriesRun) -> None:
    pytest.importorskip("pyarrow")
    one = gpd.read_file(run.folder / "breaks.gpkg", layer="breaks")
    two = gpd.read_parquet(run.folder / "breaks.parquet")
    assert two.crs == one.crs
    for name in ("id", "date", "area_m2", "magnitude", "mean_prob"):
        assert two[name].tolist() == one[name].tolist()
    assert two.geometry.area.tolist() == pytest.approx(one.geometry.area.tolist())


def test_strips_change_nothing_and_the_smallest_area_is_what_was_asked(
    run: products.SeriesRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terralapse.grid import vectorise
    from terralapse.products import series_polygons

    whole = break_polygons(run.folder, BOX, "ndvi", "r")
    plain = vectorise.VectoriseSettings
    monkeypatch.setattr(
        series_polygons, "VectoriseSettings", lambda classes, least: plain(classes, least, strip_rows=16)
    )
    cut = break_polygons(run.folder, BOX, "ndvi", "r")
    assert cut.drop(columns="geometry").equals(whole.drop(columns="geometry"))
    assert break_polygons(run.folder, BOX, "ndvi", "r", 30_000)["id"].tolist() == [1, 2]
    assert len(break_polygons(run.folder, BOX, "ndvi", "r", 0)) == 5  # with the speck and the hole


# --- map -------------------------------------------------------------------------------------------
def test_the_map_is_a4_at_200_dpi_and_names_the_area(run: products.SeriesRun) -> None:
    with Image.open(run.folder / "map.png") as picture:
        assert picture.size == (2338, 1654)
        drawn = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    fall = np.abs(drawn.astype(int) - rgb(FALL)).max(axis=1) < 3
    assert 0.003 < fall.mean() < 0.006  # the square that falls by the most is 400 of 14,400 pixels of one map
    pdf = (run.folder / "map.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 1


def view(**fields: Any) -> SeriesView:
    """One row: an early and a late break, a fall and a rise, no break, not known."""
    values: dict[str, Any] = {
        "name": "a", "index": "NDVI", "first": 0.0, "last": 1000.0, "shares": {}, "headline": ("x",),
        "sources": [], "days": np.array([[10.0, 990.0, np.nan, np.nan]]),
        "magnitude": np.array([[-0.4, 0.4, np.nan, np.nan]]), "valid": np.array([[0, 0, 0, 11]], np.uint8),
        "ground": np.array([[0.1, 0.2, 0.3, np.nan]]),
    }  # fmt: skip
    return SeriesView(**values | fields)


def test_late_breaks_are_darker_and_falls_and_rises_differ() -> None:
    when, how, base = when_layer(view()), how_layer(view()), base_layer(view())
    assert when[0, 1].sum() < when[0, 0].sum()
    assert np.ptp(base[0, :3], axis=1).max() == 0  # grey, so that colour alone tells a break
    assert min(np.ptp(p[0, i]) for p in (when, how) for i in (0, 1)) > 80
    assert how[0, 0].tolist() == list(rgb(FALL))
    assert how[0, 1, 1] > how[0, 1, 0]  # green
    for picture in (when, how):
        assert picture[0, 2].tolist() == base[0, 2].tolist()
        assert picture[0, 3].tolist() == list(rgb(SERIES_QUALITY.by_value(11).colour))


@pytest.mark.parametrize("shape", [(100, 100), (400, 100), (100, 900)])
def test_both_maps_fit_the_paper_without_touching(shape: tuple[int, int]) -> None:
    first, second = rooms(shape)
    for x, y, width, height in (first, second):
        assert height / width == pytest.approx(shape[0] / shape[1])
        assert x >= 0.74
        assert x + width <= 0.74 + 7.52 + 1e-9 < RIGHT
        assert y - 0.6 >= 1.0  # the scale of colours under it stays above the scale bar
        assert y + height <= 1.26 + 5.86 + 1e-9
    beside = second[0] >= first[0] + first[2] + 0.3
    assert beside or second[1] + second[3] <= first[1] - 0.6


def test_the_scale_of_dates_is_marked_by_years() -> None:
    marks = date_marks(day("2018-06-01"), day("2021-06-01"))
    assert [t for _, t in marks] == ["2019", "2020", "2021"]
    assert marks[0][0] == pytest.approx(214 / 1096, abs=1e-6)
    assert len(date_marks(day("1985-01-01"), day("2020-01-01"), 5)) <= 5
    assert date_marks(day("2021-03-01"), day("2021-08-01")) == [(0.0, "2021-03-01"), (1.0, "2021-08-01")]


# --- STAC ------------------------------------------------------------------------------------------
def test_the_item_is_valid_and_a_cube_with_its_dates(run: products.SeriesRun) -> None:
    content = json.loads((run.folder / "item.json").read_text())
    JsonSchemaSTACValidator().validate_core(content, STACObjectType.ITEM, content["stac_version"])
    item = pystac.Item.from_file(str(run.folder / "item.json"))
    assert item.properties["title"] == "Breaks of ndvi in Dark Forest"
    assert item.datetime == datetime(2022, 6, 1, 10, tzinfo=UTC)
    assert item.common_metadata.start_datetime == datetime(2017, 6, 1, 10, tzinfo=UTC)
    cube = DatacubeExtension.ext(item)
    assert set(cube.dimensions) == {"x", "y", "time"}
    assert cube.dimensions["time"].to_dict()["values"][0] == "2017-06-01T10:00:00Z"
    assert len(cube.dimensions["time"].to_dict()["values"]) == 6
    assert cube.dimensions["x"].to_dict()["extent"] == [500_005.0, 501_195.0]
    assert cube.dimensions["y"].to_dict()["reference_system"] == 32633
    assert cube.variables is not None
    assert cube.variables["magnitude"].unit == "ndvi"
    assert set(cube.variables) == set(RASTERS)
    for asset in item.assets.values():
        assert Path(str(asset.get_absolute_href())).is_file()
    assert {"breaks_gpkg", "breaks_parquet", "map_png", "valid_tif", "report_html"} <= set(item.assets)
    classes = item.assets["valid_tif"].extra_fields["classification:classes"]
    assert [c["value"] for c in classes] == [0, 1, 2, 10, 11, 12, 13]
    assert item.assets["magnitude_tif"].extra_fields["raster:bands"][0]["nodata"] == "nan"


# --- the folder ------------------------------------------------------------------------------------
def test_the_report_lists_the_largest_polygons_and_facts_count_them(run: products.SeriesRun) -> None:
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "3 of 3" in report
    assert "2019-03-05" in report
    facts = {f["id"]: f for f in json.loads((run.folder / "facts.json").read_text())["facts"]}
    assert facts["object.count"]["value"] == 3
    assert facts["grid.resolution"]["value"] == pytest.approx(10, rel=0.01)


def test_the_same_run_gives_the_same_bytes(run: products.SeriesRun, tmp_path: Path) -> None:
    again = made(tmp_path / "again")
    products.write_products(again)
    names = {p.name for p in run.folder.iterdir() if p.is_file()} - {"run.json"}
    assert names == {p.name for p in again.folder.iterdir() if p.is_file()} - {"run.json"}
    for name in names:
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes(), name


@pytest.mark.parametrize("what", ["nothing", "pixels"])
def test_unusual_runs_are_written_whole(tmp_path: Path, what: str) -> None:
    box = GeoBox((SIDE, SIDE), Affine(1, 0, 0, 0, -1, 0), None) if what == "pixels" else BOX
    found = made(tmp_path / "run", box, what == "nothing", settings={})
    said = products.write_products(found)
    names = {p.name for p in found.folder.iterdir() if p.is_file()}
    assert {"map.png", "breaks.gpkg", "report.html"} <= names
    assert "breaks.parquet" not in names
    assert ("item.json" in names) == (what == "nothing")
    assert said["polygons"] == (0 if what == "nothing" else 3)
    assert set(said["files"]) == names | {"run.json"}
    frame = gpd.read_file(found.folder / "breaks.gpkg", layer="breaks")
    assert len(frame) == said["polygons"]
    assert "date" in frame.columns


# --- bad settings ----------------------------------------------------------------------------------
def test_settings_without_meaning_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from terralapse.workflows.series import SeriesSettings, series

    with pytest.raises(SettingError, match="min-area -1"):
        SeriesSettings(min_area=-1)
    with pytest.raises(SettingError, match="geoparquet: has no meaning"):
        SeriesSettings(geoparquet=True, breaks=False, period="yearly")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        series("nowhere", tmp_path / "out", geoparquet=True)
    assert list(tmp_path.iterdir()) == []


def test_the_area_is_called_as_its_file_or_as_the_folder_of_the_stack(tmp_path: Path) -> None:
    from terralapse.workflows.series import area_name

    assert area_name(["stack/a.tif"], Path("areas/Dark Forest.geojson")) == "Dark Forest"
    assert area_name([tmp_path / "ucayali"], None) == "ucayali"
    assert area_name([str(tmp_path / "ucayali" / "*.tif")], None) == "ucayali"
    assert area_name([tmp_path / "ucayali" / n for n in ("a.tif", "b.tif")], None) == "ucayali"
    assert area_name(["data/cube.nc"], None) == "cube"
