from __future__ import annotations

import numpy as np
import pytest

from terralapse.data.views import cut_box, scaled_crop, strong_view


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_crop_keeps_images_and_maps_together() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[20:44, 20:44] = 1
    images = np.stack([label * 200.0, label * 100.0])[:, None].astype(np.float32)
    for seed in range(8):
        found, maps = scaled_crop(images, {"label": label}, 48, rng(seed))
        assert found.shape == (2, 1, 48, 48)
        inside = maps["label"] != 255
        assert np.abs((found[0, 0] > 100).astype(int) - maps["label"])[inside].mean() < 0.04
        assert np.allclose(found[0], 2 * found[1], atol=1e-3)


def test_beyond_a_small_image_nothing_is_known() -> None:
    found, maps = scaled_crop(
        np.ones((2, 3, 20, 30), np.float32), {"label": np.ones((20, 30), np.uint8)}, 48, rng()
    )
    known = maps["label"] == 1
    assert (maps["label"][~known] == 255).all()
    assert (found[:, :, ~known] == 0).all()
    assert np.allclose(found[:, :, known], 1)
    assert 16 * 24 <= known.sum() <= 24 * 36


def test_the_strong_view_differs_by_date_and_moves_nothing() -> None:
    image = rng().uniform(0, 255, (3, 32, 32)).astype(np.float32)
    image[:, 8:24, 8:24] += 400
    pair = np.stack([image, image]).clip(0, 255)
    changed = 0
    for seed in range(6):
        found = strong_view(pair, rng(seed), colours=True)
        assert found.shape == pair.shape
        assert found.min() >= 0
        assert found.max() <= 255
        changed += not np.array_equal(found[0], found[1])
        inner, outer = found[0][:, 12:20, 12:20].mean(), found[0][:, :4].mean()
        assert inner > outer
    assert changed >= 4


def test_bands_of_any_number_get_another_light() -> None:
    image = rng().uniform(0, 1, (2, 5, 16, 16)).astype(np.float32)
    found = np.stack([strong_view(image, rng(s), colours=False) for s in range(4)])
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert not np.array_equal(found[0], found[1])


def test_a_box_has_the_area_and_aspect_that_it_should() -> None:
    areas, empty = [], 0
    for seed in range(200):
        box = cut_box(64, rng(seed))
        if not box.any():
            empty += 1
            continue
        rows, cols = box.any(axis=1).sum(), box.any(axis=0).sum()
        assert box.sum() == rows * cols
        assert 0.2 < cols / rows < 5
        areas.append(box.mean())
    assert 70 < empty < 130
    assert min(areas) > 0.01
    assert max(areas) <= 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_draw_gives_the_same_view(seed: int) -> None:
    image = rng(5).uniform(0, 255, (2, 3, 24, 24)).astype(np.float32)
    first, second = (strong_view(image, rng(seed), colours=True) for _ in range(2))
    assert np.array_equal(first, second)
