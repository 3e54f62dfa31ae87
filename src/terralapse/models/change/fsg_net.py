"""FSG-Net: binary change from wavelet bands, attention between the dates, and gated fusion.

Source: "FSG-Net: Frequency-Spatial Synergistic Gated Network for High-Resolution Remote Sensing Change
Detection", arXiv:2509.06482. Its authors published the code of one module, STSAM, which is exact here
(`terralapse.layers.stsam`). Everything else is a reconstruction of ours from what the abstract and the
options of the published scripts say, and no number of the paper is claimed for it:

- DAWIM, the interaction of the dates in wavelet bands: that it uses the Haar wavelet, and treats low and high
  bands apart by how far the dates differ, is stated; the formulas are ours.
- LGFU, the gated fusion: that deep semantics gate shallow detail is stated; the formula is ours.
- The wiring: a shared ResNet, then DAWIM, STSAM, fusion and head are stated in this order, and "fpn + aspp +
  fuse + drop" with a head "fcn"; at which levels the modules stand, their widths, the dilations and the start
  of the weights are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Inputs, Licences, Normalisation, Status, Task
from terralapse.layers.aspp import ASPP
from terralapse.layers.decoding import enlarged
from terralapse.layers.drop_block import DropBlock
from terralapse.layers.fpn import ConvModule
from terralapse.layers.padding import cut_to, pad_to_multiple
from terralapse.layers.pairing import halves
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.stsam import STSAM
from terralapse.layers.wavelet import haar, inverse_haar
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.change_loss import change_loss
from terralapse.tasks.network import NetworkDetector, Target, crop_like

PIXELS = 32  # stride of the deepest stage
ATTENDED = (3, 4)  # levels with STSAM, whose work grows with the square of the number of places
RATES = (2, 4, 6)  # dilations on the deepest map, which has 8 x 8 places for 256 x 256 pixels
PRIOR = 0.05  # the share of changed pixels that a network with new weights expects


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The ResNet of timm, options of it that differ, and the widths of the four levels after it."""

    encoder: str
    options: tuple[tuple[str, Any], ...] = ()
    widths: tuple[int, ...] = (64, 128, 256, 512)


NANO = (16, 32, 64, 128)
SIZES = {
    "resnet18": Size("resnet18"),
    "resnet34": Size("resnet34"),
    "resnet50": Size("resnet50"),
    "resnet101": Size("resnet101"),
    "nano": Size(
        "resnet18",
        (("layers", (1, 1, 1, 1)), ("channels", NANO), ("stem_type", "deep"), ("stem_width", 8)),
        NANO,
    ),
}
PARAMETERS = {
    "resnet18": 28_232_076,
    "resnet34": 38_340_236,
    "resnet50": 41_958_156,
    "resnet101": 60_950_284,
    "nano": 1_387_388,
}
TITLE = (
    "FSG-Net: Frequency-Spatial Synergistic Gated Network for High-Resolution Remote Sensing Change Detection"
)
LIMITS = (
    "Only STSAM is the published module; DAWIM, LGFU and the wiring are a reconstruction of ours, so that no "
    "number of the paper holds for it.",
    "The order of the dates matters: exchanging them gives another map.",
    "The attention between the dates works on whole tiles: its time grows with the fourth power of the side.",
    "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended.",
)


def _card(size: str) -> Card:
    ours = size == "nano"
    return Card(
        slug=f"fsg-net/{size}",
        title=f"{TITLE}: {size}" + (" (a size of our own)" if ours else ""),
        task=Task.CHANGE,
        status=Status.RUNS,
        date_order=DateOrder.ORDERED,
        summary="Haar wavelet bands compared, attention between the dates and gated fusion on a shared "
        "ResNet; the attention as published, the rest rebuilt from the paper"
        + (", in a size of our own that is small enough for a CPU." if ours else "."),
        year=2025,
        paper="arXiv:2509.06482",
        repository="https://github.com/zxXie-Air/FSG-Net",
        inputs=Inputs(
            dates=2,
            bands=RGB,
            units=(Unit.RGB255,),
            size_multiple=PIXELS,
            halo=64,
            normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        classes="binary-change",
        licences=Licences(code="not stated (no licence file)"),
        limits=LIMITS,
        parameters=PARAMETERS[size],
        checkpoints="none",
    )


HEAD = replace(_card("resnet18"), slug="fsg-net", title=TITLE)
VARIANTS = tuple(_card(size) for size in SIZES)


# --- reconstructed modules -------------------------------------------------------------------------------
class DAWIM(nn.Module):
    """Reconstruction of the discrepancy-aware wavelet interaction: the identity with new weights.

    Of each date, the Haar bands. Low band: a gate from the distance of the dates lets in a convolution of the
    other date, where they differ in style. High bands: a factor between 0 and 2, from both dates and their
    distance, for each of the three bands by the same weights. What this changes goes back through the inverse
    wavelet and is added to the maps. Odd sides are extended by their last row or column for the wavelet.

    Nothing but the maps' own numbers tells the dates apart here: exchanged dates give exchanged answers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)
        self.exchange = nn.Conv2d(channels, channels, 3, padding=1)
        self.weigh = nn.Conv2d(3 * channels, channels, 3, padding=1, groups=channels)
        for conv in (self.exchange, self.weigh):
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The maps [B, C, H, W] of both dates."""
        size = first.shape[-2:]
        one, two = (haar(pad_to_multiple(x, 2)) for x in (first, second))
        style = self.gate((one[:, 0] - two[:, 0]).abs()).sigmoid()
        # Three values a channel, grouped so that each channel is weighed by its own.
        high = [x[:, 1:].flatten(0, 1) for x in (one, two)]
        seen = torch.stack([*high, (high[0] - high[1]).abs()], dim=2).flatten(1, 2)
        factor = (self.weigh(seen) / 2).tanh().unflatten(0, (-1, 3))  # added to 1
        changed = []
        for own, other in ((one, two), (two, one)):
            low = self.exchange(style * other[:, 0])[:, None]
            changed.append(inverse_haar(torch.cat([low, own[:, 1:] * factor], dim=1)))
        return first + cut_to(changed[0], *size), second + cut_to(changed[1], *size)


class LGFU(nn.Module):
    """Reconstruction of the lightweight gated fusion: a deep map, enlarged, says how much of each value
    of the shallow one is let in."""

    def __init__(self, deep: int, shallow: int) -> None:
        super().__init__()
        self.up = ConvModule(deep, shallow, 3, norm="batch")
        self.gate = nn.Conv2d(shallow, shallow, 1)
        self.detail = nn.Conv2d(shallow, shallow, 1)
        self.fuse = ConvModule(2 * shallow, shallow, 3, norm="batch")

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """[B, shallow, H, W] from [B, deep, H / 2, W / 2] and [B, shallow, H, W]."""
        up = self.up(enlarged(deep, shallow))
        return self.fuse(torch.cat([up, self.gate(up).sigmoid() * self.detail(shallow)], dim=1))


# --- the network -----------------------------------------------------------------------------------------
class FSGNet(nn.Module):
    """Logits of two dates [B, C, H, W] with sides that are multiples of 32.

    Each date passes the ResNet; the maps at strides 4, 8, 16 and 32 pass DAWIM, those of `ATTENDED` STSAM;
    both dates of a level are laid side by side and fused (at the start, as their difference), and brought
    together top down by LGFU. The levels deeper than the first are brought to its width and size, all four
    are joined, and squares of the result are dropped in training.
    """

    def __init__(self, size: Size, bands: int = 3) -> None:
        super().__init__()
        import timm  # takes seconds, and only this constructor needs it

        encoder: Any = timm.create_model(
            size.encoder,
            pretrained=False,
            features_only=True,
            out_indices=(1, 2, 3, 4),
            in_chans=bands,
            **dict(size.options),
        )
        found: list[int] = encoder.feature_info.channels()
        self.encoder, widths = encoder, size.widths
        self.reduce = nn.ModuleList(
            nn.Identity() if c == w else ConvModule(c, w, 1, norm="batch")
            for c, w in zip(found, widths, strict=True)
        )
        self.frequency = nn.ModuleList(DAWIM(w) for w in widths)
        self.space = nn.ModuleDict({str(level): STSAM(widths[level - 1]) for level in ATTENDED})
        self.laterals = nn.ModuleList(_difference(w) for w in widths)
        self.context = ASPP(widths[-1], widths[-1], widths[-1] // 4, RATES)
        self.fusion = nn.ModuleList(LGFU(d, s) for s, d in pairwise(widths))
        first = widths[0]
        self.gather = nn.ModuleList(ConvModule(w, first, 3, norm="batch") for w in widths[1:])
        self.join = ConvModule(len(widths) * first, first, 3, norm="batch")
        self.drop = DropBlock(0.15, 7, 30)
        inner = max(16, first // 4)
        self.head = nn.Sequential(ConvModule(first, inner, 3, norm="batch"), nn.Conv2d(inner, 2, 1))
        nn.init.zeros_(self.bias)
        self.raise_change(math.log(PRIOR / (1 - PRIOR)))

    @property
    def bias(self) -> Tensor:
        """Of the logits of no change and change."""
        return self.get_parameter("head.1.bias")

    def raise_change(self, by: float) -> None:
        """Adds to the log-odds of change of every pixel."""
        with torch.no_grad():
            self.bias[1] += by

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits of no change and change [B, 2, H, W]."""
        both = self.encoder(torch.cat([before, after]))
        levels = []
        for level, maps in enumerate(both, start=1):
            first, second = self.frequency[level - 1](*halves(self.reduce[level - 1](maps)))
            if level in ATTENDED:
                first, second = self.space[str(level)](first, second)
            levels.append(self.laterals[level - 1](torch.cat([first, second], dim=1)))
        levels[-1] = self.context(levels[-1])
        for level in range(len(levels) - 2, -1, -1):
            levels[level] = self.fusion[level](levels[level + 1], levels[level])
        deep = [enlarged(conv(x), levels[0]) for conv, x in zip(self.gather, levels[1:], strict=True)]
        return enlarged(self.head(self.drop(self.join(torch.cat([levels[0], *deep], dim=1)))), before)


def _difference(width: int) -> ConvModule:
    """From both dates of a level to one map; the weights of the second date start as the negative of those of
    the first."""
    lateral = ConvModule(2 * width, width, 3, norm="batch")
    with torch.no_grad():
        lateral.conv.weight[:, width:] = -lateral.conv.weight[:, :width]
    return lateral


# --- the system ------------------------------------------------------------------------------------------
class FSGNetDetector(NetworkDetector):
    """FSG-Net behind the contract of change detectors."""

    network: FSGNet

    def forward(self, images: Tensor) -> ChangeOutput:
        padded = self.padded(images)
        return ChangeOutput.of_classes(crop_like(self.network(padded[:, 0], padded[:, 1]), images))

    def loss(self, output: ChangeOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy and Dice of change, one to one: "bce+dice" of the published script, whose weights are
        not known."""
        total = change_loss(output.logits, target["label"])
        entropy = change_loss(output.logits, target["label"], dice_weight=0.0)
        return {"total": total, "cross_entropy": entropy, "dice": total - entropy}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from a ResNet of its size that was trained on ImageNet, as torchvision and timm
        publish it, or from that of another FSG-Net of its size.

        Other bands than red, green and blue start as `terralapse.layers.stem` says.

        Raises:
            WeightsMismatchError: names or shapes are not those of the encoder.
        """
        encoder = self.network.encoder
        inner = {k.removeprefix("encoder."): v for k, v in published.items() if k.startswith("encoder.")}
        if inner:
            load_strict(encoder, inner, "the encoder of an FSG-Net")
            return
        body = {k: v for k, v in published.items() if not k.startswith("fc.")}
        if self.bands != RGB and "conv1.weight" in body:
            body["conv1.weight"] = inflate_stem(body["conv1.weight"], self.bands)
        # Older files do not count the batches that their normalisations have seen.
        counts = {k: v for k, v in encoder.state_dict().items() if k.endswith("num_batches_tracked")}
        load_strict(encoder, counts | body, "the ResNet to start from")

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        self.network.raise_change(by)


def without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefix `module.` of distributed training. No file of the whole network is
    published that could have other names."""
    if tensors and all(k.startswith("module.") for k in tensors):
        return {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


@register(HEAD, *VARIANTS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: Sequence[str] | None = None,
) -> FSGNetDetector:
    """The system of a card; `fsg-net` by itself is `fsg-net/resnet18`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of weights that was trained here; the authors published none.
        untrained: random weights, for training.
        bands: others than red, green and blue, in the order of the input.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        ModelInputError: a band is named twice, or none is.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    card = card_for_bands(card, bands)
    size = SIZES[card.slug.partition("/")[2] or "resnet18"]
    system = FSGNetDetector(card, FSGNet(size, len(card.inputs.bands or RGB)))
    if not untrained:
        load_weights(system.network, card, weights, without_wrapper)
    system.network.eval()
    return system
