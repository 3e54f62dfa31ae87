"""Whatever is drawn, images and labels stay on each other: the images here are made of their labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terralapse.data.augment_pairs import AugmentRecipe, augment
from terralapse.data.pairs import IGNORE
from terralapse.errors import SettingError

NOTHING = AugmentRecipe(hflip=0, vflip=0, turn=0)


def encoded(seed: int, height: int, width: int, blocks: int = 1) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two dates whose band 0 is map `before` (date 0) or `after` (date 1), plus one, so that 0 is padding;
    bands 1 and 2 are place."""
    rng = np.random.default_rng(seed)
    maps = {
        k: rng.integers(0, 6, (-(-height // blocks), -(-width // blocks)), dtype=np.uint8)
        .repeat(blocks, 0)
        .repeat(blocks, 1)[:height, :width]
        for k in ("before", "after")
    }
    row, col = np.mgrid[:height, :width] + 1.0
    images = np.stack([np.stack([m + 1.0, row, col]) for m in maps.values()]).astype(np.float32)
    return images, maps


recipes = st.builds(
    AugmentRecipe,
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    vflip=st.sampled_from([0.0, 0.5, 1.0]),
    turn=st.sampled_from([0.0, 0.75, 1.0]),
    swap=st.sampled_from([0.0, 0.5, 1.0]),
    crop_largest=st.sampled_from([0.3, 0.75, 1.0]),
)


@settings(max_examples=60)
@given(recipes, st.integers(0, 10**6), st.integers(3, 24), st.integers(3, 24), st.integers(1, 30))
def test_labels_stay_on_their_pixels(recipe: AugmentRecipe, seed: int, h: int, w: int, size: int) -> None:
    images, maps = encoded(seed, h, w)
    moved, labels = augment(images, maps, recipe, np.random.default_rng(seed), size)
    assert moved.shape == (2, 3, size, size)
    assert moved.dtype == np.float32
    assert list(labels) == ["before", "after"]
    for date, name in enumerate(labels):
        inside = labels[name] != IGNORE
        assert labels[name].dtype == np.uint8
        assert np.array_equal(inside, moved[date, 0] > 0)
        assert np.array_equal(moved[date, 0][inside], labels[name][inside] + 1.0)
    assert np.array_equal(moved[0, 1:], moved[1, 1:]), "both dates move alike"
    assert (labels["before"] != IGNORE).sum() == min(h, size) * min(w, size)


@given(recipes, st.integers(0, 10**6))
def test_the_random_state_decides_everything(recipe: AugmentRecipe, seed: int) -> None:
    images, maps = encoded(1, 16, 12)
    kept = images.copy()
    one, two = (augment(images, maps, recipe, np.random.default_rng(seed), 8) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1]["after"], two[1]["after"])
    assert np.array_equal(images, kept), "what was given is not changed"


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.6]), st.integers(8, 64))
def test_resizing_keeps_labels_near_their_pixels(seed: int, low: float, size: int) -> None:
    images, maps = encoded(seed, 48, 48, blocks=12)
    recipe = AugmentRecipe(area_low=low, area_high=0.9, turn=0.75)
    moved, labels = augment(images, maps, recipe, np.random.default_rng(seed), size)
    assert moved.shape == (2, 3, size, size)
    assert moved[:, 0].min() >= 1, "bicubic never leaves the values of the image"
    assert moved[:, 0].max() <= 6
    agree = np.abs(moved[0, 0] - 1 - labels["before"]) < 0.5
    assert agree.mean() > 0.6  # edges of blocks are smooth in the image and sharp in the label
    assert set(np.unique(labels["before"])) <= set(np.unique(maps["before"]))


def test_nothing_is_nothing() -> None:
    images, maps = encoded(0, 9, 7)
    moved, labels = augment(images, maps, NOTHING, np.random.default_rng(0))
    assert np.array_equal(moved, images)
    assert np.array_equal(labels["before"], maps["before"])


def drawn(recipe: AugmentRecipe, number: int = 400) -> list[np.ndarray]:
    images, maps = encoded(0, 4, 4)
    rng = np.random.default_rng(3)
    return [augment(images, maps, recipe, rng)[0] for _ in range(number)]


def test_a_sure_turn_is_never_upright_and_an_even_one_is_a_quarter() -> None:
    start = encoded(0, 4, 4)[0]
    directions = [np.rot90(start, k, axes=(-2, -1)) for k in range(4)]
    for turn, expected in ((1.0, [0, 1 / 3, 1 / 3, 1 / 3]), (0.75, [1 / 4] * 4)):
        seen = drawn(AugmentRecipe(hflip=0, vflip=0, turn=turn))
        shares = [sum(np.array_equal(s, d) for s in seen) / len(seen) for d in directions]
        assert shares == pytest.approx(expected, abs=0.08)
        assert sum(shares) == 1


def test_swap_reverses_dates_and_their_maps_only() -> None:
    images, maps = encoded(0, 5, 5)
    maps["label"] = (maps["before"] != maps["after"]).astype(np.uint8)
    recipe = AugmentRecipe(hflip=0, vflip=0, turn=0, swap=1)
    moved, labels = augment(images, maps, recipe, np.random.default_rng(0))
    assert np.array_equal(moved, images[::-1])
    assert np.array_equal(labels["before"], maps["after"])
    assert np.array_equal(labels["after"], maps["before"])
    assert np.array_equal(labels["label"], maps["label"])


def test_crops_look_for_a_second_class() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[:, :8] = 1
    images = np.zeros((2, 1, 64, 64), np.float32)
    plain = AugmentRecipe(hflip=0, vflip=0, turn=0)
    picky = AugmentRecipe(hflip=0, vflip=0, turn=0, crop_largest=0.75, crop_tries=10)
    found = []
    for recipe in (plain, picky):
        rng = np.random.default_rng(0)
        crops = [augment(images, {"label": label}, recipe, rng, 16)[1]["label"] for _ in range(200)]
        found.append(np.mean([0.25 < c.mean() < 0.75 for c in crops]))
    # 4 of the 49 columns give a share between; of 10 tries one does with 1 - (1 - 3/49)^10 and more
    assert found[0] < 0.15
    assert found[1] > 0.35


def test_light_is_drawn_for_each_date() -> None:
    images = np.random.default_rng(0).uniform(50, 200, (2, 3, 16, 16)).astype(np.float32)
    recipe = AugmentRecipe(hflip=0, vflip=0, turn=0, light=1, brightness=10, contrast=0.2)
    moved, _ = augment(images, {}, recipe, np.random.default_rng(0))
    shifts = moved.mean(axis=(1, 2, 3)) - images.mean(axis=(1, 2, 3))
    gains = moved.std(axis=(1, 2, 3)) / images.std(axis=(1, 2, 3))
    assert (np.abs(shifts) <= 10.001).all()
    assert (np.abs(gains - 1) <= 0.2001).all()
    assert abs(shifts[0] - shifts[1]) > 0.1
    assert abs(gains[0] - gains[1]) > 0.01
    assert moved.dtype == np.float32


def test_saturation_keeps_grey_grey() -> None:
    grey = np.full((1, 3, 4, 4), 100, np.float32)
    recipe = AugmentRecipe(hflip=0, vflip=0, turn=0, light=1, saturation=0.5)
    assert augment(grey, {}, recipe, np.random.default_rng(0))[0] == pytest.approx(grey)


@pytest.mark.parametrize(
    "wrong",
    [
        {"area_low": 0.0},
        {"area_low": 0.9, "area_high": 0.5},
        {"crop_tries": 0},
        {"aspect": 0.5},
        {"hflip": 2},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        AugmentRecipe(**wrong)  # type: ignore[arg-type]
