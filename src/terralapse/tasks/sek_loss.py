"""A differentiable stand-in for the separated kappa (SeK), the score of semantic change (Mamba-FCS, 2025).

The score multiplies the kappa of the classes inside of change by the exponential of their overlap. The loss
takes both from soft predictions: a soft confusion matrix for kappa, a weighted soft IoU for the overlap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE

# The published loss object keeps 1e-7 for the first call and overwrites it with 1e-6 on the way.
_FIRST, _LATER = 1e-7, 1e-6


def sek_loss(
    before_logits: Tensor,
    after_logits: Tensor,
    before: Tensor,
    after: Tensor,
    changed: Tensor,
    *,
    faithful: bool = False,
    first_call: bool = False,
) -> Tensor:
    """-log(kappa exp(1.5 iou)) - 0.5 log(iou), at least 0, over the changed pixels of both dates.

    kappa is the mean over dates of that of the soft confusion matrix without class 0; iou is the mean over
    dates of the soft IoU of the classes, weighted by 1 / log(pixels + 1).

    Two faults of the published loss are mended unless it is `faithful`: a kappa below zero (usual before
    training) has no logarithm and gives NaN, here it counts as the smallest positive number; a class without
    a pixel takes nearly all of the weight with an IoU of 0, here it has none.

    Args:
        before_logits, after_logits: [B, K, H, W], class 0 being "unchanged".
        before, after: integers [B, H, W] of classes 1..K-1 where `changed` is 1.
        changed: integers [B, H, W]; 0 is unchanged, and `IGNORE` is left out.
        faithful: the numbers of the published loss, NaN included.
        first_call: with the small constants of its first call (1e-7, and 1e-6 in the last logarithm) in
            place of those of all later calls (1e-6).

    Returns:
        A float32 scalar; 0 without a gradient where no pixel has changed.
    """
    eps = _FIRST if first_call else _LATER
    dates = [
        _one_date(logits, label, changed, eps, faithful)
        for logits, label in ((before_logits, before), (after_logits, after))
    ]
    counted = [d for d in dates if d is not None]
    if not counted:
        return before_logits.new_zeros((), dtype=torch.float32)
    kappa = torch.stack([k for k, _ in counted]).mean()
    iou = torch.stack([i for _, i in counted]).mean()
    if not faithful:
        kappa = kappa.clamp_min(eps)
    product = kappa * (1.5 * iou).exp()
    return ((-(product + eps).log()) - 0.5 * (iou + _LATER).log()).clamp_min(0)


def _one_date(
    logits: Tensor, label: Tensor, changed: Tensor, eps: float, faithful: bool
) -> tuple[Tensor, Tensor] | None:
    """kappa and weighted IoU of one date; None where nothing is to be counted."""
    inside = (changed != 0) & (changed != IGNORE) & (label != IGNORE)
    if not faithful:
        inside &= label > 0  # changed, and nobody said to what
    if not bool(inside.any()):
        return None
    share = logits.float().softmax(dim=1).movedim(1, -1)[inside]  # [N, K]
    truth = F.one_hot(label[inside].long(), logits.shape[1]).to(share.dtype)
    table = (share.T @ truth)[1:, 1:]
    total = table.sum() + eps
    agreed = table.diagonal().sum() / total
    chance = (table.sum(dim=0) * table.sum(dim=1)).sum() / total**2
    kappa = (agreed - chance) / (1 - chance + eps)
    share, truth = share[:, 1:], truth[:, 1:]
    common = (share * truth).sum(dim=0)
    pixels = truth.sum(dim=0)
    iou = common / (share.sum(dim=0) + pixels - common + eps)
    weight = 1 / (pixels + (1 + eps)).log()
    if not faithful:
        weight = weight * (pixels > 0)
    return kappa, (weight / weight.sum() * iou).sum()
