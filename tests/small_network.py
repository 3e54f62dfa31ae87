"""A network for change that is small, exact and quick to export, behind the contract of real ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, Inputs, Normalisation, Status, Stretch, Task
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.network import NetworkDetector

MULTIPLE, HALO = 4, 12


def small_card(stretch: Stretch = Stretch.NONE) -> Card:
    normalisation = Normalisation((120.0, 110.0, 100.0), (60.0, 55.0, 50.0), stretch)
    if stretch is Stretch.SCENE_PERCENTILE:
        normalisation = Normalisation((0.5, 0.4, 0.3), (0.25, 0.3, 0.2), stretch)
    inputs = Inputs(
        bands=("red", "green", "blue"),
        units=(Unit.RGB255,),
        size_multiple=MULTIPLE,
        halo=HALO,
        normalisation=normalisation,
    )
    return Card("small", "small", Task.CHANGE, Status.RUNS, inputs=inputs, temperature=1.3, threshold=0.4)


class _Net(nn.Module):
    """Two strides of two and back; it sees at most ten pixels far."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 1, 1)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)

    def forward(self, pair: Tensor) -> Tensor:
        half = F.relu(self.down(pair))
        quarter = F.relu(self.deep(half))
        half = half + F.interpolate(self.up(quarter), scale_factor=2.0)
        return F.interpolate(self.head(half), scale_factor=2.0)[:, 0]


class SmallDetector(NetworkDetector):
    """`exact` is True: masked pixels are zeros and nothing is cropped."""

    exact = True

    def __init__(self, stretch: Stretch = Stretch.NONE) -> None:
        super().__init__(small_card(stretch), _Net().eval())

    def forward(self, images: Tensor) -> ChangeOutput:
        padded = self.padded(images)
        return ChangeOutput(self.network(padded.flatten(1, 2))[..., : images.shape[-2], : images.shape[-1]])

    def loss(self, output: ChangeOutput, target: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        with torch.inference_mode():
            usable = valid.all(dim=1)
            normal = self.normalise(images[:, :, state["bands"]], usable, state)
            return self.forward(normal).probability(state["temperature"])
