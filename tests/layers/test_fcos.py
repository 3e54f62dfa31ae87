"""Boxes by closed forms, and FCOS: what a pixel is asked, and that it finds what it learned."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from terralapse.layers.boxes import area, clip, decode, encode, giou_loss, pair_iou, suppress
from terralapse.layers.fcos import FCOSHead, LevelOutput, centreness_of, focal_loss

box = st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(1, 40), st.floats(1, 40)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@settings(max_examples=50, deadline=None)
@given(a=box, b=box)
def test_overlap(a: list[float], b: list[float]) -> None:
    first, second = torch.tensor([a]), torch.tensor([b])
    iou = pair_iou(first, second)
    assert 0 <= float(iou) <= 1 + 1e-5
    assert torch.allclose(iou, pair_iou(second, first))
    assert float(pair_iou(first, first)) == pytest.approx(1, abs=1e-4)
    assert -1e-4 <= float(giou_loss(first, second)) <= 2
    assert float(giou_loss(first, first)) == pytest.approx(0, abs=1e-4)
    assert float(giou_loss(first, second)) >= float(1 - iou) - 1e-4
    assert torch.allclose(decode(first, encode(first, second)), second, atol=1e-2)
    std = (0.1, 0.1, 0.2, 0.2)
    assert torch.allclose(decode(first, encode(first, second, std), std), second, atol=1e-2)


def test_overlap_by_hand() -> None:
    a, b = torch.tensor([[0, 0, 2, 2.0]]), torch.tensor([[1, 1, 3, 3.0]])
    assert float(pair_iou(a, b)) == pytest.approx(1 / 7)
    assert float(giou_loss(a, b)) == pytest.approx(1 - 1 / 7 + 2 / 9)
    assert area(torch.tensor([[2, 2, 1, 3.0]])).tolist() == [0]
    assert clip(torch.tensor([-5, 1, 20, 30.0]), 10, 8).tolist() == [0, 1, 8, 10]


def test_suppression() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10.0]])
    scores, groups = torch.tensor([0.5, 0.9, 0.5, 0.3]), torch.tensor([0, 0, 0, 1])
    assert suppress(boxes, scores, groups, 0.6, 10).tolist() == [
        1,
        2,
        3,
    ]  # 0 is beaten; 3 is of another group
    assert suppress(boxes, scores, groups, 0.95, 10).tolist() == [1, 0, 2, 3]
    assert suppress(boxes, scores, groups, 0.6, 1).tolist() == [1]
    assert suppress(boxes[:0], scores[:0], groups[:0], 0.6, 1).tolist() == []


def test_focal_loss_and_centreness_by_hand() -> None:
    zero = torch.zeros(1)
    assert float(focal_loss(zero, torch.ones(1))) == pytest.approx(0.25 * 0.25 * 0.693147, rel=1e-5)
    assert float(focal_loss(zero, zero)) == pytest.approx(0.75 * 0.25 * 0.693147, rel=1e-5)
    assert centreness_of(torch.tensor([[2, 3, 2, 3], [1, 2, 4, 2.0]])).tolist() == pytest.approx([1, 0.5])


def head(classes: int = 2, **options: object) -> FCOSHead:
    torch.manual_seed(0)
    return FCOSHead(classes, channels=64, **options).eval()  # type: ignore[arg-type]


def pyramid(side: int = 64, batch: int = 1, channels: int = 64) -> list[torch.Tensor]:
    sides = [-(-side // s) for s in (4, 8, 16, 32, 64)]
    return [torch.randn(batch, channels, n, n, generator=torch.Generator().manual_seed(n)) for n in sides]


def test_targets_of_a_small_and_a_large_object() -> None:
    h = head()
    points = h.points(h(pyramid()))
    assert [len(p) for p in points] == [256, 64, 16, 4, 1]
    assert points[1][:2].tolist() == [[4, 4], [12, 4]]
    boxes = torch.tensor([[8, 8, 24, 24], [0, 0, 64, 64.0]])
    wanted, sides = h.targets(points, boxes, torch.tensor([0, 1]))
    levels = wanted.split([256, 64, 16, 4, 1])
    # The small one, distances of up to 16, is of the first level; pixels within 1.5 strides of (16, 16).
    at = (levels[0] == 0).nonzero().flatten()
    assert {tuple(points[0][i].tolist()) for i in at} == {(x, y) for x in (14, 18) for y in (14, 18)}
    # At (14, 14), in strides of 4.
    assert sides[int(at[0])].tolist() == [1.5, 1.5, 2.5, 2.5]
    # The large one has distances from 32 on: of levels of stride 16 (32..80); at stride 8 none, up to 40 is.
    assert (levels[2] == 1).sum() == 4
    assert not (levels[0] == 1).any()
    assert (levels[3] == 2).all()  # background


def test_the_smaller_object_has_the_pixel() -> None:
    h = head()
    points = h.points(h(pyramid()))
    boxes = torch.tensor([[4, 4, 28, 28], [8, 8, 24, 24.0]])
    wanted, _ = h.targets(points, boxes, torch.tensor([0, 1]))
    assert set(wanted[:256].tolist()) == {1, 2}


def test_what_is_said_is_found() -> None:
    h = head()
    outputs = h(pyramid())
    said = [
        LevelOutput(
            torch.full_like(o.classes, -9), torch.ones_like(o.distances), torch.full_like(o.centreness, 9)
        )
        for o in outputs
    ]
    said[1].classes[0, 1, 3, 5] = 3.0  # stride 8, at (44, 28), one stride to each side
    (boxes, scores, labels) = h.detect(said, (64, 40))[0]
    assert boxes.tolist() == [[36, 20, 40, 36]]  # cut at the width of 40
    assert labels.tolist() == [1]
    assert float(scores) == pytest.approx(0.952574 * 0.999877, rel=1e-4)


def test_no_object_costs_the_classes_alone() -> None:
    h = head()
    losses = h.losses(h(pyramid(batch=2)), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert losses["giou"].item() == losses["centreness"].item() == 0
    assert losses["total"].item() == losses["focal"].item() > 0


def test_it_finds_what_it_learned() -> None:
    h, levels = head().train(), pyramid()
    boxes, label = torch.tensor([[0, 10, 10, 26, 24], [0, 30, 40, 60, 62.0]]), torch.tensor([0, 1])
    optimiser = torch.optim.AdamW(h.parameters(), lr=2e-2)
    for _ in range(30):
        loss = h.losses(h(levels), boxes, label)["total"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found, _, labels = h.detect(h(levels), (64, 64))[0]
    for n in range(2):
        overlap = pair_iou(boxes[n : n + 1, 1:], found[labels == label[n]])
        assert overlap.numel()
        assert float(overlap.max()) > 0.5
