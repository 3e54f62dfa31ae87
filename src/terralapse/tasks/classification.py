"""Scene classification: one class for one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ClassificationOutput:
    """`logits` float [B, K]; `embedding` float [B, D], what the last layer saw, where the system has one."""

    logits: Tensor
    embedding: Tensor | None = None

    def probability(self, temperature: float = 1.0) -> Tensor:
        """Probabilities [B, K] that sum to one."""
        return (self.logits.float() / temperature).softmax(dim=1)
