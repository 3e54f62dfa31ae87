"""CFNet, the content focuser network: binary change from content that is decoded apart for each date.

Source: Wu, Dong and Meng, "CFNet: Optimizing Remote Sensing Change Detection through Content-Aware
Enhancement", IEEE JSTARS 2025, arXiv:2503.08505; as in the released code, whose parameters it has by name.
Differs from it in: the log-odds, which the regression of the paper does not have; a content loss that has a
gradient, beside the released one; labels that are ignored count nowhere; and a size of our own, `nano`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Released, Status, Task
from terralapse.data.pairs import IGNORE
from terralapse.errors import ModelInputError, SettingError
from terralapse.layers.cbam import CBAM
from terralapse.layers.decoding import ResBlock, pointwise
from terralapse.layers.efficientnet import (
    B5,
    B5_DROP_PATH,
    BN_MOMENTUM,
    Stage,
    efficientnet_stages,
)
from terralapse.layers.self_similarity import labelled_content, official_content
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.dice import binary_dice
from terralapse.tasks.network import NetworkDetector, Target, crop_like

PIXELS = 16  # stride of the deepest stage
BGR = ("blue", "green", "red")
CONTENT_WEIGHT = 0.1  # of each of the two content losses, as a mean over the scales
TRUSTED_FROM = 0.05  # of the regressed value; see `log_odds`

Content = Literal["official", "labelled"]


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Stages of the encoder (see `efficientnet_stages`), and what only one of the two sizes has.

    `paired`: in training too both dates pass through the encoder as one batch, with one set of statistics.
    `spare`: a fusion of three channels that nothing uses, but that is in the authors' files.
    `cbam_active`: whether the attention of the content decoders is applied, unless a builder is told.
    `dice`: whether a soft Dice is part of the loss.
    `last`: what the last layer is multiplied by at the start. Where tanh is saturated squares have no slope,
    so that a small start, at "no change" everywhere, is the safe one.
    """

    stages: tuple[Stage, ...]
    drop_path: float
    momentum: float
    paired: bool
    spare: bool
    cbam_active: bool
    content: Content
    dice: bool
    last: float


SIZES = {
    "b5": Size(
        B5,
        B5_DROP_PATH,
        BN_MOMENTUM,
        paired=False,
        spare=True,
        cbam_active=False,
        content="official",
        dice=False,
        last=1.0,
    ),
    "nano": Size(
        (
            Stage(1, 3, 1, 8, 8, 1),
            Stage(2, 3, 2, 8, 16, 1),
            Stage(4, 5, 2, 16, 32, 2),
            Stage(4, 3, 2, 32, 64, 2),
        ),
        0.05,
        0.1,
        paired=True,
        spare=False,
        cbam_active=True,
        content="labelled",
        dice=True,
        last=0.2,
    ),
}
PARAMETERS = {"b5": 3_838_563, "nano": 486_584}
TITLE = "CFNet: Optimizing Remote Sensing Change Detection through Content-Aware Enhancement"
HUB = "wifibk/CFNet"
REVISION = "c23279428d14186d67ce199b3db358038bf37585"

# Mean and standard deviation of each date on 0..1, over the channels as the network gets them (blue, green,
# red). The authors computed them over red, green, blue, and used those of LEVIR-CD for CLCD.
_LEVIR = (
    ((0.45028868, 0.44673658, 0.38134101), (0.34578751, 0.33841163, 0.28902323)),
    ((0.17450373, 0.16485656, 0.15314709), (0.1292925, 0.12592704, 0.11870409)),
)
_SYSU = (
    ((0.39659573, 0.52846194, 0.46540028), (0.40202362, 0.48766126, 0.39895686)),
    ((0.20213536, 0.15811189, 0.15296702), (0.18235275, 0.15682769, 0.1543715)),
)
DATES = {"levir-cd": _LEVIR, "clcd": _LEVIR, "sysu-cd": _SYSU}

SETS = {  # variant: name, sha256 of the authors' file, F1 and IoU in percent, what its labels are
    "levir-cd": (
        "LEVIR-CD",
        "22ab286b2138ab1082e04290b27cbff5abd3802375a6b2f01d4ba78ca8b0c1aa",
        (92.18, 85.49),
        "buildings in aerial images of 0.5 m of Texas",
    ),
    "clcd": (
        "CLCD",
        "8dfa77c67b56c7c3e451343e0f80f5115d523ceebea73848f7d2b15f86f9dc07",
        (81.41, 68.65),
        "cropland in images of 0.5 to 2 m of Guangdong",
    ),
    "sysu-cd": (
        "SYSU-CD",
        "4da23bc64c7ffe6a5832fad511fd006bb24432e0d50f08579ff7bed7d35f7658",
        (82.89, 70.78),
        "buildings, roads, ground works, vegetation and the sea in aerial images of 0.5 m of Hong Kong",
    ),
}
PROTOCOL = (
    "one confusion matrix over whole test images, class change, map > 0.5; the checkpoint was chosen on the "
    "validation split"
)
QUIRKS = (
    "Channels are in the order blue, green, red, with one mean and deviation per data set and date, which "
    "the authors computed over red, green, blue.",
    "The content decoders run an attention (CBAM) whose result they drop; its weights never learned.",
    "A fifth fusion, of three channels, is in the files and used by nothing.",
)
LIMITS = (
    "The order of the dates matters: each has a content decoder, and constants, of its own.",
    "The output is a regression to 0 and 1 by squares, squashed by tanh: a probability only as far as that.",
    "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended.",
)
CONTENT_LIMIT = (
    "The content loss that the authors' files were trained with has an expected gradient of zero; training "
    "here takes it as it is unless told otherwise (`content`)."
)


def _card(variant: str) -> Card:
    ours = variant == "nano"
    common: dict[str, Any] = {
        "slug": f"cfnet/{variant}",
        "task": Task.CHANGE,
        "date_order": DateOrder.ORDERED,
        "year": 2025,
        "paper": "arXiv:2503.08505",
        "repository": "https://github.com/wifiBlack/CFNet",
        "classes": "binary-change",
        "parameters": PARAMETERS["nano" if ours else "b5"],
    }
    inputs = Inputs(dates=2, units=(Unit.RGB255,), size_multiple=PIXELS, halo=64)
    if ours:
        normalisation = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        return Card(
            **common,
            title=f"{TITLE}: nano (a size of our own)",
            status=Status.RUNS,
            summary="A Siamese EfficientNet with a content decoder for each date and weights from cosine "
            "distance, in a size of our own that is small enough for a CPU.",
            inputs=replace(inputs, bands=RGB, normalisation=normalisation),
            licences=Licences(code="Apache-2.0"),
            limits=LIMITS,
            checkpoints="none",
        )
    name, sha256, scores, labels = SETS[variant]
    return Card(
        **common,
        title=f"{TITLE}: {name}",
        status=Status.REPRODUCED if variant == "levir-cd" else Status.RUNS,  # the golden case is of LEVIR-CD
        summary="A Siamese EfficientNet-B5 with a content decoder for each date and weights from cosine "
        f"distance; with the constants of {name}.",
        inputs=replace(inputs, bands=BGR, normalisation=Normalisation((0.0,) * 3, (255.0,) * 3)),
        licences=Licences(code="Apache-2.0", weights="Apache-2.0 (the authors' hub page)"),
        released=(
            Released(f"{variant}.pth", f"hub:{HUB}@{REVISION}", f"trained on {name}, F1 {scores[0]}", sha256),
        ),
        figures=tuple(
            Figure(metric, round(x / 100, 4), f"{name} test", PROTOCOL, "paper")
            for metric, x in zip(("change F1", "IoU"), scores, strict=True)
        ),
        quirks=QUIRKS,
        limits=(*LIMITS, f"It was trained on {labels}, and knows those changes.", CONTENT_LIMIT),
        checkpoints=f"Hugging Face {HUB}",
    )


HEAD = replace(_card("levir-cd"), slug="cfnet", title=TITLE)
VARIANTS = tuple(_card(variant) for variant in (*SETS, "nano"))


# --- the network -----------------------------------------------------------------------------------------
class Encoder(nn.Module):
    """EfficientNet up to stride 16, without its head."""

    def __init__(self, size: Size, bands: int) -> None:
        super().__init__()
        self._backbone = efficientnet_stages(size.stages, size.drop_path, bands, size.momentum)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8 and 16."""
        found = []
        for stage in self._backbone:
            x = stage(x)
            found.append(x)
        return found[1:]


class Aggregation(nn.Module):
    """Coarse features at twice their size, joined with finer ones and refined."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(
            coarse, coarse, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.conv1 = nn.Sequential()
        self.conv1.add_module("block", pointwise(coarse + fine, fine))
        self.residual1 = ResBlock(fine)
        self.residual2 = ResBlock(fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, fine, 2h, 2w]."""
        joined = self.conv1(torch.cat([self.upsample(coarse), fine], dim=1))
        return self.residual2(self.residual1(joined))


class ContentDecoder(nn.Module):
    """The pyramid of one date, brought together from coarse to fine; `widths` from coarse to fine.

    The released code computes the attention and drops it; `active` applies it, as the paper draws it.
    """

    def __init__(self, widths: tuple[int, ...], active: bool) -> None:
        super().__init__()
        self.active = active
        self.aggregations = nn.ModuleList(Aggregation(coarse, fine) for coarse, fine in pairwise(widths))
        self.cbam = nn.ModuleList(CBAM(w) for w in widths)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Content from coarse to fine, of a pyramid from fine to coarse."""
        found = [pyramid[-1]]
        for aggregation, fine in zip(self.aggregations, pyramid[-2::-1], strict=True):
            found.append(aggregation(found[-1], fine))
        return [attend(x) for attend, x in zip(self.cbam, found, strict=True)] if self.active else found


class FuseConv(nn.Module):
    """A convolution over both dates: 3 x 3 in space, 2 in time, batch normalisation, ReLU.

    With a kernel that is as deep as there are dates this is a plain convolution of the dates side by side in
    the channels; the parameters keep the shape that they have in the files.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        volume = nn.Conv3d(width, width, (2, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1))
        self.conv = nn.ModuleList([volume, nn.BatchNorm2d(width)])

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """[B, C, h, w]."""
        volume: Any = self.conv[0]
        weight = volume.weight.transpose(1, 2).flatten(1, 2)  # [O, 2C, 3, 3]
        both = torch.cat([before, after], dim=1)
        return F.relu(self.conv[1](F.conv2d(both, weight, volume.bias, padding=1)))


class ChangeDecoder(nn.Module):
    """Content of both dates, fused and weighted at each scale, brought together from coarse to fine."""

    def __init__(self, widths: tuple[int, ...], spare: bool, gain: float) -> None:
        super().__init__()
        self.fuseconv3ds = nn.ModuleList(FuseConv(w) for w in (*widths, *((3,) if spare else ())))
        self.aggregations = nn.ModuleList(Aggregation(coarse, fine) for coarse, fine in pairwise(widths))
        last = nn.ConvTranspose2d(widths[-1], 1, 3, stride=2, padding=1, output_padding=1, bias=False)
        with torch.no_grad():
            last.weight *= gain
        self.upconv = nn.Sequential(last)

    def forward(self, before: list[Tensor], after: list[Tensor], focus: list[Tensor]) -> Tensor:
        """[B, H, W]."""
        fused = [
            fuse(a, b) * f[:, None]
            for fuse, a, b, f in zip(self.fuseconv3ds[: len(focus)], before, after, focus, strict=True)
        ]
        x = fused[0]
        for aggregation, fine in zip(self.aggregations, fused[1:], strict=True):
            x = aggregation(x, fine)
        return self.upconv(x)[:, 0]


class Found(NamedTuple):
    """`before_tanh` float [B, H, W]; of each scale from coarse to fine, the content of the dates `first` and
    `second` [B, C, h, w], and `focus` [B, h, w] in 0..0.97, large where they differ."""

    before_tanh: Tensor
    first: list[Tensor]
    second: list[Tensor]
    focus: list[Tensor]


class CFNet(nn.Module):
    """The network. Sides must be multiples of 16.

    `shift` is added to the log-odds (see `shift_logits`), and to nothing else; it is no parameter.
    """

    shift: Tensor

    def __init__(self, size: Size, bands: int = 3, cbam_active: bool | None = None) -> None:
        super().__init__()
        widths = tuple(stage.outputs for stage in reversed(size.stages))
        active = size.cbam_active if cbam_active is None else cbam_active
        self.paired = size.paired
        self.encoder = Encoder(size, bands)
        self.content_decoder_1 = ContentDecoder(widths, active)
        self.content_decoder_2 = ContentDecoder(widths, active)
        self.change_decoder = ChangeDecoder(widths, size.spare, size.last)
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, before: Tensor, after: Tensor) -> Found:
        """For normalised images [B, C, H, W]."""
        first, second = self.pyramids(before, after)
        first, second = self.content_decoder_1(first), self.content_decoder_2(second)
        focus = [focused(a, b) for a, b in zip(first, second, strict=True)]
        return Found(self.change_decoder(first, second, focus), first, second, focus)

    def pyramids(self, before: Tensor, after: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features of both dates. Each date has batch statistics of its own in training unless `paired`."""
        if self.training and not self.paired:
            return self.encoder(before), self.encoder(after)
        both = [f.unflatten(0, (2, -1)) for f in self.encoder(torch.stack([before, after]).flatten(0, 1))]
        return [f[0] for f in both], [f[1] for f in both]


def focused(before: Tensor, after: Tensor) -> Tensor:
    """tanh(1 - cosine similarity) over the channels, float32 [B, h, w]."""
    return torch.tanh(1.0 - F.cosine_similarity(before.float(), after.float(), dim=1))


def log_odds(before_tanh: Tensor) -> Tensor:
    """Log-odds of change from the map before its tanh; both grow together, and 0.5 becomes 0.

    What squares are minimised over is an estimate of the probability, so that t = tanh(x) is taken for it
    from `TRUSTED_FROM` on: log(t / (1 - t)) = log((exp(2x) - 1) / 2). Below, down to -1, where t cannot be a
    probability, the tangent goes on, in t: the order of pixels is kept, slopes stay under 22, and values over
    -26.
    """
    x, edge = before_tanh.float(), TRUSTED_FROM
    inside = x.clamp(min=math.atanh(edge))
    trusted = 2.0 * inside + torch.log(1.0 - torch.exp(-2.0 * inside)) - math.log(2.0)
    return trusted + (torch.tanh(x) - edge).clamp(max=0.0) / (edge * (1.0 - edge))


# --- losses ----------------------------------------------------------------------------------------------
def squared_error(raw: Tensor, label: Tensor) -> Tensor:
    """The mean of (raw - label)² over the pixels [B, H, W] that count."""
    counts = label != IGNORE
    error = (raw.float() - (label == 1).float()).square() * counts
    return error.sum() / counts.sum().clamp(min=1)


# --- the system ------------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class CFNetOutput(ChangeOutput):
    """With the map that the network regresses, `raw` float [B, H, W] in -1..1 (change over 0.5, whatever the
    log-odds were shifted by), and what the losses need of the network."""

    raw: Tensor
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    focus: list[Tensor] = field(default_factory=list)


class CFNetDetector(NetworkDetector):
    """CFNet behind the contract of change detectors.

    `dates`: mean and standard deviation of each date and band on 0..1, applied after the card's own
    normalisation; None where the latter is all.
    """

    network: CFNet

    def __init__(
        self,
        card: Card,
        network: CFNet,
        size: Size,
        content: Content | None = None,
        dates: tuple[Any, Any] | None = None,
        faithful: bool = False,
    ) -> None:
        super().__init__(card, network)
        self.size, self.content, self.faithful = size, content or size.content, faithful
        self._dates = None if dates is None else tuple(torch.tensor(x)[:, :, None, None] for x in dates)

    def normalise(self, images: Tensor, usable: Tensor | None, state: Any) -> Tensor:
        """See `NetworkSystem.normalise`; each date by constants of its own where the card's data set has
        them."""
        if self._dates is None:
            return super().normalise(images, usable, state)
        scaled = super().normalise(images, None, state)
        mean, std = (x.to(scaled) for x in self._dates)
        normal = (scaled - mean) / std
        return normal if usable is None else normal.masked_fill(~usable[:, None, None], 0.0)

    def forward(self, images: Tensor) -> CFNetOutput:
        padded = self.padded(images)
        found: Found = self.network(padded[:, 0], padded[:, 1])
        x = crop_like(found.before_tanh, images).float()
        return CFNetOutput(
            log_odds(x) + self.network.shift,
            raw=torch.tanh(x),
            first=found.first,
            second=found.second,
            focus=found.focus,
        )

    def loss(self, output: CFNetOutput, target: Target) -> dict[str, Tensor]:
        label = target["label"]
        parts = {"squares": squared_error(output.raw, label)}
        if self.size.dice:
            parts["dice"] = binary_dice(output.raw.clamp(min=0.0), label)
        total = torch.stack(list(parts.values())).sum()
        scales = list(zip(output.first, output.second, output.focus, strict=True))
        if self.content == "official":
            found = [official_content(*scale) for scale in scales]
        else:
            found = [labelled_content(first, second, label) for first, second, _ in scales]
        for name, values in zip(
            ("content_changed", "content_unchanged"), zip(*found, strict=True), strict=True
        ):
            parts[name] = torch.stack(values).mean()
            total = total + CONTENT_WEIGHT * parts[name]
        return {"total": total, **parts}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from torchvision's EfficientNet-B5, trained on ImageNet, or from that of another
        CFNet of its size.

        The first layer of the former knows red, green, blue, and is put in the order of the bands (see
        `inflate_stem`); `faithful` leaves it as it is, as the authors do over blue, green, red.

        Raises:
            ModelInputError: it is of our own size, for which no encoder is published.
            WeightsMismatchError: the file holds another network.
        """
        if self.size is not SIZES["b5"]:
            raise ModelInputError(
                self.card.slug, "has an encoder that nobody published", "Leave out `encoder`."
            )
        if any(k.startswith("features.") for k in published):
            names = {f"features.{n}.": f"_backbone.{n}." for n in range(len(B5) + 1)}
            inner = {
                new + k.removeprefix(old): v
                for k, v in published.items()
                for old, new in names.items()
                if k.startswith(old)
            }
            trained = self.bands if self.faithful else RGB
            inner[STEM] = inflate_stem(inner[STEM], self.bands, trained) if STEM in inner else inner[STEM]
        else:
            whole = official_names(published, self.bands)
            inner = {k.removeprefix("encoder."): v for k, v in whole.items() if k.startswith("encoder.")}
        load_strict(self.network.encoder, inner, "the encoder of a CFNet")

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration. The regressed map stays as it is."""
        with torch.no_grad():
            self.network.shift += by


STEM = "_backbone.0.0.weight"


def official_names(tensors: dict[str, Tensor], bands: tuple[str, ...]) -> dict[str, Tensor]:
    """The authors' file for `bands`: without the wrapper of several GPUs, with `shift`, and with a first
    layer for other bands than theirs. A file of ours, which has a `shift`, is left alone."""
    tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    if "shift" in tensors:
        return tensors
    stem = f"encoder.{STEM}"
    if stem in tensors:
        tensors[stem] = inflate_stem(tensors[stem], bands, BGR)
    return {**tensors, "shift": torch.zeros(1)}


@register(HEAD, *VARIANTS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: tuple[str, ...] | None = None,
    cbam_active: bool | None = None,
    content: Content | None = None,
    faithful: bool = False,
) -> CFNetDetector:
    """The system of a card; `cfnet` by itself is `cfnet/levir-cd`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of the authors, or one of ours.
        untrained: random weights, for training.
        bands: other bands than those of the card; see `card_for_bands`. The constants of the authors' data
            sets then fall away.
        cbam_active: whether the attention of the content decoders is applied. The authors' files were trained
            without, and need False, which is what their cards take.
        content: `official` for the released content loss, `labelled` for ours; by default the first, and the
            second for `nano`.
        faithful: `start_encoder` treats the weights of ImageNet as the authors do.

    Raises:
        SettingError: `content` is neither, or `faithful` is asked for with other bands.
        SystemNotReadyError: no file is given, and none comes with it.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    if content not in (None, "official", "labelled"):
        raise SettingError(f"content={content}", "no such content loss", "Choose official or labelled.")
    own = card_for_bands(card, bands)
    if faithful and own.inputs.bands != BGR:
        raise SettingError("faithful", "needs the bands of the authors", "Leave out `bands`, or `faithful`.")
    variant = card.slug.partition("/")[2] or "levir-cd"
    size = SIZES["nano" if variant == "nano" else "b5"]
    dates = DATES.get(variant) if own is card else None
    own_bands = own.inputs.bands or ()
    network = CFNet(size, len(own_bands), cbam_active)
    if not untrained:
        load_weights(network, own, weights, lambda tensors: official_names(tensors, own_bands))
    network.eval()
    return CFNetDetector(own, network, size, content, dates, faithful)
