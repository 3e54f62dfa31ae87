"""MapFormer: change between two images, or of a map against one image, where a map of the earlier date is at
hand.

Source: Bernhard, Strauss and Schubert, "MapFormer: Boosting Change Detection by Using Pre-change
Information", ICCV 2023, and its released code, whose parameters it has by name. At each level of a shared MiT
the features of both dates and of the map give K candidates, and the map says, channel by channel and position
by position, how to mix them. Differs from the released code in: pixels that are ignored count nowhere
(`faithful=True` restores it); the size `nano` is ours. The networks that also name the classes are in
`terralapse.models.semantic_change.mapformer_scd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.labels import DYNAMICEARTHNET, HRSCD, RULES, ClassScheme, scheme
from terralapse.layers.decoding import up_to
from terralapse.layers.map_encoder import MapChangeHead
from terralapse.layers.mix_transformer import (
    B2,
    MixSize,
    MixTransformer,
    both_dates,
    load_mix_transformer,
)
from terralapse.layers.stem import card_for_bands
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.mapped import MapContrast, MapDetector, map_contrast, padded_label
from terralapse.tasks.network import Target, crop_like

TITLE = "MapFormer: Boosting Change Detection by Using Pre-change Information"
STRIDE = 32


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The encoder, the width of the head, its number of candidates, and the width of the map features."""

    encoder: MixSize
    width: int
    k: int
    map_width: int
    prior: float = 0.5  # the probability of change that an untrained network starts from


PAPER = Size(B2, 256, 10, 32)
NANO = Size(MixSize((16, 32, 48, 64), (1, 1, 1, 1), (1, 2, 3, 4), mlp=2, drop_path_rate=0.0), 24, 4, 16, 0.05)


@dataclass(frozen=True)
class Variant:
    """`dates` that it looks at: 2, or 1 for the later image alone; `balanced` as in `map_contrast`."""

    slug: str
    classes: ClassScheme
    dates: int
    balanced: bool
    parameters: int
    size: Size = PAPER


VARIANTS = {
    v.slug: v
    for v in (
        Variant("dynamicearthnet", DYNAMICEARTHNET, 2, True, 33_616_994),
        Variant("hrscd", HRSCD, 2, False, 33_616_962),
        Variant("cross-modal-dynamicearthnet", DYNAMICEARTHNET, 1, True, 30_995_554),
        Variant("cross-modal-hrscd", HRSCD, 1, False, 30_995_522),
        Variant("nano", RULES, 2, True, 234_210, NANO),
    )
}
QUIRKS = (
    "The published code divides losses by the number of all pixels, ignored ones included, and takes ignored "
    "pixels for unchanged in its contrastive loss: `faithful=True`.",
    "The contrastive loss does not train the map encoder; the branch that it trains is not used to predict.",
    "The published code numbers what the map does not say as the class after the last.",
)
LIMITS = (
    "The order of the dates matters: the map is of the earlier one.",
    "Needs a map of the earlier date in the classes that it was trained with; its errors are taken for "
    "truth.",
    "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended.",
)
LICENCES = Licences(
    code="not stated (no licence file); the published MiT code is under NVIDIA's non-commercial licence, and "
    "is not used here",
    weights="none published; those of MiT on ImageNet are for non-commercial use",
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case mapformer/bcd",
    "bound of the comparison with the published implementation on a CPU, losses included",
    "golden",
)


def _card(variant: Variant) -> Card:
    ours = variant.size is not PAPER
    golden = variant.slug == "dynamicearthnet"
    what = "two images" if variant.dates == 2 else "the later image alone"
    name = f"{what}, classes of {variant.classes.title}" if not ours else "nano (a size of our own)"
    return Card(
        slug=f"mapformer/{variant.slug}",
        title=f"{TITLE}: {name}",
        task=Task.CHANGE,
        status=Status.REPRODUCED if golden else Status.RUNS,
        date_order=DateOrder.ORDERED,
        summary=f"Binary change from {what} and a map of the earlier date ({variant.classes.title})"
        + (", small enough for a CPU." if ours else "."),
        year=2023,
        paper="ICCV 2023",
        repository="https://github.com/mxbh/mapformer",
        inputs=Inputs(
            dates=2,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            size_multiple=STRIDE,
            halo=64,
            normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        classes="binary-change",
        licences=Licences(code=LICENCES.code) if ours else LICENCES,
        figures=(GOLDEN,) if golden else (),
        quirks=() if ours else QUIRKS,
        limits=LIMITS
        if variant.dates == 2
        else (*LIMITS, "The earlier image is read and not looked at; only its map is."),
        parameters=variant.parameters,
        checkpoints="none",
    )


HEAD = replace(_card(VARIANTS["dynamicearthnet"]), slug="mapformer", title=TITLE)
MODELS = (HEAD, *(_card(v) for v in VARIANTS.values()))


# --- the network -----------------------------------------------------------------------------------------
class MapFormer(nn.Module):
    """Encoder and head.

    Args:
        size: widths and depths.
        classes: of the map.
        dates: 2, or 1 to look at the later image alone.
        bands: of an image.
    """

    def __init__(self, size: Size, classes: int, dates: int = 2, bands: int = 3) -> None:
        super().__init__()
        self.dates = dates
        self.backbone = MixTransformer(size.encoder, bands)
        self.head = MapChangeHead(
            size.encoder.dims, classes, size.width, size.k, size.map_width, dates, size.prior
        )

    def pyramids(self, before: Tensor, after: Tensor) -> list[list[Tensor]]:
        """The features of each date that is looked at, the later one last, from one pass over all."""
        if self.dates == 1:
            return [self.backbone(after)]
        return both_dates(self.backbone, before, after)

    def decide(self, pyramids: list[list[Tensor]], known: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 2, H / 4, W / 4] and the features of the map [B, map width, H / 4, W / 4]."""
        about = self.head.map_encoder(known)
        return self.head([torch.cat(level, dim=1) for level in zip(*pyramids, strict=True)], about), about

    def contrast(self, pyramids: list[list[Tensor]], about: Tensor) -> MapContrast:
        """What the contrastive loss compares."""
        embedded = [self.head.contrastive_img_forward(p) for p in pyramids]
        return MapContrast(about, embedded[0] if self.dates == 2 else None, embedded[-1])

    def forward(self, before: Tensor, after: Tensor, known: Tensor) -> Tensor:
        """Logits [B, 2, H, W] of normalised images [B, bands, H, W] and class ids int64 [B, H, W] of the
        earlier date; sides are multiples of 32."""
        return up_to(self.decide(self.pyramids(before, after), known)[0], before.shape)


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of the published code under the names used here; ours as they are."""
    prefixes = {"backbone.backbone.": "backbone.", "decode_head.bc_head.": "head."}
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if name.startswith("decode_head.sem_head."):
            continue  # random logits where change alone is trained; it has no part in the answer
        for theirs, here in prefixes.items():
            if name.startswith(theirs):
                name = here + name.removeprefix(theirs)
        found[name] = tensor
    return found


# --- the system ------------------------------------------------------------------------------------------
@dataclass
class MapChangeOutput(ChangeOutput):
    """`contrast` is there while training."""

    contrast: MapContrast | None = None


class MapFormerDetector(MapDetector):
    """MapFormer behind the contract of change detectors.

    `faithful` restores what the published losses do with pixels that are ignored.
    """

    network: MapFormer
    balanced = True
    faithful = False

    def forward(self, images: Tensor, map: Tensor | None = None) -> MapChangeOutput:
        """Of normalised images [B, 2, C, H, W] and class ids int64 [B, H, W] of the earlier date."""
        known, padded = self.padded_map(map), self.padded(images)
        pyramids = self.network.pyramids(padded[:, 0], padded[:, 1])
        logits, about = self.network.decide(pyramids, known)
        output = MapChangeOutput.of_classes(crop_like(up_to(logits, padded.shape), images))
        contrast = self.network.contrast(pyramids, about) if self.network.training else None
        return MapChangeOutput(output.logits, output.classes, contrast)

    def loss(self, output: MapChangeOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy of change, and while training the contrast of images with the map."""
        assert output.classes is not None
        label = target["label"]
        parts = {"cross_entropy": cross_entropy(output.classes, label, over_all=self.faithful)}
        if output.contrast is not None:
            parts |= map_contrast(
                output.contrast, padded_label(label, STRIDE), balanced=self.balanced, faithful=self.faithful
            )
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the published MiT-B2 (`mit_b2.pth`), trained on ImageNet."""
        load_mix_transformer(self.network.backbone, published, self.bands)

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        bias = self.network.head.conv_seg.bias
        assert bias is not None
        with torch.no_grad():
            bias[1] += by


@register(*MODELS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: Sequence[str] | None = None,
    map_scheme: str | None = None,
    faithful: bool = False,
) -> MapFormerDetector:
    """The system of a card; `mapformer` by itself is `mapformer/dynamicearthnet`.

    Args:
        card: one of `MODELS`.
        weights: a file of the published code, or one of ours.
        untrained: random weights, for training.
        bands: other bands than red, green and blue.
        map_scheme: slug of the class scheme of the maps, in place of the variant's.
        faithful: losses that do with ignored pixels what the published code does.

    Raises:
        SystemNotReadyError: no file is given; none comes with it.
        SettingError: there is no such scheme.
        ModelInputError, UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    variant = VARIANTS[card.slug.partition("/")[2] or "dynamicearthnet"]
    card = card_for_bands(card, bands)
    classes = variant.classes if map_scheme is None else scheme(map_scheme)
    assert card.inputs.bands is not None
    network = MapFormer(variant.size, len(classes.classes), variant.dates, len(card.inputs.bands))
    system = MapFormerDetector(card, network, classes)
    system.balanced, system.faithful = variant.balanced, faithful
    if not untrained:
        load_weights(network, card, weights, official_names)
    network.eval()
    return system
