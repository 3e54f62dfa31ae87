import math

import numpy as np
import pytest
import torch

from terralapse.data.augment import Geometry, Radiometry, recolour, warp
from terralapse.data.change_pairs import IGNORE, Pair


def rng(seed=0):
    return np.random.default_rng(seed)


def marked(side=128):
    """Both dates and the label show the same block, so that moving them together is visible."""
    label = np.zeros((side, side), np.uint8)
    label[40:70, 50:90] = 1
    images = np.repeat((label * 200)[None, None], 3, axis=1).repeat(2, axis=0)
    return Pair(np.ascontiguousarray(images), label, 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_label_moves_with_the_image(seed):
    geometry = Geometry(96, zoom=(0.7, 1.6), shift=0.0, turn=0.0, native=0.2)
    images, label = warp(marked(), (64, 64), geometry, rng(seed))
    assert images.shape == (2, 3, 96, 96)
    counts = label != IGNORE
    agree = ((images[0, 0] > 100) == (label == 1))[counts]
    assert agree.float().mean() > 0.985
    assert torch.allclose(images[0], images[1])


def test_identity_is_exact():
    geometry = Geometry(128, zoom=(1.0, 1.0), shift=0.0, turn=0.0, native=1.0)
    pair = marked()
    for seed in range(6):
        images, label = warp(pair, (64, 64), geometry, rng(seed))
        turned = [np.rot90(pair.label, k) for k in range(4)]
        every = [*turned, *(np.fliplr(t) for t in turned)]
        assert any(np.array_equal(label, t) for t in every)
        assert torch.equal(images[0, 0] > 100, label == 1)
        assert ((images < 1e-3) | (images > 200 - 1e-3)).all()  # nothing was interpolated


def test_second_date_is_shifted_by_no_more_than_asked():
    ramp = np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    pair = Pair(np.stack([ramp, ramp])[:, None].repeat(3, 1), np.zeros((128, 128), np.uint8), 1.0)
    geometry = Geometry(64, zoom=(1.0, 1.0), shift=2.0, turn=0.0, native=1.0)
    shifts = []
    for seed in range(40):
        images, _ = warp(pair, (64, 64), geometry, rng(seed))
        shifts.append(float((images[1] - images[0])[:, 8:-8, 8:-8].abs().mean()))
    assert max(shifts) <= 2.0 + 1e-3
    assert np.mean(shifts) > 0.2
    assert min(shifts) < 1e-3


def test_beyond_the_edge_nothing_counts():
    images, label = warp(marked(64), (0, 0), Geometry(64, native=1.0, shift=0.0, turn=0.0), rng(3))
    assert abs(float((label == IGNORE).float().mean()) - 0.75) < 0.03
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_dates_are_recoloured_independently_within_range(channels):
    images = torch.full((2, channels, 48, 48), 120.0)
    images[..., 20:30, 20:30] = 180
    for seed in range(10):
        out = recolour(images.clone(), Radiometry(1.0), rng(seed))
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 255
        assert (out[0] - out[1]).abs().mean() > 0.5


def test_strength_zero_is_nearly_nothing():
    images = torch.from_numpy(rng().uniform(40, 200, (2, 4, 32, 32)).astype(np.float32))
    out = recolour(images.clone(), Radiometry(0.0, jpeg=0.0, blur=0.0, swap=0.0), rng(1))
    assert (out - images).abs().max() < 1e-3


def test_dates_are_swapped_as_often_as_asked():
    images = torch.zeros(2, 4, 8, 8)
    images[1] = 200
    swapped = [
        bool(recolour(images.clone(), Radiometry(0.0, 0.0, 0.0, swap=0.5), rng(s))[0].mean() > 100)
        for s in range(200)
    ]
    assert abs(np.mean(swapped) - 0.5) < 4 * math.sqrt(0.25 / 200)


def test_repeatable():
    images = torch.rand(2, 3, 32, 32) * 255
    one, two = (recolour(images.clone(), Radiometry(), rng(7)) for _ in range(2))
    assert torch.equal(one, two)
