"""The tables of CS2D: permutations with exact inverses, and what each of them visits next."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terralapse.layers.scan import cross_paths, cs2d_paths, diagonal_paths, full_paths


@pytest.mark.parametrize(("height", "width"), [(7, 5), (8, 8), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("table", [cross_paths, diagonal_paths, cs2d_paths, full_paths])
def test_tables_are_permutations_and_their_inverses(table, height: int, width: int) -> None:
    order, inverse = table(height, width)
    values = torch.randn(height * width)
    for there, back in zip(order, inverse, strict=True):
        assert torch.equal(there.sort().values, torch.arange(height * width))
        assert torch.equal(values[there][back], values)


@given(st.integers(1, 9), st.integers(1, 9))
def test_cs2d_walks_along_rows_columns_and_both_diagonals(height: int, width: int) -> None:
    """Between two visits the step is that of the path, unless the path begins its next line."""
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)]
    lines = [height, width, height + width - 1, height + width - 1]
    for order, (down, right), number in zip(cs2d_paths(height, width).order, steps, lines, strict=True):
        y, x = order // width, order % width
        along = (y.diff() == down) & (x.diff() == right)
        assert int((~along).sum()) == number - 1


def test_full_has_the_eight_of_the_others() -> None:
    rows = full_paths(5, 7).order.tolist()
    assert len({tuple(r) for r in rows}) == 8
    assert all(r in rows for r in cs2d_paths(5, 7).order.tolist())
    assert rows[:4] == cross_paths(5, 7).order.tolist()


def test_tables_of_a_network_built_without_memory_are_real() -> None:
    with torch.device("meta"):
        assert cs2d_paths(1, 2).order.device.type == "cpu"
        assert cross_paths(2, 1).inverse.device.type == "cpu"
