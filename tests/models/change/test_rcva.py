"""RCVA forgives a shift of up to its radius, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from terralapse.grid.pair import ArrayPair
from terralapse.models.change import rcva
from terralapse.registry import build


def ground(shift: int = 0, seed: int = 0) -> np.ndarray:
    """Sharp fields of a few colours, the second date moved by `shift` columns, and one new building."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(3, 96, 110)), (0, 2, 2))
    field = np.sign(field) * 10 + rng.normal(0, 0.3, field.shape)
    before = field[:, :, 5:101]
    after = field[:, :, 5 + shift : 101 + shift].copy()
    after[:, 40:56, 40:56] = 60.0
    noise = rng.normal(0, 0.3, (2, 3, 96, 96))
    return (np.stack([before, after]) + noise).astype(np.float32)


def flagged(slug: str, images: np.ndarray) -> np.ndarray:
    detector = build(slug)
    state = detector.fit(ArrayPair(images).sample())
    tensor = torch.from_numpy(images)[None]
    return detector.predict(tensor, torch.isfinite(tensor).all(dim=2), state)[0].numpy() > 0.5


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_shift_within_the_radius_raises_no_alarm(shift: int) -> None:
    found = flagged("rcva", ground(shift))
    away = np.ones((96, 96), bool)
    away[36:60, 36:60] = False
    assert found[44:52, 44:52].all()
    assert found[away].mean() < 0.02


@pytest.mark.parametrize("shift", [1, 2])
def test_the_window_takes_away_what_a_shift_adds(shift: int) -> None:
    images = torch.from_numpy(ground(shift))[None]
    known = torch.ones(1, 96, 96, dtype=torch.bool)
    state = {"centre": [[0.0] * 3] * 2, "scale": [[1.0] * 3] * 2, "noise": [1.0] * 3}
    robust, plain = (
        rcva.build(rcva.CARD, radius=r).squared_distance(images, known, state)[0, 2:34, 2:-2].quantile(0.95)
        for r in (2, 0)
    )
    assert float(plain) > 100 * float(robust)


def test_a_shift_beyond_the_radius_does() -> None:
    far = []
    for shift in (2, 6):
        images = ground(shift)
        detector = rcva.build(rcva.CARD)
        state = {"centre": [[0.0] * 3] * 2, "scale": [[1.0] * 3] * 2, "noise": [1.0] * 3}
        squared = detector.squared_distance(
            torch.from_numpy(images)[None], torch.ones(1, 96, 96, dtype=torch.bool), state
        )[0, 2:34, 2:-2]
        far.append(float((squared > 100).float().mean()))  # half of the step between two colours
    assert far[0] == 0
    assert far[1] > 0.02


def test_with_no_radius_it_is_change_vector_analysis() -> None:
    images = ground(1)
    detector = rcva.build(rcva.CARD, radius=0)
    assert detector.halo == 0
    state = detector.fit(ArrayPair(images).sample())
    other = build("cva").fit(ArrayPair(images).sample())
    assert state["cut"] == pytest.approx(other["cut"], rel=1e-4)


def test_a_missing_neighbour_is_never_the_nearest() -> None:
    images = np.zeros((2, 1, 9, 9), np.float32)
    images[1] = 5.0
    images[1, 0, 4, 5] = 0.0  # the only neighbour that agrees
    detector = rcva.build(rcva.CARD)
    state = {"centre": [[0.0], [0.0]], "scale": [[1.0], [1.0]], "noise": [1.0]}
    known = torch.ones(1, 9, 9, dtype=torch.bool)
    tensor = torch.from_numpy(images)[None]
    assert float(detector.squared_distance(tensor, known, state)[0, 4, 4]) == 0
    tensor[0, 1, 0, 4, 5] = torch.nan
    known[0, 4, 5] = False
    d = detector.squared_distance(tensor, known, state)
    assert float(d[0, 4, 4]) == 25
    assert bool(torch.isfinite(d).all())


def test_both_directions_are_tried() -> None:
    """A thin bright line that widens is explained by its neighbours on the later date only."""
    images = np.zeros((2, 1, 9, 9), np.float32)
    images[0, 0, :, 4] = 9.0
    images[1, 0, :, 3:6] = 9.0
    detector = rcva.build(rcva.CARD)
    state = {"centre": [[0.0], [0.0]], "scale": [[1.0], [1.0]], "noise": [1.0]}
    known = torch.ones(1, 9, 9, dtype=torch.bool)
    assert float(detector.squared_distance(torch.from_numpy(images)[None], known, state).max()) == 0
