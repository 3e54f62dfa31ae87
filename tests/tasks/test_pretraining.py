"""Contrast of regions and classes by closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from terralapse.tasks.pretraining import region_class_contrast


def test_three_regions_of_two_classes() -> None:
    """Two regions point at class 0 and one at class 1; a third class does not occur."""
    regions = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    classes = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    first, second = region_class_contrast(regions, classes, torch.tensor([0, 0, 1]), 2.0)
    # Cosines of the regions with the classes: (1, 0, -1) twice and (0, 1, 0), times 2.
    a = 2 - math.log(math.exp(2) + 1 + math.exp(-2))
    b = 2 - math.log(2 + math.exp(2))
    assert float(first) == pytest.approx(-(2 * a + b) / 3, rel=1e-5)
    own = 2 * math.exp(2) / (2 * math.exp(2) + 1)  # of class 0, over its two regions
    other = math.exp(2) / (2 + math.exp(2))
    assert float(second) == pytest.approx(-(math.log(own) + math.log(other)) / 2, rel=1e-5)


def test_no_regions_cost_nothing_and_have_a_gradient() -> None:
    classes = torch.randn(3, 2, requires_grad=True)
    first, second = region_class_contrast(torch.zeros(0, 2), classes, torch.zeros(0, dtype=torch.int64), 1.0)
    (first + second).backward()
    assert float(first) == float(second) == 0
    assert classes.grad is not None
    assert not classes.grad.any()


def test_the_gradient_is_finite_where_a_class_has_few_regions() -> None:
    regions = torch.randn(4, 8, requires_grad=True)
    classes = torch.randn(6, 8, requires_grad=True)
    sum(region_class_contrast(regions, classes, torch.tensor([0, 0, 5, 1]), 14.0)).backward()  # type: ignore
    assert regions.grad is not None
    assert regions.grad.isfinite().all()
    assert classes.grad is not None
    assert classes.grad.isfinite().all()
