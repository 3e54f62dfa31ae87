from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from terralapse.tasks.consistency import (
    Guide,
    GuidedOutput,
    all_mean,
    change_probability,
    contrast,
    contrast_pixels,
    cut_mix,
    feature_distance,
    guidance_losses,
    guidance_weight,
    pixel_entropy,
    pseudo_label,
    supervised_losses,
    sure_mean,
    with_agreement,
)

HALF = math.log(2.0)  # what a pixel costs when both classes are as likely


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("distance", "label", "cost"), [(0, 0, 0), (2, 1, 0), (0, 1, 4), (3, 1, 0), (3, 0, 9)]
)
def test_the_contrast_in_closed_form(distance: float, label: int, cost: float) -> None:
    d, y = torch.full((1, 2, 2), float(distance)), torch.full((1, 2, 2), label)
    assert contrast(d, y).item() == cost
    assert torch.equal(contrast_pixels(d, y), torch.full((1, 2, 2), float(cost)))


def test_the_contrast_weighs_both_classes_alike_and_leaves_out_what_is_unknown() -> None:
    distance = torch.tensor([[[1.0, 1.0, 1.0, 0.0, 9.0]]])
    label = torch.tensor([[[0, 0, 0, 1, 255]]])
    assert contrast(distance, label).item() == 1.0 + 4.0
    assert contrast_pixels(distance, label)[0, 0, 4] == 0


def test_a_pseudo_label_counts_where_it_is_sure_and_inside() -> None:
    logits = torch.tensor([[-3.0, 3.0, -1.0, 3.0], [3.0, -3.0, 1.0, -3.0]]).view(1, 2, 1, 4).requires_grad_()
    label, confidence = pseudo_label(logits)
    assert label.tolist() == [[[1, 0, 1, 0]]]
    assert not confidence.requires_grad
    counts = torch.tensor([[[True, True, True, False]]])
    cost = torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]])
    # The third is not sure, the last does not count: neither costs, but the third is among those divided by.
    assert sure_mean(cost, confidence, counts).item() == pytest.approx(11 / 3)
    assert sure_mean(cost, confidence, torch.zeros_like(counts)).item() == 0


def test_what_another_model_says_counts_where_the_network_does_not_deny_it() -> None:
    chance = torch.tensor([[[0.30, 0.30, 0.30, 0.10, 0.70, 0.97]]])
    told = torch.tensor([[[1, 0, 255, 1, 0, 0]]])
    logits = torch.stack([torch.log(1 - chance), torch.log(chance)], dim=1).requires_grad_()
    assert torch.allclose(change_probability(logits), chance)
    assert not change_probability(logits).requires_grad
    label, confidence = with_agreement(*pseudo_label(logits), chance, told, 0.25)
    assert label.tolist() == [[[1, 0, 0, 0, 0, 1]]]
    assert confidence[0, 0].tolist() == pytest.approx([1.0, 1.0, 0.7, 0.9, 1.0, 0.97])


def test_unknown_pixels_count_as_nothing_in_the_mean_over_all() -> None:
    label = torch.tensor([[[0, 1, 255, 255]]])
    flat = torch.zeros(1, 2, 1, 4)
    assert all_mean(flat, label).item() == pytest.approx(HALF / 2)
    assert pixel_entropy(flat, label)[0, 0, 2:].tolist() == [0.0, 0.0]


def test_the_distance_is_over_channels_and_the_released_one_over_the_width() -> None:
    before, after = torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 2, 4)
    after[0, :, 1, 2] = 2.0
    found = feature_distance(before, after, (2, 4))
    assert found[0, 1, 2].item() == pytest.approx(math.sqrt(12), rel=1e-4)
    assert (found > 0.01).sum() == 1
    wrong = feature_distance(before, after, (3, 2), faithful=True)  # rows are channels, columns are rows
    assert wrong[0, :, 1].tolist() == pytest.approx([2.0] * 3, rel=1e-4)
    assert wrong[0, :, 0].max() < 0.01


def test_one_box_mixes_images_labels_and_confidence_alike() -> None:
    box = torch.zeros(2, 4, 4, dtype=torch.bool)
    box[0, :2, :2] = True
    images = [torch.full((2, 2, 3, 4, 4), v) for v in (0.0, 1.0)]
    maps = [torch.full((2, 4, 4), v) for v in (0, 1)]
    mixed, label = cut_mix(*images, box), cut_mix(*maps, box)
    assert torch.equal(mixed[:, 0, 0], box.float())
    assert torch.equal(mixed[:, 1, 2], box.float())
    assert torch.equal(label, box.long())
    guide = Guide(*(maps[0],) * 3).mixed(Guide(*(maps[1],) * 3), box)
    assert all(torch.equal(m, box.long()) for m in guide.maps())


@pytest.mark.parametrize(("done", "weight"), [(0, 0.1), (0.25, 0.075), (1, 0), (2, 0)])
def test_guidance_falls_to_nothing(done: float, weight: float) -> None:
    assert guidance_weight(done) == pytest.approx(weight)


def test_guidance_is_the_sixth_part_of_its_weighted_sum() -> None:
    """With even odds everywhere each term is log 2: (1 + 1 + 1 + 6 / 2) / 6 of it."""
    flat = torch.zeros(1, 2, 4, 4)
    output = GuidedOutput(flat[:, 0], flat, flat, flat, flat)
    guide = Guide(*(labels(1, 4, 4, seed=s) for s in range(3)))
    pair = (output, guide)
    assert guidance_losses(pair, pair, pair).item() == pytest.approx(HALF)
    unknown = Guide(*(torch.full((1, 4, 4), 255),) * 3)
    assert guidance_losses(pair, pair, (output, unknown)).item() == pytest.approx(HALF * 2 / 3)


def test_labelled_pairs_cost_entropy_and_a_tenth_of_the_contrast() -> None:
    logits, distance, label = normal(1, 2, 4, 4), normal(1, 4, 4, seed=1).abs(), labels(1, 4, 4)
    bare = supervised_losses(GuidedOutput(logits[:, 1] - logits[:, 0], logits), label)
    whole = supervised_losses(GuidedOutput(logits[:, 0], logits, distance=distance), label)
    assert set(bare) == {"total", "cross_entropy"}
    assert (whole["total"] - bare["total"]).item() == pytest.approx(0.1 * contrast(distance, label).item())
