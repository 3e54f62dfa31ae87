"""From dated images with a change that was put into them to a folder that says when and how much."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rio_cogeo.cogeo import cog_validate

from fixtures_eo import write_tif
from terralapse.errors import (
    NoValidDataError,
    OutputExistsError,
    ResumeMismatchError,
    SettingError,
    UnreadableFileError,
)
from terralapse.products.series_result import SeriesResult
from terralapse.workflows.series import series

SIZE, DATES, AT = 150, 40, 24
SQUARE = (slice(30, 70), slice(60, 130))  # 400 m x 700 m cleared
START = np.datetime64("2018-01-03")


def days() -> np.ndarray:
    return START + (np.arange(DATES) * 33).astype("timedelta64[D]")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and near-infrared of 40 dates over 3.5 years; NDVI falls by 0.4 in a square at the 25th date. The
    first column has no data, the second too little."""
    folder = tmp_path_factory.mktemp("stack")
    rng = np.random.default_rng(0)
    for i, day in enumerate(days()):
        phase = 2 * np.pi * (day - START).astype(int) / 365.25
        ndvi = 0.6 + 0.1 * np.cos(phase) + rng.normal(0, 0.015, (SIZE, SIZE))
        if i >= AT:
            ndvi[SQUARE] -= 0.4
        red = np.full((SIZE, SIZE), 0.08)
        data = np.stack([red, red * (1 + ndvi) / (1 - ndvi)]).astype(np.float32)
        data[:, :, 0] = np.nan
        data[:, :, 1] = np.nan if i > 9 else data[:, :, 1]
        name = f"scene_{str(day).replace('-', '')}.tif"
        transform = from_origin(500000, 5000000, 10, 10)
        write_tif(folder / name, data, descriptions=("red", "nir"), nodata=np.nan, transform=transform)
    return folder


@pytest.fixture(scope="module")
def result(stack: Path, tmp_path_factory: pytest.TempPathFactory) -> SeriesResult:
    out = tmp_path_factory.mktemp("out") / "series"
    return series(stack, out, period="yearly", composite="max-ndvi", threads=1)


def read(result: SeriesResult, name: str) -> np.ndarray:
    with rasterio.open(result.folder / f"{name}.tif") as file:
        return file.read(1)


def test_the_clearing_is_found_dated_and_measured(result: SeriesResult) -> None:
    when, size, count = read(result, "break_date"), read(result, "magnitude"), read(result, "breaks")
    truth = np.zeros((SIZE, SIZE), bool)
    truth[SQUARE] = True
    found = when > 0
    assert found[truth].mean() > 0.99
    assert found[~truth].mean() < 0.01
    assert np.median(when[truth]) == int(str(days()[AT]).replace("-", ""))
    assert np.nanmedian(size[truth]) == pytest.approx(-0.4, abs=0.02)
    assert (count[found] >= 1).all()
    assert (count[found] != 255).all()
    there = days()[AT].astype("datetime64[D]").astype(int)
    assert np.median(read(result, "break_days")[truth]) == there
    assert read(result, "probability")[found].min() > 190


def test_what_is_not_known_is_no_absence_of_change(result: SeriesResult) -> None:
    valid, when = read(result, "valid"), read(result, "break_date")
    assert (valid[:, 0] == 10).all()
    assert (valid[:, 1] == 11).all()
    assert (valid[:, 2:] < 10).all()
    assert (when[:, :2] == -1).all()
    assert (when[:, 2:] >= 0).all()
    assert (read(result, "breaks")[:, :2] == 255).all()
    assert (read(result, "probability")[:, :2] == 255).all()
    assert read(result, "observations")[5, :3].tolist() == [0, 10, DATES]


def test_every_raster_is_a_cog_on_one_grid(result: SeriesResult) -> None:
    files = sorted(result.folder.rglob("*.tif"))
    assert len(files) == 8 + 4
    for path in files:
        assert cog_validate(path)[0], path.name
        with rasterio.open(path) as file:
            assert (file.height, file.width, file.crs.to_epsg()) == (SIZE, SIZE, 32633)
    assert [p.name for p in files[-4:]] != []
    assert {p.stem for p in files if p.parent.name == "composites"} == {"2018", "2019", "2020", "2021"}


def test_facts_say_what_the_rasters_hold(result: SeriesResult) -> None:
    schema = json.loads(
        resources.files("terralapse.products").joinpath("facts.schema.json").read_text(encoding="utf-8")
    )
    content = json.loads((result.folder / "facts.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    facts, found = result.facts, (read(result, "break_date") > 0).sum()
    assert facts["area.broken"]["value"] == pytest.approx(found * 100, rel=0.002)
    assert facts["area.considered"]["value"] == pytest.approx(SIZE * SIZE * 100, rel=0.002)
    assert facts["quality.too_few"]["value"] == pytest.approx(SIZE * 100, rel=0.002)
    year = int(str(days()[AT])[:4])
    assert facts[f"year.{year}"]["value"] > 0.95 * facts["area.broken"]["value"]
    assert facts["break.median"]["value"] == pytest.approx(-0.4, abs=0.02)
    rows = (result.folder / "stats.csv").read_text().splitlines()
    assert rows[0].startswith("year,broken_m2,falling_m2")
    assert any(row.startswith(f"{year},") for row in rows)
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert result.run["summary"]["summary"].split(":")[0].split("{")[0][:20] in report
    assert "http" not in report.replace("http-equiv", "")
    assert all(f["id"] in facts for f in content["facts"])


def test_the_record_names_every_file_and_date(result: SeriesResult) -> None:
    run = result.run
    assert len(run["inputs"]) == DATES
    listed = {p["file"] for p in run["products"]} | {"run.json"}
    assert listed == {
        p.relative_to(result.folder).as_posix() for p in result.folder.rglob("*") if p.is_file()
    }
    assert run["engine"]["model"]["observations_needed"] == 18
    assert run["command"].startswith("terralapse series ")
    assert "--period yearly" in run["command"]
    assert result.raster("valid").shape == (SIZE, SIZE)


def test_the_bytes_do_not_depend_on_blocks_or_threads(
    stack: Path, result: SeriesResult, tmp_path: Path
) -> None:
    other = series(stack, tmp_path / "o", period="yearly", composite="max-ndvi", block=64, threads=2)
    hashes = [{p["file"]: p["sha256"] for p in r.run["products"]} for r in (result, other)]
    assert hashes[0].keys() == hashes[1].keys()
    same = [n for n in hashes[0] if n.endswith((".tif", ".csv", "facts.json"))]
    assert len(same) == 14
    assert {n: hashes[0][n] for n in same} == {n: hashes[1][n] for n in same}
    assert result.run["run_id"] == other.run["run_id"]


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    stack: Path, result: SeriesResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terralapse.engine import series as engine

    whole, calls = engine.find_breaks, []

    def stop(*given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*given)

    settings = {"period": "yearly", "composite": "max-ndvi", "block": 64, "threads": 1}
    monkeypatch.setattr(engine, "find_breaks", stop)
    with pytest.raises(KeyboardInterrupt):
        series(stack, tmp_path / "r", resume=True, **settings)
    assert not (tmp_path / "r").exists()
    with pytest.raises(ResumeMismatchError):
        series(stack, tmp_path / "r", resume=True, **settings | {"probability": 0.95})
    monkeypatch.setattr(engine, "find_breaks", lambda *given: calls.append(2) or whole(*given))
    calls.clear()
    again = series(stack, tmp_path / "r", resume=True, **settings)
    assert len(calls) == 9 - 3
    assert again.run["engine"]["resumed"] == 3
    for name in ("break_date", "magnitude", "valid"):
        assert (again.folder / f"{name}.tif").read_bytes() == (result.folder / f"{name}.tif").read_bytes()


def test_composites_alone_need_no_model(stack: Path, tmp_path: Path) -> None:
    few = sorted(stack.glob("*.tif"))[:4]
    out = series(few, tmp_path / "c", breaks=False, period="monthly", threads=1)
    assert not (out.folder / "break_date.tif").exists()
    assert "composites were made and no breaks were looked for" in out.summary
    assert len(list((out.folder / "composites").iterdir())) == len(out.run["composites"])


def test_bad_input_is_one_error_and_leaves_nothing(stack: Path, tmp_path: Path) -> None:
    files = sorted(stack.glob("*.tif"))
    out = tmp_path / "bad"
    for given, settings, error in (
        (files[:12], {}, SettingError),  # too few for a season
        (files, {"since": "2030-01-01"}, SettingError),
        (files, {"since": "soon"}, SettingError),
        (files, {"breaks": False}, SettingError),
        (files, {"period": "weekly"}, SettingError),
        (files, {"block": 100}, SettingError),
        (files, {"composite": "max-ndvi"}, SettingError),
        (files, {"period": "yearly", "composite": "newest"}, SettingError),
        (files, {"nonsense": 1}, SettingError),
    ):
        with pytest.raises(error):
            series(given, out, **settings)
        assert list(tmp_path.iterdir()) == []
    for i in range(20):
        empty = np.full((2, 20, 20), np.nan, np.float32)
        write_tif(tmp_path / "e" / f"a_20{i:02d}0{1 + i % 9}01.tif", empty, nodata=np.nan)
    with pytest.raises(NoValidDataError):
        series(tmp_path / "e", out, index="1", threads=1)
    assert not out.exists()


def test_a_result_is_not_replaced_by_accident(stack: Path, result: SeriesResult) -> None:
    with pytest.raises(OutputExistsError):
        series(stack, result.folder)


def test_a_folder_of_another_command_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"version": 1}')
    with pytest.raises(UnreadableFileError, match="another command"):
        SeriesResult(tmp_path)


def test_the_command_says_what_is_wrong_and_exits_with_2(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from terralapse import cli

    few = [str(p) for p in sorted(stack.glob("*.tif"))[:12]]
    monkeypatch.setattr("sys.argv", ["terralapse", "series", *few, "-o", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "needs 18 over more than a year" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
