"""Training one class for one image: label smoothing for hard and soft labels, and batches that are mixed.

Source: Szegedy et al. 2016 (smoothing), Zhang et al. 2018 (Mixup), Yun et al. 2019 (CutMix).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def as_shares(label: Tensor, classes: int) -> Tensor:
    """Float32 [B, K] that sum to one, from class ids int [B] or from shares, which stay what they are.

    Raises:
        ValueError: the shape fits neither, or an id is outside of 0..K-1.
    """
    if label.is_floating_point() and label.ndim == 2 and label.shape[1] == classes:
        return label.float()
    if label.is_floating_point() or label.ndim != 1:
        raise ValueError(f"a label is int [B] or float [B, {classes}], not {label.dtype} {list(label.shape)}")
    return F.one_hot(label.long(), classes).float()


def smoothed_cross_entropy(logits: Tensor, label: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean over the batch of the cross-entropy with shares * (1 - smoothing) + smoothing / K.

    Args:
        logits: float [B, K].
        label: int [B] of class ids, or float [B, K] of shares (of a mixed batch).
        smoothing: in 0..1; the mode that is called `original`: the right class, too, gets its part of it.

    Returns:
        A scalar in float32.
    """
    classes = logits.shape[1]
    shares = as_shares(label, classes) * (1 - smoothing) + smoothing / classes
    return -(shares * logits.float().log_softmax(dim=1)).sum(dim=1).mean()


def mix_batch(
    images: Tensor,
    label: Tensor,
    classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch mixed with a permutation of itself, by Mixup or by CutMix with equal chances.

    Args:
        images: float [B, ..., H, W].
        label: int [B] or float [B, K].
        classes: K.
        mixup, cutmix: the parameter of the Beta distribution that the share of the own image is drawn from;
            0 leaves that way of mixing out, and both 0 return the batch as it is.
        generator: on the CPU; torch's own when None.

    Returns:
        Images, and shares float32 [B, K]. The share of CutMix is that of the pixels that really stayed.
    """
    shares = as_shares(label, classes)
    ways = [name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not ways:
        return images, shares
    way = ways[int(torch.randint(len(ways), (), generator=generator))]
    kept = _beta(mixup if way == "mixup" else cutmix, generator)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    if way == "mixup":
        mixed = kept * images + (1 - kept) * images[partner]
    else:
        mixed, kept = _pasted(images, images[partner], kept, generator)
    return mixed, kept * shares + (1 - kept) * shares[partner]


def _beta(alpha: float, generator: torch.Generator | None) -> float:
    """One draw from Beta(alpha, alpha)."""
    # The distributions of torch take no generator, so it seeds one of numpy.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _pasted(
    images: Tensor, others: Tensor, kept: float, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """A rectangle of 1 - kept of the image, of its aspect, around a random pixel, taken from the others."""
    height, width = images.shape[-2:]
    half = [int(side * (1 - kept) ** 0.5) // 2 for side in (height, width)]
    y, x = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
    top, bottom = max(0, y - half[0]), min(height, y + half[0])
    left, right = max(0, x - half[1]), min(width, x + half[1])
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
