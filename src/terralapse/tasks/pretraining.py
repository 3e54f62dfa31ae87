"""Pre-training: an encoder and what it says of an image, before any task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class FeatureOutput:
    """`maps`: float [B, C_i, H_i, W_i] of rising stride; `embedding` float [B, D], one vector an image, for
    retrieval and probes."""

    maps: list[Tensor]
    embedding: Tensor


def region_class_contrast(
    regions: Tensor, classes: Tensor, label: Tensor, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Contrast of regions with learned vectors of their classes, both ways.

    The logits are scale * cosine. The first part asks each region for its class: the mean over regions of
    -log softmax over the classes. The second asks each class that occurs for its regions, several of which
    may be right: the mean over those classes of -log of the SUM, over its regions, of the softmax over all
    regions (Miech et al. 2020, in one direction).

    Args:
        regions: float [R, D]; classes: float [K, D]; label: int64 [R]; scale: multiplies the cosines.

    Returns:
        Two scalars in float32; zero when there are no regions.
    """
    if len(regions) == 0:
        nothing = (regions.sum() + classes.sum()).float() * 0
        return nothing, nothing
    cosine = F.normalize(regions.float(), dim=1) @ F.normalize(classes.float(), dim=1).t()
    logits = scale * cosine  # [R, K]
    to_class = F.cross_entropy(logits, label)
    own = F.one_hot(label, len(classes)).bool()
    among_regions = logits.log_softmax(dim=0).masked_fill(~own, -torch.inf)
    present = own.any(dim=0)
    to_regions = -among_regions[:, present].logsumexp(dim=0).mean()
    return to_class, to_regions
