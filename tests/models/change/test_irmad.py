"""IR-MAD does what its paper promises: invariance, a chi-square background, and a better second look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.stats import kstest

from terralapse.data.taizhou import Taizhou
from terralapse.engine.evaluate import score
from terralapse.errors import NoValidDataError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window
from terralapse.models.change import irmad

SIDE = 120


def two_dates(changed: float = 0.1, bands: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated bands, a second date of the same ground with noise, and a block of other ground."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(bands, bands))
    ground, other = (np.einsum("ab,bhw->ahw", mix, rng.normal(size=(bands, SIDE, SIDE))) for _ in range(2))
    images = np.stack([ground, ground]) + 0.1 * rng.normal(size=(2, bands, SIDE, SIDE))
    label = np.zeros((SIDE, SIDE), bool)
    label[: round(SIDE * changed)] = True
    images[1][:, label] = other[:, label] + 6
    return images.astype(np.float32), label


def run(images: np.ndarray, **changes: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """State, Z and probability of a pair."""
    detector = irmad.build(irmad.CARD)
    state = detector.fit(ArrayPair(images).sample()) | changes
    tensor = torch.from_numpy(images.astype(np.float32))[None]
    valid = torch.isfinite(tensor).all(dim=2)
    z = detector.statistic(tensor, state)[0].numpy()
    return state, z, detector.predict(tensor, valid, state)[0].numpy()


def test_gains_and_offsets_of_each_band_change_nothing() -> None:
    images, _ = two_dates()
    gain, offset = np.array([0.3, 2.0, 1.0, 11.0]), np.array([5.0, -3.0, 0.0, 100.0])
    moved = images.copy()
    moved[1] = images[1] * gain[:, None, None] + offset[:, None, None]
    moved[0] = images[0] * gain[::-1, None, None] - offset[:, None, None]
    (_, z, p), (_, other_z, other_p) = run(images), run(moved)
    assert np.allclose(z, other_z, rtol=2e-2, atol=2e-2)
    assert np.abs(p - other_p).max() < 5e-3


def test_any_mixing_of_the_bands_of_one_date_changes_nothing() -> None:
    images, _ = two_dates()
    mixed = images.copy()
    mixed[1] = np.einsum("ab,bhw->ahw", np.random.default_rng(4).normal(size=(4, 4)), images[1])
    assert np.abs(run(images)[2] - run(mixed)[2]).max() < 5e-3


def test_the_first_round_is_canonical_correlation_analysis() -> None:
    images, _ = two_dates(bands=3)
    shift = irmad.first_pixel(ArrayPair(images).sample())
    moments = irmad.weighted_moments(irmad.pixel_blocks(ArrayPair(images).sample(), shift, 1), None)
    flat = images.reshape(6, -1).astype(np.float64)
    assert np.allclose(moments[1], np.cov(flat, bias=True), rtol=1e-9)
    assert np.allclose(moments[0] + shift.ravel(), flat.mean(axis=1))
    found = irmad.canonical_analysis(*moments)
    s = np.cov(flat, bias=True)
    squared = eigh(s[:3, 3:] @ np.linalg.inv(s[3:, 3:]) @ s[3:, :3], s[:3, :3], eigvals_only=True)
    assert found["rho"] == pytest.approx(np.sqrt(squared[::-1]), rel=1e-7)
    assert np.allclose(found["a"].T @ s[:3, :3] @ found["a"], np.eye(3), atol=1e-9)
    mad = found["a"].T @ flat[:3] - found["b"].T @ flat[3:]
    assert np.cov(mad, bias=True) == pytest.approx(np.diag(2 * (1 - found["rho"])), abs=1e-9)


def test_blocks_add_up_to_the_whole() -> None:
    images, _ = two_dates()
    images[0, :, 3:9, 5:50] = np.nan
    pair = ArrayPair(images)
    cut = PairSample(pair, [Window(r, c, 40, 60) for r in (0, 40, 80) for c in (0, 60)], 1.0)
    detector = irmad.build(irmad.CARD)
    whole, parts = detector.fit(pair.sample()), detector.fit(cut)
    assert whole["rho"] == pytest.approx(parts["rho"], rel=1e-9)
    assert whole["cut"] == pytest.approx(parts["cut"], rel=1e-6)


def test_reweighting_settles_on_the_ground_that_stayed() -> None:
    images, label = two_dates(changed=0.3)
    state, _, probability = run(images)
    assert state["settled"]
    assert state["rounds"] > 2
    found = probability > 0.5
    assert found[label].mean() > 0.99
    assert found[~label].mean() < 0.02
    # The correlations are those of the unchanged part, not of the mixture.
    untouched, _, _ = run(images[:, :, 40:])
    assert state["rho"] == pytest.approx(untouched["rho"], abs=0.02)
    once = irmad.canonical_analysis(
        *irmad.weighted_moments([images.reshape(2, 4, -1).astype(np.float64)], None)
    )
    assert once["rho"].max() < min(state["rho"])


def test_where_nothing_changed_z_is_chi_square() -> None:
    images, _ = two_dates(changed=0.0)
    state, z, probability = run(images)
    assert state["degrees"] == 4
    # The weights trim the tails, so variances come out low by one factor: the shape is chi-square.
    shape = z / np.median(z) * 3.3567
    assert kstest(shape.ravel()[::20], "chi2", (4,)).statistic < 0.05
    assert (probability > 0.5).mean() < 0.012
    p = irmad.build(irmad.CARD).no_change_probability(torch.from_numpy(images)[None], state)
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1
    order = np.argsort(z.ravel())
    assert (np.diff(p[0].numpy().ravel()[order]) <= 1e-6).all()


def test_copies_of_bands_carry_no_degrees_of_freedom() -> None:
    images, _ = two_dates()
    copies = np.concatenate([images, 2 * images[:, :2] + 1, np.full_like(images[:, :1], 7)], axis=1)
    state, _, probability = run(copies)
    plain, _, expected = run(images)
    assert state["degrees"] == plain["degrees"] == 4
    assert np.abs(probability - expected).max() < 0.02


def test_large_offsets_do_not_eat_the_digits() -> None:
    images, _ = two_dates()
    detector = irmad.build(irmad.CARD)
    near = detector.fit(ArrayPair(images * 64).sample())
    far = detector.fit(ArrayPair(np.float32(2**20) + np.float32(64) * images).sample())
    assert far["rho"] == pytest.approx(near["rho"], abs=1e-3)


def test_a_handful_of_pixels_is_refused() -> None:
    with pytest.raises(NoValidDataError, match="fewer valid pixels"):
        irmad.build(irmad.CARD).fit(ArrayPair(np.zeros((2, 4, 3, 3))).sample())


def test_taizhou(shared_data: Path) -> None:
    """A set on which the literature reports F1 of 0.9 and more for this family."""
    report = score("ir-mad", Taizhou(shared_data / "cd_landsat_tm"), block=50)
    assert report.scores.f1 > 0.93
    assert report.scores.kappa > 0.91
