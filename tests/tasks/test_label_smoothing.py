"""Smoothed labels and mixed batches by closed forms, and macro scores by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from terralapse.tasks.confusion import ClassificationMetric
from terralapse.tasks.label_smoothing import as_shares, mix_batch, smoothed_cross_entropy
from terralapse.tasks.metrics import macro_scores


def test_smoothing_closed_form() -> None:
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])  # 1/2, 1/4, 1/4
    expected = -(0.9 + 0.1 / 3) * math.log(0.5) - 2 * 0.1 / 3 * math.log(0.25)
    assert float(smoothed_cross_entropy(logits, torch.tensor([0]))) == pytest.approx(expected)
    shares = torch.tensor([[1.0, 0.0, 0.0]])
    assert float(smoothed_cross_entropy(logits, shares)) == pytest.approx(expected)
    plain = smoothed_cross_entropy(logits, torch.tensor([0]), 0.0)
    assert float(plain) == pytest.approx(math.log(2))


def test_labels_are_ids_or_shares() -> None:
    assert as_shares(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    for wrong in (torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a label is"):
            as_shares(wrong, 3)


@pytest.mark.parametrize("ways", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {}])
def test_the_shares_say_what_is_in_the_image(ways: dict[str, float]) -> None:
    """An image that is its class everywhere, one-hot over the channels: its mean must be its shares."""
    classes = 5
    label = torch.arange(classes)
    images = torch.eye(classes)[:, None, :, None, None].expand(classes, 1, classes, 24, 36)
    seen = set()
    for seed in range(20):
        mixed, shares = mix_batch(
            images, label, classes, generator=torch.Generator().manual_seed(seed), **ways
        )
        assert torch.allclose(mixed.mean(dim=(1, 3, 4)), shares, atol=1e-5)
        assert torch.allclose(shares.sum(dim=1), torch.ones(classes), atol=1e-6)
        seen.add(bool(((mixed == 0) | (mixed == 1)).all()))
    assert images.sum() == classes * 24 * 36
    if not ways:
        assert seen == {True, False}  # both kinds are drawn


def test_no_mixing_is_no_change() -> None:
    images, label = torch.randn(3, 1, 3, 8, 8), torch.tensor([0, 1, 2])
    mixed, shares = mix_batch(images, label, 3, mixup=0, cutmix=0)
    assert mixed is images
    assert torch.equal(shares, torch.eye(3))


def test_macro_scores_by_hand() -> None:
    scores = macro_scores(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))  # the last class is absent
    assert scores.precision_by_class == pytest.approx((1, 2 / 3, 0))
    assert scores.recall_by_class == pytest.approx((3 / 4, 1, 0))
    assert scores.f1_by_class == pytest.approx((6 / 7, 4 / 5, 0))
    assert scores.f1 == pytest.approx((6 / 7 + 4 / 5) / 3)
    assert scores.oa == pytest.approx(5 / 6)
    assert math.isnan(macro_scores(np.zeros((2, 2), int)).oa)
    with pytest.raises(ValueError, match="square"):
        macro_scores(np.zeros((2, 3)))


def test_the_metric_adds_up_over_batches() -> None:
    metric = ClassificationMetric(3)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    metric.update(torch.tensor([2]), torch.tensor([2]))
    assert metric.counts().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert metric.compute()["oa"] == pytest.approx(2 / 3)
