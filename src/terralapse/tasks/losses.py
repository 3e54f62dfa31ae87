"""Losses on class maps that published networks were trained with.

All take logits [B, K, H, W] and labels [B, H, W] in which `ignore` marks the pixels that do not count; they
compute in float32 and are zero, with a gradient of zero, where no pixel counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE


def cross_entropy(logits: Tensor, label: Tensor, ignore: int = IGNORE, *, over_all: bool = False) -> Tensor:
    """The mean of -log p(label) over the pixels that count; `over_all` divides by the number of all, as
    OpenMMLab does, so that ignored pixels count as zero."""
    label = label.long()
    total = F.cross_entropy(logits.float(), label, ignore_index=ignore, reduction="sum")
    return total / (label.numel() if over_all else (label != ignore).sum().clamp(min=1))


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


# --- sums of them, as papers weigh them ------------------------------------------------------------------
def change_losses(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Of MambaBCD (Chen et al. 2024, arXiv:2404.03425), with its parts. Label [B, H, W] of 0, 1, 255."""
    entropy, lovasz = cross_entropy(logits, label), lovasz_softmax(logits, label)
    return {"total": entropy + 0.75 * lovasz, "cross_entropy": entropy, "lovasz": lovasz}


def semantic_change_losses(
    change: Tensor, before: Tensor, after: Tensor, label: Tensor, first: Tensor, second: Tensor
) -> dict[str, Tensor]:
    """Of MambaSCD, with its parts.

    Args:
        change, before, after: logits.
        label: change [B, H, W] of 0, 1, 255.
        first, second: classes [B, H, W], 0 where a date has none: these pixels do not count for the classes,
            and those of the first date should look alike at both dates.
    """
    parts = {"ce_change": cross_entropy(change, label), "lovasz_change": lovasz_softmax(change, label)}
    for name, logits, classes in (("t1", before, first), ("t2", after, second)):
        classes = classes.masked_fill(classes == 0, IGNORE)
        parts[f"ce_{name}"] = cross_entropy(logits, classes)
        parts[f"lovasz_{name}"] = lovasz_softmax(logits, classes)
    parts["similarity"] = similarity(before, after, first == 0)
    entropy = parts["ce_t1"] + parts["ce_t2"] + 0.5 * parts["similarity"]
    lovasz = parts["lovasz_change"] + 0.5 * (parts["lovasz_t1"] + parts["lovasz_t2"])
    return {"total": parts["ce_change"] + 0.5 * entropy + 0.75 * lovasz, **parts}


def damage_losses(building: Tensor, damage: Tensor, standing: Tensor, grade: Tensor) -> dict[str, Tensor]:
    """Of MambaBDA, with its parts. Labels: `standing` of 0, 1, 255; `grade` of 0..4, 255, of which 0 does
    not count."""
    grade = grade.masked_fill(grade == 0, IGNORE)
    parts = {
        "ce_building": cross_entropy(building, standing),
        "lovasz_building": lovasz_softmax(building, standing),
        "ce_damage": cross_entropy(damage, grade),
        "lovasz_damage": lovasz_softmax(damage, grade),
    }
    total = parts["ce_building"] + parts["ce_damage"]
    return {"total": total + 0.5 * parts["lovasz_building"] + 0.75 * parts["lovasz_damage"], **parts}
