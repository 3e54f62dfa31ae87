"""Building damage: where buildings stood before, and how badly each place of them was hit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terralapse.tasks.change import ChangeOutput

GRADES = ("none", "minor", "major", "destroyed")  # values 1..4; 0 is background


@dataclass
class DamageOutput:
    """`building` float [B, 2, H, W]: logits of ground and building before the event. `damage` float
    [B, 5, H, W]: logits of background and the four grades."""

    building: Tensor
    damage: Tensor

    def change(self) -> ChangeOutput:
        """Log-odds of a damaged building: probability of a building times that of a grade above `none`
        among the four."""
        standing = torch.log_softmax(self.building.float(), dim=1)[:, 1]
        grades = torch.log_softmax(self.damage[:, 1:].float(), dim=1)
        both = standing + torch.logsumexp(grades[:, 1:], dim=1)  # log of the probability
        both = both.clamp(max=-1e-6)
        return ChangeOutput(both - torch.log(-torch.expm1(both)))

    def class_probabilities(self) -> Tensor:
        """float [B, 6, H, W]: of ground and building, which sum to one, and of the four grades, which do too;
        see `terralapse.tasks.class_maps.DamageRule`."""
        parts = (self.building, self.damage[:, 1:])
        return torch.cat([x.float().softmax(dim=1) for x in parts], dim=1)

    def maps(self) -> tuple[Tensor, Tensor]:
        """Building int64 [B, H, W] of 0 and 1, and damage of 1..4, for every pixel (as the scorers want it:
        they mask it with the building)."""
        return self.building.argmax(dim=1), self.damage[:, 1:].argmax(dim=1) + 1
