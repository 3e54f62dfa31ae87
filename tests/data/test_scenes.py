"""Images in a folder for each class: from folders, zips and lists, in an order that the scheme tells."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_trees import picture, rows, save
from terralapse.data.scenes import Scenes
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import AID, AID_RSMAMBA, EUROSAT, RESISC45, UCMERCED


def tree(root: Path, members: list[str]) -> Path:
    for i, member in enumerate(members):
        save(root / member, picture(i, first=(i, 0, 0)))
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    tree(tmp_path, ["SeaLake/SeaLake_1.png", "AnnualCrop/AnnualCrop_2.png", "AnnualCrop/AnnualCrop_1.png"])
    found = Scenes(tmp_path, None, EUROSAT, gsd=10.0, title="EuroSAT")
    assert found.names == [
        "AnnualCrop/AnnualCrop_1.png",
        "AnnualCrop/AnnualCrop_2.png",
        "SeaLake/SeaLake_1.png",
    ]
    assert found.labels().tolist() == [0, 0, 9]
    last = found[2]
    assert (last.name, last.label, last.gsd) == ("SeaLake/SeaLake_1.png", 9, 10.0)
    assert last.image.shape == (3, 8, 8)
    assert last.image[:, 0, 0].tolist() == [0, 0, 0]
    assert found[0].image[:, 0, 0].tolist() == [2, 0, 0]
    assert "alphabetical" in found.scheme.title


@pytest.mark.parametrize(
    ("scheme", "folder", "value"),
    [
        (UCMERCED, "mobilehomepark", 13),
        (UCMERCED, "storagetanks", 19),
        (AID, "BareLand", 1),
        (AID, "Viaduct", 29),
        (RESISC45, "ground_track_field", 16),
        (RESISC45, "wetland", 44),
    ],
)
def test_folders_as_their_authors_name_them(tmp_path: Path, scheme: object, folder: str, value: int) -> None:
    tree(tmp_path, [f"{folder}/1.tif"])
    assert Scenes(tmp_path, None, scheme)[0].label == value  # type: ignore[arg-type]


def test_a_split_is_a_folder_or_a_zip(tmp_path: Path) -> None:
    tree(tmp_path / "train", ["Forest/1.png"])
    packed = tree(tmp_path / "elsewhere", ["River/2.png", "Forest/3.png"])
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for name in ("River/2.png", "Forest/3.png"):
            archive.write(packed / name, name)
    train, val = (Scenes(tmp_path, s, EUROSAT, title="EuroSAT") for s in ("train", "val"))
    assert (train.names, train.title) == (["Forest/1.png"], "EuroSAT train")
    assert [(s.name, s.label) for s in val] == [("Forest/3.png", 1), ("River/2.png", 8)]
    assert val[0].image[0, 0, 0] == 1


def test_lists_and_their_order_of_classes(tmp_path: Path) -> None:
    folders = [f"{c.title.title().replace(' ', '')}/{c.name}_1.png" for c in AID.classes]
    tree(tmp_path / "AID", folders)
    lists = tmp_path / "datainfo"
    lists.mkdir()
    (lists / "val.txt").write_text("Port/port_1.png\nAirport/airport_1.png", encoding="utf-8")
    alphabetical = Scenes(tmp_path / "AID", "val", AID, lists=lists)
    assert [s.label for s in alphabetical] == [20, 0]
    assert alphabetical.names == ["Port/port_1.png", "Airport/airport_1.png"]
    order = ["Port", *(f.partition("/")[0] for f in folders if not f.startswith("Port/"))]
    (lists / "cls_names.txt").write_text("\n".join(order), encoding="utf-8")
    listed = Scenes(tmp_path / "AID", "val", AID, lists=lists)
    assert [s.label for s in listed] == [0, 1]
    assert re.fullmatch("aid-[0-9a-f]{8}", listed.scheme.slug)
    assert "cls_names.txt" in listed.scheme.title
    assert [c.name for c in listed.scheme.classes][:2] == ["port", "airport"]
    reverse = [order[0], *order[:0:-1]]
    (lists / "cls_names.txt").write_text("\n".join(reverse), encoding="utf-8")
    assert Scenes(tmp_path / "AID", "val", AID, lists=lists).scheme.slug != listed.scheme.slug
    rsmamba = [c.name.replace("_", " ").title().replace(" ", "") for c in AID_RSMAMBA.classes]
    (lists / "cls_names.txt").write_text("\n".join(rsmamba), encoding="utf-8")
    assert Scenes(tmp_path / "AID", "val", AID, lists=lists).scheme is AID_RSMAMBA
    (lists / "cls_names.txt").write_text("\n".join(order[1:]), encoding="utf-8")
    with pytest.raises(SettingError, match="not the classes of aid: port"):
        Scenes(tmp_path / "AID", "val", AID, lists=lists)


def test_trees_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="holds no"):
        Scenes(tmp_path, None, EUROSAT)
    tree(tmp_path, ["Forest/1.png"])
    with pytest.raises(FileMissingError, match=r"train: is not there.*train\.zip"):
        Scenes(tmp_path, "train", EUROSAT)
    (tmp_path / "train.txt").write_text("Forest/2.png", encoding="utf-8")
    with pytest.raises(FileMissingError, match=r"Forest/2\.png"):
        Scenes(tmp_path, "train", EUROSAT)
    (tmp_path / "val.zip").write_bytes(b"PK not")
    with pytest.raises(UnreadableFileError, match=r"val\.zip: is no whole zip"):
        Scenes(tmp_path, "val", EUROSAT)
    save(tmp_path / "Glacier/1.png", rows(1, 2))
    with pytest.raises(UnreadableFileError, match="Glacier, which is no class of eurosat"):
        Scenes(tmp_path, None, EUROSAT)


def test_samples(shared_data: Path) -> None:
    root = shared_data / "scene_eurosat_rgb"
    sets = {s: Scenes(root, s, EUROSAT) for s in ("val", "test")}
    assert {s: len(d) for s, d in sets.items()} == {"val": 655, "test": 900}
    assert np.bincount(sets["test"].labels()).tolist() == [90] * 10
    assert np.bincount(sets["val"].labels())[6] == 25  # PermanentCrop
    assert sets["val"][654].image.shape == (3, 64, 64)
    merced = Scenes(shared_data / "scene_ucmerced", "val", UCMERCED)
    assert (len(merced), len(np.unique(merced.labels()))) == (210, 21)
