"""Heads on one map: a plain one, and one that sees the whole image in averages (Zhao et al. 2017, PSPNet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terralapse.layers.decoding import up_to
from terralapse.layers.grid_means import grid_means

GRIDS = (1, 2, 3, 6)


def conv3x3(inputs: int, outputs: int, separable: bool = False) -> nn.Module:
    """A 3 x 3 convolution without bias; `separable` into one for each channel, a norm, and a 1 x 1."""
    if not separable:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, outputs, 1, bias=False),
    )


def _classifier(inputs: int, hidden: int, classes: int, separable: bool) -> list[nn.Module]:
    return [
        conv3x3(inputs, hidden, separable),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(hidden, classes, 1),
    ]


class FCNHead(nn.Module):
    """Logits at the size of the map, through a quarter of its width."""

    def __init__(self, dim: int, classes: int, separable: bool = False) -> None:
        super().__init__()
        self.head = nn.Sequential(*_classifier(dim, dim // 4, classes, separable))

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the logits."""
        layer = self.head[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class PyramidPooling(nn.Module):
    """A map and its averages over grids of 1, 2, 3 and 6 cells a side, each in a quarter of the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for number in range(1, len(GRIDS) + 1):
            conv = nn.Conv2d(dim, dim // 4, 1, bias=False)
            self.add_module(f"conv{number}", nn.Sequential(conv, nn.BatchNorm2d(dim // 4), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] to [B, dim + 4 (dim // 4), H, W]."""
        found = [x]
        for number, cells in enumerate(GRIDS, start=1):
            mean = self.get_submodule(f"conv{number}")(grid_means(x, cells))
            found.append(up_to(mean, x.shape))
        return torch.cat(found, dim=1)


class PSPHead(nn.Module):
    """Logits at the size of the map, from it and its pyramid of averages. Training needs two images or more
    in a batch, since the coarsest average has one value for each."""

    def __init__(self, dim: int, classes: int, separable: bool = False) -> None:
        super().__init__()
        wide = dim + len(GRIDS) * (dim // 4)
        self.conv5 = nn.Sequential(PyramidPooling(dim), *_classifier(wide, dim // 4, classes, separable))

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the logits."""
        layer = self.conv5[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5(x)
