from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from terralapse.tasks.set_loss import Objects, Weights, changed_object, costs, match, set_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    """One image with change, one without, one that is all change."""
    label = torch.zeros(3, 8, 8, dtype=torch.uint8)
    label[0, 2:5, 1:6] = 1
    label[2] = 1
    return label


# --- objects ---------------------------------------------------------------------------------------------
def test_all_change_of_an_image_is_one_object() -> None:
    label = labels()
    label[0, 7] = 255
    found = changed_object(label)
    assert found.classes.tolist() == [[1], [0], [1]]
    assert torch.equal(found.masks[:, 0], (label == 1).float())
    assert torch.equal(found.counts, (label != 255).float())


def test_labels_are_averaged_over_what_counts() -> None:
    label = torch.tensor([[[1, 0, 255, 255], [1, 255, 255, 255]]])
    found = changed_object(label, (1, 2))
    assert found.masks[0, 0].tolist() == [[pytest.approx(2 / 3), 0.0]]
    assert found.counts[0].tolist() == [[0.75, 0.0]]
    assert found.classes.item() == 1


# --- matching --------------------------------------------------------------------------------------------
def test_the_sum_of_costs_is_least() -> None:
    """Each for itself would take the first query for both."""
    cost = torch.tensor([[[1.0, 2.0], [2.0, 9.0], [8.0, 8.0]]]).repeat(3, 1, 1)
    there = torch.tensor([[True, True], [False, True], [False, False]])
    assert match(cost, there).tolist() == [[1, 0], [-1, 0], [-1, -1]]


def test_more_objects_than_queries() -> None:
    found = match(torch.tensor([[[3.0, 1.0, 2.0]]]), torch.ones(1, 3, dtype=torch.bool))
    assert found.tolist() == [[-1, 0, -1]]
    objects = Objects(torch.ones(1, 3, 4, 4), torch.ones(1, 3, dtype=torch.long), torch.ones(1, 4, 4))
    assert torch.isfinite(set_loss(normal(2, 1, 1, 2), normal(2, 1, 1, 4, 4), objects)["total"])


def test_the_cost_of_a_match() -> None:
    """Two pixels, one in the object, and an even guess: all by hand."""
    objects = changed_object(torch.tensor([[[1, 0]]]))
    found = costs(torch.zeros(1, 1, 2), torch.zeros(1, 1, 1, 2), objects, Weights(1.0, 10.0, 100.0))
    focal = (0.25 * 0.25 * math.log(2) + 0.75 * 0.25 * math.log(2)) / 2
    dice = 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    assert found.item() == pytest.approx(-0.5 + 10 * focal + 100 * dice, rel=1e-6)


def test_the_best_mask_of_the_right_class_is_matched() -> None:
    objects = changed_object(labels())
    masks = torch.full((3, 3, 8, 8), -20.0)
    masks[:, 1:] = 40 * objects.masks - 20
    logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).expand(3, -1, -1)
    assert match(costs(logits, masks, objects), objects.there).tolist() == [[2], [-1], [2]]


# --- loss ------------------------------------------------------------------------------------------------
def perfect() -> tuple[Tensor, Tensor]:
    """The second of three queries says it all, in two predictions."""
    objects = changed_object(labels())
    masks = torch.full((3, 3, 8, 8), -40.0)
    masks[:, 1] = (80 * objects.masks - 40)[:, 0]
    logits = torch.tensor([40.0, -40.0]).repeat(3, 3, 1)
    logits[[0, 2], 1] *= -1
    return logits.repeat(2, 1, 1, 1), masks.repeat(2, 1, 1, 1, 1)


def test_a_perfect_set_costs_nothing() -> None:
    parts = set_loss(*perfect(), changed_object(labels()))
    assert parts["total"].item() == pytest.approx(0.0, abs=1e-5)


def test_the_parts_by_hand() -> None:
    """One query, an even guess of two pixels: cross-entropy, entropy and Dice, each with its weight."""
    logits, masks = torch.zeros(3, 1, 1, 2), torch.zeros(3, 1, 1, 1, 2)
    parts = set_loss(logits, masks, changed_object(torch.tensor([[[1, 0]]])), Weights(1.0, 2.0, 5.0))
    assert parts["label"].item() == pytest.approx(3 * math.log(2))
    assert parts["mask"].item() == pytest.approx(3 * 2 * math.log(2))
    assert parts["dice"].item() == pytest.approx(3 * 5 * (1 - 2 / 3), rel=1e-5)
    assert parts["total"].item() == pytest.approx(sum(parts[n].item() for n in ("label", "mask", "dice")))


def test_a_query_without_an_object_weighs_less() -> None:
    logits = torch.zeros(1, 1, 2, 2)
    logits[0, 0, 0, 1] = 2.0
    objects = changed_object(torch.ones(1, 4, 4, dtype=torch.long))
    found = set_loss(logits, torch.zeros(1, 1, 2, 4, 4), objects)["label"].item()
    right, wrong = math.log(1 + math.exp(-2.0)), math.log(2)
    assert found == pytest.approx((right + 0.1 * wrong) / 1.1, rel=1e-5)


def test_images_without_change_train_the_classes_alone() -> None:
    logits = normal(1, 2, 3, 2).requires_grad_()
    masks = normal(1, 2, 3, 4, 4, seed=1).requires_grad_()
    parts = set_loss(logits, masks, changed_object(torch.zeros(2, 4, 4)))
    parts["total"].backward()
    assert parts["mask"].item() == parts["dice"].item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().min() > 0
    assert masks.grad is None or not masks.grad.any()


def test_pixels_that_are_ignored_train_nothing() -> None:
    label = labels()
    label[0, :, 4:] = 255
    label[1:] = 255
    logits, masks = normal(2, 3, 3, 2).requires_grad_(), normal(2, 3, 3, 8, 8, seed=1).requires_grad_()
    set_loss(logits, masks, changed_object(label))["total"].backward()
    assert logits.grad is not None
    assert masks.grad is not None
    assert not masks.grad[:, 0, ..., 4:].any()
    assert masks.grad[:, 0, ..., :4].any()
    assert not logits.grad[:, 1:].any()
    assert logits.grad[:, 0].any()


def test_masks_are_enlarged_to_their_objects() -> None:
    """The loss of coarse masks is that of the same masks enlarged beforehand."""
    logits, masks = normal(2, 3, 4, 2), normal(2, 3, 4, 2, 2, seed=1)
    fine = torch.nn.functional.interpolate(masks.flatten(0, 1), (8, 8), mode="bilinear").unflatten(0, (2, 3))
    objects = changed_object(labels())
    coarse = set_loss(logits, masks, objects)["total"]
    assert torch.allclose(coarse, set_loss(logits, fine, objects)["total"], rtol=1e-5)


def test_mixed_precision_changes_nothing() -> None:
    logits, masks, objects = normal(2, 3, 4, 2), normal(2, 3, 4, 8, 8, seed=1), changed_object(labels())
    wanted = costs(logits[0], masks[0], objects), set_loss(logits, masks, objects)["total"]
    with torch.autocast("cpu", torch.bfloat16):
        found = costs(logits[0], masks[0], objects), set_loss(logits, masks, objects)["total"]
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
