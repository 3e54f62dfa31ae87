"""Soft Dice of change, and over several classes (Milletari, Navab and Ahmadi 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE


def binary_dice(share: Tensor, label: Tensor) -> Tensor:
    """One minus the Dice of change over the batch, (2 sum p y + 1) / (sum p + sum y + 1).

    Over the batch rather than the image, since many images have no change at all.

    Args:
        share: p in 0..1, [B, H, W].
        label: [B, H, W] of 0, 1, and `IGNORE` for pixels that do not count.

    Returns:
        A float32 scalar in 0..1; 0, with a gradient of zero, where every pixel is ignored.
    """
    share, truth = share.float() * (label != IGNORE), (label == 1).float()
    return 1.0 - (2.0 * (share * truth).sum() + 1.0) / (share.sum() + truth.sum() + 1.0)


def dice_loss(
    logits: Tensor, label: Tensor, ignore: int = IGNORE, smooth: float = 1.0, *, over_all: bool = False
) -> Tensor:
    """One minus the mean over classes of (2 sum p y + s) / (sum p + sum y + s), over the batch as a whole.

    Only classes that the labels of the batch hold are in the mean: a class that is not there would be
    scored by the smoothing alone. `over_all` takes the mean over all classes nevertheless, as some papers do.

    Args:
        logits: [B, K, H, W].
        label: integers [B, H, W] of 0..K-1, or `ignore` where nothing is to be learned.
        smooth: s, in pixels.

    Returns:
        A float32 scalar in 0..1; 0, with a gradient of zero, where every pixel is ignored.
    """
    known = (label != ignore).flatten()
    share = logits.float().softmax(dim=1).movedim(1, -1).flatten(0, -2)
    truth = F.one_hot(torch.where(label == ignore, 0, label).long().flatten(), logits.shape[1])
    weight = known.to(share.dtype)[:, None]
    share, truth = share * weight, truth * weight
    there = truth.sum(dim=0)
    dice = (2 * (share * truth).sum(dim=0) + smooth) / (share.sum(dim=0) + there + smooth)
    present = torch.ones_like(dice) if over_all else (there > 0).to(dice.dtype)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)
