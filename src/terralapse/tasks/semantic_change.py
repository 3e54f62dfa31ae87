"""Semantic change: what each changed place was and what it became."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terralapse.tasks.change import ChangeOutput


@dataclass
class SemanticChangeOutput:
    """`classes` float [B, 2, H, W]: logits of no change and change. `before`, `after` float [B, K, H, W]:
    logits of the classes of either date, class 0 being "unchanged" where the labels of the data set have it.
    """

    classes: Tensor
    before: Tensor
    after: Tensor

    def change(self) -> ChangeOutput:
        """The binary part."""
        return ChangeOutput.of_classes(self.classes)

    def class_probabilities(self) -> Tensor:
        """float [B, 2 (K - 1), H, W]: of the classes 1..K-1 of the earlier date and then of the later one,
        each summing to one; see `terralapse.tasks.class_maps.SemanticRule`."""
        return torch.cat([x[:, 1:].float().softmax(dim=1) for x in (self.before, self.after)], dim=1)

    def maps(self, argmax_over_zero: bool = False) -> tuple[Tensor, Tensor]:
        """Class ids int64 [B, H, W] of both dates, 0 where no change is predicted.

        Inside of predicted change the best of the classes 1..K-1 is taken: class 0 gets no supervision, and
        the from-to protocol has no place for it. `argmax_over_zero` lets 0 win, as the official code of
        Mamba-FCS does.
        """
        first = 0 if argmax_over_zero else 1
        changed = self.classes.argmax(dim=1)
        before, after = (
            (logits[:, first:].argmax(dim=1) + first) * changed for logits in (self.before, self.after)
        )
        return before, after


@dataclass
class FullMapsOutput(SemanticChangeOutput):
    """For labels that say the class of every place at both dates, changed or not.

    `before`, `after` float [B, K, H, W] are the logits of the classes 1..K: there is none for 0, "not
    labelled". `series`, likewise, those that a series of other images gives by itself, for training.
    """

    series: Tensor | None = None

    def class_probabilities(self) -> Tensor:
        """float [B, 2 K, H, W]: of the classes 1..K of both dates."""
        return torch.cat([x.float().softmax(dim=1) for x in (self.before, self.after)], dim=1)

    def full_maps(self) -> tuple[Tensor, Tensor]:
        """Class ids int64 [B, H, W] of 1..K of both dates, everywhere."""
        return self.before.argmax(dim=1) + 1, self.after.argmax(dim=1) + 1

    def maps(self, argmax_over_zero: bool = False) -> tuple[Tensor, Tensor]:
        """Class ids int64 [B, H, W] of both dates, 0 where no change is predicted; 0 has no logits to win
        with, so `argmax_over_zero` changes nothing."""
        changed = self.classes.argmax(dim=1)
        before, after = self.full_maps()
        return before * changed, after * changed


def semantic_target(before: Tensor, after: Tensor, ignore: int = 255) -> Tensor:
    """The binary label [B, H, W] of two maps of classes: 1 where either has a class, `ignore` where either
    is ignored."""
    changed = ((before > 0) | (after > 0)).to(before.dtype)
    return torch.where((before == ignore) | (after == ignore), torch.full_like(before, ignore), changed)
