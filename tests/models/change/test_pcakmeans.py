"""PCA + k-means: the convolution is the projection of the paper, and the clusters are what they seem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from terralapse.data.taizhou import Taizhou
from terralapse.engine.evaluate import score
from terralapse.grid.pair import ArrayPair
from terralapse.models.change import pcakmeans as p


def dates(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = np.stack([rng.normal(0, 1, (2, 60, 70))] * 2) + 0.2 * rng.normal(size=(2, 2, 60, 70))
    images[1, :, 20:40, 20:45] += 4
    return images.astype(np.float32)


def fitted(images: np.ndarray, **options: float) -> tuple[p.PCAKMeans, dict, torch.Tensor, torch.Tensor]:
    detector = p.PCAKMeans(**options)  # type: ignore[arg-type]
    state = detector.fit(ArrayPair(images).sample())
    tensor = torch.from_numpy(images)[None]
    return detector, state, tensor, torch.isfinite(tensor).all(dim=2)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_the_convolution_is_the_projection_of_each_neighbourhood(side: int) -> None:
    _, state, tensor, valid = fitted(dates(), block=side)
    known = valid.all(dim=1)
    magnitude = p.difference_image(tensor, known, state)
    features = p.describe(magnitude, known, state)[0].numpy()
    half = side // 2
    around = magnitude[0, 30 - half : 31 + half, 33 - half : 34 + half].numpy().ravel()
    by_hand = np.array(state["filters"]) @ (around - state["mean"])
    assert features[:, 30, 33] == pytest.approx(by_hand, abs=1e-4)


def test_filters_are_orthonormal_and_hold_their_energy() -> None:
    _, state, tensor, valid = fitted(dates())
    filters = np.array(state["filters"])
    assert filters @ filters.T == pytest.approx(np.eye(len(filters)), abs=1e-9)
    assert (filters.sum(axis=1) >= 0).all()
    known = valid.all(dim=1)
    cells = p.blocks(p.difference_image(tensor, known, state) - state["mean"], known, 5).double().numpy()
    assert cells.shape == (12 * 14, 25)
    centred = cells - cells.mean(axis=0)
    kept = ((centred @ filters.T) ** 2).sum() / (centred**2).sum()
    fewer = ((centred @ filters[:-1].T) ** 2).sum() / (centred**2).sum()
    assert kept >= p.ENERGY > fewer


def test_a_changed_field_is_one_cluster() -> None:
    detector, state, tensor, valid = fitted(dates())
    found = detector.predict(tensor, valid, state)[0].numpy() > 0.5
    assert found[22:38, 22:43].all()
    away = np.ones((60, 70), bool)
    away[18:42, 18:47] = False
    assert found[away].mean() == 0
    unchanged, changed = np.array(state["centres"])
    assert np.abs(changed).sum() > np.abs(unchanged).sum()


def test_k_means_finds_separate_clouds_and_names_the_larger_difference_changed() -> None:
    rng = np.random.default_rng(0)
    features = np.r_[rng.normal(0, 1, (900, 2)), rng.normal(9, 1, (100, 2))]
    difference = np.r_[rng.uniform(0, 1, 900), rng.uniform(5, 6, 100)]
    centres = p.two_means(features, difference)
    assert centres is not None
    assert centres[0] == pytest.approx([0, 0], abs=0.2)
    assert centres[1] == pytest.approx([9, 9], abs=0.4)
    assert p.two_means(features, np.ones(1000)) is None


def test_missing_pixels_count_as_average() -> None:
    images = dates()
    images[0, 0, 5, 5] = np.nan
    _, state, tensor, valid = fitted(images)
    known = valid.all(dim=1)
    features = p.describe(p.difference_image(tensor, known, state), known, state)
    assert bool(torch.isfinite(features).all())


def test_an_even_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no middle"):
        p.PCAKMeans(block=4)


def test_taizhou(shared_data: Path) -> None:
    report = score("pca-kmeans", Taizhou(shared_data / "cd_landsat_tm"))
    assert report.scores.f1 > 0.9
