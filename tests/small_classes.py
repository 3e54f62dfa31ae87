"""Detectors of classes that are small and have known answers, behind the contract of real ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, Inputs, Normalisation, Status, Task
from terralapse.labels import SCHEMES
from terralapse.sensors import Unit
from terralapse.tasks.damage import DamageOutput
from terralapse.tasks.network import NetworkDetector
from terralapse.tasks.semantic_change import FullMapsOutput, SemanticChangeOutput

Output = SemanticChangeOutput | DamageOutput
GREYS = (40.0, 80.0, 120.0, 160.0, 200.0, 240.0)  # of the classes 1..6 of second-mamba


def class_card(slug: str, task: Task, scheme: str, halo: int, multiple: int) -> Card:
    inputs = Inputs(
        bands=("red", "green", "blue"),
        units=(Unit.RGB255,),
        size_multiple=multiple,
        halo=halo,
        normalisation=Normalisation((120.0,) * 3, (60.0,) * 3),
    )
    return Card(slug, slug, task, Status.RUNS, inputs=inputs, classes=scheme)


class RandomClasses(NetworkDetector):
    """A random 3 x 3 convolution and one of 1 x 1, so that what is masked is as what is padded.

    With `tilewise` what it says depends on the mean of the tile as well, which no halo makes good.
    """

    def __init__(
        self,
        scheme: str = "second-mamba",
        *,
        halo: int = 8,
        exact: bool = False,
        tilewise: float = 0.0,
        multiple: int = 1,
    ) -> None:
        task = Task.DAMAGE if scheme == "xbd-damage" else Task.SEMANTIC_CHANGE
        self.count = len(SCHEMES[scheme].classes)
        layers = nn.Sequential(
            nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2 + 2 * self.count, 1)
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in layers.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        super().__init__(class_card(f"random/{scheme}", task, scheme, halo, multiple), layers.eval())
        self.exact, self.tilewise = exact, tilewise  # type: ignore[misc]

    def forward(self, images: Tensor) -> Output:
        pair = images.flatten(1, 2)
        said = self.network(pair)
        if self.tilewise:
            said = said + self.tilewise * said.mean(dim=(2, 3), keepdim=True)
        first, second = said[:, 2 : 2 + self.count], said[:, 2 + self.count :]
        if self.card.task is Task.DAMAGE:
            return DamageOutput(said[:, :2], first)
        if self.card.classes == "fusu":  # has no logits of "unlabelled"
            return FullMapsOutput(said[:, :2], first[:, 1:], second[:, 1:])
        return SemanticChangeOutput(said[:, :2], first, second)

    def loss(self, output: Any, target: Any) -> dict[str, Tensor]:
        raise NotImplementedError


class ByGrey(NetworkDetector):
    """The class of a pixel is the nearest of `GREYS`, and it changed where that differs."""

    def __init__(self) -> None:
        super().__init__(class_card("grey/scd", Task.SEMANTIC_CHANGE, "second-mamba", 16, 1), nn.Identity())

    def forward(self, images: Tensor) -> SemanticChangeOutput:
        grey = images.mean(dim=2) * 60 + 120  # [B, 2, H, W]
        greys = torch.tensor(GREYS)[:, None, None]
        near = [-((grey[:, t, None] - greys) ** 2) / 200 for t in (0, 1)]
        ids = [x.argmax(dim=1) for x in near]
        moved = torch.where(ids[0] != ids[1], 6.0, -6.0)
        before, after = (F.pad(x, (0, 0, 0, 0, 1, 0), value=50.0) for x in near)  # 0 never counts
        return SemanticChangeOutput(torch.stack([-moved, moved], dim=1), before, after)

    def loss(self, output: Any, target: Any) -> dict[str, Tensor]:
        raise NotImplementedError
