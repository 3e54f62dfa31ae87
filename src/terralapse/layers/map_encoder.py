"""Features of a map of classes, and the joining of them with features of images (MapFormer).

Source: Bernhard, Strauss and Schubert, "MapFormer: Boosting Change Detection by Using Pre-change
Information", ICCV 2023. Parameters have the names of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.decoding import ConvBNReLU, up_to


class MapEncoder(nn.Module):
    """One feature of stride 4 from a map of `classes` classes. Where the map says nothing, which is any value
    that is no class, there is a class of its own.

    Args:
        classes: how many the map has, numbered from 0.
        width: channels of what is returned.
    """

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.classes = classes
        self.layer1 = nn.Conv2d(classes + 1, width, 1)
        self.layer2 = ConvBNReLU(width, width, 5, dilation=2)
        self.layer3 = ConvBNReLU(width, width, 5, dilation=2)

    def shares(self, known: Tensor) -> Tensor:
        """Of each class in cells of 4 x 4 pixels: [B, classes + 1, H / 4, W / 4] from ids int64 [B, H, W]."""
        unknown = (known < 0) | (known >= self.classes)
        ids = known.masked_fill(unknown, self.classes)[:, None]
        each = torch.arange(self.classes + 1, device=known.device)[:, None, None]
        planes = (ids == each).to(self.layer1.weight.dtype)
        return F.interpolate(planes, scale_factor=0.25, mode="bilinear", align_corners=False)

    def forward(self, known: Tensor) -> Tensor:
        """[B, width, H / 4, W / 4] of ids int64 [B, H, W]."""
        return self.layer3(self.layer2(self.layer1(self.shares(known))))


class KConcat(nn.Module):
    """`k` candidates of `width` channels from joined features, each by two maps of its own."""

    def __init__(self, inputs: int, width: int, k: int) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(inputs, k * width)
        self.conv2 = ConvBNReLU(k * width, k * width, groups=k)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, k width, h, w], candidate by candidate."""
        return self.conv2(self.conv1(x))


def mix_candidates(candidates: Tensor, scores: Tensor, k: int) -> Tensor:
    """Sum of `k` candidates [B, k C, h, w], weighed by the softmax of `scores` [B, k C, h, w] over the
    candidates, channel by channel and position by position: [B, C, h, w]."""
    weights = scores.unflatten(1, (k, -1)).softmax(dim=1)
    return (candidates.unflatten(1, (k, -1)) * weights).sum(dim=1)


class PyramidHead(nn.Module):
    """All levels brought to one width and to stride 4, joined, and mapped to `outputs` channels (the head of
    SegFormer)."""

    def __init__(self, dims: Sequence[int], width: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvBNReLU(dim, width) for dim in dims)
        self.fusion_conv = ConvBNReLU(width * len(dims), width)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[B, outputs, H / 4, W / 4] from a pyramid, shallow first."""
        levels = [up_to(c(f), features[0].shape) for c, f in zip(self.convs, features, strict=True)]
        return self.conv_seg(self.dropout(self.fusion_conv(torch.cat(levels, dim=1))))


class MapFusion(nn.Module):
    """What the images show and what the map says in one feature of stride 4: at each level the map chooses
    between candidates.

    Args:
        dims: channels of the images' features at each level, of all dates together.
        classes, map_width: of the map encoder.
        width, k: channels and number of candidates.
    """

    def __init__(
        self, dims: Sequence[int], classes: int, width: int = 256, k: int = 10, map_width: int = 32
    ) -> None:
        super().__init__()
        self.k = k
        self.map_encoder = MapEncoder(classes, map_width)
        self.temporal_fusion_modules = nn.ModuleList(KConcat(dim + map_width, width, k) for dim in dims)
        self.attention_weights = nn.ModuleList(nn.Conv2d(map_width, k * width, 1) for _ in dims)
        self.fusion_conv = ConvBNReLU(width * len(dims), width)

    def level(self, index: int, features: Tensor, about: Tensor) -> Tensor:
        """One level: `features` [B, dim, h, w] and map features [B, map width, h, w] to [B, width, h, w]."""
        candidates = self.temporal_fusion_modules[index](torch.cat([features, about], dim=1))
        return mix_candidates(candidates, self.attention_weights[index](about), self.k)

    def fuse(self, features: Sequence[Tensor], about: Tensor) -> Tensor:
        """[B, width, H / 4, W / 4] from levels of image features and one map feature of stride 4."""
        levels = [self.level(i, f, up_to(about, f.shape)) for i, f in enumerate(features)]
        return self.fusion_conv(torch.cat([up_to(x, features[0].shape) for x in levels], dim=1))


class MapChangeHead(MapFusion):
    """The fused feature, two classes from it, and in training an embedding of each image that is as wide as
    the features of the map.

    Args:
        dims: channels of the features of one image at each level.
        classes, width, k, map_width: as for `MapFusion`.
        dates: how many images there are.
        prior: the probability of change that it starts from.
    """

    def __init__(
        self,
        dims: Sequence[int],
        classes: int,
        width: int = 256,
        k: int = 10,
        map_width: int = 32,
        dates: int = 2,
        prior: float = 0.5,
    ) -> None:
        super().__init__([dates * d for d in dims], classes, width, k, map_width)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(width, 2, 1)
        self.contrastive_img_forward = PyramidHead(dims, width, map_width)
        nn.init.normal_(self.conv_seg.weight, std=2.56 / width)  # 0.01 at the published width
        odds = torch.tensor(prior).logit()
        self.conv_seg.bias = nn.Parameter(torch.stack([-odds / 2, odds / 2]))

    def forward(self, features: Sequence[Tensor], about: Tensor) -> Tensor:
        """Logits [B, 2, H / 4, W / 4] from the features of all images, and of the map."""
        return self.conv_seg(self.dropout(self.fuse(features, about)))
