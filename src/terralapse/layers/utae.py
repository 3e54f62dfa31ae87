"""U-TAE: a U-Net over the images of a series, whose dates are brought together by attention.

Source: Garnot and Landrieu 2021, "Panoptic Segmentation of Satellite Image Time Series with Convolutional
Temporal Attention Networks" (arXiv:2107.07933). An encoder runs over each date by itself; L-TAE weighs the
dates at the deepest level, and the same weights, enlarged, sum up those of the other levels for a decoder.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.decoding import up_to
from terralapse.layers.ltae import LTAE


class ConvLayers(nn.Module):
    """Convolutions with reflected borders, each with its norm and a ReLU, through the widths `widths`.

    The norm is over 4 groups of channels, or over the batch where `groups` is 0.
    """

    def __init__(
        self, widths: tuple[int, ...], groups: int = 4, size: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, size, stride, padding, padding_mode="reflect"),
                nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Wrapped(nn.Module):
    """Layers under the name that published checkpoints give them."""

    def __init__(self, conv: ConvLayers) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DownBlock(nn.Module):
    """Half the size, then one convolution and a residual one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = ConvLayers((inputs, inputs), size=4, stride=2)
        self.conv1 = ConvLayers((inputs, outputs))
        self.conv2 = ConvLayers((outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.down(x))
        return x + self.conv2(x)


class UpBlock(nn.Module):
    """Twice the size, joined with what the encoder saw there, then one convolution and a residual one."""

    def __init__(self, inputs: int, outputs: int, skip: int) -> None:
        super().__init__()
        self.skip_conv = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip), nn.ReLU())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.conv1 = ConvLayers((outputs + skip, outputs), groups=0)
        self.conv2 = ConvLayers((outputs, outputs), groups=0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv1(torch.cat([self.up(x), self.skip_conv(skip)], dim=1))
        return x + self.conv2(x)


class UTAE(nn.Module):
    """Maps of a series at all levels.

    Args:
        bands: of an image of the series.
        encoder, decoder: widths of the levels from fine to coarse; the coarsest is the same in both. Those of
            the encoder are multiples of `heads` and of 4.
        heads, key, width: of the `LTAE`.
        unused_classes: of a last layer that published checkpoints of FUSU hold and never use; None for none.
        norm_sees_padding: see `LTAE`.

    Raises:
        ValueError: widths that do not belong together.
    """

    def __init__(
        self,
        bands: int,
        encoder: tuple[int, ...] = (64, 64, 64, 128),
        decoder: tuple[int, ...] = (32, 32, 64, 128),
        heads: int = 16,
        key: int = 4,
        width: int = 256,
        unused_classes: int | None = None,
        norm_sees_padding: bool = False,
    ) -> None:
        super().__init__()
        if len(encoder) != len(decoder) or encoder[-1] != decoder[-1]:
            raise ValueError(f"widths {encoder} of the encoder do not fit those of the decoder, {decoder}")
        self.stride = 2 ** (len(encoder) - 1)
        self.in_conv = Wrapped(ConvLayers((bands, encoder[0], encoder[0])))
        self.down_blocks = nn.ModuleList(map(DownBlock, encoder, encoder[1:]))
        self.temporal_encoder = LTAE(encoder[-1], heads, key, width, norm_sees_padding=norm_sees_padding)
        self.up_blocks = nn.ModuleList(map(UpBlock, decoder[:0:-1], decoder[-2::-1], encoder[-2::-1]))
        if unused_classes is not None:
            self.out_conv = Wrapped(ConvLayers((decoder[0], decoder[0], unused_classes), groups=0))

    def forward(self, series: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps from coarse to fine, and the attention of the coarsest.

        Args:
            series: [B, T, bands, H, W], sides multiples of `stride` and at least twice that. A date of zeros
                alone fills up the batch and says nothing.

        Returns:
            maps [B, decoder width, h, w], the finest at H x W; attention [heads, B, T, h, w].
        """
        padded = absent(series)
        blank = padded[:, :, None, None, None]

        def each_date(module: nn.Module, x: Tensor) -> Tensor:
            found = module(x.flatten(0, 1)).unflatten(0, padded.shape)
            return found.masked_fill(blank, 0.0)

        features = [each_date(self.in_conv, series)]
        for block in self.down_blocks:
            features.append(each_date(block, features[-1]))
        x, attention = self.temporal_encoder(features[-1], padded)
        maps = [x]
        for block, dates in zip(self.up_blocks, features[-2::-1], strict=True):
            maps.append(block(maps[-1], weighted(dates, attention)))
        return maps, attention


def absent(series: Tensor) -> Tensor:
    """bool [B, T]: dates of a series [B, T, C, H, W] that hold zeros alone."""
    return (series == 0).flatten(2).all(dim=2)


def weighted(dates: Tensor, attention: Tensor) -> Tensor:
    """The sum over dates [B, T, C, H, W] by an attention [heads, B, T, h, w], enlarged to their size: a head
    weighs its share of the channels."""
    heads = attention.shape[0]
    large = up_to(attention.flatten(0, 1), dates.shape).unflatten(0, (heads, -1))
    return torch.einsum("nbthw,btnchw->bnchw", large, dates.unflatten(2, (heads, -1))).flatten(1, 2)


class Cropped(nn.Module):
    """The middle of a map in several widths, of which the last is used; the others are part of published
    checkpoints."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(nn.Conv2d(inputs, w, 1) for w in widths)

    def forward(self, x: Tensor, side: int, size: tuple[int, int]) -> Tensor:
        """The middle `side` x `side` pixels of [B, C, H, W] (or all, where there are fewer), at `size`."""
        top, left = (max(0, round((s - side) / 2)) for s in x.shape[-2:])
        middle = x[..., top : top + side, left : left + side]
        return F.interpolate(self.conv_list[-1](middle), size=size, mode="bilinear", align_corners=False)


class Collapsed(nn.Module):
    """The mean of a map through a perceptron, in several widths; as for `Cropped` the last is used."""

    def __init__(self, inputs: int, widths: tuple[int, ...], dropout: float = 0.3) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(_perceptron(inputs, w, dropout) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, width, 1, 1], each image by itself."""
        return self.mlps[-1](x.mean(dim=(2, 3)))[:, :, None, None]


def _perceptron(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Three layers in equal steps of width; of 64 where input and output are equally wide."""
    step = abs(inputs - outputs) // 3
    first, second = (2 * inputs, 2 * inputs)
    if outputs > inputs:
        first, second = inputs + step, inputs + 2 * step
    elif outputs < inputs:
        first, second = inputs - step, inputs - 2 * step
    return nn.Sequential(
        nn.Linear(inputs, first),
        nn.Dropout(dropout),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.Dropout(dropout),
        nn.ReLU(),
        nn.Linear(second, outputs),
    )
