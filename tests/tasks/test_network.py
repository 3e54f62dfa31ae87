"""What stands between physical units and a network that sees whole tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terralapse import registry
from terralapse.grid.pair import ArrayPair
from terralapse.layers.padding import pad_to_multiple
from terralapse.sensors import Unit
from terralapse.tasks.network import NetworkDetector

BANDS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def detector() -> NetworkDetector:
    torch.manual_seed(0)
    return registry.build("changemamba/bcd-nano", untrained=True)


def dates(top: float = 255.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, top, (2, 3, 40, 52)).astype(np.float32)


def pair(unit: Unit = Unit.RGB255, top: float = 255.0) -> ArrayPair:
    return ArrayPair(dates(top), bands=BANDS, unit=unit, gsd=2.0)


def predicted(detector: NetworkDetector, images: torch.Tensor) -> torch.Tensor:
    state = detector.fit(pair().sample())
    return detector.predict(images, torch.isfinite(images).all(dim=2), state)


def test_the_void_around_a_scene_changes_nothing(detector: NetworkDetector) -> None:
    """A scan would otherwise run through it, and the edge of every scene would look unlike training."""
    images = torch.from_numpy(dates())[None]
    framed = torch.full((1, 2, 3, 96, 96), float("nan"))
    framed[..., 20:60, 13:65] = images
    alone = predicted(detector, images)
    assert torch.equal(predicted(detector, framed)[:, 20:60, 13:65], alone)
    assert float(alone.std()) > 0


def test_nothing_usable_is_no_change(detector: NetworkDetector) -> None:
    nothing = torch.full((2, 2, 3, 32, 32), float("nan"))
    assert torch.equal(predicted(detector, nothing), torch.zeros(2, 32, 32))


def test_one_missing_pixel_leaves_the_others_numbers(detector: NetworkDetector) -> None:
    images = torch.from_numpy(dates())[None].clone()
    images[0, 1, 0, 7, 9] = float("nan")
    assert torch.isfinite(predicted(detector, images)).all()


def test_other_units_are_stretched_to_those_of_training(detector: NetworkDetector) -> None:
    raw, raw_images = pair(Unit.REFLECTANCE, 0.4), dates(0.4)
    state = detector.fit(raw.sample())
    low, high = np.percentile(raw_images.swapaxes(0, 1).reshape(3, -1), (2, 98), axis=1)
    assert np.allclose(state["stretch"]["low"], low)
    assert np.allclose(state["stretch"]["high"], high)
    normal = detector.normalise(torch.from_numpy(raw_images)[None], None, state)
    middle = torch.tensor((low + high) / 2, dtype=torch.float32).view(3, 1, 1).expand(1, 2, 3, 1, 1)
    assert torch.allclose(
        detector.normalise(middle, None, state)[0, 0, 0], torch.tensor((127.5 - 123.675) / 58.395), atol=1e-4
    )
    assert torch.isfinite(normal).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 64), (32, 33)])
def test_padding_repeats_the_edge(height: int, width: int) -> None:
    x = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    padded = pad_to_multiple(x, 32)
    assert padded.shape[2] % 32 == padded.shape[3] % 32 == 0
    assert torch.equal(padded[..., :height, :width], x)
    assert (padded[..., height:, width:] == x[0, 0, -1, -1]).all()
