"""The baseline is as plain as it says, with the weakness that it says it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terralapse.grid.pair import ArrayPair
from terralapse.models.change import difference


def run(images: np.ndarray) -> tuple[dict, np.ndarray]:
    detector = difference.build(difference.CARD)
    state = detector.fit(ArrayPair(images).sample())
    tensor = torch.from_numpy(images)[None]
    return state, detector.predict(tensor, torch.isfinite(tensor).all(dim=2), state)[0].numpy()


def dates() -> np.ndarray:
    rng = np.random.default_rng(0)
    images = np.stack([rng.uniform(50, 200, (3, 64, 64))] * 2) + rng.normal(0, 2, (2, 3, 64, 64))
    images[1, :, 10:30, 10:30] += 50
    return images.astype(np.float32)


def test_it_is_the_mean_absolute_difference_over_otsu() -> None:
    images = dates()
    state, probability = run(images)
    expected = np.abs(images[1] - images[0]).mean(axis=0) > state["cut"]
    assert np.array_equal(probability > 0.5, expected)
    assert expected[10:30, 10:30].all()
    assert expected.sum() == 400


def test_light_fools_it_as_its_card_says() -> None:
    images = dates()
    images[1] *= 0.6
    _, probability = run(images)
    away = np.ones((64, 64), bool)
    away[10:30, 10:30] = False
    assert (probability[away] > 0.5).mean() > 0.2
    assert any("light" in limit for limit in difference.CARD.limits)


def test_between_the_group_means_the_odds_go_from_e_minus_2_to_e_2() -> None:
    state, _ = run(dates())
    assert state["slope"] * 50 == pytest.approx(4.0, rel=0.1)
