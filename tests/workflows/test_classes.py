"""From two images to what became what, by a system that knows classes; areas are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import terralapse
from fixtures_eo import write_tif
from small_classes import GREYS, ByGrey
from terralapse.serve.layers import layers_of
from terralapse.serve.shelf import Result
from terralapse.workflows import change as workflow
from terralapse.workflows.choose import Choice

HERE = from_origin(699000.0, 5200000.0, 10.0, 10.0)
TREE, WATER, BUILDING = 3, 4, 5
MASKED = slice(100, 120)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> terralapse.ChangeResult:
    """160 x 160 pixels of trees; 20 x 30 became buildings, 10 x 10 water; rows 100 to 120 have no data."""
    folder = tmp_path_factory.mktemp("classes")
    before = np.full((160, 160), TREE)
    after = before.copy()
    after[20:40, 30:60], after[60:70, 90:100] = BUILDING, WATER
    after[105:115, 20:40] = BUILDING  # under the mask
    for name, ids in (("a_20200101.tif", before), ("b_20210101.tif", after)):
        grey = np.array(GREYS)[ids - 1]
        grey[MASKED] = 0
        write_tif(
            folder / name, np.stack([grey] * 3).astype("uint8"), crs="EPSG:32632", transform=HERE, nodata=0,
            descriptions=("red", "green", "blue"),
        )  # fmt: skip
    detector = ByGrey()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "_named", lambda _: Choice(detector.card, "asked for"))
        patch.setattr(workflow, "_build", lambda *_: detector)
        patch.setattr(detector, "fit", lambda _: {"bands": [0, 1, 2], "temperature": 1.0})
        return terralapse.change(
            folder / "a_20200101.tif", folder / "b_20210101.tif", folder / "out",
            model="grey/scd", tile=48, coregister=False, precision="fp32",
        )  # fmt: skip


def read(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / name) as file:
        return file.read(1)


def test_the_maps_are_the_truth(done: terralapse.ChangeResult) -> None:
    before, after = (read(done.folder, f"classes_{date}.tif") for date in ("before", "after"))
    assert np.unique(before, return_counts=True)[1].tolist() == [160 * 140 - 700, 700, 20 * 160]
    assert (before[20:40, 30:60] == TREE).all()
    assert (after[20:40, 30:60] == BUILDING).all()
    assert (after[60:70, 90:100] == WATER).all()
    assert (after[MASKED] == 255).all()


def test_facts_tell_the_areas_and_the_question_is_answered(done: terralapse.ChangeResult) -> None:
    facts = done.facts
    assert facts["transition.tree.building"]["value"] == pytest.approx(60_000, rel=2e-3)
    assert facts["transition.tree.water"]["value"] == pytest.approx(10_000, rel=2e-3)
    assert facts["class.changed"]["value"] == pytest.approx(facts["area.changed"]["value"])
    assert facts["class.tree.lost"]["value"] == pytest.approx(70_000, rel=2e-3)
    assert "6 ha went from tree to building." in done.summary
    answer = done.ask("what became what?")
    assert "tree" in answer.text
    assert "building" in answer.text
    assert "transition.tree.building" in {f["id"] for f in answer.facts}


def test_every_product_knows_the_maps(done: terralapse.ChangeResult) -> None:
    names = ("classes_before", "classes_after")
    files = {p["file"] for p in done.run["products"]}
    report = (done.folder / "report.html").read_text(encoding="utf-8")
    item = json.loads((done.folder / "item.json").read_text())
    shown = layers_of(Result("out", done.folder, done, ""))
    for name in names:
        assert {f"{name}.tif", f"{name}.qml"} <= files
        assert f"{name}.tif" in done.run["summary"]["files"]
        assert report.count(f'"{name}"') == 2  # the picture and its switch
        assert f'href="{name}.tif"' in report
        classes = item["assets"][f"{name}_tif"]["classification:classes"]
        assert {"value": 5, "name": "building", "title": "Building", "color_hint": "800000"} in classes
        assert 'label="Building"' in (done.folder / f"{name}.qml").read_text()
        assert [c["title"] for c in shown[name].legend][:2] == ["Low vegetation", "Non-vegetated ground"]
    assert "Playground" not in report  # the legend names what occurs
    assert not done.warnings
    assert done.run["engine"]["classes"] == list(names)
