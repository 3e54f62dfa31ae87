"""The first stages of EfficientNet as an encoder: torchvision's own blocks, in its order and with its names.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import nn


class Stage(NamedTuple):
    """A row of table 1: inverted bottlenecks of which the first has the stride and changes the width."""

    expansion: int
    kernel: int
    stride: int
    inputs: int
    outputs: int
    blocks: int


# Width times 1.6, depth times 2.2; the first four of its seven stages, which end at strides 2, 4, 8 and 16.
B5 = (
    Stage(1, 3, 1, 48, 24, 3),
    Stage(6, 3, 2, 24, 40, 5),
    Stage(6, 5, 2, 40, 64, 5),
    Stage(6, 3, 2, 64, 128, 7),
)
# Stochastic depth grows from 0 to 0.2 over the 39 blocks of B5; that is where these 20 of them end.
B5_DROP_PATH = 0.2 * 20 / 39
BN_EPS, BN_MOMENTUM = 1e-3, 1e-2  # of B5


def efficientnet_stages(
    stages: Sequence[Stage], drop_path: float = 0.0, bands: int = 3, momentum: float = BN_MOMENTUM
) -> nn.ModuleList:
    """`features[0]` (the stem, stride 2) and one module for each stage.

    Args:
        stages: see `Stage`; the stem is as wide as the first one's input.
        drop_path: stochastic depth, that of block i of n being `drop_path` i / n.
        bands: channels of the image.
        momentum: of the batch normalisations.
    """
    # torchvision takes seconds to import, and only those who build such an encoder need it.
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    norm = partial(nn.BatchNorm2d, eps=BN_EPS, momentum=momentum)
    whole = EfficientNet(
        [MBConvConfig(*stage) for stage in stages],
        dropout=0.0,
        stochastic_depth_prob=drop_path,
        num_classes=1,
        norm_layer=norm,
        last_channel=1,
    )
    kept = list(whole.features)[: len(stages) + 1]  # without the head of the classifier
    if bands != 3:
        stem = nn.Conv2d(bands, stages[0].inputs, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        kept[0][0] = stem  # pyright: ignore[reportIndexIssue]
    return nn.ModuleList(kept)
