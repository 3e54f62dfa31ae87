"""FUSU: land use at two dates and its change, from sharp images and a series of Sentinel-1 and -2.

Source: "FUSU: A Multi-temporal-source Land Use Change Segmentation Dataset for Fine-grained Urban Semantic
Understanding", NeurIPS 2024 Datasets and Benchmarks (arXiv:2405.19055). Differs from the published code in:
each sample is given the average of its own series (there, all get that of the first of the batch); dates
that fill up a batch change nothing; the logits go into the losses as they are, with labels that begin at the
first class; what the series says by itself is taught with the labels of both dates; a U-TAE inside of the
pyramid pooling that never runs is left out. `faithful=True` takes the first norm of the dates and the loss of
the series as they are there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.pairs import IGNORE
from terralapse.errors import ModelInputError
from terralapse.labels import FUSU
from terralapse.layers.decoding import up_to
from terralapse.layers.hrnet import HRNet, without_head
from terralapse.layers.padding import pad_to_multiple
from terralapse.layers.pairing import halves
from terralapse.layers.pyramid_pooling import FCNHead, PSPHead
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.utae import UTAE, Collapsed, Cropped, absent
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.change_loss import binary_entropy
from terralapse.tasks.dice import binary_dice
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkDetector, Target, crop_like
from terralapse.tasks.semantic_change import FullMapsOutput

CLASSES = 17  # without "background", which is not labelled
SERIES_BANDS = 14  # 12 of Sentinel-2, then VV and VH of Sentinel-1
FOOTPRINT = 26  # pixels of 10 m: what a sharp image of 512 pixels of 0.5 m shows of its series


@dataclass(frozen=True)
class Size:
    """Widths of a network. `width` is that of the finest branch of HRNet; `small` builds our own instead of a
    published one. `encoder`, `decoder`, `heads` and `inner` are of U-TAE, `fused` the widths that the maps of
    the series are brought to (the last is added to the sharp features). `prior` is the share of change that
    an untrained network starts from, None for no such start; `dice` weighs a Dice loss of change."""

    width: int = 18
    small: bool = False
    pyramid: bool = True
    separable: bool = False
    encoder: tuple[int, ...] = (64, 64, 64, 128)
    decoder: tuple[int, ...] = (32, 32, 64, 128)
    heads: int = 16
    inner: int = 256
    fused: tuple[int, ...] = (32, 32, 64, 270)
    unused_classes: int | None = 20
    prior: float | None = None
    dice: float = 0.0


_NANO = Size(
    width=8,
    small=True,
    separable=True,
    encoder=(16, 16, 16, 32),
    decoder=(16, 16, 16, 32),
    heads=4,
    inner=64,
    fused=(120,),
    unused_classes=None,
    prior=0.02,
    dice=1.0,
)
SIZES = {
    "psp-w18": Size(),
    "fcn-w18": Size(pyramid=False),
    "psp-w18-light": Size(separable=True),
    "fcn-w18-light": Size(pyramid=False, separable=True),
    "nano": _NANO,
    "change-nano": _NANO,
}

PSP = Card(
    slug="fusu/psp-w18",
    title=(
        "FUSU: A Multi-temporal-source Land Use Change Segmentation Dataset for Fine-grained Urban Semantic "
        "Understanding"
    ),
    task=Task.SEMANTIC_CHANGE,
    status=Status.REPRODUCED,
    date_order=DateOrder.SYMMETRIC,
    summary="Land use of two very-high-resolution dates and their change, helped by a Sentinel-1/2 series.",
    year=2024,
    paper="arXiv:2405.19055",
    repository="https://github.com/yuanshuai0914/FUSU",
    inputs=Inputs(
        dates=2,
        bands=RGB,
        units=(Unit.RGB255,),
        gsd_range=(0.2, 0.5),
        size_multiple=32,
        halo=64,
        normalisation=Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    ),
    classes=FUSU.slug,
    licences=Licences(code="MIT (header of the code it builds on)", weights="none released"),
    figures=(
        Figure(
            "largest relative error of outputs",
            1e-4,
            "golden case fusu/pspnet-w18",
            "bound of the comparison with the published implementation on a CPU, losses and scores included",
            "golden",
        ),
    ),
    quirks=(
        "The published code takes 15 bands of the series, the data set has 14: `series_bands=`.",
        "The published code gives every sample of a batch the average of the first; here each has its own.",
        "In the published code a padded date changes the first norm of the dates: `faithful=True`.",
        "The published loss clamps the logits to 0..1 and takes the labels 1..17 for 0..16; not so here.",
        "The published loss teaches what the series says with the first date alone: `faithful=True`.",
        "Maps of the series in three other widths and the last layer of its branch are never used.",
    ),
    limits=(
        "The series reaches the classes alone: it cancels out of the change, which is the same without it.",
        "A scene that is searched for change comes without a series: its classes are those of the images.",
        "The middle 26 pixels of the series are taken for what the images show (`footprint=`).",
        "The dates of the series are a set: their order and their distance say nothing.",
        "It sees a whole tile, so what it says depends a little on how a scene is cut.",
        "No weights are released, and the tables of the paper could not be read: no score is stated.",
    ),
    parameters=11_326_801,
    checkpoints="none",
)


def _variant(name: str, summary: str, parameters: int, **other: object) -> Card:
    return replace(
        PSP,
        slug=f"fusu/{name}",
        summary=summary,
        parameters=parameters,
        **{"status": Status.RUNS, "figures": (), **other},
    )


FCN = _variant(
    "fcn-w18", "The same network with a plain head of change in place of pyramid pooling.", 11_092_301
)
PSP_LIGHT = _variant(
    "psp-w18-light", "The same network with separable convolutions in its heads.", 10_902_601
)
FCN_LIGHT = _variant("fcn-w18-light", "With plain heads of separable convolutions.", 10_808_801)
NANO = _variant("nano", "Our narrow version of the whole network, for a CPU.", 357_548)
CHANGE_NANO = _variant(
    "change-nano",
    "The branch of change of the narrow version alone: binary change from two images, without classes.",
    250_491,
    task=Task.CHANGE,
    classes="",
    quirks=(),
    limits=PSP.limits[4:5],
)
HEAD = replace(PSP, slug="fusu")
VARIANTS = (PSP, FCN, PSP_LIGHT, FCN_LIGHT, NANO, CHANGE_NANO)


# --- networks --------------------------------------------------------------------------------------------
class FusuChange(nn.Module):
    """The part that finds change: features of each date by HRNet, and a head on their absolute difference.
    Sides are multiples of 32."""

    def __init__(self, size: Size, bands: int = 3) -> None:
        super().__init__()
        self.backbone = HRNet(size.width, bands, size.small)
        head = PSPHead if size.pyramid else FCNHead
        self.head_bin = head(15 * size.width, 1, size.separable)
        if size.prior is not None:
            self.shift_logits(math.log(size.prior / (1 - size.prior)))

    def features(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 15 width, H / 4, W / 4] of either date."""
        return halves(self.backbone(torch.cat([before, after])))

    def change(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits [B, 1, H / 4, W / 4]. What is added to both dates would cancel out, so nothing is."""
        return self.head_bin((first - second).abs())

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Log-odds of change [B, H, W] of normalised images [B, bands, H, W]."""
        return up_to(self.change(*self.features(before, after)), before.shape).squeeze(1)

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of change."""
        assert self.head_bin.last.bias is not None
        with torch.no_grad():
            self.head_bin.last.bias += by


class FusuNet(FusuChange):
    """The whole network, with the names of the published one."""

    def __init__(
        self,
        size: Size,
        bands: int = 3,
        series_bands: int = SERIES_BANDS,
        classes: int = CLASSES,
        footprint: int = FOOTPRINT,
        norm_sees_padding: bool = False,
    ) -> None:
        super().__init__(size, bands)
        self.series_bands, self.footprint = series_bands, footprint
        self.fusion = UTAE(
            series_bands,
            size.encoder,
            size.decoder,
            size.heads,
            width=size.inner,
            unused_classes=size.unused_classes,
            norm_sees_padding=norm_sees_padding,
        )
        self.fm_utae_featmap_cropped = Cropped(size.decoder[0], size.fused)
        self.fm_utae_featmap_collapsed = Collapsed(size.decoder[0], size.fused)
        self.head = FCNHead(15 * size.width, classes, size.separable)

    def of_series(self, series: Tensor, size: tuple[int, int]) -> Tensor:
        """What a series [B, T, C, h, w] adds to the features of both dates, at their `size`: its middle, plus
        its mean. Zero for a sample that has no date."""
        height, width = series.shape[-2:]
        maps, _ = self.fusion(pad_to_multiple(series, self.fusion.stride))
        finest = maps[-1][..., :height, :width]
        added = self.fm_utae_featmap_cropped(finest, self.footprint, size)
        added = added + self.fm_utae_featmap_collapsed(finest)
        return added * ~absent(series).all(dim=1)[:, None, None, None]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        before: Tensor,
        after: Tensor,
        series: Tensor | None = None,
        extent: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits of change, and of the classes.

        Args:
            before, after: normalised images [B, bands, H, W].
            series: [B, T, C, h, w]; None for none.
            extent: rows and columns of the images that are no padding (at the right and below); None for all.

        Returns:
            log-odds of change [B, H, W]; logits [B, classes, H, W] of both dates and of the series by itself,
            which is None where there is none.
        """
        first, second = self.features(before, after)
        change = up_to(self.change(first, second), before.shape).squeeze(1)
        third: Tensor | None = None
        if series is not None:
            rows, columns = extent or before.shape[-2:]
            added = self.of_series(series, (-(-rows // 4), -(-columns // 4)))
            down, right = (n - m for n, m in zip(first.shape[-2:], added.shape[-2:], strict=True))
            added = F.pad(added, (0, right, 0, down), mode="replicate")
            first, second = first + added, second + added
            third = up_to(self.head(added), before.shape)
        return change, up_to(self.head(first), before.shape), up_to(self.head(second), before.shape), third


# --- systems ---------------------------------------------------------------------------------------------
class _Detector(NetworkDetector):
    """What the two have in common. `dice` weighs a Dice loss of change."""

    network: FusuChange

    def __init__(self, card: Card, network: FusuChange, dice: float = 0.0) -> None:
        super().__init__(card, network)
        self.dice = dice

    def change_losses(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """`change`: cross-entropy in which changed pixels count twice; `dice` where it has a weight."""
        parts = {"change": binary_entropy(logits, label, changed=2.0)}
        if self.dice:
            parts["dice"] = binary_dice(logits.float().sigmoid(), label)
        return parts

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum."""
        weights = {"change": 1.0, "dice": self.dice, "semantic": 0.5, "series": 1.0}
        return torch.stack([weights[name] * part for name, part in parts.items()]).sum()

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts HRNet from one of its width that was trained on ImageNet; the first convolution is made for
        the bands of the card as `inflate_stem` says.

        Raises:
            WeightsMismatchError: names or shapes are not those of the encoder.
        """
        inner = without_head(published)
        if "conv1.weight" in inner:
            inner["conv1.weight"] = inflate_stem(inner["conv1.weight"], self.bands)
        load_strict(self.network.backbone, inner, "an HRNet for ImageNet")

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of change of every pixel; for calibration."""
        self.network.shift_logits(by)


class FusuChangeDetector(_Detector):
    """The branch of change alone."""

    def forward(self, images: Tensor) -> ChangeOutput:
        padded = self.padded(images)
        return ChangeOutput(crop_like(self.network(padded[:, 0], padded[:, 1]), images))

    def loss(self, output: ChangeOutput, target: Target) -> dict[str, Tensor]:
        parts = self.change_losses(output.logits, target["label"])
        return {"total": self.total(parts), **parts}


class FusuDetector(_Detector):
    """The whole network. A batch may hold `series` float [B, T, C, h, w], in the scale that it was trained
    with; a date of zeros is none. `first_date_only` teaches the series with the labels of the first date."""

    extras = ("series",)
    network: FusuNet  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, card: Card, network: FusuNet, dice: float = 0.0, first_date_only: bool = False
    ) -> None:
        super().__init__(card, network, dice)
        self.first_date_only = first_date_only

    def forward(self, images: Tensor, series: Tensor | None = None) -> FullMapsOutput:
        """See `NetworkSystem.forward`.

        Raises:
            ModelInputError: a series of other bands, or too small.
        """
        if series is not None:
            self._check(series)
        padded, (height, width) = self.padded(images), images.shape[-2:]
        found = self.network(padded[:, 0], padded[:, 1], series, (height, width))
        change, before, after = (crop_like(x, images) for x in found[:3])
        third = None if found[3] is None else crop_like(found[3], images)
        return FullMapsOutput(torch.stack([torch.zeros_like(change), change], dim=1), before, after, third)

    def _check(self, series: Tensor) -> None:
        bands, least = self.network.series_bands, self.network.fusion.stride + 1
        if series.ndim != 5 or series.shape[2] != bands or min(series.shape[-2:]) < least:
            raise ModelInputError(
                self.card.slug,
                f"takes a series [B, T, {bands}, h, w] of sides of {least} or more, not {list(series.shape)}",
                "Give the bands that it was trained with, or build it for others: series_bands=...",
            )

    def loss(self, output: FullMapsOutput, target: Target) -> dict[str, Tensor]:
        """Change + 0.5 (classes of both dates) + classes from the series by itself.

        `label` [B, H, W] says what changed; without `before` and `after`, the full maps of 0 (not labelled),
        1..K, 255, it is all that is learned.
        """
        parts = self.change_losses(output.change().logits, changed(target))
        if "before" in target:
            first, second = (targets_of(target[date]) for date in ("before", "after"))
            parts["semantic"] = cross_entropy(output.before, first) + cross_entropy(output.after, second)
            if output.series is not None:
                dates = (first,) if self.first_date_only else (first, second)
                each = [cross_entropy(output.series, date) for date in dates]
                parts["series"] = torch.stack(each).mean()
        return {"total": self.total(parts), **parts}


def targets_of(full_map: Tensor) -> Tensor:
    """A map of 0 (not labelled), 1..K, 255 as targets of K logits: 0..K-1, and 255 for both of the others."""
    unknown = (full_map == 0) | (full_map == IGNORE)
    return torch.where(unknown, IGNORE, full_map - 1)


def changed(target: Target) -> Tensor:
    """The binary label, stated or from two full maps: they differ; not known where one says nothing."""
    if "label" in target:
        return target["label"]
    before, after = target["before"], target["after"]
    unknown = (before == 0) | (after == 0) | (before == IGNORE) | (after == IGNORE)
    return torch.where(unknown, IGNORE, (before != after).to(before.dtype))


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the authors' code as one of this network: without the prefix `module.` and without the
    U-TAE inside of the pyramid pooling, which never ran."""
    names = {k: k.removeprefix("module.") for k in tensors}
    return {n: tensors[k] for k, n in names.items() if not n.startswith("head_bin.conv5.0.fusion.")}


@register(HEAD, *VARIANTS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: tuple[str, ...] | list[str] | None = None,
    series_bands: int = SERIES_BANDS,
    footprint: int = FOOTPRINT,
    faithful: bool = False,
) -> _Detector:
    """The system of a card; `fusu` by itself is `fusu/psp-w18`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of weights.
        untrained: random weights, for training.
        bands: of the images, where they are not red, green and blue of 0 to 255.
        series_bands: of an image of the series.
        footprint: side of the middle of the series that the images show, in its pixels.
        faithful: padded dates count in the first norm of the dates, and the series is taught with the labels
            of the first date, as in the published code.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        ModelInputError: a band is named twice.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    size = SIZES[card.slug.partition("/")[2] or "psp-w18"]
    card = card_for_bands(card, bands)
    assert card.inputs.bands is not None
    count = len(card.inputs.bands)
    system: _Detector
    if card.task is Task.CHANGE:
        system = FusuChangeDetector(card, FusuChange(size, count), size.dice)
    else:
        network = FusuNet(size, count, series_bands, CLASSES, footprint, norm_sees_padding=faithful)
        system = FusuDetector(card, network, size.dice, first_date_only=faithful)
    if not untrained:
        load_weights(system.network, card, weights, official_names)
    system.network.eval()
    return system
