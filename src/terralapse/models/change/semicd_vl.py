"""SemiCD-VL: change from few labels, with the labels of a vision-language model beside one's own.

Source: Li, Cao, Deng, Ming and Meng, "SemiCD-VL: Visual-Language Model Guidance Makes Better Semi-supervised
Change Detector", IEEE TGRS 62, 2024, arXiv:2405.04788, and its released code, whose parameters `lighthead`
has by name. Both dates pass a dilated residual network; the absolute difference of its four maps goes to a
decoder with two projections, one for the labels and one for those of the other model; a second decoder finds
buildings at each date and gives the features whose distance is contrasted. Only the first projection is used
outside of training. Differs from the released code in: both dates are one batch of the encoder, so that
statistics of training are of both; the distance is taken over channels (see `faithful`); the projection of
change starts from a small share of changed pixels; and a size of our own. How unlabelled pairs are used is in
`terralapse.tasks.consistency` and `terralapse.engine.semi`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.layers import lite0
from terralapse.layers.decoding import ConvBNReLU, up_to
from terralapse.layers.dilated_resnet import dilated_resnet, pyramid
from terralapse.layers.pairing import halves
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.consistency import GuidedDetector, GuidedOutput, feature_distance, supervised_losses
from terralapse.tasks.dice import dice_loss
from terralapse.tasks.network import Target, crop_like

RARE = 0.03  # share of changed pixels that an untrained network starts from


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Of the encoder: depths, widths, stem, kind of block, pooling; without depths it is `layers.lite0`. Of
    the decoders: kind and width."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    bottleneck: bool = True
    pool: bool = True
    head: str = "light"
    width: int = 256


SIZES = {
    "lighthead-r50": Size(),
    "dlv3p-r50": Size(head="deeplab"),
    "nano": Size((2, 2, 2, 2), (16, 32, 64, 96), stem=8, bottleneck=False, width=32),
    "lite0": Size((), lite0.CHANNELS, bottleneck=False, width=64),
}
PARAMETERS = {"lighthead-r50": 26_128_838, "dlv3p-r50": 58_602_118, "nano": 509_726, "lite0": 128_934}
OURS = ("nano", "lite0")
TITLE = "SemiCD-VL: Visual-Language Model Guidance Makes Better Semi-supervised Change Detector"
SUMMARY = "Binary change from few labelled pairs: consistency of views plus the labels of another model"
QUIRKS = (
    "The released code takes the distance of the contrast over the width in place of the channels; here it "
    "is over the channels, and `faithful=True` builds the other. It matters in training only.",
    "The projection for the other model's labels and the decoder of buildings are in every checkpoint, and "
    "nothing outside of training reads them.",
)
LIMITS = {
    "lighthead-r50": ("The authors list no trained weights.",),
    "dlv3p-r50": (
        "Its number of parameters is that of the released code, its outputs were not compared with it: the "
        "names of its tensors are ours, and whether corners are aligned when maps are enlarged is not known.",
        "The authors list no trained weights.",
    ),
    "nano": ("A size of our own, small enough for a CPU.",),
    "lite0": (
        "A size of our own, whose encoder starts from ImageNet: the first stages of EfficientNet-Lite0.",
    ),
}
WHOLE_TILE = "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended."


GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case semicd-vl/lighthead",
    "bound of the comparison with the published implementation on a CPU, losses included",
    "golden",
)


def _card(size: str) -> Card:
    ours = size in OURS
    return Card(
        slug=f"semicd-vl/{size}",
        title=f"{TITLE}: {size}" + (" (a size of our own)" if ours else ""),
        task=Task.CHANGE,
        status=Status.REPRODUCED if size == "lighthead-r50" else Status.RUNS,  # the golden case is of it
        date_order=DateOrder.SYMMETRIC,
        summary=SUMMARY + (", in a size of our own that is small enough for a CPU." if ours else "."),
        year=2024,
        paper="arXiv:2405.04788",
        repository="https://github.com/likyoo/SemiCD-VL",
        inputs=Inputs(
            dates=2,
            bands=RGB,
            units=(Unit.RGB255,),
            size_multiple=16,
            halo=64,
            normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        classes="binary-change",
        licences=Licences(code="Apache-2.0 (parts of the authors' are of UniMatch, MIT)"),
        figures=(GOLDEN,) if size == "lighthead-r50" else (),
        quirks=QUIRKS,
        limits=LIMITS[size] if size == "lite0" else (*LIMITS[size], WHOLE_TILE),  # that one is local
        parameters=PARAMETERS[size],
        checkpoints="none",
    )


HEAD = replace(_card("lighthead-r50"), slug="semicd-vl", title=TITLE)
VARIANTS = tuple(_card(size) for size in SIZES)


# --- decoders --------------------------------------------------------------------------------------------
class LightHead(nn.Module):
    """Four maps to one width, enlarged to the first, stacked, fused; with one or two projections on it."""

    def __init__(self, channels: list[int], width: int, guided: bool) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(width, 2, 1)
        self.convs = nn.ModuleList(ConvBNReLU(c, width) for c in channels)
        self.fusion_conv = ConvBNReLU(len(channels) * width, width)
        if guided:
            self.conv_seg_for_vl = nn.Conv2d(width, 2, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The features [B, width, H / 4, W / 4] that each projection reads; here they are the same."""
        levels = [up_to(conv(m), maps[0].shape) for conv, m in zip(self.convs, maps, strict=True)]
        feature = self.fusion_conv(torch.cat(levels, dim=1))
        return feature, feature


class ASPP(nn.Module):
    """Convolutions of several reaches and the mean of the image, stacked and fused (DeepLabV3)."""

    def __init__(self, inputs: int, width: int, rates: tuple[int, ...] = (6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvBNReLU(inputs, width), *(ConvBNReLU(inputs, width, 3, rate) for rate in rates)]
        )
        self.pool = ConvBNReLU(inputs, width)
        self.project = ConvBNReLU((len(rates) + 2) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.pool(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1))


class DeepLabHead(nn.Module):
    """The decoder of DeepLabV3+; the projection for the other model's labels has convolutions of its own."""

    def __init__(self, channels: list[int], width: int, guided: bool) -> None:
        super().__init__()
        low = 3 * width // 16
        self.aspp = ASPP(channels[-1], width)
        self.reduce = ConvBNReLU(channels[0], low)
        self.fuse = self._fuse(width, low)
        self.conv_seg = nn.Conv2d(width, 2, 1)
        if guided:
            self.fuse_for_vl = self._fuse(width, low)
            self.conv_seg_for_vl = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _fuse(width: int, low: int) -> nn.Sequential:
        return nn.Sequential(ConvBNReLU(width + low, width, 3), ConvBNReLU(width, width, 3))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The features [B, width, H / 4, W / 4] that each projection reads."""
        deep = up_to(self.aspp(maps[-1]), maps[0].shape)
        both = torch.cat([deep, self.reduce(maps[0])], dim=1)
        feature = self.fuse(both)
        other = self.fuse_for_vl(both) if self.training and hasattr(self, "fuse_for_vl") else feature
        return feature, other


# --- the network -----------------------------------------------------------------------------------------
class SemiCDVL(nn.Module):
    """Binary change. Arguments as in `Size`; `faithful`: see `feature_distance`."""

    def __init__(self, size: Size, bands: int = 3, faithful: bool = False) -> None:
        super().__init__()
        self.faithful = faithful
        self.backbone = (
            dilated_resnet(size.depths, size.widths, size.stem, bands, size.bottleneck, size.pool)
            if size.depths
            else lite0.Lite0(bands)
        )
        channels = [w * (4 if size.bottleneck else 1) for w in size.widths]
        kind = LightHead if size.head == "light" else DeepLabHead
        self.decode_head = kind(channels, size.width, guided=True)
        self.auxiliary_seg_head = kind(channels, size.width, guided=False)
        for head in (self.decode_head, self.auxiliary_seg_head):
            for name in ("conv_seg", "conv_seg_for_vl"):
                if (projection := getattr(head, name, None)) is not None:
                    _start(projection, RARE if head is self.decode_head else 0.5)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits of no change and change [B, 2, H, W] of normalised images [B, bands, H, W]."""
        maps = [(b - a).abs() for b, a in zip(*self.pyramids(before, after), strict=True)]
        return up_to(self.decode_head.conv_seg(self.decode_head(maps)[0]), before.shape)

    def everything(self, before: Tensor, after: Tensor) -> GuidedOutput:
        """Also what only training looks at."""
        first, second = self.pyramids(before, after)
        head, side = self.decode_head, self.auxiliary_seg_head
        own, other = head([(b - a).abs() for b, a in zip(first, second, strict=True)])
        classes = up_to(head.conv_seg(own), before.shape)
        features = side([torch.cat([b, a]) for b, a in zip(first, second, strict=True)])[0]
        built = up_to(side.conv_seg(features), before.shape).chunk(2)
        early, late = features.chunk(2)
        return GuidedOutput(
            classes[:, 1] - classes[:, 0],
            classes,
            guided=up_to(head.conv_seg_for_vl(other), before.shape),
            first=built[0],
            second=built[1],
            distance=feature_distance(early, late, (before.shape[-2], before.shape[-1]), self.faithful),
        )

    def pyramids(self, before: Tensor, after: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of each date, from one pass over a batch of both."""
        encoder, images = self.backbone, torch.cat([before, after])
        maps = encoder.maps(images) if isinstance(encoder, lite0.Lite0) else pyramid(encoder, images)
        both = [halves(m) for m in maps]
        return [m[0] for m in both], [m[1] for m in both]


def _start(projection: nn.Conv2d, share: float) -> None:
    """Small weights, and a bias that gives the second class this share of the pixels."""
    nn.init.normal_(projection.weight, std=0.1)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    with torch.no_grad():
        projection.bias[1] = math.log(share / (1 - share))


def from_official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the authors' checkpoint by the names of `SemiCDVL`: without the prefix of several GPUs."""
    return {k.removeprefix("module."): v for k, v in tensors.items()}


# --- the system ------------------------------------------------------------------------------------------
class SemiCDVLDetector(GuidedDetector):
    """The network behind the contract of change detectors; `dice` adds that loss."""

    network: SemiCDVL
    dice = False

    def forward(self, images: Tensor) -> GuidedOutput:
        """With what only training looks at, in training unless `guided` is off; else the logits alone."""
        padded = self.padded(images)
        before, after = padded[:, 0], padded[:, 1]
        if not (self.guided and self.network.training):
            classes = crop_like(self.network(before, after), images)
            return GuidedOutput(classes[:, 1] - classes[:, 0], classes)
        found = vars(self.network.everything(before, after))
        return GuidedOutput(**{name: crop_like(x, images) for name, x in found.items()})

    def loss(self, output: GuidedOutput, target: Target) -> dict[str, Tensor]:
        """That of labelled pairs: cross-entropy plus a tenth of the contrast of the dates' features, and Dice
        for the size of our own, which has no encoder to start from."""
        parts = supervised_losses(output, target["label"])
        if self.dice:
            assert output.classes is not None
            parts["dice"] = dice_loss(output.classes, target["label"])
            parts["total"] = parts["total"] + parts["dice"]
        return parts

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from a residual network of the same shape that was trained on ImageNet, such as
        `resnet50.pth` of UniMatch; its classifier is left out, and bands follow `inflate_stem`. That of
        `lite0` is the published EfficientNet-Lite0.

        Raises:
            WeightsMismatchError: names or shapes are not those of the encoder.
            ModelInputError: its first convolution is not for red, green and blue.
        """
        if isinstance(self.network.backbone, lite0.Lite0):
            lite0.load_lite0(self.network.backbone, published, self.bands)
            return
        tensors = {k.removeprefix("backbone."): v for k, v in from_official(published).items()}
        kept = {k: v for k, v in tensors.items() if not k.startswith(("fc.", "decode_head.", "auxiliary_"))}
        first = "conv1.0.weight"
        if first in kept and self.bands != RGB:
            kept[first] = inflate_stem(kept[first], self.bands)
        load_strict(self.network.backbone, kept, "the published encoder")

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        bias = self.network.decode_head.conv_seg.bias
        assert bias is not None
        with torch.no_grad():
            bias[1] += by


@register(HEAD, *VARIANTS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: tuple[str, ...] | None = None,
    faithful: bool = False,
) -> SemiCDVLDetector:
    """The system of a card; `semicd-vl` by itself is `semicd-vl/lighthead-r50`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of ours, or one that the authors' code wrote.
        untrained: random weights, for training.
        bands: in place of red, green and blue; see `terralapse.layers.stem`.
        faithful: the distance of the contrast as the released code has it. Training only.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        ModelInputError: a band is named twice.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    card = card_for_bands(card, bands)
    size = SIZES[card.slug.partition("/")[2] or "lighthead-r50"]
    network = SemiCDVL(size, len(card.inputs.bands or ()), faithful)
    if not untrained:
        load_weights(network, card, weights, from_official)
    if not size.depths:  # depthwise convolutions are half as fast again so
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    system = SemiCDVLDetector(card, network.eval())
    system.dice = card.slug.rpartition("/")[2] in OURS
    return system
