from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terralapse.data.catalogue import open_dataset
from terralapse.data.rule_map import RuleSource, rule_map, rule_map_of
from terralapse.data.training import batch_of
from terralapse.errors import BandError, SettingError
from terralapse.grid.map_before import PairWithMap
from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Window
from terralapse.labels import RULES
from terralapse.sensors import Unit

COLOURS = {
    "vegetation": [(60, 110, 50), (40, 70, 30)],
    "dark": [(20, 25, 30), (40, 70, 110)],
    "bright": [(220, 220, 225), (250, 240, 235)],
    "soil": [(150, 110, 80), (190, 150, 110)],
    "other": [(120, 120, 120), (100, 100, 110)],
}


def test_colours_of_each_class() -> None:
    for c in RULES.classes:
        for colour in COLOURS[c.name]:
            image = np.array(colour, np.float32)[:, None, None]
            assert rule_map(image)[0, 0] == c.value, (c.name, colour)


def test_a_pixel_depends_on_nothing_around_it() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (3, 20, 30)).astype(np.float32)
    whole = rule_map(image)
    assert set(np.unique(whole)) == {0, 1, 2, 3, 4}
    assert np.array_equal(rule_map(image[:, 5:9, 7:8]), whole[5:9, 7:8])


def test_no_data_is_unknown() -> None:
    image = np.full((3, 2, 2), 100, np.float32)
    image[1, 0, 0] = np.nan
    assert rule_map(image).tolist() == [[255, 4], [4, 4]]


def test_bands_are_found_by_name_and_reflectance_is_scaled() -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (3, 6, 6)).astype(np.float32)
    shuffled = np.stack([rgb[2], np.zeros((6, 6), np.float32), rgb[0], rgb[1]])
    names = ("blue", "nir", "red", "green")
    assert np.array_equal(rule_map_of(shuffled, names, Unit.RGB255, "x"), rule_map(rgb))
    again = rule_map_of(shuffled * (0.3 / 255), names, Unit.REFLECTANCE, "x")
    assert (again == rule_map(rgb)).mean() > 0.95
    with pytest.raises(BandError, match="no band red"):
        rule_map_of(rgb, ("nir", "green", "blue"), Unit.RGB255, "scene.tif")
    with pytest.raises(BandError, match=r"scene\.tif.*unknown brightness"):
        rule_map_of(rgb, ("red", "green", "blue"), Unit.RAW, "scene.tif")


def test_on_a_pair_it_is_made_from_the_earlier_date() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 24, 30)).astype(np.float32)
    pair = ArrayPair(images, bands=("red", "green", "blue"), unit=Unit.RGB255)
    block = PairWithMap(pair, RuleSource()).read(Window(-2, 4, 20, 40))
    assert np.isfinite(block.images[:, 3]).all()
    assert np.array_equal(block.images[0, 3, 2:, :26], rule_map(images[0])[:18, 4:])
    assert np.array_equal(block.images[0, 3], block.images[1, 3])


def tree(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("A", "B", "label"):
        (root / folder).mkdir(parents=True)
        for name in ("1", "2"):
            shape = (16, 16) if folder == "label" else (16, 16, 3)
            pixels = rng.integers(0, 2 if folder == "label" else 256, shape).astype(np.uint8)
            Image.fromarray(pixels * (255 if folder == "label" else 1)).save(root / folder / f"{name}.png")
    return root


def test_as_an_option_of_a_reader(tmp_path: Path) -> None:
    root = tree(tmp_path)
    found, bare = open_dataset("folder", root, None, map="rules"), open_dataset("folder", root, None)
    assert found.names == bare.names
    assert len(found) == 2
    assert "rules" in found.title
    assert np.array_equal(found[1].map, rule_map(bare[1].images[0]))
    assert batch_of(list(found))["map"].shape == (2, 16, 16)
    held = open_dataset("folder", root, "rest", holdout=0.5, map="rules", gsd=2.0)
    assert all(s.map is not None and s.gsd == 2.0 for s in held)


def test_only_pairs_have_an_earlier_date(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="map: cannot be had"):
        open_dataset("eurosat", tmp_path, None, map="rules")
    with pytest.raises(SettingError, match="map=rules"):
        open_dataset("folder", tmp_path, None, map="guess")
