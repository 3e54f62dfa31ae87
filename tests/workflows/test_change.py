"""From two files of different grids to a folder that says what was put into them."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject, transform
from rio_cogeo.cogeo import cog_validate
from scipy.ndimage import gaussian_filter
from shapely import box

import terralapse
from fixtures_eo import make_safe, write_tif
from terralapse.errors import ResumeMismatchError, SettingError
from terralapse.labels import Reason
from terralapse.workflows.change import ChangeSettings, run_id

SIZE, PIXEL, ORIGIN = 360, 10.0, (699000.0, 5200000.0)  # near the eastern border of UTM zone 32
SQUARE = (slice(120, 150), slice(200, 240))  # 300 m x 400 m of new ground


def ground() -> np.ndarray:
    """A place of four bands, reflectance x 10,000: fields of 60 m and finer texture."""
    rng = np.random.default_rng(7)
    fields = rng.uniform(600, 3200, (4, SIZE // 6, SIZE // 6)).repeat(6, 1).repeat(6, 2)
    return gaussian_filter(fields, (0, 1, 1)) + gaussian_filter(
        rng.normal(0, 120, fields.shape), (0, 0.7, 0.7)
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Before in UTM 32 N; after the same place with one square changed, in UTM 33 N, a tenth brighter."""
    folder = tmp_path_factory.mktemp("pair")
    names = ("blue", "green", "red", "nir")
    first = ground()
    second = first.copy()
    second[:, *SQUARE] = np.array([4200, 4000, 3900, 4100])[:, None, None]
    second = second * 1.1 + np.random.default_rng(8).normal(0, 20, second.shape)
    here = from_origin(*ORIGIN, PIXEL, PIXEL)
    before = write_tif(
        folder / "S2_20210601.tif",
        first.astype("uint16"),
        crs="EPSG:32632",
        transform=here,
        nodata=0,
        descriptions=names,
    )
    bounds = rasterio.transform.array_bounds(SIZE, SIZE, here)
    there, width, height = calculate_default_transform(
        "EPSG:32632", "EPSG:32633", SIZE, SIZE, *bounds, resolution=PIXEL
    )
    moved = np.zeros((4, height, width), "uint16")
    reproject(
        second.astype("uint16"), moved, src_transform=here, src_crs="EPSG:32632", dst_transform=there,
        dst_crs="EPSG:32633", resampling=Resampling.cubic, src_nodata=0, dst_nodata=0,
    )  # fmt: skip
    after = write_tif(
        folder / "S2_20230601.tif", moved, crs="EPSG:32633", transform=there, nodata=0, descriptions=names
    )
    return before, after


@pytest.fixture(scope="module")
def result(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> terralapse.ChangeResult:
    zones = tmp_path_factory.mktemp("zones") / "zones.geojson"
    x, y = ORIGIN
    halves = gpd.GeoDataFrame(
        {"name": ["west", "east"]},
        geometry=[box(x, y - 3600, x + 1800, y), box(x + 1800, y - 3600, x + 3600, y)],
        crs="EPSG:32632",
    )
    halves.to_file(zones)
    said: list[str] = []
    out = terralapse.change(
        *pair,
        tmp_path_factory.mktemp("run") / "out",
        model="ir-mad",
        zones=zones,
        geojson=True,
        say=said.append,
    )
    assert said[0] == "ir-mad was asked for."
    return out


def test_the_square_is_found_where_it_is_and_as_large_as_it_is(result: terralapse.ChangeResult) -> None:
    largest = result.polygons.sort_values("area_m2").iloc[-1]
    rows, cols = SQUARE
    x = ORIGIN[0] + PIXEL * (cols.start + cols.stop) / 2
    y = ORIGIN[1] - PIXEL * (rows.start + rows.stop) / 2
    (lon,), (lat,) = transform("EPSG:32632", "EPSG:4326", [x], [y])
    assert largest["lon"] == pytest.approx(lon, abs=2e-4)
    assert largest["lat"] == pytest.approx(lat, abs=2e-4)
    # Resampling mixes the pixels around the square, and a mixed pixel has changed too: one ring at most.
    assert 300 * 400 * 0.97 < largest["area_m2"] < 320 * 420
    assert largest["date_before"].startswith("2021-06-01")
    assert largest["date_after"].startswith("2023-06-01")


def test_the_rasters_agree_with_each_other_and_with_the_facts(result: terralapse.ChangeResult) -> None:
    change, probability, valid = (
        np.asarray(x).squeeze() for x in (result.change, result.probability, result.valid)
    )
    compared = valid == Reason.VALID
    assert np.isnan(probability[~compared]).all() or (probability[~compared] > 1).all()
    assert ((change == 1) == (probability >= result.run["threshold"]))[compared].all()
    assert set(np.unique(change[~compared])) <= {255}
    assert 0.9 < compared.mean() <= 1
    with rasterio.open(result.folder / "change.tif") as f:
        assert f.crs.to_epsg() in (32632, 32633)
        true_m2 = (f.read(1) == 1).sum() * PIXEL**2
    assert result.stats.query("kind == 'zone'")["changed_m2"].sum() == pytest.approx(true_m2, rel=0.01)


def test_zones_tell_the_halves_apart(result: terralapse.ChangeResult) -> None:
    zones = result.stats.query("kind == 'zone'").set_index("name")
    assert zones.loc["east", "changed_m2"] > 0.9 * 300 * 400
    assert zones.loc["west", "changed_m2"] < 0.2 * 300 * 400


def test_the_folder_is_whole_and_opens_elsewhere(result: terralapse.ChangeResult) -> None:
    names = {p.name for p in result.folder.iterdir()}
    assert {
        "change.tif", "prob.tif", "valid.tif", "change.gpkg", "change.geojson", "stats.csv", "facts.json",
        "alignment.json", "run.json", "item.json", "change.qml", "map.png", "map.pdf", "report.html",
    } <= names  # fmt: skip
    for name in ("change.tif", "prob.tif", "valid.tif"):
        ok, errors, _ = cog_validate(result.folder / name, quiet=True)
        assert ok, errors
    shapes = gpd.read_file(result.folder / "change.geojson")
    assert shapes.crs.to_epsg() == 4326
    assert len(shapes) == len(gpd.read_file(result.folder / "change.gpkg", layer="change"))
    assert not (result.folder.parent / "out.part").exists()


def test_the_record_repeats_the_run(result: terralapse.ChangeResult) -> None:
    record = json.loads((result.folder / "run.json").read_text())
    assert record["model"]["slug"] == "ir-mad"
    assert "--model ir-mad" in record["command"]
    assert "--geojson" in record["command"]
    assert record["seconds"]["predict"] > 0
    sums = [s["sha256"] for d in ("before", "after") for s in record["inputs"][d]["sources"]]
    assert all(len(s) == 64 for s in sums)
    assert len(set(sums)) == 2


def test_identical_images_are_a_valid_run_that_finds_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    same = terralapse.change(pair[0], pair[0], tmp_path / "same", model="ir-mad")
    assert len(same.polygons) == 0
    assert (np.asarray(same.change) != 1).all()
    codes = " ".join(same.warnings).lower()
    assert "same" in codes or "identical" in codes


def test_dates_in_the_wrong_order_are_a_warning(pair: tuple[Path, Path], tmp_path: Path) -> None:
    swapped = terralapse.change(pair[1], pair[0], tmp_path / "swapped", model="cva")
    assert any("younger" in w for w in swapped.warnings)


def test_clouds_of_a_sentinel_2_product_are_masked_and_said(tmp_path: Path) -> None:
    one = make_safe(tmp_path / "one", baseline="05.00", offset=-1000)
    two = make_safe(tmp_path / "two", baseline="03.01", offset=None)
    run = terralapse.change(one.path, two.path, tmp_path / "out", model="cva")
    found = {Reason(int(v)) for v in np.unique(np.asarray(run.valid))}
    assert Reason.CLOUD_BEFORE in found or Reason.CLOUD_AFTER in found
    assert run.run["inputs"]["before"]["sensor"] == "sentinel2"


def test_a_run_of_other_settings_cannot_be_resumed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("terralapse.products.write.write_products", stop)
        with pytest.raises(KeyboardInterrupt):
            terralapse.change(*pair, tmp_path / "out", model="cva", resume=True)
    assert (tmp_path / "out.part").exists()
    with pytest.raises(ResumeMismatchError):
        terralapse.change(*pair, tmp_path / "out", model="ir-mad", resume=True)
    assert (tmp_path / "out.part").exists(), "the work of the other run is not thrown away"
    done = terralapse.change(*pair, tmp_path / "out", model="cva", resume=True)
    fresh = terralapse.change(*pair, tmp_path / "fresh", model="cva")
    for name in ("prob.tif", "change.tif", "valid.tif", "facts.json"):
        assert (done.folder / name).read_bytes() == (fresh.folder / name).read_bytes(), name


def test_settings_that_do_not_exist_are_named() -> None:
    with pytest.raises(SettingError, match="tresh"):
        terralapse.change("a", "b", "c", tresh=0.5)


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", 0.0), ("threshold", 1.0), ("min_area", -1.0), ("tile", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError):
        ChangeSettings(**{name: value})  # type: ignore[arg-type]


def test_the_name_of_a_run_follows_from_what_it_is() -> None:
    base = ChangeSettings()
    assert run_id({"a": 1}, "cva", base) == run_id({"a": 1}, "cva", ChangeSettings())
    others = [({"a": 2}, "cva", base), ({"a": 1}, "ir-mad", base), ({"a": 1}, "cva", ChangeSettings(seed=1))]
    assert run_id({"a": 1}, "cva", base) not in {run_id(*other) for other in others}


@pytest.mark.parametrize("slug", ["changemamba/bcd-nano", "changemamba/bda-nano"])
def test_a_network_that_sees_whole_tiles_runs_on_a_scene_with_given_weights(
    pair: tuple[Path, Path], tmp_path: Path, slug: str
) -> None:
    """Tiles of such a network are blended; what a system knows beyond change is there too."""
    import torch
    from safetensors.torch import save_file

    from terralapse import registry

    torch.manual_seed(0)
    network = registry.build(slug, untrained=True).network
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    done = terralapse.change(
        *pair, tmp_path / "out", model=slug, weights=tmp_path / "w.safetensors", tile=192, coregister=False
    )
    run = json.loads((done.folder / "run.json").read_text())
    assert "blend" in json.dumps(run)
    with rasterio.open(done.folder / "prob.tif") as prob, rasterio.open(done.folder / "valid.tif") as valid:
        known = valid.read(1) == Reason.VALID
        assert known.mean() > 0.8
        assert np.isfinite(prob.read(1)[known]).all()
    graded = slug == "changemamba/bda-nano"
    assert not [w for w in done.warnings if "left out" in w]
    assert (done.folder / "damage.tif").exists() == graded
    assert ("damage.buildings" in done.facts) == graded
