"""Detectors with known answers and a small data set on disk, for tests of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from terralapse import registry
from terralapse.cards import Card, DateOrder, Inputs, Status, Task
from terralapse.grid.pair import PairSample
from terralapse.tasks.change import ChangeDetector

RISE = 80  # grey values by which a changed place lights up


class Level(ChangeDetector):
    """Change where the mean of the bands differs by more than half of `RISE`; exchanging the dates changes
    nothing."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def fit(self, sample: PairSample) -> dict[str, Any]:
        return {}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        return (images[:, 1] - images[:, 0]).mean(dim=1).abs().div(RISE).clamp(0, 1).nan_to_num()


class Rise(Level):
    """As `Level`, for what became brighter: the order of the dates counts."""

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        return (images[:, 1] - images[:, 0]).mean(dim=1).div(RISE).clamp(0, 1).nan_to_num()


class Never(Level):
    """No change anywhere."""

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        return torch.zeros_like(images[:, 0, 0])


class Timid(Level):
    """A network that is right, and never surer than 0.3: its card's threshold finds nothing."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.network = nn.Conv2d(3, 4, 1)

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        self.network(images[:, 0].nan_to_num())
        return super().predict(images, valid, state) * 0.3


class Infrared(Level):
    """Needs a band that the data do not have."""


def card(name: str, **fields: Any) -> Card:
    order = DateOrder.ORDERED if name == "rise" else DateOrder.SYMMETRIC
    options = {"classes": "binary-change", "date_order": order, **fields}
    return Card(f"known/{name}", name, Task.CHANGE, Status.RUNS, seed=False, **options)


BUILT: dict[str, tuple[Card, type[ChangeDetector]]] = {
    "known/level": (card("level"), Level),
    "known/rise": (card("rise"), Rise),
    "known/never": (card("never"), Never),
    "known/timid": (card("timid"), Timid),
    "known/infrared": (card("infrared", inputs=Inputs(bands=("nir",))), Infrared),
    "known/mamba": (card("mamba", classes="second-mamba"), Level),
    "known/scannet": (card("scannet", classes="second-scannet"), Level),
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the detectors for one test."""
    for slug, (of, kind) in BUILT.items():
        monkeypatch.setitem(registry._CARDS, slug, of)
        monkeypatch.setitem(registry._BUILDERS, slug, lambda c, kind=kind, **_: kind(c))


def squares(root: Path, split: str, number: int = 4, size: int = 48) -> None:
    """Pairs in the layout of LEVIR-CD: a square of 10 + 2 i pixels lights up in image i."""
    rng = np.random.default_rng(len(split))
    for i in range(number):
        before = rng.integers(60, 70, (size, size, 3)).astype(np.uint8)
        after, label = before.copy(), np.zeros((size, size), np.uint8)
        side = slice(8, 18 + 2 * i)
        after[side, side] += RISE
        label[side, side] = 255
        for folder, pixels in (("A", before), ("B", after), ("label", label)):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / folder / f"{split}{i}.png")
