"""Mask R-CNN: anchors and matches by hand, pasted masks, and that it finds what it learned."""

from __future__ import annotations

import pytest
import torch

from terralapse.layers.boxes import pair_iou
from terralapse.layers.mask_rcnn import (
    IGNORED,
    NEGATIVE,
    BoxHead,
    MaskHead,
    MaskRCNN,
    RPNHead,
    match,
    paste,
    sample,
)


def small() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(2, channels=24, width=64, samples=32, proposals=50)


def pyramid(side: int = 64, batch: int = 1, channels: int = 24) -> list[torch.Tensor]:
    sides = [-(-side // s) for s in (4, 8, 16, 32, 64)]
    return [torch.randn(batch, channels, n, n, generator=torch.Generator().manual_seed(n)) for n in sides]


def test_anchors() -> None:
    levels = [torch.zeros(1, 24, n, n) for n in (16, 8, 4, 2, 1)]
    anchors = RPNHead(24).anchors(levels)
    assert [len(a) for a in anchors] == [6 * n * n for n in (16, 8, 4, 2, 1)]
    first = anchors[0][:6]  # around the corner of the image
    sides = first[:, 2:] - first[:, :2]
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 0.5, 1, 1, 2, 2])
    assert sides.prod(dim=1).tolist() == pytest.approx([256, 1024] * 3)
    assert (first[:, :2] + first[:, 2:]).abs().max() < 1e-5
    second = (anchors[0][6:12, :2] + anchors[0][6:12, 2:]) / 2
    assert second[0].tolist() == pytest.approx([4, 0])  # one stride to the right


def test_anchors_are_in_the_order_of_what_is_said() -> None:
    head, levels = RPNHead(24), pyramid()
    logits, offsets = head(levels)[1]
    assert logits.shape == (1, 6 * 64)
    assert offsets.shape == (1, 6 * 64, 4)
    at = (2 * 8 + 5) * 6 + 3  # row 2, column 5, anchor 3
    x = head.rpn_conv(levels[1]).relu()
    assert torch.allclose(logits[0, at], head.rpn_cls(x)[0, 3, 2, 5])
    assert torch.allclose(offsets[0, at], head.rpn_reg(x)[0, 12:16, 2, 5])


def test_matches() -> None:
    objects = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60.0]])
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [30, 30, 40, 40], [50, 50, 60, 75.0]])
    assert match(boxes, objects, 0.7, 0.3).tolist() == [0, IGNORED, NEGATIVE, IGNORED]
    assert match(boxes, objects, 0.7, 0.3, at_least=0.3).tolist() == [0, IGNORED, NEGATIVE, 1]
    assert match(boxes, objects[:0], 0.7, 0.3).tolist() == [NEGATIVE] * 4
    matched = torch.tensor([0] * 10 + [NEGATIVE] * 90 + [IGNORED] * 5)
    positive, negative = sample(matched, 20, 0.25)
    assert (len(positive), len(negative)) == (5, 15)
    assert (matched[positive] == 0).all()
    assert (matched[negative] == NEGATIVE).all()


def test_a_pasted_mask_fills_its_box() -> None:
    half = torch.zeros(28, 28)
    half[:, 14:] = 1.0
    mask = paste(half, torch.tensor([4, 2, 12, 6.0]), (10, 20))
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[2:6, 8:12] = True
    assert torch.equal(mask, expected)


def test_parameters() -> None:
    counts = [sum(p.numel() for p in m.parameters()) for m in (RPNHead(), BoxHead(10), MaskHead(10))]
    rpn = 256 * 256 * 9 + 256 + 30 * 257
    box = 256 * 49 * 1024 + 1024 + 1024 * 1024 + 1024 + 51 * 1025
    mask = 4 * (256 * 256 * 9 + 256) + 256 * 256 * 4 + 256 + 10 * 257
    assert counts == [rpn, box, mask]


def test_images_without_objects_can_be_learned_from() -> None:
    heads = small()
    none = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32, 32, dtype=torch.bool)
    losses = heads.losses(pyramid(32), (32, 32), *none)
    losses["total"].backward()
    assert all(v.isfinite() for v in losses.values())
    assert losses["masks"].item() == losses["boxes"].item() == losses["rpn_box"].item() == 0


def test_it_finds_what_it_learned() -> None:
    heads, levels = small(), pyramid(32)
    boxes = torch.tensor([[0, 4, 4, 24, 20.0]])
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 4:20, 4:24] = True
    optimiser = torch.optim.AdamW(heads.parameters(), lr=5e-3)
    for _ in range(25):
        loss = heads.losses(levels, (32, 32), boxes, torch.tensor([1]), masks)
        optimiser.zero_grad()
        loss["total"].backward()
        optimiser.step()
    with torch.no_grad():
        found, scores, labels, pasted = heads.detect(levels, (32, 32), most=3)[0]
    assert labels[0] == 1
    assert float(scores[0]) > 0.5
    assert float(pair_iou(found[:1], boxes[:, 1:])) > 0.5
    assert float((pasted[0] & masks[0]).sum() / (pasted[0] | masks[0]).sum()) > 0.5
