"""Sets with one class for each pixel: ISPRS, LoveDA and the masks of buildings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_trees import coloured, picture, rows, save
from terralapse.data.buildings import BUILDING_SETS, Buildings
from terralapse.data.isprs import TILES, Isprs
from terralapse.data.loveda import LoveDA
from terralapse.data.pairs import IGNORE
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

COLOURS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
WHOLE = coloured(*COLOURS, COLOURS[0], COLOURS[0])
ERODED = coloured(*COLOURS, (0, 0, 0), (0, 0, 0))


# --- ISPRS ---------------------------------------------------------------------------------------------
def potsdam(root: Path, tiles: list[str], images: str = "4_Ortho_RGBIR", ending: str = "RGBIR") -> Path:
    for i, tile in enumerate(tiles):
        pixels = picture(i)
        if ending == "RGBIR":
            pixels = np.concatenate([pixels, pixels[..., :1]], axis=2)
        save(root / images / f"top_potsdam_{tile}_{ending}.tif", pixels)
        save(root / f"5_Labels_for_participants/top_potsdam_{tile}_label.tif", WHOLE)
        eroded = f"5_Labels_for_participants_no_Boundary/top_potsdam_{tile}_label_noBoundary.tif"
        save(root / eroded, ERODED)
    return root


def vaihingen(root: Path, tiles: list[str]) -> Path:
    for i, tile in enumerate(tiles):
        name = f"top_mosaic_09cm_area{tile}"
        save(root / f"top/{name}.tif", picture(i))
        save(root / f"gts_for_participants/{name}.tif", WHOLE)
        save(root / f"gts_eroded_for_participants/{name}_noBoundary.tif", ERODED)
    return root


@pytest.mark.parametrize(("images", "ending"), [("4_Ortho_RGBIR", "RGBIR"), ("2_Ortho_RGB", "RGB")])
def test_potsdam(tmp_path: Path, images: str, ending: str) -> None:
    test = TILES["potsdam"]["ssrs"]["test"].split()
    potsdam(tmp_path, [*test, "6_07"], images, ending)
    found = Isprs(tmp_path, "potsdam", "test")
    assert found.names == ["2_11", "3_10", "4_10", "5_11", "6_11", "7_12"]
    tile = found[0]
    assert tile.image.shape == (3, 8, 8)
    assert tile.image[:, 0, 0].tolist() == [10, 20, 30]
    assert tile.label[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert (tile.gsd, tile.bands) == (0.05, ("red", "green", "blue"))
    eroded = Isprs(tmp_path, "potsdam", "test", eroded=True)
    assert eroded[0].label[:, 0].tolist() == [0, 1, 2, 3, 4, 5, IGNORE, IGNORE]
    assert Isprs(tmp_path, "potsdam").names[-2:] == ["6_11", "7_12"]
    with pytest.raises(FileMissingError, match="no image of tile 2_10"):
        Isprs(tmp_path, "potsdam", "train")


def test_a_label_that_is_all_border_is_ignored(tmp_path: Path) -> None:
    potsdam(tmp_path, ["2_10"])
    eroded = "5_Labels_for_participants_no_Boundary/top_potsdam_2_10_label_noBoundary.tif"
    save(tmp_path / eroded, coloured(*[(0, 0, 0)] * 8))
    assert (Isprs(tmp_path, "potsdam", eroded=True)[0].label == IGNORE).all()


def test_vaihingen(tmp_path: Path) -> None:
    vaihingen(tmp_path, [*TILES["vaihingen"]["ssrs"]["train"].split(), "5", "15", "21", "30"])
    found = Isprs(tmp_path, "vaihingen", "test")
    assert found.names == ["5", "15", "21", "30"]
    assert found.bands == ("nir", "red", "green")
    assert found.title == "ISPRS Vaihingen test"
    assert len(Isprs(tmp_path, "vaihingen", "train")) == 12


def test_the_other_division_leaves_the_rest_to_training(tmp_path: Path) -> None:
    test = TILES["vaihingen"]["geoseg"]["test"].split()
    vaihingen(tmp_path, [*test, "1", "3", "37"])
    assert len(Isprs(tmp_path, "vaihingen", "test", tiles="geoseg")) == 17
    assert Isprs(tmp_path, "vaihingen", "train", tiles="geoseg").names == ["1", "3", "37"]


@pytest.mark.parametrize("area", ["potsdam", "vaihingen"])
def test_no_tile_trains_and_tests(area: str) -> None:
    parts = TILES[area]["ssrs"]
    train, test = parts["train"].split(), parts["test"].split()
    assert not set(train) & set(test)
    assert (len(train), len(test)) == {"potsdam": (18, 6), "vaihingen": (12, 4)}[area]


def test_faults_of_isprs(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="no folder 4_Ortho_RGBIR or 2_Ortho_RGB or images"):
        Isprs(tmp_path, "potsdam")
    with pytest.raises(SettingError, match="area=toronto"):
        Isprs(tmp_path, "toronto")
    with pytest.raises(SettingError, match="split=val"):
        Isprs(tmp_path, "vaihingen", "val")
    with pytest.raises(SettingError, match=r"tiles=mine.*ssrs, geoseg"):
        Isprs(tmp_path, "vaihingen", tiles="mine")
    vaihingen(tmp_path, ["1"])
    save(tmp_path / "gts_for_participants/top_mosaic_09cm_area1.tif", coloured(*[(0, 0, 254)] * 8))
    with pytest.raises(
        UnreadableFileError, match=r"area1\.tif: holds colours that no class has: \(0, 0, 254\) on 64 pixels"
    ):
        Isprs(tmp_path, "vaihingen")[0]


def test_crops_of_potsdam(shared_data: Path) -> None:
    found = Isprs(shared_data / "seg_buildings_multi/potsdam", "potsdam")
    masks = {i.name: i.label for i in Buildings(shared_data / "seg_buildings_multi", sets=["potsdam"])}
    assert found.names == ["3_11", "4_13", "7_7"]
    for tile in found:
        assert np.unique(tile.label).tolist() == [0, 1, 2, 3, 4, 5]
        mask = masks[f"potsdam/top_potsdam_{tile.name}_RGB"]
        assert np.array_equal(tile.label == 1, mask == 1)
    with pytest.raises(SettingError, match="eroded"):
        Isprs(shared_data / "seg_buildings_multi/potsdam", "potsdam", eroded=True)


# --- LoveDA --------------------------------------------------------------------------------------------
def loveda(root: Path) -> Path:
    for split, scene, number in (("Train", "Rural", "10"), ("Train", "Rural", "9"), ("Train", "Urban", "3")):
        save(root / split / scene / f"images_png/{number}.png", picture(int(number)))
        save(root / split / scene / f"masks_png/{number}.png", rows(0, 1, 2, 3, 4, 5, 6, 7))
    return root


def test_loveda(tmp_path: Path) -> None:
    found = LoveDA(loveda(tmp_path), "train")
    assert found.names == ["Rural/9", "Rural/10", "Urban/3"]
    assert found[0].label[:, 0].tolist() == [IGNORE, 0, 1, 2, 3, 4, 5, 6]
    assert [c.name for c in found.scheme.classes][:2] == ["background", "building"]
    assert LoveDA(tmp_path, "train", scenes=["Urban"]).names == ["Urban/3"]


def test_faults_of_loveda(tmp_path: Path) -> None:
    loveda(tmp_path)
    with pytest.raises(SettingError, match="split=test: has no published labels"):
        LoveDA(tmp_path, "test")
    with pytest.raises(SettingError, match="scenes=Coast"):
        LoveDA(tmp_path, scenes=["Coast"])
    with pytest.raises(FileMissingError, match="images_png: is not there"):
        LoveDA(tmp_path, "val")
    save(tmp_path / "Train/Urban/masks_png/3.png", rows(*[8] * 8))
    with pytest.raises(UnreadableFileError, match=r"3\.png: holds 8"):
        LoveDA(tmp_path, "train", scenes=["Urban"])[0]
    (tmp_path / "Train/Urban/masks_png/3.png").unlink()
    with pytest.raises(FileMissingError, match=r"masks_png/3\.png"):
        LoveDA(tmp_path, "train")


# --- buildings -----------------------------------------------------------------------------------------
def test_buildings(tmp_path: Path) -> None:
    for name in (*BUILDING_SETS, "inria/val", "inria/test"):
        save(tmp_path / name / "images/1.jpg", picture(0))
        save(tmp_path / name / "masks/1.png", rows(0, 1, 1, 0, 0, 0, 0, 0) > 0)
    train = Buildings(tmp_path)
    assert train.names == [f"{s}/1" for s in BUILDING_SETS]
    assert train[0].label[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert [i.gsd for i in train] == list(BUILDING_SETS.values())
    assert Buildings(tmp_path, "test").names == ["inria/test/1"]
    assert Buildings(tmp_path, "val")[0].gsd == 0.3
    assert Buildings(tmp_path, sets=["potsdam"]).title == "buildings potsdam"
    (tmp_path / "inria/val/masks/1.png").unlink()
    with pytest.raises(FileMissingError, match="inria/val/masks/1"):
        Buildings(tmp_path, "val")
    with pytest.raises(SettingError, match="split=dev"):
        Buildings(tmp_path, "dev")
    with pytest.raises(FileMissingError, match="toronto"):
        Buildings(tmp_path, sets=["toronto"])


def test_samples_of_buildings(shared_data: Path) -> None:
    root = shared_data / "seg_buildings_multi"
    sets = {s: Buildings(root, s) for s in ("train", "val", "test")}
    assert {s: len(d) for s, d in sets.items()} == {"train": 53, "val": 9, "test": 4}
    assert set(np.unique(np.stack([i.label for i in sets["test"]]))) == {0, 1}
    names = [n.rpartition("/")[2] for d in sets.values() for n in d.names if n.startswith("inria/")]
    assert len(set(names)) == len(names) == 25 + 9 + 4
