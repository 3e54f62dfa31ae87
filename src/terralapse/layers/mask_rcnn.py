"""Mask R-CNN: boxes proposed from anchors, then classified, refined and given a mask each.

Source: Ren et al., "Faster R-CNN", NeurIPS 2015; He et al., "Mask R-CNN", ICCV 2017. Settings and names as in
OpenMMLab, with the anchors and the region extractor of DynamicVis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.boxes import area, clip, decode, encode, pair_iou, suppress
from terralapse.layers.fpn import ConvModule
from terralapse.layers.regions import RegionExtractor
from terralapse.layers.roi_align import roi_align

STD = (0.1, 0.1, 0.2, 0.2)  # of the refinement of boxes
NEGATIVE, IGNORED = -1, -2


def match(
    boxes: Tensor, objects: Tensor, positive: float, negative: float, at_least: float | None = None
) -> Tensor:
    """For each of boxes [A, 4] the number of its object among [N, 4], `NEGATIVE` or `IGNORED`.

    Positive are boxes whose best IoU is at least `positive`, and, where `at_least` is given, the best boxes
    of each object from that IoU on. Negative are boxes whose best IoU is below `negative`.
    """
    found = torch.full((len(boxes),), NEGATIVE, dtype=torch.int64, device=boxes.device)
    if len(objects) == 0:
        return found
    iou = pair_iou(boxes, objects)
    best, which = iou.max(dim=1)
    found = torch.where(best >= negative, IGNORED, found)
    found = torch.where(best >= positive, which, found)
    if at_least is not None:
        top = iou.max(dim=0).values
        for n in range(len(objects)):
            if float(top[n]) >= at_least:
                found = torch.where(iou[:, n] == top[n], n, found)
    return found


def sample(matched: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Random positive and negative places, `count` together, at most `share` of them positive."""
    positive, negative = (matched >= 0).nonzero().flatten(), (matched == NEGATIVE).nonzero().flatten()
    most = min(len(positive), int(count * share))
    return _some(positive, most), _some(negative, count - most)


def _some(places: Tensor, count: int) -> Tensor:
    return places[torch.randperm(len(places), device=places.device)[:count]]


class RPNHead(nn.Module):
    """Says of each anchor whether it holds an object, and how to move it.

    The anchors of a level of stride s have areas of (scale s)^2 and stand at the corners of its cells.
    """

    def __init__(
        self,
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        scales: Sequence[int] = (4, 8),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.shapes = [(s * r**-0.5, s * r**0.5) for r in ratios for s in scales]  # width, height in strides
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(self.shapes), 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * len(self.shapes), 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each level logits [B, h * w * A] and offsets [B, h * w * A, 4]."""
        outputs = []
        for level in levels:
            x = self.rpn_conv(level).relu()
            logits = self.rpn_cls(x).permute(0, 2, 3, 1).flatten(1)
            outputs.append((logits, self.rpn_reg(x).permute(0, 2, 3, 1).reshape(*logits.shape, 4)))
        return outputs

    def anchors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Boxes [h * w * A, 4] of each level, in the order of `forward`."""
        found = []
        for level, stride in zip(levels, self.strides, strict=True):
            half = level.new_tensor(self.shapes, dtype=torch.float32) * stride / 2
            shape = torch.cat([-half, half], dim=1)  # [A, 4]
            y, x = (torch.arange(n, device=level.device) * stride for n in level.shape[-2:])
            at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # [h * w, 2]
            found.append((at.repeat(1, 2)[:, None] + shape).flatten(0, 1))
        return found

    def propose(
        self, levels: Sequence[Tensor], size: tuple[int, int], before: int = 1000, most: int = 1000
    ) -> list[Tensor]:
        """At most `most` boxes [N, 4] for each image, best first: the best `before` of each level, without
        those that overlap a better one of their level by more than 0.7."""
        outputs, anchors = self(levels), self.anchors(levels)
        proposals = []
        for image in range(len(levels[0])):
            boxes, scores, groups = [], [], []
            for number, ((logits, offsets), fixed) in enumerate(zip(outputs, anchors, strict=True)):
                best = logits[image].detach().float().sort(descending=True, stable=True).indices[:before]
                boxes.append(clip(decode(fixed[best], offsets[image, best].detach().float()), *size))
                scores.append(logits[image, best].detach().float())
                groups.append(torch.full_like(best, number))
            box, score, group = torch.cat(boxes), torch.cat(scores), torch.cat(groups)
            real = area(box) > 0
            box, score, group = box[real], score[real], group[real]
            proposals.append(box[suppress(box, score, group, 0.7, most)])
        return proposals

    def losses(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Entropy and L1 of the offsets over 256 anchors an image, for objects [N, 4] of each image."""
        outputs = self(levels)
        anchors = torch.cat(self.anchors(levels))
        logits, offsets = (torch.cat([o[i].float() for o in outputs], dim=1) for i in range(2))
        entropy, apart, count = logits.sum() * 0, offsets.sum() * 0, 0
        for image, objects in enumerate(boxes):
            matched = match(anchors, objects, 0.7, 0.3, at_least=0.3)
            positive, negative = sample(matched, 256, 0.5)
            chosen = torch.cat([positive, negative])
            truth = (matched[chosen] >= 0).float()
            entropy = entropy + F.binary_cross_entropy_with_logits(
                logits[image, chosen], truth, reduction="sum"
            )
            wanted = encode(anchors[positive], objects[matched[positive]])
            apart = apart + (offsets[image, positive] - wanted).abs().sum()
            count += len(chosen)
        return entropy / max(count, 1), apart / max(count, 1)


class BoxHead(nn.Module):
    """Class and refinement of a region of 7 x 7 cells."""

    def __init__(self, classes: int, channels: int = 256, width: int = 1024) -> None:
        super().__init__()
        self.classes = classes
        self.shared_fcs = nn.ModuleList([nn.Linear(channels * 49, width), nn.Linear(width, width)])
        self.fc_cls = nn.Linear(width, classes + 1)  # the last one is background
        self.fc_reg = nn.Linear(width, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C, 7, 7] to logits [R, K + 1] and offsets [R, K, 4]."""
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = layer(x).relu()
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (self.classes, 4))


class MaskHead(nn.Module):
    """A mask of 28 x 28 for each class of a region of 14 x 14 cells."""

    def __init__(self, classes: int, channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvModule(channels, channels, 3) for _ in range(4)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.conv_logits = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, 14, 14] to logits [R, K, 28, 28]."""
        return self.conv_logits(self.upsample(self.convs(x)).relu())


class MaskRCNN(nn.Module):
    """The heads on a pyramid of five levels; regions are taken from the four finer ones.

    `samples` regions an image are learned from, and at most `proposals` are looked at (of the twice
    as many best anchors of a level in training).
    """

    def __init__(
        self,
        classes: int,
        channels: int = 256,
        width: int = 1024,
        samples: int = 512,
        proposals: int = 1000,
    ) -> None:
        super().__init__()
        self.classes, self.samples, self.proposals = classes, samples, proposals
        self.rpn_head = RPNHead(channels)
        self.bbox_roi_extractor = RegionExtractor(channels)
        self.bbox_head = BoxHead(classes, channels, width)
        self.mask_roi_extractor = RegionExtractor(channels)
        self.mask_head = MaskHead(classes, channels)

    def losses(
        self, levels: Sequence[Tensor], size: tuple[int, int], boxes: Tensor, label: Tensor, masks: Tensor
    ) -> dict[str, Tensor]:
        """Of the proposals, of the boxes and of the masks, and `total`, their sum.

        Args:
            levels: of the pyramid; size: height and width of the images.
            boxes: float [N, 5] (image, x1, y1, x2, y2 in pixels); label: int [N]; masks: bool [N, H, W].
        """
        batch = len(levels[0])
        of_image = [(boxes[:, 0] == i).nonzero().flatten() for i in range(batch)]
        rpn, rpn_box = self.rpn_head.losses(levels, [boxes[own, 1:] for own in of_image])
        rois, wanted = [], []  # boxes that are learned from, and the object of each, -1 for background
        for image, proposals in enumerate(
            self.rpn_head.propose(levels, size, 2 * self.proposals, self.proposals)
        ):
            own = of_image[image]
            candidates = torch.cat([boxes[own, 1:], proposals])
            matched = match(candidates, boxes[own, 1:], 0.5, 0.5)
            positive, negative = sample(matched, self.samples, 0.25)
            rois.append(_numbered(image, candidates[torch.cat([positive, negative])]))
            wanted += [own[matched[positive]], torch.full_like(negative, -1)]
        roi, target = torch.cat(rois), torch.cat(wanted)
        positive = target >= 0
        classes = (
            torch.where(positive, label.long()[target], self.classes)
            if len(label)
            else target + 1 + self.classes
        )
        logits, offsets = self.bbox_head(self.bbox_roi_extractor(levels, roi))
        entropy = F.cross_entropy(logits.float(), classes)
        chosen, which = roi[positive], target[positive]
        truth = encode(chosen[:, 1:], boxes[which, 1:], STD)
        said = offsets[positive, classes[positive]].float()
        apart = (said - truth).abs().sum() / max(len(roi), 1)
        mask = self._mask_loss(levels, chosen, which, classes[positive], masks)
        parts = {"rpn": rpn, "rpn_box": rpn_box, "classes": entropy, "boxes": apart, "masks": mask}
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def _mask_loss(
        self, levels: Sequence[Tensor], rois: Tensor, which: Tensor, classes: Tensor, masks: Tensor
    ) -> Tensor:
        """Binary entropy over the cells of the mask of the right class, for positive regions."""
        if len(rois) == 0:
            return sum((p.sum() * 0 for p in self.mask_head.parameters()), levels[0].sum() * 0)
        logits = self.mask_head(self.mask_roi_extractor(levels, rois, 14))
        logits = logits[torch.arange(len(rois), device=rois.device), classes].float()
        own = torch.cat([which[:, None].to(rois.dtype), rois[:, 1:]], dim=1)
        truth = roi_align(masks[:, None].float(), own, 28, 1.0)[:, 0] >= 0.5
        return F.binary_cross_entropy_with_logits(logits, truth.float())

    def detect(
        self,
        levels: Sequence[Tensor],
        size: tuple[int, int],
        score: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Boxes [N, 4], scores [N], labels [N] and masks bool [N, H, W] for each image of `size`, best
        first."""
        found = []
        for image, proposals in enumerate(
            self.rpn_head.propose(levels, size, self.proposals, self.proposals)
        ):
            own = [level[image : image + 1] for level in levels]
            logits, offsets = self.bbox_head(self.bbox_roi_extractor(own, _numbered(0, proposals)))
            probability = logits.float().softmax(dim=1)[:, :-1]
            at, label = (probability > score).nonzero(as_tuple=True)
            boxes = clip(decode(proposals[at], offsets[at, label].float(), STD), *size)
            kept = suppress(boxes, probability[at, label], label, overlap, most)
            boxes, label, at = boxes[kept], label[kept], at[kept]
            masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
            if len(boxes):
                small = (
                    self.mask_head(self.mask_roi_extractor(own, _numbered(0, boxes), 14)).float().sigmoid()
                )
                for n in range(len(boxes)):
                    masks[n] = paste(small[n, label[n]], boxes[n], size)
            found.append((boxes, probability[at, label], label, masks))
        return found


def _numbered(image: int, boxes: Tensor) -> Tensor:
    return F.pad(boxes, (1, 0), value=image)


def paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [m, m] of probabilities over a box, on an image: bool [H, W], where it is at least one half."""
    x, y = (torch.arange(n, device=mask.device) + 0.5 for n in (size[1], size[0]))
    x = (x - box[0]) / (box[2] - box[0]).clamp(min=1e-6) * 2 - 1
    y = (y - box[1]) / (box[3] - box[1]).clamp(min=1e-6) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5
