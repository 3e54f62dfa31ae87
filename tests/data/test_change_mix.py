import numpy as np
import pytest
import torch

from terralapse.data.change_mix import ChangeMix, Pools
from terralapse.data.change_pairs import IGNORE, Masked, Pair
from terralapse.errors import SettingError

KINDS = ["real", "unrelated", "remove", "destroy", "revisit"]


def pools():
    rng = np.random.default_rng(0)
    label = np.zeros((128, 128), np.uint8)
    label[30:60, 30:60] = 1
    real = [Pair(rng.integers(0, 256, (2, 3, 128, 128)).astype(np.uint8), x, 2.5) for x in (label, 0 * label)]
    objects = np.zeros((256, 256), bool)
    objects[40:90, 40:90] = objects[150:200, 100:220] = True
    masked = [
        Masked(rng.integers(0, 256, (3, 256, 256)).astype(np.uint8), np.roll(objects, 30 * i, axis=0), 0.5)
        for i in range(2)
    ]
    revisits = [[m.image for m in masked]]
    plain = [Masked(rng.integers(0, 256, (3, 600, 600)).astype(np.uint8), np.zeros((600, 600), bool), 0.2)]
    return Pools(real, masked, revisits, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_samples_of_the_contract(kind):
    mix = ChangeMix(pools(), {kind: 1.0}, size=64)
    changed = 0
    for index in range(12):
        images, label = mix[index]
        assert images.shape == (2, 3, 64, 64)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 255
        assert set(label.unique().tolist()) <= {0, 1, IGNORE}
        changed += int((label == 1).any())
    assert changed >= 1


def test_a_sample_depends_on_its_number_and_seed_only():
    shares = dict.fromkeys(KINDS, 1.0)
    one, two = (ChangeMix(pools(), shares, size=48, seed=3) for _ in range(2))
    [one[i] for i in range(4)]  # what was drawn before does not matter
    assert all(torch.equal(a, b) for a, b in zip(one[9], two[9], strict=True))
    assert not torch.equal(one[9][0], one[10][0])
    assert not torch.equal(one[9][0], ChangeMix(pools(), shares, size=48, seed=4)[9][0])


def test_crops_are_drawn_towards_change():
    def share(on_change):
        mix = ChangeMix(pools(), {"real": 1.0}, size=32, on_change=on_change, paste=0.0, shift=0.0)
        return np.mean([bool((mix[i][1] == 1).any()) for i in range(60)])

    assert share(1.0) > share(0.0) + 0.15


def test_unknown_kind_is_named():
    with pytest.raises(SettingError, match="magic"):
        ChangeMix(pools(), {"magic": 1.0}, size=32)


def test_untouched_samples_keep_their_values():
    mix = ChangeMix(pools(), {"real": 1.0}, size=64, paste=0.0, untouched=1.0)
    whole = [bool((mix[i][0][0] == mix[i][0][0].round()).all()) for i in range(20)]
    assert 0.2 < np.mean(whole) < 0.8  # those of the native grid; the others are interpolated
