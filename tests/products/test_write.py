"""The whole folder: complete, the same twice, and readable by others."""

from __future__ import annotations

import csv
import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import CRS
from rasterio.windows import Window as RioWindow

from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.grid.scene import Source
from terralapse.labels import Reason
from terralapse.products.record import command
from terralapse.products.result import ChangeResult
from terralapse.products.write import write_products

ALL = {
    "after.tif", "alignment.json", "before.tif", "change.gpkg", "change.qml", "change.tif", "facts.json",
    "item.json", "map.pdf", "map.png", "prob.qml", "prob.tif", "report.html", "run.json", "stats.csv",
    "valid.qml", "valid.tif",
}  # fmt: skip


def test_the_folder_is_whole_and_the_summary_is_of_it(written):
    run, summary, steps = written
    assert {p.name for p in run.folder.iterdir()} == ALL == set(summary["files"])
    assert summary["polygons"] == 3
    assert summary["changed_area"] == pytest.approx(3061 * 4, rel=2e-3)
    assert summary["warnings"] == ["The pixels are larger than those of training."]
    json.dumps(summary, allow_nan=False)
    assert [s[1] for s in steps] == sorted(s[1] for s in steps)
    assert steps[-1] == ("products", 100, 100)


def test_the_same_run_gives_the_same_bytes(make_run):
    folders = []
    for _ in range(2):
        run = make_run()
        write_products(run)
        folders.append(run.folder)
    for name in ALL - {"run.json"}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    first, second = (json.loads((f / "run.json").read_text()) for f in folders)
    for record in (first, second):
        for varying in ("finished", "seconds", "peak_memory_bytes"):
            record.pop(varying)
    assert first == second


def test_the_record_holds_what_is_needed_to_repeat_the_run(written):
    run, _, _ = written
    record = json.loads((run.folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["status"] == "complete"
    assert record["model"]["slug"] == "testnet/rgb"
    assert record["threshold"] == 0.5
    assert {"terralapse", "numpy", "gdal", "python"} <= set(record["software"])
    assert record["peak_memory_bytes"] > 2**20
    assert {"products.measure", "products.map", "products.report"} <= set(record["seconds"])
    assert record["inputs"]["after"]["time"] == "2024-06-02T10:30:00+00:00"
    by_name = {p["file"]: p for p in record["products"]}
    assert by_name["stats.csv"]["bytes"] == (run.folder / "stats.csv").stat().st_size
    assert len(by_name["change.tif"]["sha256"]) == 64


@pytest.fixture
def without_drawings(monkeypatch):
    """The map and the report take most of the time and are not what these tests look at."""
    for name in ("write_map", "write_report"):
        monkeypatch.setattr(f"terralapse.products.write.{name}", lambda *_: None)


def test_inputs_on_disk_are_hashed(make_run, tmp_path, without_drawings):
    file = tmp_path / "before image.tif"
    file.write_bytes(b"pixels")
    run = make_run()
    run.pair.before.uri = str(file)
    run.pair.before.sources = [Source(str(file))]
    write_products(run)
    (source,) = json.loads((run.folder / "run.json").read_text())["inputs"]["before"]["sources"]
    assert source["sha256"] == hashlib.sha256(b"pixels").hexdigest()
    assert source["bytes"] == 6


def test_the_command_is_quoted_and_leaves_defaults_out(make_run):
    run = make_run(
        settings={
            "before": "a b.tif", "after": "c;d.tif", "model": "irmad", "grid": "coarser", "threshold": 0.4,
            "bands": ["red", "nir"], "coregister": False, "zones": None,
        }
    )  # fmt: skip
    assert command(run) == (
        "terralapse change 'a b.tif' 'c;d.tif' --model irmad --bands red,nir --threshold 0.4 "
        "--no-coregister -o OUT"
    )


def test_the_stac_item_is_read_by_pystac_and_names_the_files(written):
    run, _, _ = written
    item = pystac.Item.from_file(str(run.folder / "item.json"))
    assert item.datetime == datetime(2024, 6, 2, 10, 30, tzinfo=UTC)
    assert item.properties["proj:code"] == "EPSG:32615"
    assert item.properties["proj:shape"] == [240, 320]
    assert item.assets["change_tif"].href.endswith("change.tif")
    assert item.assets["prob_tif"].extra_fields["raster:bands"][0]["scale"] == 0.005
    classes = item.assets["change_tif"].extra_fields["classification:classes"]
    assert [c["value"] for c in classes] == [0, 1]
    west, south, east, north = item.bbox
    with rasterio.open(run.folder / "change.tif") as source:
        expected = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    assert (west, south, east, north) == pytest.approx(expected, abs=1e-5)


def test_a_stac_item_over_the_antimeridian(make_run, without_drawings):
    box = GeoBox((240, 320), Affine(50.0, 0, 828000, 0, -50.0, 20000), "EPSG:32660")
    run = make_run(box=box)
    write_products(run)
    item = json.loads((run.folder / "item.json").read_text())
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"][0] > 179
    assert item["bbox"][2] < -179


def test_the_map_is_a4_at_200_dpi_and_the_pdf_one_page(written):
    run, _, _ = written
    with Image.open(run.folder / "map.png") as picture:
        assert picture.size == (2338, 1654)
    pdf = (run.folder / "map.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 1


def test_stats_are_a_table_that_any_reader_takes(written):
    run, _, _ = written
    with (run.folder / "stats.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["kind"] == "cell"
    assert rows[0]["name"] == "A1"
    total = sum(float(r["changed_m2"]) for r in rows)
    assert total == pytest.approx(3061 * 4, rel=2e-3)
    assert sum(float(r["nodata_before_m2"]) for r in rows) == pytest.approx(240 * 20 * 4, rel=2e-3)


def test_previews_lie_where_the_rasters_lie(written):
    run, _, _ = written
    with rasterio.open(run.folder / "after.tif") as preview, rasterio.open(run.folder / "change.tif") as full:
        assert preview.bounds == full.bounds
        mask = preview.dataset_mask()
    assert (mask[:, 30:] == 255).all()


@pytest.mark.parametrize("what", ["nothing", "pixels", "undated", "one band"])
def test_unusual_runs_are_written_whole(make_run, what):
    box = GeoBox((240, 320), Affine(1, 0, 0, 0, -1, 0), None)
    run = make_run(
        **({"change": np.zeros((240, 320), bool)} if what == "nothing" else {}),
        **({"box": box} if what == "pixels" else {}),
        **({"bands": 1} if what == "one band" else {}),
    )
    if what == "undated":
        run.pair.before.time = run.pair.after.time = None
    write_products(run)
    names = {p.name for p in run.folder.iterdir()}
    assert names == (ALL - {"item.json"} if what == "pixels" else ALL)


def test_geojson_on_request(make_run, without_drawings):
    run = make_run(settings={"geojson": True})
    write_products(run)
    assert json.loads((run.folder / "change.geojson").read_text())["type"] == "FeatureCollection"


def test_pictures_are_left_out_on_request(make_run):
    run = make_run(settings={"pictures": False})
    files = write_products(run)["files"]
    drawn = {"map.png", "map.pdf", "report.html", "before.tif", "after.tif"}
    assert not drawn & ({p.name for p in run.folder.iterdir()} | set(files))
    assert {"change.gpkg", "stats.csv", "facts.json", "run.json"} <= set(files)


# --- the folder as objects -------------------------------------------------------------------------
def test_the_result_reads_what_was_written(written):
    run, summary, _ = written
    result = ChangeResult(run.folder)
    assert result.as_dict() == {"folder": str(run.folder), **summary}
    assert result.summary == summary["summary"]
    assert len(result.polygons) == 3
    assert result.polygons.crs == "EPSG:32615"
    assert result.facts["object.count"]["value"] == 3
    assert result.stats["name"][0] == "A1"
    assert result.alignment["coregistration"]["status"] == "corrected"
    assert "<script" not in result._repr_html_()


def test_rasters_are_lazy_and_georeferenced(written, monkeypatch):
    run, _, _ = written
    result = ChangeResult(run.folder)
    opened: list[object] = []
    monkeypatch.setattr(
        "terralapse.products.lazy.Window", lambda *corner: opened.append(corner) or RioWindow(*corner)
    )
    change, probability = result.change, result.probability
    assert CRS.from_cf(change.spatial_ref.attrs) == "EPSG:32615"
    assert change.x.values[[0, -1]].tolist() == [400001, 400639]
    assert change.y.values[[0, -1]].tolist() == [4099999, 4099521]
    assert change.dtype == np.uint8
    assert opened == []
    corner = change.isel(x=slice(195, 205), y=slice(25, 35))
    assert corner.shape == (10, 10)
    assert corner.values[5:, 5:].tolist() == [[1] * 5] * 5
    assert opened == [(195, 25, 10, 10)]
    assert corner.values[0, 0] == 0
    assert change.isel(x=0, y=0).item() == 255
    assert probability.isel(x=220, y=50).item() == pytest.approx(0.9)
    assert np.isnan(probability.isel(x=0, y=0).item())
    assert probability.mean().item() == pytest.approx(summary_mean(run), abs=1e-3)
    assert np.unique(result.valid).tolist() == [0, int(Reason.NODATA_BEFORE)]
    flipped = change.isel(y=slice(None, None, -1), x=[205, 3, 210])
    assert flipped.values[240 - 1 - 50].tolist() == [1, 255, 1]


def summary_mean(run):
    with rasterio.open(run.folder / "prob.tif") as source:
        stored = source.read(1, masked=True)
    return float(stored.mean() * 0.005)


def test_plot_has_three_panels(written):
    import matplotlib as mpl

    mpl.use("Agg")
    figure = ChangeResult(written[0].folder).plot()
    titles = [a.get_title() for a in figure.axes[:3]]
    assert titles == ["Before, 2023-05-10", "After, 2024-06-02", "Probability of change"]


def test_explore_draws_both_dates_and_the_outlines(written):
    pytest.importorskip("folium")
    text = ChangeResult(written[0].folder).explore().get_root().render()
    assert "Before" in text
    assert "After" in text
    assert "mean_prob" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileMissingError, match="no finished run"):
        ChangeResult(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UnreadableFileError, match="damaged"):
        ChangeResult(tmp_path)
