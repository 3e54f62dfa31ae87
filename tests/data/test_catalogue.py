"""Data sets by name: nothing is opened that its authors did not publish, unless it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_trees import MASK, pairs, rows
from terralapse.cards import Task
from terralapse.data.catalogue import DATASETS, held_out, open_dataset
from terralapse.data.mshs_bcd import MshsBcd
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import SECOND_MAMBA, SECOND_SCANNET
from terralapse.sensors import Unit

NAMES = [f"{i:03d}" for i in range(60)]
HELD = ["000", "010", "015"]


def second(root: Path, names: list[str] = NAMES[:3]) -> Path:
    labels = {"label1": rows(*range(7), 0), "label2": rows(*range(7), 0)}
    for split in ("train", "test"):
        pairs(root / split, names, ("im1", "im2"), labels)
    return root


def test_every_data_set_of_the_list_is_there() -> None:
    asked = (
        "sysu-cd levir-cd levir-cd-plus whu-cd second landsat-scd xbd eurosat ucmerced aid resisc45 "
        "isprs-potsdam isprs-vaihingen loveda mshs-bcd mshs-bcd-s2 clcd dsifn buildings folder "
        "dynamicearthnet dynamicearthnet-scd hrscd hrscd-scd fusu levir-mci levir-cc cdvqa second-vqa "
        "damage-vqa changechat levir-chat image-text mshs-captions mshs-vqa"
    )
    assert set(DATASETS) == set(asked.split())
    assert all(e.licence and e.notes and e.title for e in DATASETS.values())
    published = {name: e.splits for name, e in DATASETS.items()}
    assert published["levir-cd-plus"] == published["second"] == ("train", "test")
    assert published["loveda"] == ("train", "val")


def test_unknown_names_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data=levir: no such data set.*levir-cd-plus"):
        open_dataset("levir", tmp_path)
    with pytest.raises(SettingError, match=r"split=dev: loveda has no such split\. Choose one of train, val"):
        open_dataset("loveda", tmp_path, "dev")
    with pytest.raises(SettingError, match=r"colour: is no option of xbd.*source, unclassified, gsd, title"):
        open_dataset("xbd", tmp_path, colour=True)
    with pytest.raises(FileMissingError):
        open_dataset("levir-cd", tmp_path / "nowhere", "test")


@pytest.mark.parametrize("dates", [("image1", "image2"), ("A", "B")])
def test_clcd_in_the_folders_of_either_release(tmp_path: Path, dates: tuple[str, str]) -> None:
    pairs(tmp_path / "val", NAMES[:2], dates, {"label": rows(*[0] * 6, 255, 255)})
    found = open_dataset("clcd", tmp_path, "val")
    assert found.names == NAMES[:2]
    assert set(np.unique(found[0].label)) == {0, 1}


@pytest.mark.parametrize("name", ["levir-cd-plus", "second", "isprs-potsdam"])
def test_no_validation_split_is_made_up(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=r"published without one.*holdout=0\.1.*train-held"):
        open_dataset(name, tmp_path, "val")


def test_holdout_parts_the_training_split(tmp_path: Path) -> None:
    pairs(tmp_path / "train", NAMES, labels={"label": MASK})
    rest = open_dataset("levir-cd-plus", tmp_path, "train-rest", holdout=0.2)
    held = open_dataset("levir-cd-plus", tmp_path, "train-held", holdout=0.2)
    assert sorted([*rest.names, *held.names]) == NAMES
    assert held.names == [n for n in NAMES if held_out(n, 0.2)]
    assert 4 <= len(held) <= 20
    assert [p.name for p in held] == held.names
    assert held[0].label.sum() == 16
    assert held.title == "LEVIR-CD+ train (train-held, 0.2 held out)"
    assert held.scheme.slug == "binary-change"


def test_holdout_of_a_folder_without_splits(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES, labels={"label": MASK})
    parts = [open_dataset("folder", tmp_path, split, holdout=0.3).names for split in ("rest", "held")]
    assert sorted(parts[0] + parts[1]) == NAMES
    with pytest.raises(SettingError, match="second has no such split"):
        open_dataset("second", tmp_path, "held", holdout=0.3)


def test_tiles_of_one_place_stay_together(tmp_path: Path) -> None:
    names = [f"place{i}_{j}" for i in range(12) for j in range(3)]
    pairs(tmp_path, names, labels={"label": MASK})
    options = {"holdout": 0.4, "holdout_by": r"^place\d+"}
    rest, held = (open_dataset("folder", tmp_path, s, **options).names for s in ("rest", "held"))
    assert sorted(rest + held) == sorted(names)
    assert not {n.partition("_")[0] for n in rest} & {n.partition("_")[0] for n in held}
    assert len(held) % 3 == 0
    with pytest.raises(SettingError, match="finds nothing in place0_0"):
        open_dataset("folder", tmp_path, "held", holdout=0.4, holdout_by="tile")
    with pytest.raises(SettingError, match="is no pattern"):
        open_dataset("folder", tmp_path, "held", holdout=0.4, holdout_by="(")


def test_what_is_held_out_is_the_same_everywhere() -> None:
    # SHA-256 of the names; other numbers here would mean that validation samples move into training.
    assert [n for n in NAMES[:20] if held_out(n, 0.2)] == HELD


@given(st.text("abc01_"), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_held_out(name: str, one: float, two: float) -> None:
    assert held_out(name, min(one, two)) <= held_out(name, max(one, two))


def test_settings_of_holdout(tmp_path: Path) -> None:
    second(tmp_path)
    with pytest.raises(SettingError, match="needs `holdout`"):
        open_dataset("second", tmp_path, "train-held")
    with pytest.raises(SettingError, match="includes what `holdout` holds out"):
        open_dataset("second", tmp_path, "train", holdout=0.1)
    with pytest.raises(SettingError, match="is no share"):
        open_dataset("second", tmp_path, "train-held", holdout=1.0)
    with pytest.raises(SettingError, match="without a sample of 3"):
        open_dataset("second", tmp_path, "train-held", holdout=1e-9)
    assert len(open_dataset("second", tmp_path, "test", holdout=0.1)) == 3


def test_second_in_both_orders(tmp_path: Path) -> None:
    second(tmp_path)
    assert open_dataset("second", tmp_path, "test").scheme is SECOND_MAMBA
    assert open_dataset("second", tmp_path, "test", scheme=SECOND_SCANNET).scheme is SECOND_SCANNET


@pytest.mark.parametrize(
    ("name", "folder", "split", "number", "task"),
    [
        ("levir-cd", "cd_vhr_samples/levir", None, 8, Task.CHANGE),
        ("dsifn", "cd_vhr_samples/dsifn", None, 7, Task.CHANGE),
        ("mshs-bcd", "cd_mshs_bcd", "test", 10, Task.CHANGE),
        ("mshs-bcd-s2", "cd_mshs_bcd", "test", 10, Task.CHANGE),
        ("mshs-captions", "cd_mshs_bcd", "test", 10, Task.LANGUAGE),
        ("mshs-vqa", "cd_mshs_bcd", "test", 110, Task.VQA),
        ("xbd", "damage_xbd_ida", None, 7, Task.DAMAGE),
        ("buildings", "seg_buildings_multi", "train", 53, Task.SEGMENTATION),
        ("isprs-potsdam", "seg_buildings_multi/potsdam", None, 3, Task.SEGMENTATION),
        ("eurosat", "scene_eurosat_rgb", "val", 655, Task.CLASSIFICATION),
        ("ucmerced", "scene_ucmerced", "val", 210, Task.CLASSIFICATION),
    ],
)
def test_samples(
    shared_data: Path, name: str, folder: str, split: str | None, number: int, task: Task
) -> None:
    found = open_dataset(name, shared_data / folder, split)
    assert len(found) == len(found.names) == number
    assert found[0].name == found.names[0]
    assert DATASETS[name].task is task


def test_pairs_of_mshs_bcd_are_its_tiles(shared_data: Path) -> None:
    root = shared_data / "cd_mshs_bcd"
    for name, sensor, unit in (("mshs-bcd", "gf1", Unit.RGB255), ("mshs-bcd-s2", "s2", Unit.RAW)):
        found, tiles = open_dataset(name, root, "test"), MshsBcd(root, "test", sensor)
        assert found.names == tiles.names
        assert np.array_equal(found[3].images, tiles[3].images)
        assert np.array_equal(found[3].label, tiles[3].label)
        assert (found[3].unit, found[3].gsd, found[3].images.dtype) == (unit, tiles.gsd, np.float32)
    six = open_dataset("mshs-bcd-s2", root, "test", bands=("red", "swir16"))
    assert (six[0].bands, six[0].images.shape) == (("red", "swir16"), (2, 2, 64, 64))


def test_the_catalogue_needs_no_gdal() -> None:
    code = "import sys, terralapse.data.catalogue, terralapse.data.training; print('rasterio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
