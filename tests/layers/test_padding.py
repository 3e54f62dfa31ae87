"""Padding to a multiple and cutting back, in torch and in an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terralapse.layers.padding import cut_to, pad_to_multiple


class There(nn.Module):
    """Pads to a multiple of four."""

    def forward(self, x: Tensor) -> Tensor:
        return pad_to_multiple(x, 4)


class ThereAndBack(nn.Module):
    """What is padded is gone again, and what was there is tripled."""

    def forward(self, x: Tensor) -> Tensor:
        padded = 3 * pad_to_multiple(x, 4)
        return cut_to(padded, x.shape[-2], x.shape[-1])


def normal(height: int, width: int) -> Tensor:
    return torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0))


def test_the_last_row_and_column_are_repeated() -> None:
    x = normal(3, 9)
    found = pad_to_multiple(x, 4)
    assert found.shape == (1, 2, 4, 12)
    assert torch.equal(found[..., :3, :9], x)
    assert torch.equal(found[..., 3, :9], x[..., 2, :])
    assert torch.equal(found[..., :3, 11], x[..., 8])
    assert pad_to_multiple(normal(4, 8), 4).shape == (1, 2, 4, 8)


def test_a_graph_pads_as_far_as_its_image_needs() -> None:
    sides = {2: torch.export.Dim("h", min=1), 3: torch.export.Dim("w", min=1)}
    there, back = (
        torch.export.export(m, (normal(6, 9),), dynamic_shapes=(sides,)).module()
        for m in (There(), ThereAndBack())
    )
    for height, width in ((6, 9), (8, 12), (1, 1), (5, 4)):
        x = normal(height, width)
        assert torch.equal(there(x), pad_to_multiple(x, 4))
        assert torch.equal(back(x), 3 * x)
