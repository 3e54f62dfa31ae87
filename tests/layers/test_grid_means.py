"""Means over a grid, in torch and in an exported graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from terralapse.layers.grid_means import GridMeans


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cells", [1, 3, 6])
def test_a_graph_for_any_size_gives_what_torch_gives(cells: int) -> None:
    sides = {2: torch.export.Dim("h", min=1), 3: torch.export.Dim("w", min=1)}
    module = torch.export.export(GridMeans(cells), (normal(1, 2, 9, 11),), dynamic_shapes=(sides,)).module()
    for height, width in ((9, 11), (4, 17), (12, 6), (1, 5)):
        x = normal(1, 2, height, width)
        torch.testing.assert_close(module(x), F.adaptive_avg_pool2d(x, cells))
