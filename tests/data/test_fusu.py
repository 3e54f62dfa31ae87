"""FUSU in both layouts, and what a series is from the files to a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import open_dataset
from terralapse.data.fusu import Fusu
from terralapse.data.pairs import IGNORE
from terralapse.data.samples import SemanticPair
from terralapse.data.training import TrainingSet, batch_of
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import FUSU
from terralapse.sensors import Unit

SIDE = 8
BEFORE = np.full((SIDE, SIDE), 4, np.uint8)
AFTER = BEFORE.copy()
AFTER[:2], AFTER[2] = 3, 0  # two rows built on, one not labelled


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def date(value: int) -> np.ndarray:
    return np.full((3, 4, 4), value, np.float32)


def released(root: Path, names: tuple[str, ...] = ("6_2", "6_25"), shift: int = 0) -> Path:
    for i, name in enumerate(names):
        for folder, label in (("im1", BEFORE), ("im2", AFTER)):
            save(root / folder / f"{name}.png", np.full((SIDE, SIDE, 3), 10 * i + shift, np.uint8))
            save(root / f"{folder}_label" / f"{name}.png", label)
    for value, (year, month) in enumerate((("A", 9), ("A", 10), ("B", 2), ("C", 11)), start=1):
        path = root / year / str(month) / f"{names[0]}_{year}_{month}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, date(value))
    for name in names[1:]:
        np.save(root / "B" / "2" / f"{name}_B_2.npy", date(7))
    return root


def test_the_released_layout(tmp_path: Path) -> None:
    found = Fusu(released(tmp_path))
    assert found.names == ["6_2", "6_25"]
    pair = found[0]
    assert pair.images.shape == (2, 3, SIDE, SIDE)
    assert (pair.before == 4).all()
    assert pair.after[:, 0].tolist() == [3, 3, 0, 4, 4, 4, 4, 4]
    assert pair.label[:, 0].tolist() == [1, 1, IGNORE, 0, 0, 0, 0, 0]
    assert found.scheme is FUSU


def test_months_are_in_order_and_all_series_equally_long(tmp_path: Path) -> None:
    first, second = Fusu(released(tmp_path), series_scale=2.0)
    assert first.series is not None
    assert second.series is not None
    assert first.series[:, 0, 0, 0].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert second.series[:, 0, 0, 0].tolist() == [3.5, 0, 0, 0]


def test_the_layout_of_the_code_has_three_different_splits(tmp_path: Path) -> None:
    """Its own reader takes the training folder for all of them."""
    for shift, split in enumerate(("train", "val", "test")):
        root = released(tmp_path / split, (f"1_{shift}",), shift)
        for old, new in (("im1_label", "label1"), ("im2_label", "label2")):
            (root / old).rename(root / new)
        save(root / "label_bin" / f"1_{shift}.png", (AFTER == 3).astype(np.uint8))
        for number in (10, 9):
            (root / "Times").mkdir(exist_ok=True)
            np.save(root / "Times" / f"1_{shift}_{number}.npy", date(number))
        for year in "ABC":
            for path in (root / year).rglob("*.npy"):
                path.unlink()
    sets = [open_dataset("fusu", tmp_path, split) for split in ("train", "val", "test")]
    assert [s.names for s in sets] == [["1_0"], ["1_1"], ["1_2"]]
    assert [float(s[0].images.mean()) for s in sets] == [0, 1, 2]
    pair = sets[0][0]
    assert pair.label[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0], "as stated, not derived"
    assert pair.series[:, 0, 0, 0].tolist() == [9, 10]


def test_only_what_changed(tmp_path: Path) -> None:
    pair = Fusu(released(tmp_path), series=False, full=False)[0]
    assert pair.series is None
    assert pair.change is None
    assert pair.before[:, 0].tolist() == [4, 4, IGNORE, 0, 0, 0, 0, 0]
    assert pair.after[:, 0].tolist() == [3, 3, IGNORE, 0, 0, 0, 0, 0]
    assert pair.label[:, 0].tolist() == [1, 1, IGNORE, 0, 0, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_series_in_tiff(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    released(tmp_path)
    stack = np.arange(14 * 16, dtype=np.uint16).reshape(14, 4, 4)
    for path in tmp_path.glob("[ABC]/*/*.npy"):
        path.unlink()
    for name in ("6_2", "6_25"):
        with rasterio.open(
            tmp_path / "A" / f"{name}_A_8.tif", "w", "GTiff", 4, 4, 14, dtype="uint16"
        ) as file:
            file.write(stack)
    series = Fusu(tmp_path)[0].series
    assert series is not None
    assert np.array_equal(series[0], stack)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="divides"):
        Fusu(released(tmp_path), series_scale=0)
    (tmp_path / "B" / "2" / "6_25_B_2.npy").unlink()
    with pytest.raises(FileMissingError, match="series=False"):
        Fusu(tmp_path)
    assert len(Fusu(tmp_path, series=False)) == 2
    np.save(tmp_path / "B" / "2" / "6_25_B_2.npy", date(7)[0])
    with pytest.raises(UnreadableFileError, match="bands, rows and columns"):
        Fusu(tmp_path)[1]
    (tmp_path / "im2_label" / "6_25.png").unlink()
    with pytest.raises(FileMissingError, match="6_25"):
        Fusu(tmp_path)
    with pytest.raises(FileMissingError, match="im1"):
        Fusu(tmp_path / "nowhere")


# --- series in batches -----------------------------------------------------------------------------------
def sample(series: np.ndarray | None, side: int = SIDE) -> SemanticPair:
    images = np.arange(2 * 3 * side * side, dtype=np.float32).reshape(2, 3, side, side)
    plane = np.ones((side, side), np.uint8)
    return SemanticPair("a", images, plane, plane, 1.0, ("red", "green", "blue"), Unit.RGB255, series=series)


def test_series_of_any_length_share_a_batch() -> None:
    one, two = np.ones((1, 2, 4, 4), np.float32), np.full((3, 2, 4, 4), 2, np.float32)
    two[2] = np.nan
    batch = batch_of([sample(one), sample(two), sample(None)])
    assert batch["series"].shape == (3, 3, 2, 4, 4)
    assert batch["series"][:, :, 0, 0, 0].tolist() == [[1, 0, 0], [2, 2, 0], [0, 0, 0]]
    assert "series" not in batch_of([sample(None)])
    with pytest.raises(ValueError, match="series of"):
        batch_of([sample(one), sample(np.ones((1, 5, 4, 4), np.float32))])


def test_full_maps_bring_their_label() -> None:
    full = replace(sample(None), change=np.zeros((SIDE, SIDE), np.uint8))
    assert not batch_of([full])["label"].any()
    assert "label" not in batch_of([sample(None)])


class Many:
    """The same sample, again and again."""

    title, scheme = "many", FUSU

    def __init__(self, one: SemanticPair) -> None:
        self.one = one

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> SemanticPair:
        return self.one


def test_a_series_turns_with_the_images() -> None:
    one = sample(None)
    small = replace(one, series=one.images[None, 0, :, ::2, ::2])
    drawn = TrainingSet(Many(small), AugmentRecipe(), size=None, seed=3)  # type: ignore[arg-type]
    turned = set()
    for i in range(40):
        got = drawn[i]
        red = got["images"][0, 0]
        corners = torch.stack([red[0, 0], red[0, -1], red[-1, 0], red[-1, -1]])
        mine = got["series"][0, 0]
        theirs = torch.stack([mine[0, 0], mine[0, -1], mine[-1, 0], mine[-1, -1]])
        assert corners.argsort().tolist() == theirs.argsort().tolist()
        turned.add(tuple(corners.tolist()))
    assert len(turned) == 8


def test_nothing_is_cut_out_of_images_with_a_series() -> None:
    small = sample(np.ones((1, 2, 4, 4), np.float32))
    assert "series" in TrainingSet(Many(small), AugmentRecipe(), size=SIDE)[0]  # type: ignore[arg-type]
    for size, recipe in ((4, AugmentRecipe()), (16, AugmentRecipe()), (SIDE, AugmentRecipe(area_low=0.5))):
        with pytest.raises(SettingError, match="series"):
            TrainingSet(Many(small), recipe, size=size)[0]  # type: ignore[arg-type]
