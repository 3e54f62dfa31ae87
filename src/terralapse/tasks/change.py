"""Binary change between two dates: the contract that every detector of change meets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from terralapse.cards import Card
from terralapse.grid.pair import PairSample
from terralapse.tasks.class_maps import ClassRule


@dataclass
class ChangeOutput:
    """`logits` float [B, H, W]: the log-odds of change, before temperature; any value where not valid.

    `classes` float [B, 2, H, W]: the two logits (no change, change) of a network that has them, of which
    `logits` is the difference; for losses that are defined on both.
    """

    logits: Tensor
    classes: Tensor | None = None

    @classmethod
    def of_classes(cls, classes: Tensor) -> ChangeOutput:
        """From logits of no change and change [B, 2, H, W]; the softmax of the two is the sigmoid of their
        difference."""
        return cls(classes[:, 1] - classes[:, 0], classes)

    def change(self) -> ChangeOutput:
        """Itself; every output of a pair of dates can be asked for its change."""
        return self

    def probability(self, temperature: float = 1.0) -> Tensor:
        """Calibrated probability of change in 0..1."""
        return torch.sigmoid(self.logits.float() / temperature)


class ChangeDetector(ABC):
    """Anything that turns two aligned dates into a probability of change.

    The engine calls `fit` once on a sample of the scene and keeps what it returns in `run.json`, then calls
    `predict` on tiles in any order. `predict` must be local: a pixel depends on nothing farther away than
    `halo` pixels and on the state, so that the result does not depend on the tile plan. A network that sees
    a whole tile at once says `exact = False`: its tiles then overlap and are blended.
    """

    card: Card
    halo: int = 0
    multiple: int = 1  # tile sides are a multiple of this
    exact: bool = True

    @abstractmethod
    def fit(self, sample: PairSample) -> dict[str, Any]:
        """What must be known of the whole scene (stretch, statistics, threshold), as JSON-ready values.

        A state with the key `threshold` sets the threshold unless the user gives one.

        Raises:
            ModelInputError: the pair has bands or dates that this detector cannot take.
        """

    @abstractmethod
    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        """Probability of change.

        Args:
            images: float32 [B, 2, C, H, W] in the pair's unit; NaN where a date is not usable.
            valid: bool [B, 2, H, W].
            state: what `fit` returned.

        Returns:
            float32 [B, H, W] in 0..1; what it says where not valid is not used.
        """

    @property
    def class_maps(self) -> ClassRule | None:
        """How maps of classes come from what `predict_classes` gives; None for a system that knows none."""
        return None

    def predict_classes(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What `predict` gives, bit for bit, and from the same pass the planes of `class_maps`.

        Returns:
            float32 [B, H, W] and [B, planes, H, W], no plane where there are no classes.
        """
        prob = self.predict(images, valid, state)
        return prob, prob.new_zeros((len(prob), 0, *prob.shape[1:]))

    def to(self, device: torch.device | str) -> ChangeDetector:
        """Moves the weights, if there are any."""
        return self
