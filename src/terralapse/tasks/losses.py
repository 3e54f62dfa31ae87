"""Losses on class maps that published networks were trained with.

All take logits [B, K, H, W] and labels [B, H, W] in which `ignore` marks the pixels that do not count; they
compute in float32 and are zero, with a gradient of zero, where no pixel counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE


def cross_entropy(logits: Tensor, label: Tensor, ignore: int = IGNORE) -> Tensor:
    """The mean of -log p(label) over the pixels that count."""
    label = label.long()
    total = F.cross_entropy(logits.float(), label, ignore_index=ignore, reduction="sum")
    return total / (label != ignore).sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, label: Tensor, ignore: int = IGNORE) -> Tensor:
    """The Lovász extension of 1 - IoU, mean over the classes that occur in the labels of the batch.

    The pixels of all images are one set. Berman et al. 2018, "The Lovász-Softmax loss", eq. 8 and 9 and
    algorithm 1, exact (sorted), for all classes at once.
    """
    counted = label != ignore
    truth = F.one_hot(label[counted].long(), logits.shape[1]).float().t()  # [K, n]
    probability = logits.float().softmax(dim=1).permute(1, 0, 2, 3)[:, counted]
    errors, order = (truth - probability).abs().sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    members = truth.sum(dim=1, keepdim=True)
    intersection = members - truth.cumsum(dim=1)
    union = members + (1.0 - truth).cumsum(dim=1)
    jaccard = 1.0 - intersection / union
    steps = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
    present = (members > 0).float().squeeze(1)
    return ((errors * steps).sum(dim=1) * present).sum() / present.sum().clamp(min=1)


def similarity(before: Tensor, after: Tensor, unchanged: Tensor) -> Tensor:
    """Squared difference of the class probabilities of both dates where nothing changed, as a mean over all
    values [B, K, H, W], those of other pixels counting as zero.

    `unchanged` bool [B, H, W]. Chen et al. 2024, ChangeMamba, as its code has it.
    """
    apart = before.float().softmax(dim=1) - after.float().softmax(dim=1)
    return (apart.square() * unchanged[:, None]).mean()
