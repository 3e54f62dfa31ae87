"""MapFormer with classes: change, and what is there after, where a map of the earlier date is at hand.

Source: Bernhard, Strauss and Schubert, "MapFormer: Boosting Change Detection by Using Pre-change
Information", ICCV 2023, and its released code, whose parameters it has by name. `f` maps one fused feature to
change and to the classes after; `f2` finds change as the binary network does, and the classes of each image
by itself. Pixels that are ignored count nowhere (`faithful=True` restores the published losses).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.pairs import IGNORE
from terralapse.labels import DYNAMICEARTHNET, HRSCD, ClassScheme, of_changes
from terralapse.layers.decoding import up_to
from terralapse.layers.map_encoder import MapChangeHead, MapFusion, PyramidHead
from terralapse.layers.mix_transformer import B2, MixSize, MixTransformer, both_dates, load_mix_transformer
from terralapse.layers.stem import card_for_bands
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.mapped import MapContrast, MapDetector, map_contrast, padded_label
from terralapse.tasks.network import Target, crop_like
from terralapse.tasks.semantic_change import SemanticChangeOutput, semantic_target

STRIDE = 32
WIDTH, K, MAP_WIDTH = 256, 10, 32
NEVER = -1e4  # the logit of "unchanged", which is no class of the maps
KINDS = {
    "f": "change and the classes after from one fused feature; the classes before are those of the map",
    "f2": "change from images and map, the classes of both dates from each image by itself",
}


# --- cards -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Variant:
    """`kind` of `KINDS`; `balanced` as in `map_contrast`."""

    kind: str
    classes: ClassScheme
    balanced: bool
    parameters: int

    @property
    def slug(self) -> str:
        return f"scd-{self.kind}-{self.classes.slug}"


VARIANTS = {
    v.slug: v
    for v in (
        Variant("f", DYNAMICEARTHNET, True, 33_618_536),
        Variant("f", HRSCD, False, 33_618_247),
        Variant("f2", DYNAMICEARTHNET, True, 34_145_384),
        Variant("f2", HRSCD, False, 34_145_095),
    )
}
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case mapformer/scd_f",
    "bound of the comparison with the published implementation on a CPU, losses included",
    "golden",
)


def _card(variant: Variant) -> Card:
    golden = variant.slug == "scd-f-dynamicearthnet"
    return Card(
        slug=f"mapformer/{variant.slug}",
        title="MapFormer: Boosting Change Detection by Using Pre-change Information: semantic change, "
        f"{variant.kind}, classes of {variant.classes.title}",
        task=Task.SEMANTIC_CHANGE,
        status=Status.REPRODUCED if golden else Status.RUNS,
        date_order=DateOrder.ORDERED,
        summary=f"Semantic change from two images and a map of the earlier date: {KINDS[variant.kind]}.",
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
        classes=of_changes(variant.classes).slug,
        licences=Licences(
            code="not stated (no licence file); the published MiT code is under NVIDIA's non-commercial "
            "licence, and is not used here",
            weights="none published; those of MiT on ImageNet are for non-commercial use",
        ),
        figures=(GOLDEN,) if golden else (),
        quirks=(
            "The published code divides losses by the number of all pixels, ignored ones included, and takes "
            "ignored pixels for unchanged in its contrastive loss: `faithful=True`.",
        ),
        limits=(
            "The order of the dates matters: the map is of the earlier one.",
            "Needs a map of the earlier date in the classes that it was trained with; its errors are taken "
            "for truth.",
            "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended.",
        ),
        parameters=variant.parameters,
        checkpoints="none",
    )


MODELS = tuple(_card(v) for v in VARIANTS.values())


# --- networks --------------------------------------------------------------------------------------------
class JointHead(MapFusion):
    """One fused feature, from it two classes of change and the classes after."""

    def __init__(self, dims: Sequence[int], classes: int, width: int, k: int, map_width: int) -> None:
        super().__init__([2 * d for d in dims], classes, width, k, map_width)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg_bc = nn.Conv2d(width, 2, 1)
        self.conv_seg_sem = nn.Conv2d(width, classes, 1)
        self.contrastive_img_forward = PyramidHead(dims, width, map_width)

    def forward(self, features: Sequence[Tensor], about: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 2, H / 4, W / 4] and [B, classes, H / 4, W / 4]."""
        fused = self.dropout(self.fuse(features, about))
        return self.conv_seg_bc(fused), self.conv_seg_sem(fused)


class _Network(nn.Module, ABC):
    """The encoder, and what both kinds have in common."""

    head: MapChangeHead | JointHead

    def __init__(self, size: MixSize, bands: int) -> None:
        super().__init__()
        self.backbone = MixTransformer(size, bands)

    def pyramids(self, before: Tensor, after: Tensor) -> list[list[Tensor]]:
        """The features of both dates."""
        return both_dates(self.backbone, before, after)

    def contrast(self, pyramids: list[list[Tensor]], about: Tensor) -> MapContrast:
        """What the contrastive loss compares."""
        return MapContrast(about, *(self.head.contrastive_img_forward(p) for p in pyramids))

    @abstractmethod
    def decide(
        self, pyramids: list[list[Tensor]], known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits of change [B, 2, h, w], of the classes after and (f2) before [B, classes, h, w], and the
        features of the map, at stride 4."""

    def forward(self, before: Tensor, after: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of change [B, 2, H, W] and of the classes after [B, classes, H, W]; sides are multiples of
        32."""
        change, classes, _, _ = self.decide(self.pyramids(before, after), known)
        return up_to(change, before.shape), up_to(classes, before.shape)


class JointMapFormer(_Network):
    """`f`. Args: `classes` of the map; `size` of the encoder; `width`, `k` and `map_width` as for
    `MapFusion`; `bands` of an image."""

    def __init__(
        self,
        classes: int,
        size: MixSize = B2,
        width: int = WIDTH,
        k: int = K,
        map_width: int = MAP_WIDTH,
        bands: int = 3,
    ) -> None:
        super().__init__(size, bands)
        self.head = JointHead(size.dims, classes, width, k, map_width)

    def decide(
        self, pyramids: list[list[Tensor]], known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        about = self.head.map_encoder(known)
        change, classes = self.head([torch.cat(x, dim=1) for x in zip(*pyramids, strict=True)], about)
        return change, classes, None, about


class SplitMapFormer(_Network):
    """`f2`. Args: as for `JointMapFormer`."""

    def __init__(
        self,
        classes: int,
        size: MixSize = B2,
        width: int = WIDTH,
        k: int = K,
        map_width: int = MAP_WIDTH,
        bands: int = 3,
    ) -> None:
        super().__init__(size, bands)
        self.head = MapChangeHead(size.dims, classes, width, k, map_width)
        self.semantic = PyramidHead(size.dims, width, classes)

    def decide(
        self, pyramids: list[list[Tensor]], known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        about = self.head.map_encoder(known)
        change = self.head([torch.cat(x, dim=1) for x in zip(*pyramids, strict=True)], about)
        return change, self.semantic(pyramids[1]), self.semantic(pyramids[0]), about


PREFIXES = {
    "backbone.backbone.": "backbone.",
    "decode_head.bc_head.": "head.",
    "decode_head.sem_head.": "semantic.",
    "decode_head.": "head.",
}


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of the published code under the names used here; ours as they are."""
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        theirs = next((p for p in PREFIXES if name.startswith(p)), "")
        found[PREFIXES.get(theirs, "") + name.removeprefix(theirs)] = tensor
    return found


# --- the system ------------------------------------------------------------------------------------------
@dataclass
class MapSemanticOutput(SemanticChangeOutput):
    """`contrast` is there while training; `says_before` where the network names the classes before, too."""

    contrast: MapContrast | None = None
    says_before: bool = False

    def class_probabilities(self) -> Tensor:
        """As of any semantic change. Where the map is what names the classes before, it is sure of them, and
        none has any probability where it says nothing."""
        if self.says_before:
            return super().class_probabilities()
        after = self.after[:, 1:].float().softmax(dim=1)
        return torch.cat([self.before[:, 1:].to(after.dtype), after], dim=1)


class MapFormerSemantic(MapDetector):
    """MapFormer with classes behind the contract of change detectors."""

    network: JointMapFormer | SplitMapFormer
    balanced = True
    faithful = False

    def forward(self, images: Tensor, map: Tensor | None = None) -> MapSemanticOutput:
        """Of normalised images [B, 2, C, H, W] and class ids int64 [B, H, W] of the earlier date."""
        known, padded = self.padded_map(map), self.padded(images)
        pyramids = self.network.pyramids(padded[:, 0], padded[:, 1])
        change, after, before, about = self.network.decide(pyramids, known)
        contrast = self.network.contrast(pyramids, about) if self.network.training else None
        change, after = (crop_like(up_to(x, padded.shape), images) for x in (change, after))
        says = before is not None
        if before is None:
            ids = torch.arange(after.shape[1], device=known.device)[:, None, None]
            before = crop_like((known[:, None] == ids).to(after.dtype), images)
        else:
            before = crop_like(up_to(before, padded.shape), images)
        return MapSemanticOutput(change, _above(before), _above(after), contrast, says)

    def loss(self, output: MapSemanticOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy of change and of the classes, and while training the contrast of images with the map.

        What did not change is after what the map says, which here has to be the label of the earlier date.
        """
        first, second = target["before"].long(), target["after"].long()
        change, known = semantic_target(first, second), target["map"].long()
        later = torch.where(second == 0, known, second - 1)
        parts = {"change": cross_entropy(output.classes, change, over_all=self.faithful)}
        after = cross_entropy(output.after[:, 1:], _named(later, change), over_all=self.faithful)
        if output.says_before:
            before = cross_entropy(output.before[:, 1:], _named(known, change), over_all=self.faithful)
            parts |= {"classes_before": 0.5 * before, "classes_after": 0.5 * after}
        else:
            parts["classes_after"] = after
        if output.contrast is not None:
            label = padded_label(change, STRIDE)
            parts |= map_contrast(output.contrast, label, balanced=self.balanced, faithful=self.faithful)
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the published MiT-B2 (`mit_b2.pth`), trained on ImageNet."""
        load_mix_transformer(self.network.backbone, published, self.bands)


def _above(logits: Tensor) -> Tensor:
    """Logits [B, K, H, W] with "unchanged" before them, which never wins."""
    return torch.cat([torch.full_like(logits[:, :1], NEVER), logits], dim=1)


def _named(classes: Tensor, change: Tensor) -> Tensor:
    """Class ids [B, H, W], ignored where the change is."""
    return classes.masked_fill((change == IGNORE) | (classes == IGNORE), IGNORE)


@register(*MODELS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: Sequence[str] | None = None,
    faithful: bool = False,
) -> MapFormerSemantic:
    """The system of a card.

    Args:
        card: one of `MODELS`.
        weights: a file of the published code, or one of ours.
        untrained: random weights, for training.
        bands: other bands than red, green and blue.
        faithful: losses that do with ignored pixels what the published code does.

    Raises:
        SystemNotReadyError: no file is given; none comes with it.
        ModelInputError, UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    variant = VARIANTS[card.slug.partition("/")[2]]
    card = card_for_bands(card, bands)
    assert card.inputs.bands is not None
    kind = JointMapFormer if variant.kind == "f" else SplitMapFormer
    network = kind(len(variant.classes.classes), bands=len(card.inputs.bands))
    system = MapFormerSemantic(card, network, variant.classes)
    system.balanced, system.faithful = variant.balanced, faithful
    if not untrained:
        load_weights(network, card, weights, official_names)
    network.eval()
    return system
