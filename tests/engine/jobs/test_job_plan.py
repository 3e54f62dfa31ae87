"""PLAN.yaml: what is read, and what an error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from terralapse.engine.jobs.plan import FolderSource, JobPlan, PairList, StacSource
from terralapse.errors import FileMissingError, SettingError

PAIRS = "source:\n  pairs:\n    - {before: a.tif, after: b.tif}\n"
STAC = "source:\n  stac: {href: c.json, before: 2019-01-01/2019-12-31, after: 2020-01-01/2020-12-31}\n"
GRID = 'grid: {crs: "EPSG:32633", resolution: 10}\n'


def read(tmp_path: Path, text: str) -> JobPlan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return JobPlan.read(path)


def test_a_plan_is_read_with_its_defaults(tmp_path: Path) -> None:
    plan = read(
        tmp_path, PAIRS + GRID + "area: area.geojson\nsettings: {model: cva, date_before: 2019-05-01}\n"
    )
    assert isinstance(plan.source, PairList)
    assert plan.name == "plan"
    assert plan.source.pairs[0].before == str(tmp_path / "a.tif")
    assert plan.source.pairs[0].name == "pair-0001"
    assert plan.grid is not None
    assert (plan.grid.cell, plan.grid.margin) == (2048, 64)
    assert plan.area == str(tmp_path / "area.geojson")
    assert plan.settings["date_before"] == "2019-05-01"
    assert isinstance(read(tmp_path, "source: {folder: images}").source, FolderSource)
    stac = read(tmp_path, STAC + GRID + "area: a.geojson\n").source
    assert isinstance(stac, StacSource)
    assert (stac.rule, stac.max_cloud, stac.items) == ("best", 80, 6)
    text = STAC.replace("{href", "{rule: median, href") + GRID + "area: a.geojson\n"
    stac = read(tmp_path, text).source
    assert isinstance(stac, StacSource)
    assert (stac.rule, stac.items, stac.min_clear) == ("median", 30, 3)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("source: {folder: x}\nsorce: 1\n", 2, "sorce: is no key"),
        ("name: x\n", 1, "source: is missing"),
        ("source: {folder: x, pairs: []}\n", 1, "source: names pairs and folder"),
        ("source:\n  pairs: []\n", 2, "source.pairs: is empty"),
        ("source:\n  pairs:\n  - {before: a}\n", 3, "source.pairs[0].after: is missing"),
        (
            "source: {folder: x}\ngrid:\n  crs: EPSG:32633\n  resolution: ten\n",
            4,
            "grid.resolution: is 'ten'",
        ),
        ("source: {folder: x}\ngrid: {crs: moon, resolution: 1}\n", 2, "grid.crs: 'moon' is no code"),
        (
            "source: {folder: x}\ngrid:\n  crs: EPSG:32633\n  resolution: 1\n  cell: 8\n",
            5,
            "grid.cell: 8 lies",
        ),
        ("source: {folder: x}\nretry:\n  attempts: 0\n", 3, "retry.attempts: is not positive"),
        (
            STAC.replace("{href", "{min_clear: 2, href"),
            2,
            "source.stac.min_clear: means nothing with rule: best",
        ),
        (STAC.replace("{href", "{rule: mode, href"), 2, "source.stac.rule: is 'mode'"),
        (
            STAC.replace("{href", "{rule: median, min_clear: 0, href"),
            2,
            "source.stac.min_clear: 0 is not positive",
        ),
        (
            STAC.replace("{href", "{rule: median, items: 2, href"),
            2,
            "source.stac.items: 2 are fewer than the 3",
        ),
        (STAC.replace("{href", "{rule: median, items: 201, href"), 2, "source.stac.items: 201 are too many"),
        ("source: {folder: x}\nproducts: [map]\n", 2, "products: names 'map'"),
        ("source: {folder: x}\nsettings:\n  grid: 10\n", 3, "settings.grid: is not a setting of a unit"),
        ("source: {folder: x}\nname: a\nname: b\n", 3, "name: is there twice"),
        ("source: {folder: x}\nretry: {attempts: true}\n", 2, "retry.attempts: is True, not a whole number"),
        (
            STAC.replace("2019-12-31", "2018-12-31"),
            2,
            "source.stac.before: '2019-01-01/2018-12-31' is no period",
        ),
        (STAC, 1, "grid: is missing"),
        ("source: [\n", 2, "is no YAML"),
    ],
)
def test_an_error_names_the_key_and_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(tmp_path, text)
    assert f"plan.yaml, line {line}" in str(caught.value)
    assert said in str(caught.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError):
        JobPlan.read(tmp_path / "none.yaml")


def test_the_digest_is_of_what_decides_about_results(tmp_path: Path) -> None:
    base = read(tmp_path, PAIRS).digest()
    assert read(tmp_path, PAIRS + "retry: {attempts: 9}\n").digest() == base
    assert read(tmp_path, PAIRS + "settings: {threshold: 0.4}\n").digest() != base
