"""FCOS: each pixel of a pyramid says which object it lies in and how far its four sides are.

Source: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, with the improvements
of its revision: only pixels near the centre of an object are positive, distances are in strides, the
centreness comes from the branch of the boxes, and boxes are learned by generalised IoU. Names: OpenMMLab's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.boxes import area, clip, giou_loss, suppress
from terralapse.layers.fpn import ConvModule

STRIDES = (4, 8, 16, 32, 64)
RANGES = ((0, 20), (16, 40), (32, 80), (64, 160), (128, 1024))


class LevelOutput(NamedTuple):
    """Of one level: `classes` [B, K, h, w] and `centreness` [B, 1, h, w] as logits; `distances` [B, 4, h, w]
    to the left, top, right and bottom, in strides, not negative."""

    classes: Tensor
    distances: Tensor
    centreness: Tensor


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FCOSHead(nn.Module):
    """The head that all levels share.

    Args:
        classes: K.
        strides: of the levels.
        ranges: of the largest distance, in pixels, that a level is responsible for; they overlap here.
        radius: how far from an object's centre, in strides, a pixel may be positive.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 256,
        strides: Sequence[int] = STRIDES,
        ranges: Sequence[tuple[int, int]] = RANGES,
        radius: float = 1.5,
    ) -> None:
        super().__init__()
        self.classes, self.strides, self.ranges, self.radius = classes, tuple(strides), tuple(ranges), radius
        self.cls_convs = nn.Sequential(
            *(ConvModule(channels, channels, 3, "group", bias=True) for _ in range(4))
        )
        self.reg_convs = nn.Sequential(
            *(ConvModule(channels, channels, 3, "group", bias=True) for _ in range(4))
        )
        self.conv_cls = nn.Conv2d(channels, classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in strides])
        for conv in (self.conv_cls, self.conv_reg, self.conv_centerness):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        assert self.conv_cls.bias is not None
        nn.init.constant_(self.conv_cls.bias, -math.log(99))  # one in a hundred at the start

    def forward(self, levels: Sequence[Tensor]) -> list[LevelOutput]:
        """Maps [B, C, h, w], one for each stride."""
        outputs = []
        for level, scale in zip(levels, self.scales, strict=True):
            boxes = self.reg_convs(level)
            distances = scale(self.conv_reg(boxes)).relu()
            outputs.append(
                LevelOutput(self.conv_cls(self.cls_convs(level)), distances, self.conv_centerness(boxes))
            )
        return outputs

    def points(self, outputs: Sequence[LevelOutput]) -> list[Tensor]:
        """Centres [h * w, 2] (x, y in pixels) of the pixels of each level."""
        found = []
        for output, stride in zip(outputs, self.strides, strict=True):
            height, width = output.classes.shape[-2:]
            y, x = ((torch.arange(n, device=output.classes.device) + 0.5) * stride for n in (height, width))
            found.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
        return found

    # --- what is found ---------------------------------------------------------------------------------
    def detect(
        self,
        outputs: Sequence[LevelOutput],
        size: tuple[int, int],
        score: float = 0.05,
        overlap: float = 0.6,
        most: int = 100,
        before: int = 1000,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes [N, 4], scores [N] and labels [N] for each image of `size` (height, width), best first.

        A candidate has a class probability above `score`; its score is that times the centreness. `before`
        is the most candidates of a level.
        """
        points = self.points(outputs)
        return [
            self._detect_one(
                [LevelOutput(*(x[i].float() for x in o)) for o in outputs],
                points, size, score, overlap, most, before,
            )
            for i in range(len(outputs[0].classes))
        ]  # fmt: skip

    def _detect_one(
        self,
        outputs: list[LevelOutput],
        points: list[Tensor],
        size: tuple[int, int],
        score: float,
        overlap: float,
        most: int,
        before: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = [], [], []
        for output, centres, stride in zip(outputs, points, self.strides, strict=True):
            probability = output.classes.sigmoid().flatten(1).t()  # [h * w, K]
            at, label = (probability > score).nonzero(as_tuple=True)
            best = probability[at, label].sort(descending=True, stable=True).indices[:before]
            at, label = at[best], label[best]
            distances = output.distances.flatten(1).t()[at] * stride
            boxes.append(clip(_box(centres[at], distances), *size))
            scores.append(probability[at, label] * output.centreness.sigmoid().flatten()[at])
            labels.append(label)
        box, total, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        kept = suppress(box, total, label, overlap, most)
        return box[kept], total[kept], label[kept]

    # --- what is learned -------------------------------------------------------------------------------
    def losses(self, outputs: Sequence[LevelOutput], boxes: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Focal loss of the classes, generalised IoU of the boxes weighed by their centreness, and the
        entropy of the centreness, and `total`, their sum.

        Args:
            boxes: float [N, 5]: image index, x1, y1, x2, y2 in pixels; label: int [N].
        """
        points = self.points(outputs)
        batch = len(outputs[0].classes)
        targets = [
            self.targets(points, boxes[boxes[:, 0] == i, 1:], label[boxes[:, 0] == i]) for i in range(batch)
        ]
        wanted, sides = (torch.stack(x) for x in zip(*targets, strict=True))  # [B, P], [B, P, 4]
        classes, distances, centreness = (
            torch.cat([x[i].float().flatten(2) for x in outputs], dim=2).transpose(1, 2) for i in range(3)
        )
        positive = wanted < self.classes
        count = positive.sum().clamp(min=1)
        truth = F.one_hot(wanted, self.classes + 1)[..., :-1].to(classes.dtype)
        focal = focal_loss(classes, truth).sum() / count
        sides, said = sides[positive], distances[positive]
        how_central = centreness_of(sides)
        zero = torch.zeros_like(sides[:, :2])
        apart = giou_loss(_box(zero, said), _box(zero, sides))
        overlap = (apart * how_central).sum() / how_central.sum().clamp(min=1e-6)
        entropy = F.binary_cross_entropy_with_logits(centreness[positive][:, 0], how_central, reduction="sum")
        entropy = entropy / count
        return {"total": focal + overlap + entropy, "focal": focal, "giou": overlap, "centreness": entropy}

    def targets(self, points: Sequence[Tensor], boxes: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """For all points of one image, level by level: the class int64 [P], K for background, and the
        distances [P, 4] in strides. Where objects overlap the smallest has the point."""
        count = torch.tensor([len(p) for p in points], device=boxes.device)
        every = torch.cat(list(points)).to(boxes.device)
        if len(boxes) == 0:
            return torch.full((len(every),), self.classes, device=boxes.device), every.new_zeros(
                len(every), 4
            )
        stride, low, high = (
            torch.tensor(x, device=boxes.device, dtype=every.dtype).repeat_interleave(count)[:, None]
            for x in (self.strides, [r[0] for r in self.ranges], [r[1] for r in self.ranges])
        )
        sides = torch.cat(
            [every[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - every[:, None]], dim=2
        )  # [P, N, 4]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        reach = torch.minimum((boxes[:, 2:] - boxes[:, :2]) / 2, (stride * self.radius)[..., None])
        near = ((every[:, None] - centre).abs() < reach).all(dim=2)
        farthest = sides.amax(dim=2)
        sizes = area(boxes).expand(len(every), -1)
        sizes = sizes.masked_fill(~(near & (farthest >= low) & (farthest <= high)), torch.inf)
        smallest, which = sizes.min(dim=1)
        wanted = torch.where(smallest.isinf(), self.classes, label.long()[which])
        return wanted, sides[torch.arange(len(every), device=boxes.device), which] / stride


def _box(centres: Tensor, sides: Tensor) -> Tensor:
    return torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], dim=1)


def centreness_of(sides: Tensor) -> Tensor:
    """[N] in 0..1 of distances [N, 4]: 1 in the middle of a box, 0 at its edge."""
    across, down = sides[:, 0::2], sides[:, 1::2]
    ratios = [x.amin(dim=1).clamp(min=0) / x.amax(dim=1).clamp(min=1e-6) for x in (across, down)]
    return (ratios[0] * ratios[1]).sqrt()


def focal_loss(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary focal loss, not reduced (Lin et al. 2017); `truth` is 0 or 1, of the shape of `logits`."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - truth) + (1 - probability) * truth
    return entropy * wrong**gamma * (alpha * truth + (1 - alpha) * (1 - truth))
