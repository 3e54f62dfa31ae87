"""Position tables of another size."""

from __future__ import annotations

import pytest
import torch

from terralapse.layers.position import resize_position


def test_the_same_grid_is_the_same_table() -> None:
    table = torch.randn(1, 16, 3)
    assert resize_position(table, 4, 4) is table


def test_rows_stay_rows() -> None:
    """A table that counts its rows, magnified: still the same along a row, and rising down the column."""
    table = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    grid = resize_position(table, 8, 6).view(8, 6)
    assert torch.allclose(grid, grid[:, :1].expand(8, 6), atol=1e-5)
    assert (grid[:, 0].diff() > 0).all()
    assert float(grid.mean()) == pytest.approx(1.5, abs=1e-5)


def test_a_table_that_is_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="not of a square grid"):
        resize_position(torch.zeros(1, 12, 3), 4, 4)
