"""Scores of class maps, against scikit-learn and against what is known without it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from terralapse.tasks.confusion import SegmentationMetric
from terralapse.tasks.metrics import (
    confusion_matrix,
    segmentation_scores,
)


def maps(seed: int, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (3, 17, 13))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, classes, label.shape))
    return label, prediction


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    label, prediction = maps(seed)
    scores = segmentation_scores(confusion_matrix(label, prediction, 6))
    y, p = label.ravel(), prediction.ravel()
    assert scores.iou == pytest.approx(oracle.jaccard_score(y, p, average=None))
    assert scores.f1 == pytest.approx(oracle.f1_score(y, p, average=None))
    assert scores.precision == pytest.approx(oracle.precision_score(y, p, average=None))
    assert scores.recall == pytest.approx(oracle.recall_score(y, p, average=None))
    assert scores.miou == pytest.approx(oracle.jaccard_score(y, p, average="macro"))
    assert scores.mf1 == pytest.approx(oracle.f1_score(y, p, average="macro"))
    assert scores.oa == pytest.approx(oracle.accuracy_score(y, p))
    assert scores.kappa == pytest.approx(oracle.cohen_kappa_score(y, p))


def test_the_five_classes_of_isprs_leave_clutter_out_of_the_means_only() -> None:
    label, prediction = maps(7)
    matrix = confusion_matrix(label, prediction, 6)
    all_six, five = segmentation_scores(matrix), segmentation_scores(matrix, exclude=(5,))
    y, p = label.ravel(), prediction.ravel()
    assert five.mf1 == pytest.approx(oracle.f1_score(y, p, average="macro", labels=range(5)))
    assert five.miou == pytest.approx(oracle.jaccard_score(y, p, average="macro", labels=range(5)))
    assert five.oa == all_six.oa
    assert five.kappa == all_six.kappa
    assert five.iou == all_six.iou


def test_a_class_that_never_occurs_is_no_zero() -> None:
    scores = segmentation_scores(np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]]))
    assert scores.iou[:2] == pytest.approx((6 / 8, 4 / 6))
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((6 / 8 + 4 / 6) / 2)
    missed = segmentation_scores(np.array([[6, 2, 0], [0, 4, 0], [3, 0, 0]]))
    assert missed.recall[2] == 0
    assert math.isnan(missed.precision[2])
    assert missed.f1[2] == 0
    assert missed.mf1 == pytest.approx((2 * 6 / 17 + 2 * 4 / 10 + 0) / 3)


def test_nothing_counted_is_not_a_number() -> None:
    scores = segmentation_scores(np.zeros((2, 2), np.int64))
    assert math.isnan(scores.miou)
    assert math.isnan(scores.oa)


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        segmentation_scores(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 classes"):
        segmentation_scores(np.eye(2), exclude=(2,))


def test_the_metric_sums_batches_and_drops_what_is_ignored() -> None:
    label, prediction = maps(3)
    label[0, :4] = 255
    metric = SegmentationMetric(6, exclude=(5,))
    for a, b in zip(prediction, label, strict=True):
        metric.update(torch.from_numpy(a), torch.from_numpy(b))
    known = label != 255
    expected = segmentation_scores(confusion_matrix(label[known], prediction[known], 6), exclude=(5,))
    assert metric.compute() == expected.as_dict()
