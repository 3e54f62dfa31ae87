"""Labelled sets hand out what their files hold, in the same order each time, and say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terralapse.data.levir import Levir
from terralapse.data.mshs_bcd import RGB_BANDS, MshsBcd
from terralapse.data.pairs import IGNORE, Labelled
from terralapse.data.taizhou import Taizhou
from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.sensors import Unit


def levir_tree(root: Path, names: tuple[str, ...] = ("b", "a"), size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("A", "B", "label"):
        (root / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            if folder == "label":
                mask = np.zeros((size, size), np.uint8)
                mask[: i + 1] = 255
                Image.fromarray(mask).save(root / folder / f"{name}.png")
            else:
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                pixels[0, 0] = (10, 20, 30 if folder == "A" else 40)
                Image.fromarray(pixels).save(root / folder / f"{name}.png")
    return root


def test_levir_layout(tmp_path: Path) -> None:
    levir = Levir(levir_tree(tmp_path / "test"))
    assert len(levir) == 2
    first, second = levir
    assert (first.name, second.name) == ("a", "b")
    assert first.images.shape == (2, 3, 8, 8)
    assert first.images.dtype == np.float32
    assert first.images[:, :, 0, 0].tolist() == [[10, 20, 30], [10, 20, 40]]
    assert first.label.sum() == 16
    assert set(np.unique(second.label)) == {0, 1}
    assert (first.gsd, first.bands, first.unit) == (0.5, ("red", "green", "blue"), Unit.RGB255)
    assert [p.name for p in levir] == [p.name for p in Levir(tmp_path, split="test")]
    assert Levir(tmp_path, split="test").title == "LEVIR-CD test"


def test_levir_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="A"):
        Levir(tmp_path)
    root = levir_tree(tmp_path / "set")
    (root / "label/b.png").unlink()
    levir = Levir(root)
    assert levir.unlabelled == ["b"]
    assert [p.name for p in levir] == ["a"]
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(root / "label/a.png")
    with pytest.raises(UnreadableFileError, match=r"a\.png"):
        list(Levir(root))
    (root / "B/a.png").unlink()
    with pytest.raises(FileMissingError, match="other date"):
        Levir(root)


def test_the_levir_samples(shared_data: Path) -> None:
    levir = Levir(shared_data / "cd_vhr_samples/levir")
    assert levir.unlabelled == ["test_113_0256"]
    pairs = list(levir)
    assert len(pairs) == len(levir) == 8
    assert all(p.images.shape == (2, 3, 256, 256) and p.label.shape == (256, 256) for p in pairs)
    assert 0 < np.mean([p.label.mean() for p in pairs]) < 0.5


def test_taizhou(shared_data: Path) -> None:
    (pair,) = Taizhou(shared_data / "cd_landsat_tm")
    assert pair.images.shape == (2, 6, 400, 400)
    values, counts = np.unique(pair.label, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: 17163, 1: 4227, IGNORE: 138610}
    # The order of the bands shows in what goes together: visible with visible, infrared with infrared.
    like = np.corrcoef(pair.images[0].reshape(6, -1))
    red, green, nir, swir16, swir22 = (
        pair.bands.index(b) for b in ("red", "green", "nir", "swir16", "swir22")
    )
    assert like[red, green] > 0.9 > like[red, nir]
    assert like[swir16, swir22] > like[nir, red]


def test_taizhou_missing(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"taizhou\.npz"):
        Taizhou(tmp_path)


def test_tiles_of_a_training_set_as_labelled_pairs(shared_data: Path) -> None:
    tiles = MshsBcd(shared_data / "cd_mshs_bcd", "test", "gf1")
    pairs = Labelled(tiles, "test", RGB_BANDS, Unit.RGB255)
    assert len(pairs) == 10
    first, again = next(iter(pairs)), next(iter(pairs))
    assert first.images.dtype == np.float32
    assert np.array_equal(first.images, tiles[0].images)
    assert np.array_equal(first.label, tiles[0].label)
    assert (first.name, first.gsd) == (again.name, 2.5)
