"""The loss of binary change, and the training step that every network for change can share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def change_loss(logits: Tensor, label: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy plus soft Dice over the whole batch.

    Dice over the batch rather than the image, since many images have no change at all.

    Args:
        logits: float [B, H, W].
        label: uint8 [B, H, W] of 0, 1, and 255 for pixels that do not count.
        dice_weight: weight of the Dice part.

    Returns:
        A scalar; zero when no pixel counts.
    """
    counts = (label != IGNORE).float()
    target = (label == 1).float()
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=counts, reduction="sum")
    entropy = entropy / counts.sum().clamp(min=1.0)
    probability = torch.sigmoid(logits) * counts
    overlap = (probability * target).sum()
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum() + (target * counts).sum() + 1.0)
    return entropy + dice_weight * dice * (counts.sum() > 0)
