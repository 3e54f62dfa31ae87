"""The loss of networks that answer with a set: each object is matched to one query, all others say "nothing".

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022,
arXiv:2112.01527, section 3.3, on every pixel (no sampling of points), with the focal cost of matching and the
weights of CDMaskFormer, arXiv:2406.15320. The matching is that of Carion et al. 2020 (DETR): the cheapest
one-to-one assignment. Everything is computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from terralapse.data.pairs import IGNORE

ALPHA, GAMMA = 0.25, 2.0  # of the focal cost (Lin et al. 2017)


@dataclass(frozen=True)
class Weights:
    """Of the parts, in the cost of a match and in the loss alike; `nothing` is that of queries without an
    object among the classes."""

    label: float = 1.0
    mask: float = 10.0
    dice: float = 10.0
    nothing: float = 0.1


@dataclass(frozen=True)
class Objects:
    """The objects of a batch, up to T an image.

    `masks` float [B, T, H, W] in 0..1; `classes` long [B, T] of 1 and more, 0 where an image has fewer
    objects; `counts` float [B, H, W], the share of each pixel that counts.
    """

    masks: Tensor
    classes: Tensor
    counts: Tensor

    @property
    def there(self) -> Tensor:
        """bool [B, T]."""
        return self.classes > 0


def changed_object(label: Tensor, size: tuple[int, int] | None = None) -> Objects:
    """All change of an image as one object of class 1; an image without change has none.

    Args:
        label: [B, H, W] of 0, 1 and 255.
        size: height and width to average to, by whole factors; None for those of the label.
    """
    known = (label != IGNORE).float()
    changed = (label == 1).float()
    if size is not None and size != tuple(label.shape[1:]):
        step = (label.shape[1] // size[0], label.shape[2] // size[1])
        known, changed = (F.avg_pool2d(x[:, None], step)[:, 0] for x in (known, changed))
        changed = changed / known.clamp(min=1e-6)
    there = (label == 1).flatten(1).any(dim=1)
    return Objects(changed[:, None], there.long()[:, None], known)


def set_loss(
    logits: Tensor, masks: Tensor, objects: Objects, weights: Weights = Weights()
) -> dict[str, Tensor]:
    """`total` and its weighted parts `label`, `mask` and `dice`, each a sum over the predictions, which are
    matched one by one.

    The cross-entropy of classes is a weighted mean over all queries of images of which a pixel counts; the
    entropy of a mask is a mean over its pixels, and both losses of masks are means over the objects.

    Args:
        logits: of classes [P, B, Q, K], with 0 for nothing.
        masks: logits [P, B, Q, h, w], enlarged to the size of the objects where they are smaller.
    """
    there = objects.there
    number = max(1, int(there.sum()))
    counted = objects.counts.flatten(1).any(dim=1)
    scale = torch.ones(logits.shape[-1], device=logits.device)
    scale[0] = weights.nothing
    zero = logits.new_zeros((), dtype=torch.float32)
    parts = {"label": zero, "mask": zero, "dice": zero}
    for said, drawn in zip(logits.float(), masks.float(), strict=True):
        matched = match(costs(said, drawn, objects, weights), there)
        images, slots = (matched >= 0).nonzero(as_tuple=True)
        query = matched[images, slots]
        truth, counts = objects.masks[images, slots].float(), objects.counts[images]
        wanted = torch.zeros(said.shape[:2], dtype=torch.long, device=said.device)
        wanted[images, query] = objects.classes[images, slots]
        weight = scale[wanted] * counted[:, None]
        entropy = F.cross_entropy(said.flatten(0, 1), wanted.flatten(), reduction="none").view_as(weight)
        parts["label"] = parts["label"] + (entropy * weight).sum() / weight.sum().clamp(min=1e-6)
        drawn = _enlarged(drawn[images, query], truth.shape[-2:])
        pixels = F.binary_cross_entropy_with_logits(drawn, truth, reduction="none") * counts
        mean = pixels.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1e-6)
        parts["mask"] = parts["mask"] + mean.sum() / number
        inside, size = drawn.sigmoid() * counts, truth * counts
        parts["dice"] = (
            parts["dice"]
            + _dice(
                (inside * truth).flatten(1).sum(dim=1),
                inside.flatten(1).sum(dim=1),
                size.flatten(1).sum(dim=1),
            ).sum()
            / number
        )
    parts = {name: getattr(weights, name) * part for name, part in parts.items()}
    return {"total": parts["label"] + parts["mask"] + parts["dice"], **parts}


@torch.no_grad()
def costs(logits: Tensor, masks: Tensor, objects: Objects, weights: Weights = Weights()) -> Tensor:
    """What it costs to let a query stand for an object, [B, Q, T]: minus the probability of its class, the
    focal loss of its mask as a mean over the pixels, and the Dice loss, each with its weight.

    Args:
        logits: of classes [B, Q, K].
        masks: logits [B, Q, h, w].
    """
    counts = objects.counts.flatten(1)  # [B, N]
    truth = objects.masks.flatten(2).float().transpose(1, 2)  # [B, N, T]
    drawn = _enlarged(masks.float(), objects.masks.shape[-2:]).flatten(2)  # [B, Q, N]
    probability = logits.float().softmax(dim=-1)
    label = -probability.gather(2, objects.classes[:, None].expand(-1, logits.shape[1], -1))
    inside = drawn.sigmoid()
    hit = ALPHA * (1 - inside) ** GAMMA * F.softplus(-drawn) * counts[:, None]
    miss = (1 - ALPHA) * inside**GAMMA * F.softplus(drawn) * counts[:, None]
    pixels = counts.sum(dim=1).clamp(min=1e-6)[:, None, None]
    share = inside * counts[:, None]
    size = (truth * counts[..., None]).sum(dim=1)[:, None]
    with torch.autocast(truth.device.type, enabled=False):
        focal = (hit @ truth + miss @ (1 - truth)) / pixels
        dice = _dice(share @ truth, share.sum(dim=2, keepdim=True), size)
    return weights.label * label + weights.mask * focal + weights.dice * dice


@torch.no_grad()
def match(cost: Tensor, there: Tensor) -> Tensor:
    """The query of each object, long [B, T], that makes the sum of the costs [B, Q, T] of an image least;
    -1 where `there` [B, T] says that no object is, or where there are more objects than queries."""
    found = torch.full(there.shape, -1, dtype=torch.long)
    numbers, present = cost.float().nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu(), there.cpu()
    for image, slots in enumerate(present):
        columns = slots.nonzero()[:, 0]
        if len(columns):
            rows, picked = linear_sum_assignment(numbers[image][:, columns].numpy())
            found[image, columns[picked]] = torch.from_numpy(rows)
    return found.to(cost.device)


def _dice(both: Tensor, inside: Tensor, truth: Tensor) -> Tensor:
    """One minus Dice, with one pixel added above and below."""
    return 1 - (2 * both + 1) / (inside + truth + 1)


def _enlarged(masks: Tensor, size: torch.Size) -> Tensor:
    """Logits [N, Q, h, w] or [N, h, w], bilinear to `size`."""
    if masks.shape[-2:] == size:
        return masks
    planes = masks if masks.ndim == 4 else masks[:, None]
    planes = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    return planes if masks.ndim == 4 else planes[:, 0]
