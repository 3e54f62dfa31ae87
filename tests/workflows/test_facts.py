"""Maps of classes added to a finished run."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from fixtures_eo import write_tif
from terralapse import change
from terralapse.errors import ModelInputError, SettingError, UnreadableFileError
from terralapse.workflows.facts import add_classes

HERE = from_origin(699000.0, 5200000.0, 10.0, 10.0)


def band(path: Path, data: np.ndarray, transform=HERE) -> Path:
    write_tif(path, data[None].astype("uint8"), crs="EPSG:32632", transform=transform, nodata=255)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A scene of 120 x 120 pixels in which a square of 20 x 20 became bright."""
    rng = np.random.default_rng(2)
    first = rng.uniform(60, 90, (3, 120, 120))
    second = first.copy()
    second[:, 20:40, 30:50] = 230
    for name, data in (("a_20200101.tif", first), ("b_20210101.tif", second)):
        names = ("red", "green", "blue")
        write_tif(tmp_path / name, data.astype("uint8"), crs="EPSG:32632", transform=HERE, descriptions=names)
    out = tmp_path / "out"
    change(
        tmp_path / "a_20200101.tif",
        tmp_path / "b_20210101.tif",
        out,
        model="cva",
        pictures=False,
        coregister=False,
    )
    return out


def maps(tmp_path: Path) -> dict[str, Path]:
    before, after = np.zeros((2, 120, 120))
    before[20:40, 30:50], after[20:40, 30:50] = 3, 5
    return {"before": band(tmp_path / "was.tif", before), "after": band(tmp_path / "now.tif", after)}


def test_classes_become_facts_and_the_folder_stays_whole(run: Path, tmp_path: Path) -> None:
    result = add_classes(run, **maps(tmp_path), scheme="second-mamba")
    facts = result.facts
    assert facts["transition.tree.building"]["value"] == pytest.approx(40_000, rel=2e-3)
    assert facts["area.changed"]["value"] > 0
    text = resources.files("terralapse.products").joinpath("facts.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads((run / "facts.json").read_text()), json.loads(text))
    assert "classes_after.tif" in [p["file"] for p in result.run["products"]]
    with rasterio.open(run / "classes_after.tif") as file:
        assert (file.read(1) == 5).sum() == 400
    assert not list(run.parent.glob(".out.*"))
    once = (run / "facts.json").read_bytes()
    add_classes(run, **maps(tmp_path), scheme="second-mamba")
    assert (run / "facts.json").read_bytes() == once


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"scheme": "second-mamba", "after": None}, "one date only"),
        ({"scheme": "no-such"}, "no scheme of classes"),
        ({}, "needs the scheme"),
    ],
)
def test_bad_settings_change_nothing(run: Path, tmp_path: Path, given: dict, fault: str) -> None:
    before = (run / "facts.json").read_bytes()
    with pytest.raises(SettingError, match=fault):
        add_classes(run, **(maps(tmp_path) | given))
    assert (run / "facts.json").read_bytes() == before


def test_a_map_with_other_values_changes_nothing(run: Path, tmp_path: Path) -> None:
    before = sorted((p.name, p.stat().st_size) for p in run.iterdir())
    odd = band(tmp_path / "odd.tif", np.full((120, 120), 77))
    with pytest.raises(ModelInputError, match="77"):
        add_classes(run, before=odd, after=odd, scheme="second-mamba")
    assert sorted((p.name, p.stat().st_size) for p in run.iterdir()) == before


def test_the_command_says_what_is_new(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from terralapse.cli import main

    made = maps(tmp_path)
    words = ["--classes-before", made["before"], "--classes-after", made["after"], "--scheme", "second-mamba"]
    sys.argv = ["terralapse", "facts", str(run), *map(str, words)]
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "4 ha went from tree to building." in capsys.readouterr().out


def test_a_run_of_many_dates_takes_no_maps_of_two(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "series"}')
    with pytest.raises(UnreadableFileError, match="no run of two dates"):
        add_classes(tmp_path, damage=tmp_path / "d.tif")
