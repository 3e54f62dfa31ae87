"""The loss of binary change that networks with one logit share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE
from terralapse.tasks.dice import binary_dice


def binary_entropy(logits: Tensor, label: Tensor, changed: float = 1.0) -> Tensor:
    """The mean binary cross-entropy of [B, H, W] over the pixels that count, in which a changed one weighs
    `changed`; zero when no pixel counts."""
    known, truth = (label != IGNORE).float(), (label == 1).float()
    weight = known * (1 + (changed - 1) * truth)
    total = F.binary_cross_entropy_with_logits(logits.float(), truth, weight, reduction="sum")
    return total / known.sum().clamp(min=1)


def change_loss(logits: Tensor, label: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy plus soft Dice over the whole batch.

    Args:
        logits: float [B, H, W].
        label: uint8 [B, H, W] of 0, 1, and 255 for pixels that do not count.
        dice_weight: weight of the Dice part.

    Returns:
        A scalar; zero when no pixel counts.
    """
    return binary_entropy(logits, label) + dice_weight * binary_dice(logits.float().sigmoid(), label)
