"""The Haar wavelet on maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.layers.wavelet import haar, inverse_haar


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(2, 2), (6, 10)])
def test_there_and_back(size: tuple[int, int]) -> None:
    x = normal(2, 3, *size)
    bands = haar(x)
    assert bands.shape == (2, 4, 3, size[0] // 2, size[1] // 2)
    assert (inverse_haar(bands) - x).abs().max() < 1e-6
    assert (haar(inverse_haar(bands)) - bands).abs().max() < 1e-6


def test_energy_stays() -> None:
    x = normal(1, 5, 8, 12).double()
    assert haar(x).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-12)


def test_a_constant_is_in_the_low_band_alone() -> None:
    bands = haar(torch.full((1, 2, 4, 6), 3.0))
    assert (bands[:, 0] == 6.0).all()
    assert (bands[:, 1:] == 0.0).all()


def test_an_offset_changes_the_low_band_alone() -> None:
    x = normal(1, 2, 8, 8).double()
    apart = haar(x + 0.7) - haar(x)
    assert torch.allclose(apart[:, 0], torch.tensor(1.4, dtype=torch.float64))
    assert apart[:, 1:].abs().max() < 1e-12


def test_which_band_is_which() -> None:
    """Stripes along rows are in LH, stripes along columns in HL, a checkerboard in HH; the filters are
    (1, 1) / sqrt 2 and (1, -1) / sqrt 2."""
    row, column = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, -1.0]])
    patterns = row.expand(2, 2), column.expand(2, 2), row * column
    for number, pattern in enumerate(patterns, start=1):
        found = haar(pattern[None, None])[0, :, 0, 0, 0]
        assert found.tolist() == [2.0 if i == number else 0.0 for i in range(4)]


def test_odd_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="odd side"):
        haar(torch.zeros(1, 1, 4, 5))
