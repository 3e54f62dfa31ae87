"""A residual network with three convolutions as its stem and a last stage that dilates in place of striding.

He et al. 2016 with the stem of He et al. 2019 (arXiv:1812.01187, ResNet-C) and the dilation of DeepLab: the
encoder of UniMatch and of what was built on it. The names of its tensors are those of UniMatch's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

STRIDES = (4, 8, 16, 16)  # of the four stages


def dilated_resnet(
    depths: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: int = 64,
    bands: int = 3,
    bottleneck: bool = True,
    pool: bool = True,
) -> nn.Module:
    """The network without a classifier, with random weights.

    Args:
        depths, widths: blocks of the four stages, and the channels inside of them. A stage gives `widths`
            channels, four times as many with `bottleneck`.
        stem: channels of the first two convolutions; the third has twice as many.
        bands: of the images.
        bottleneck: blocks of three convolutions in place of two.
        pool: the pooling after the stem; without it all strides are halved.
    """
    # timm takes seconds to import, and only networks that are built need it.
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    network = ResNet(
        Bottleneck if bottleneck else BasicBlock,  # pyright: ignore[reportArgumentType]
        tuple(depths),  # pyright: ignore[reportArgumentType]
        num_classes=0,
        in_chans=bands,
        output_stride=16,
        global_pool="",
        stem_width=stem,
        stem_type="deep",
        channels=tuple(widths),
        zero_init_last=False,
    )
    if not pool:
        network.maxpool = nn.Identity()
    return network


def pyramid(network: Any, images: Tensor) -> list[Tensor]:
    """The outputs of the four stages of a `dilated_resnet`, at `STRIDES`, for images [B, bands, H, W]."""
    x = network.maxpool(network.act1(network.bn1(network.conv1(images))))
    found = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        found.append(x)
    return found
