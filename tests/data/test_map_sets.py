"""DynamicEarthNet and HRSCD: pairs that come with a map of the earlier date, on trees made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures_eo import write_tif
from terralapse.data.catalogue import open_dataset
from terralapse.data.dynamicearthnet import DynamicEarthNet
from terralapse.data.hrscd import Hrscd
from terralapse.data.training import batch_of
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import BINARY_CHANGE, DYNAMICEARTHNET_CHANGE, HRSCD_CHANGE

DATES = ("2018-01-01", "2018-02-01", "2018-03-01")
SIZE = 16


# --- DynamicEarthNet ---------------------------------------------------------------------------------------
def months(
    root: Path, sites: tuple[str, ...] = ("1_2_13_0_0", "1_2_13_0_1")
) -> dict[tuple[str, str], np.ndarray]:
    """Images and one-hot labels of sites; returns the classes, 6 being snow and 7 nothing at all."""
    rng, found = np.random.default_rng(0), {}
    for site in sites:
        for date in DATES:
            image = rng.integers(0, 3000, (4, SIZE, SIZE)).astype("uint16")
            write_tif(root / "images" / site / f"{date}.tif", image)
            classes = rng.integers(0, 8, (SIZE, SIZE))
            planes = (classes == np.arange(7)[:, None, None]).astype("uint8") * 255
            write_tif(root / "labels" / site / f"{date}.tif", planes)
            found[site, date] = np.where(classes >= 6, 255, classes)
    (root / "splits").mkdir()
    (root / "splits" / "train1.txt").write_text(f"{sites[0]}\n")
    (root / "splits" / "val1.txt").write_text("\n".join(sites) + "\n")
    return found


def test_pairs_of_months_with_the_map_before(tmp_path: Path) -> None:
    classes = months(tmp_path)
    train = open_dataset("dynamicearthnet", tmp_path, "train")
    assert train.names == [
        f"1_2_13_0_0 {a} {b}" for a, b in ((DATES[0], DATES[1]), (DATES[0], DATES[2]), (DATES[1], DATES[2]))
    ]
    val = open_dataset("dynamicearthnet", tmp_path, "val")
    assert len(val) == 4
    assert val.scheme is BINARY_CHANGE
    assert len(open_dataset("dynamicearthnet", tmp_path, "val", pairs="all")) == 6
    assert len(open_dataset("dynamicearthnet", tmp_path, None)) == 4
    site, first, second = train.names[1].split()
    sample, before, after = train[1], classes[site, first], classes[site, second]
    assert np.array_equal(sample.map, before)
    unknown = (before == 255) | (after == 255)
    assert np.array_equal(sample.label, np.where(unknown, 255, before != after))
    batch = batch_of(list(train))
    assert batch["images"].shape == (3, 2, 3, SIZE, SIZE)
    assert batch["map"].shape == (3, SIZE, SIZE)


def test_stored_bands_become_red_green_and_blue(tmp_path: Path) -> None:
    months(tmp_path)
    stored = np.stack([np.full((SIZE, SIZE), v) for v in (650, 1590, 9000, 1)]).astype("uint16")
    write_tif(tmp_path / "images" / "1_2_13_0_0" / f"{DATES[0]}.tif", stored)
    sample = DynamicEarthNet(tmp_path, "train1")[0]
    assert sample.bands == ("red", "green", "blue")
    # (650 - 649.98) / 654.92 x 58.395 + 123.675; (1590 - 862.54) / 727.90 x 57.12 + 116.28; cut at 255.
    assert sample.images[0, :, 0, 0].tolist() == [255.0, 173.0, 123.0]


def test_classes_of_what_changed(tmp_path: Path) -> None:
    classes = months(tmp_path)
    found = open_dataset("dynamicearthnet-scd", tmp_path, "train")
    assert found.scheme is DYNAMICEARTHNET_CHANGE
    sample = found[0]
    before, after = classes["1_2_13_0_0", DATES[0]], classes["1_2_13_0_0", DATES[1]]
    known = (before != 255) & (after != 255)
    changed = known & (before != after)
    assert np.array_equal(sample.before[changed], before[changed] + 1)
    assert np.array_equal(sample.after[changed], after[changed] + 1)
    assert (sample.before[known & ~changed] == 0).all()
    assert (sample.before[~known] == 255).all()
    assert np.array_equal(sample.map, before)


def test_labels_stored_row_by_row(tmp_path: Path) -> None:
    """An array [H, W, 7] that is written as if each row were a page."""
    classes = months(tmp_path)
    path = tmp_path / "labels" / "1_2_13_0_0" / f"{DATES[0]}.tif"
    ids = classes["1_2_13_0_0", DATES[0]]
    cube = (ids[..., None] == np.arange(7)).astype("uint8") * 255
    rows = [Image.fromarray(row) for row in cube]
    rows[0].save(path, save_all=True, append_images=rows[1:])
    assert np.array_equal(open_dataset("dynamicearthnet", tmp_path, "train")[0].map, ids)


def test_faults_of_dynamicearthnet_are_named(tmp_path: Path) -> None:
    months(tmp_path)
    with pytest.raises(FileMissingError, match=r"test\.txt.*splits"):
        open_dataset("dynamicearthnet", tmp_path, "test")
    with pytest.raises(SettingError, match="pairs=some"):
        open_dataset("dynamicearthnet", tmp_path, "val", pairs="some")
    (tmp_path / "splits" / "val2.txt").write_text("nowhere\n")
    with pytest.raises(SettingError, match="val1, val2"):
        open_dataset("dynamicearthnet", tmp_path, "val")
    with pytest.raises(FileMissingError, match="nowhere"):
        DynamicEarthNet(tmp_path, "val2")
    write_tif(tmp_path / "labels" / "1_2_13_0_0" / f"{DATES[0]}.tif", np.zeros((3, SIZE, SIZE), "uint8"))
    with pytest.raises(UnreadableFileError, match="has 3 bands"):
        open_dataset("dynamicearthnet", tmp_path, "train")[0]
    (tmp_path / "images" / "1_2_13_0_0" / f"{DATES[2]}.tif").unlink()
    with pytest.raises(FileMissingError, match=DATES[2]):
        open_dataset("dynamicearthnet", tmp_path, "train")[2]


# --- HRSCD -------------------------------------------------------------------------------------------------
SITE, LATER = "14-2005-0420-6890-LA93-0M50-E080", "14-2012-0420-6890-LA93-0M50-E080"
PLACES = ("images/2006", "images/2012", "labels/2006", "labels/2012", "labels/change")


def scene(root: Path, height: int = 32, width: int = 40) -> dict[str, np.ndarray]:
    """One site as whole rasters."""
    rng, found = np.random.default_rng(0), {}
    for place in PLACES:
        shape = (3, height, width) if place.startswith("images") else (1, height, width)
        high = 256 if place.startswith("images") else 2 if place.endswith("change") else 6
        found[place] = rng.integers(0, high, shape).astype("uint8")
        name = SITE if place == "images/2006" else LATER
        write_tif(root / place / "D14" / f"{name}.tif", found[place])
    (root / "splits").mkdir()
    (root / "splits" / "val50.txt").write_text(f"{SITE}\n")
    return found


def test_scenes_are_read_in_tiles(tmp_path: Path) -> None:
    stored = scene(tmp_path)
    found = open_dataset("hrscd", tmp_path, "val", tile=16)
    assert found.names == [f"{SITE} {r}_{c}" for r in (0, 1) for c in (0, 1)]
    for index, (row, col) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        sample, area = found[index], (slice(row, row + 16), slice(col, col + 16))
        assert np.array_equal(sample.images[0], stored["images/2006"][:, *area])
        assert np.array_equal(sample.images[1], stored["images/2012"][:, *area])
        assert np.array_equal(sample.label, stored["labels/change"][0, *area])
        land = stored["labels/2006"][0, *area].astype(int)
        assert np.array_equal(sample.map, np.where(land == 0, 255, land - 1))
    assert len(open_dataset("hrscd", tmp_path, None, tile=32)) == 1


def test_stored_tiles_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    stored = scene(tmp_path, 22, 2)
    for place in PLACES:
        name = SITE if place == "images/2006" else LATER
        (tmp_path / place / "D14" / f"{name}.tif").unlink()
        for i in range(11):
            part = stored[place][:, 2 * i : 2 * i + 2]
            write_tif(tmp_path / place / "D14" / name / f"{i}_0.tif", part)
    found = Hrscd(tmp_path, "val50")
    assert [n.split()[1] for n in found.names] == [f"{i}_0" for i in range(11)]
    assert np.array_equal(found[10].images[1], stored["images/2012"][:, 20:22])


def test_classes_of_what_changed_in_hrscd(tmp_path: Path) -> None:
    stored = scene(tmp_path, 16, 16)
    found = open_dataset("hrscd-scd", tmp_path, "val", tile=16)
    assert found.scheme is HRSCD_CHANGE
    sample, change = found[0], stored["labels/change"][0] == 1
    for side, year in ((sample.before, "2006"), (sample.after, "2012")):
        land = stored[f"labels/{year}"][0]
        assert (side[~change] == 0).all()
        assert np.array_equal(side[change], np.where(land[change] == 0, 255, land[change]))


def test_faults_of_hrscd_are_named(tmp_path: Path) -> None:
    scene(tmp_path)
    with pytest.raises(SettingError, match="tile=0"):
        open_dataset("hrscd", tmp_path, "val", tile=0)
    with pytest.raises(FileMissingError, match="splits"):
        open_dataset("hrscd", tmp_path, "test")
    write_tif(tmp_path / "labels/2006/D14" / f"{LATER}.tif", np.full((1, 32, 40), 9, "uint8"))
    with pytest.raises(UnreadableFileError, match="holds 9"):
        open_dataset("hrscd", tmp_path, "val", tile=16)[0]
    with pytest.raises(FileMissingError, match="images"):
        open_dataset("hrscd", tmp_path / "splits", None)
