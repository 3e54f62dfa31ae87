"""Confusion matrices on the device, and the scores of `terralapse.tasks.metrics` as torchmetrics classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from terralapse.data.pairs import IGNORE
from terralapse.tasks.metrics import (
    Counts,
    binary_scores,
    macro_scores,
    segmentation_scores,
    semantic_scores,
)


def confusion_counts(label: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes] of integer tensors of one shape: rows label, columns prediction.

    Raises:
        ValueError: a value outside of 0..classes-1.
    """
    joint = torch.stack([label.long(), prediction.long()])
    if joint.numel() and not bool(((joint >= 0) & (joint < classes)).all()):
        raise ValueError(f"the label or the prediction has values outside of 0..{classes - 1}")
    return torch.bincount(joint[0] * classes + joint[1], minlength=classes**2).view(classes, classes)


class ConfusionMetric(Metric):
    """One int64 matrix, rows label and columns prediction, summed over batches and processes.

    `update(prediction, label)` takes integer tensors of one shape; `compute` returns the matrix.
    """

    full_state_update = False
    matrix: Tensor

    def __init__(self, classes: int, ignore: int | None = IGNORE, **options: Any) -> None:
        super().__init__(**options)
        self.classes, self.ignore = classes, ignore
        self.add_state("matrix", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Counts a batch.

        Raises:
            ValueError: the shapes differ, or a value outside of 0..classes-1 is to be counted.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"the label is {tuple(label.shape)}, the prediction {tuple(prediction.shape)}")
        counted = torch.ones_like(label, dtype=torch.bool) if self.ignore is None else label != self.ignore
        self.matrix += confusion_counts(label[counted], prediction[counted], self.classes)

    def counts(self) -> Counts:
        """The matrix as numpy."""
        return self.matrix.cpu().numpy()

    def compute(self) -> Any:
        """The matrix so far."""
        return self.matrix


class BinaryChangeMetric(ConfusionMetric):
    """`BinaryScores` of 0/1 maps as a dictionary."""

    def __init__(self, ignore: int | None = IGNORE, **options: Any) -> None:
        super().__init__(2, ignore, **options)

    def compute(self) -> dict[str, float]:
        """Scores over everything counted so far."""
        return binary_scores(self.counts()).as_dict()


class SemanticChangeMetric(ConfusionMetric):
    """`SemanticScores` as a dictionary. `update` takes maps of one date (`per-date`: call it for each date)
    or from-to maps made by `from_to` (`from-to`)."""

    def __init__(
        self, protocol: Literal["per-date", "from-to"], semantic_classes: int = 6, **options: Any
    ) -> None:
        classes = semantic_classes + 1 if protocol == "per-date" else semantic_classes**2 + 1
        super().__init__(classes, **options)
        self.protocol = protocol

    def compute(self) -> dict[str, float]:
        """Scores over everything counted so far."""
        return semantic_scores(self.counts()).as_dict()


class SegmentationMetric(ConfusionMetric):
    """`SegmentationScores` of class maps as a dictionary; `exclude` as in `segmentation_scores`."""

    def __init__(
        self, classes: int, ignore: int | None = IGNORE, exclude: Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(classes, ignore, **options)
        self.exclude = tuple(exclude)

    def compute(self) -> dict[str, Any]:
        """Scores over everything counted so far."""
        return segmentation_scores(self.counts(), self.exclude).as_dict()


class ClassificationMetric(ConfusionMetric):
    """`MacroScores` of class ids [B] as a dictionary."""

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(classes, None, **options)

    def compute(self) -> dict[str, Any]:
        """Scores over everything counted so far."""
        return macro_scores(self.counts()).as_dict()
