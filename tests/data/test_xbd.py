"""Buildings and grades from masks, official rasters and official polygons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_trees import picture, rows, save
from terralapse.data.pairs import IGNORE
from terralapse.data.xbd import XBD, polygons
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

SCENE = "hurricane-harvey_00000012"


def square(x0: float, y0: float, x1: float, y1: float, subtype: str | None = None) -> dict[str, object]:
    wkt = f"POLYGON (({x0} {y0}, {x1} {y0}, {x1} {y1}, {x0} {y1}, {x0} {y0}))"
    properties = {"feature_type": "building", "uid": "0"} | ({"subtype": subtype} if subtype else {})
    return {"properties": properties, "wkt": wkt}


def write_labels(path: Path, *features: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"features": {"lng_lat": [], "xy": list(features)}, "metadata": {}}))
    return path


def images(root: Path, scene: str = SCENE, tile: str = "", size: tuple[int, int] = (8, 8)) -> Path:
    for i, date in enumerate(("pre", "post")):
        pixels = picture(i, size, first=(i, 0, 0))
        save(root / "images" / f"{scene}_{date}_disaster{tile}.png", pixels)
    return root


def masks(root: Path, folder: str = "masks", ending: str = "", tile: str = "") -> Path:
    before, after = rows(1, 1, 1, 1, 0, 0, 0, 0), rows(1, 2, 3, 4, 0, 0, 0, 0)
    for date, mask in (("pre", before), ("post", after)):
        save(root / folder / f"{SCENE}_{date}_disaster{tile}{ending}.png", mask)
    return root


@pytest.mark.parametrize(
    ("folder", "ending", "tile"),
    [("masks", "", ""), ("masks", "", "_0_1"), ("targets", "_target", "")],
    ids=["masks", "tiles", "targets"],
)
def test_rasters(tmp_path: Path, folder: str, ending: str, tile: str) -> None:
    masks(images(tmp_path / "train", tile=tile), folder, ending, tile)
    found = XBD(tmp_path, "train")
    assert (found.names, found.title, found.source) == ([SCENE + tile], "xBD train", folder)
    pair = found[0]
    assert pair.images[:, 0, 0, 0].tolist() == [0, 1]
    assert pair.building[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert pair.damage[:, 0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]


def test_official_polygons(tmp_path: Path) -> None:
    root = images(tmp_path / "hold", size=(12, 12))
    squares = [(0, 0, 2, 2), (4, 0, 6, 2), (8, 0, 10, 2), (0, 6, 2, 8), (4, 6, 6, 8)]
    grades = ["no-damage", "minor-damage", "major-damage", "destroyed", "un-classified"]
    write_labels(root / f"labels/{SCENE}_pre_disaster.json", *(square(*s) for s in squares))
    write_labels(
        root / f"labels/{SCENE}_post_disaster.json",
        *(square(*s, g) for s, g in zip(squares, grades, strict=True)),
    )
    pair = XBD(tmp_path, "hold")[0]
    assert pair.building.sum() == 5 * 9  # a square of 2 has 3 x 3 pixels with its outline
    assert set(np.unique(pair.building)) == {0, 1}
    assert [int(pair.damage[y + 1, x + 1]) for x, y, _, _ in squares] == [1, 2, 3, 4, IGNORE]
    assert XBD(tmp_path, "hold", unclassified=1)[0].damage[7, 5] == 1
    assert pair.damage[7, 5] == IGNORE
    assert pair.damage[11, 11] == 0
    assert (pair.damage == 2).sum() == 9


def test_rasters_with_a_value_for_unclassified(tmp_path: Path) -> None:
    masks(images(tmp_path))
    save(tmp_path / f"masks/{SCENE}_post_disaster.png", rows(1, 5, 255, 0, 0, 0, 0, 0))
    assert XBD(tmp_path)[0].damage[:, 0].tolist() == [1, IGNORE, IGNORE, 0, 0, 0, 0, 0]
    assert XBD(tmp_path, unclassified=1)[0].damage[:, 0].tolist() == [1, 1, IGNORE, 0, 0, 0, 0, 0]
    with pytest.raises(SettingError, match="unclassified=2"):
        XBD(tmp_path, unclassified=2)


def test_several_parts_and_holes(tmp_path: Path) -> None:
    ring = "POLYGON ((0 0, 8 0, 8 8, 0 8, 0 0), (2 2, 6 2, 6 6, 2 6, 2 2))"
    feature: dict[str, object] = {"properties": {"subtype": "destroyed"}, "wkt": ring}
    label = polygons(write_labels(tmp_path / "a.json", feature), (10, 10))
    assert (label[0, 0], label[4, 4], label[9, 9]) == (4, 0, 0)
    two = "MULTIPOLYGON (((0 0, 2 0, 2 2, 0 2, 0 0)), ((6 6, 8 6, 8 8, 6 8, 6 6)))"
    feature = {"properties": {"subtype": "minor-damage"}, "wkt": two}
    assert (polygons(write_labels(tmp_path / "b.json", feature), (10, 10)) == 2).sum() == 18


def test_the_source_can_be_chosen(tmp_path: Path) -> None:
    masks(masks(images(tmp_path)), "targets", "_target")
    assert XBD(tmp_path).source == "masks"
    assert XBD(tmp_path, source="targets").source == "targets"
    with pytest.raises(FileMissingError, match="labels: is not there"):
        XBD(tmp_path, source="labels")
    with pytest.raises(SettingError, match="source=json"):
        XBD(tmp_path, source="json")


def test_trees_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="images: is not there"):
        XBD(tmp_path)
    images(tmp_path)
    with pytest.raises(FileMissingError, match="masks: is not there"):
        XBD(tmp_path)
    masks(tmp_path)
    (tmp_path / f"masks/{SCENE}_post_disaster.png").unlink()
    with pytest.raises(FileMissingError, match=r"_post_disaster\.png: is not there"):
        XBD(tmp_path)
    masks(tmp_path)
    save(tmp_path / f"masks/{SCENE}_post_disaster.png", rows(*[9] * 8))
    with pytest.raises(UnreadableFileError, match="holds 9"):
        XBD(tmp_path)[0]
    save(tmp_path / f"masks/{SCENE}_post_disaster.png", rows(1, 2))
    with pytest.raises(UnreadableFileError, match=r"is \(2, 8\)"):
        XBD(tmp_path)[0]
    (tmp_path / f"images/{SCENE}_pre_disaster.png").unlink()
    with pytest.raises(FileMissingError, match="no partner"):
        XBD(tmp_path)
    save(tmp_path / "images/other.png", picture(0))
    with pytest.raises(UnreadableFileError, match=r"other\.png: is not named"):
        XBD(tmp_path)


def test_labels_that_are_not_of_xbd(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "a.json", square(0, 0, 1, 1, "flooded"))
    with pytest.raises(UnreadableFileError, match="subtype flooded"):
        polygons(path, (4, 4))
    path.write_text("{}")
    with pytest.raises(UnreadableFileError, match="no label file of xBD"):
        polygons(path, (4, 4))


def test_samples(shared_data: Path) -> None:
    found = XBD(shared_data / "damage_xbd_ida")
    assert len(found) == 7
    assert found.names[0] == "AOI1-tile_1-3"
    pair = found[found.names.index("hurricane-harvey_00000001")]
    assert pair.images.shape == (2, 3, 1024, 1024)
    assert np.unique(pair.damage).tolist() == [0, 1, 2, 3]
    assert ((pair.damage > 0) == (pair.building > 0)).mean() > 0.99
