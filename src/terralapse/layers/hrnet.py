"""HRNet (Wang et al. 2020): branches of four resolutions that are kept side by side.

Parameter names and shapes are those of the published networks for ImageNet. The branches exchange what they
hold with bilinear enlargement whose corners are aligned, as networks for segmentation do; those for ImageNet
(and timm) repeat pixels there, so that their weights fit but their features differ a little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.decoding import ResBlock, enlarged

HEAD = ("incre_modules", "downsamp_modules", "final_layer", "classifier")  # of the network for ImageNet


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, relu: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions to four times `width`, and a residual."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None if inputs == outputs else _conv(inputs, outputs, size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Exchange(nn.Module):
    """Blocks on each branch, then every branch is given the sum of all, brought to its size and width."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(ResBlock(width) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_between(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        found: list[Tensor] = []
        for layers, here in zip(self.fuse_layers, maps, strict=True):
            assert isinstance(layers, nn.ModuleList)
            parts = [enlarged(layer(x), here) for layer, x in zip(layers, maps, strict=True)]
            found.append(F.relu(torch.stack(parts).sum(dim=0)))
        return found


def _between(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From the branch `source` to the width of `target`, and to its size where that is smaller."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _conv(widths[source], widths[target], size=1)
    steps = [_conv(widths[source], widths[source], stride=2, relu=True) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _conv(widths[source], widths[target], stride=2))


class HRNet(nn.Module):
    """The branches alone, without a head.

    Args:
        width: of the finest branch; the others have twice, four and eight times as much. Published are 18,
            30, 32, 40, 44, 48 and 64.
        bands: of the images.
        small: a network of ours with a thin stem, one module a stage and one block a branch.
    """

    def __init__(self, width: int, bands: int = 3, small: bool = False) -> None:
        super().__init__()
        stem, inner, blocks = (16, 8, 1) if small else (64, 64, 4)
        start = 4 * inner if small else 64
        modules = (1, 1, 1) if small else (1, 4, 3)
        self.conv1 = nn.Conv2d(bands, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, start, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(start)
        self.layer1 = nn.Sequential(
            Bottleneck(start, inner), *(Bottleneck(4 * inner, inner) for _ in range(blocks - 1))
        )
        widths = [width * 2**i for i in range(4)]
        first = [_conv(4 * inner, widths[0], relu=True), _deeper(4 * inner, widths[1])]
        self.transition1 = nn.ModuleList(first)
        for stage, (count, number) in enumerate(zip((2, 3, 4), modules, strict=True), start=2):
            if stage > 2:
                kept = [nn.Identity() for _ in range(count - 1)]
                new = _deeper(widths[count - 2], widths[count - 1])
                self.add_module(f"transition{stage - 1}", nn.ModuleList([*kept, new]))
            exchanges = [Exchange(widths[:count], blocks) for _ in range(number)]
            self.add_module(f"stage{stage}", nn.Sequential(*exchanges))

    def forward(self, images: Tensor) -> Tensor:
        """All branches, enlarged to the finest: [B, bands, H, W] to [B, 15 width, H / 4, W / 4]."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer1(F.relu(self.bn2(self.conv2(x))))
        maps = [layer(x) for layer in self.transition1]
        maps = self.get_submodule("stage2")(maps)
        for stage in (3, 4):
            transition = self.get_submodule(f"transition{stage - 1}")
            assert isinstance(transition, nn.ModuleList)
            maps = self.get_submodule(f"stage{stage}")([*maps, transition[-1](maps[-1])])
        return torch.cat([enlarged(x, maps[0]) for x in maps], dim=1)


def _deeper(inputs: int, outputs: int) -> nn.Sequential:
    """The start of a new branch, of half the size; nested as in the published names."""
    return nn.Sequential(_conv(inputs, outputs, stride=2, relu=True))


def without_head(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the branches by their names here, from a network for ImageNet or one that holds it as
    `backbone`."""
    names = {k: k.removeprefix("module.").removeprefix("backbone.") for k in published}
    return {name: published[k] for k, name in names.items() if name.split(".")[0] not in HEAD}
