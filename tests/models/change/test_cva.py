"""Change vector analysis: lengths, directions and the cut between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from terralapse.data.taizhou import Taizhou
from terralapse.engine.evaluate import score
from terralapse.grid.pair import ArrayPair
from terralapse.models.change import cva


def dates(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ground = rng.normal(0, 1, (3, 80, 80))
    images = np.stack([ground, ground]) + 0.1 * rng.normal(size=(2, 3, 80, 80))
    images[1, 0, 10:30, 10:30] += 3.0  # the first band rises
    images[1, 1:, 50:70, 50:70] -= 3.0  # the others fall
    return images.astype(np.float32)


def test_the_change_vector_is_in_units_of_noise() -> None:
    images = dates()
    state = cva.build(cva.CARD).fit(ArrayPair(images).sample())
    vector = cva.change_vector(torch.from_numpy(images)[None], state)[0].numpy()
    still = np.ones((80, 80), bool)
    still[10:30, 10:30] = still[50:70, 50:70] = False
    assert vector[:, still].std(axis=1) == pytest.approx(np.ones(3), abs=0.12)
    assert vector[0, 10:30, 10:30].mean() > 10
    assert vector[1:, 50:70, 50:70].mean() < -10


def test_both_changes_are_found_and_told_apart_by_their_direction() -> None:
    images = dates()
    detector = cva.build(cva.CARD)
    state = detector.fit(ArrayPair(images).sample())
    tensor, valid = torch.from_numpy(images)[None], torch.ones(1, 2, 80, 80, dtype=torch.bool)
    found = detector.predict(tensor, valid, state)[0].numpy() > 0.5
    truth = np.zeros((80, 80), bool)
    truth[10:30, 10:30] = truth[50:70, 50:70] = True
    assert found[truth].mean() > 0.99
    assert found[~truth].mean() < 0.02
    assert state["rule"] == "kittler-illingworth"
    direction = detector.direction(tensor, state)[0]
    assert torch.allclose(direction.norm(dim=0), torch.ones(80, 80), atol=1e-4)
    assert float(direction[0, 10:30, 10:30].mean()) > 0.95
    assert float(direction[1:, 50:70, 50:70].mean()) < -0.6
    nothing = {"centre": [[0.0] * 3] * 2, "scale": [[1.0] * 3] * 2, "noise": [1.0] * 3}
    assert float(detector.direction(tensor[:, [0, 0]], nothing).abs().max()) == 0


def test_one_loud_band_does_not_win() -> None:
    """A band in other units counts no more than the rest."""
    images, loud = dates(), dates()
    loud[:, 2] = loud[:, 2] * 1e4 + 300
    probability = []
    for pair in (images, loud):
        detector = cva.build(cva.CARD)
        state = detector.fit(ArrayPair(pair).sample())
        tensor = torch.from_numpy(pair)[None]
        probability.append(detector.predict(tensor, torch.isfinite(tensor).all(dim=2), state))
    assert torch.allclose(*probability, atol=2e-3)


def test_taizhou(shared_data: Path) -> None:
    report = score("cva", Taizhou(shared_data / "cd_landsat_tm"))
    assert report.scores.f1 > 0.93
