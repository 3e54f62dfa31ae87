"""Segmentation: one class for each pixel of one image."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class SegmentationOutput:
    """`logits` float [B, K, H, W] at the size of the input; `auxiliary` the logits of heads that only
    training uses, of any size."""

    logits: Tensor
    auxiliary: list[Tensor] = field(default_factory=list)

    def probability(self, temperature: float = 1.0) -> Tensor:
        """Probabilities [B, K, H, W] that sum to one over the classes."""
        return (self.logits.float() / temperature).softmax(dim=1)

    def map(self) -> Tensor:
        """Class ids int64 [B, H, W]."""
        return self.logits.argmax(dim=1)
