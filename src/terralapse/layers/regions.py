"""Features of boxes from all levels of a pyramid at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from terralapse.layers.fpn import ConvModule
from terralapse.layers.generalized_attention import PositionAttention
from terralapse.layers.roi_align import roi_align


class RegionExtractor(nn.Module):
    """Each box is cut out of every level, each cut passes the same 5 x 5 convolution, their sum an attention
    over the cells (Rossi et al. 2021, GRoIE, as DynamicVis has it)."""

    def __init__(self, channels: int = 256, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.pre_module = ConvModule(channels, channels, 5)
        self.post_module = PositionAttention(channels)

    def gather(self, levels: Sequence[Tensor], rois: Tensor, size: int = 7) -> Tensor:
        """The sum over the levels, before the attention; see `forward`."""
        total = levels[0].new_zeros(len(rois), levels[0].shape[1], size, size)
        for level, stride in zip(levels[: len(self.strides)], self.strides, strict=True):
            total = total + self.pre_module(roi_align(level, rois, size, 1 / stride))
        return total

    def forward(self, levels: Sequence[Tensor], rois: Tensor, size: int = 7) -> Tensor:
        """Levels [B, C, h, w], of which as many as there are strides are read, and rois float [R, 5] (image,
        x1, y1, x2, y2 in pixels) to [R, C, size, size]."""
        if len(rois) == 0:
            return self.gather(levels, rois, size)
        return self.post_module(self.gather(levels, rois, size))
