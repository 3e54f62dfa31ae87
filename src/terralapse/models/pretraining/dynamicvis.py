"""DynamicVis: a backbone for large images that runs its Mamba blocks on the highest-scored tokens only.

Source: Chen et al., "DynamicVis: An Efficient and General Visual Foundation Model for Remote Sensing Image
Understanding", 2025 (arXiv:2503.16426). The backbone is in `terralapse.layers.token_routing`; here are the
networks that stand on it: pre-training on regions, scene classification, change, segmentation, detection.
Differs from the official code in: images of other sizes than the position table's run with the table
resized; the official code refuses them. The Mamba-2 mixer, global tokens elsewhere than before the sequence,
and the load-balancing loss (dead in the official code) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Released, Status, Task
from terralapse.errors import SettingError
from terralapse.layers.fcos import FCOSHead, LevelOutput
from terralapse.layers.fpn import FPN, ConvModule
from terralapse.layers.mask_rcnn import MaskRCNN
from terralapse.layers.pairing import halves
from terralapse.layers.position import resize_position
from terralapse.layers.regions import RegionExtractor
from terralapse.layers.token_routing import RoutedMamba, Routing
from terralapse.layers.upernet import FCNHead, UPerHead
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.classification import ClassificationOutput
from terralapse.tasks.detection import DetectionOutput, Detections
from terralapse.tasks.dice import dice_loss
from terralapse.tasks.label_smoothing import smoothed_cross_entropy
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkDetector, NetworkSystem, Target, crop_like
from terralapse.tasks.pretraining import FeatureOutput, region_class_contrast
from terralapse.tasks.segmentation import SegmentationOutput


@dataclass(frozen=True)
class Size:
    """Channels and blocks of the four stages."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


SIZES = {"b": Size((96, 192, 384, 768), (2, 4, 16, 4)), "l": Size((128, 256, 512, 1024), (2, 4, 32, 4))}
# The backbone as pre-trained, and the ablation of the paper without a choice of tokens, which still has the
# gates, their order and their weights.
ROUTINGS = {"default": Routing(), "all-tokens": Routing((1, 1, 1, 1), global_tokens=0, softmax_on_x=False)}


def _backbone(size: Size, side: int, routing: Routing | None = None, pooled: bool = False) -> RoutedMamba:
    return RoutedMamba(size.widths, size.depths, side, routing, pooled)


class _Network(nn.Module):
    """What all networks here have: a backbone, and the switch for checkpointing."""

    backbone: RoutedMamba

    @property
    def checkpointing(self) -> bool:
        """Whether training saves memory at the price of a second pass through each block."""
        return self.backbone.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.backbone.checkpointing = on


# --- pre-training on regions ---------------------------------------------------------------------------
class RegionHead(nn.Module):
    """Classes of regions by a linear layer, and by their cosine with a learned vector of each class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.category_embedding = nn.Embedding(classes, channels)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C, 7, 7] to logits [R, K] and vectors [R, C]."""
        vectors = x.mean(dim=(2, 3))
        return self.fc(vectors), vectors


class Pretraining(_Network):
    """Backbone, pyramid, region extractor and head, under the official names."""

    def __init__(self, size: Size, side: int, routing: Routing | None = None, classes: int = 63) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing)
        self.pre_neck = FPN(size.widths)
        self.neck = RegionExtractor()
        self.head = RegionHead(256, classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to the four maps of the backbone."""
        return self.backbone(images)

    def regions(self, maps: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, K] and vectors [R, 256] of rois [R, 5] (image, x1, y1, x2, y2 in pixels)."""
        return self.head(self.neck(self.pre_neck(maps), rois))


def pretraining_losses(
    head: RegionHead, logits: Tensor, vectors: Tensor, label: Tensor, weight: float = 0.5
) -> dict[str, Tensor]:
    """Smoothed cross-entropy of the regions, plus `weight` times the mean of the contrast both ways."""
    first, second = region_class_contrast(
        vectors, head.category_embedding.weight, label, head.logit_scale.float().exp()
    )
    classification = smoothed_cross_entropy(logits, label) if len(label) else logits.sum() * 0
    contrast = weight * (first + second) / 2
    return {
        "total": classification + contrast,
        "classification": classification,
        "contrast": contrast,
        "region_to_class": first,
        "class_to_region": second,
    }


# --- one image -----------------------------------------------------------------------------------------
class LinearHead(nn.Module):
    """The last layer, under its official name."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class SceneClassifier(_Network):
    """The mean over the last map, normalised, through one layer."""

    def __init__(self, size: Size, side: int, routing: Routing | None, classes: int) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing, pooled=True)
        self.head = LinearHead(size.widths[-1], classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] to logits [B, K] and vectors [B, C]."""
        vector = self.backbone.pool(self.backbone(images))
        return self.head(vector), vector


class Segmenter(_Network):
    """Pyramid of four levels, UPerNet head, and in training an auxiliary head on the level of stride 16."""

    def __init__(self, size: Size, side: int, routing: Routing | None, classes: int) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing)
        self.neck = FPN(size.widths, extra=0)
        self.decode_head = UPerHead((256,) * 4, classes)
        self.auxiliary_head = FCNHead(256, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] to logits of strides 4 and 16."""
        levels = self.neck(self.backbone(images))
        return self.decode_head(levels), self.auxiliary_head(levels[2])


class Detector(_Network):
    """Pyramid of five levels and FCOS."""

    def __init__(self, size: Size, side: int, routing: Routing | None, classes: int) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing)
        self.neck = FPN(size.widths)
        self.bbox_head = FCOSHead(classes)

    def forward(self, images: Tensor) -> list[LevelOutput]:
        """Normalised images [B, 3, H, W] to what each level says."""
        return self.bbox_head(self.neck(self.backbone(images)))


class InstanceSegmenter(_Network):
    """Pyramid of five levels and Mask R-CNN."""

    def __init__(self, size: Size, side: int, routing: Routing | None, classes: int) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing)
        self.neck = FPN(size.widths)
        self.roi_head = MaskRCNN(classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to the levels of the pyramid."""
        return self.neck(self.backbone(images))


# --- two images ----------------------------------------------------------------------------------------
class UpStep(nn.Module):
    """A coarse map magnified to a finer one and narrowed, joined with it, and two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = ConvModule(channels, channels, 1, "batch")
        self.conv_block = nn.Sequential(
            ConvModule(2 * channels, channels, 3, "batch"), ConvModule(channels, channels, 3, "batch")
        )

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        up = F.interpolate(coarse, skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.conv_block(torch.cat([skip, self.upsample(up)], dim=1))


class MultiLevelHead(nn.Module):
    """All levels narrowed, brought to the finest, and joined by convolutions of one pixel."""

    def __init__(self, channels: int, levels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(channels, channels, 1, "batch") for _ in range(levels)])
        self.fusion_conv = ConvModule(levels * channels, channels, 1, "batch")
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        size = levels[0].shape[-2:]
        maps = [conv(x) for conv, x in zip(self.convs, levels, strict=True)]
        maps = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps]
        return self.conv_seg(self.fusion_conv(torch.cat(maps, dim=1)))


class ChangeNetwork(_Network):
    """One encoder and pyramid for both dates, joined level by level in their order, and a decoder."""

    def __init__(self, size: Size, side: int, routing: Routing | None) -> None:
        super().__init__()
        self.backbone = _backbone(size, side, routing)
        self.neck = FPN(size.widths)
        self.fusion = nn.ModuleList([ConvModule(512, 256, 1, "batch") for _ in range(5)])
        self.decoder = nn.ModuleList([UpStep(256) for _ in range(4)])  # coarsest first
        self.decode_head = MultiLevelHead(256, 5, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pairs [B, 2, 3, H, W] to logits of (no change, change) [B, 2, H/4, W/4]."""
        both = self.neck(self.backbone(images.transpose(0, 1).flatten(0, 1)))
        joined = [conv(torch.cat(halves(x), dim=1)) for conv, x in zip(self.fusion, both, strict=True)]
        decoded = [joined[-1]]
        for step, skip in zip(self.decoder, joined[-2::-1], strict=True):
            decoded.insert(0, step(skip, decoded[0]))
        return self.decode_head(decoded)


# --- behind their tasks --------------------------------------------------------------------------------
class _System(NetworkSystem):
    """What all systems here have."""

    network: Any

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts backbone and pyramid from a published pre-training; other parts stay as they are.

        Raises:
            WeightsMismatchError: the file has no backbone, or one of another size.
        """
        own = self.network.state_dict()
        tensors = from_official(published, self.network.backbone.grid)
        # The pyramid of the pre-training goes on as that of the other networks, where they have one.
        pyramid = next((n for n in ("pre_neck.", "neck.") if f"{n}fpn_convs.0.conv.weight" in own), None)
        start = {k: v for k, v in tensors.items() if k.startswith("backbone.")}
        if pyramid is not None:
            start |= {
                pyramid + k.removeprefix("pre_neck."): v
                for k, v in tensors.items()
                if k.startswith("pre_neck.")
            }
        norm = "backbone.post_meanpool_norm."  # pooled models have it, pre-training files do not
        start = {k: v for k, v in start.items() if k in own or not k.startswith(norm)}
        rest = {k: v for k, v in own.items() if k.startswith(norm) or not k.startswith("backbone.")}
        load_strict(self.network, {**rest, **start}, "the encoder")


class PretrainingSystem(_System):
    """The backbone as an encoder; a target has `boxes` float [R, 5] (image, x1, y1, x2, y2 in pixels) and
    `label` [R]."""

    network: Pretraining

    def forward(self, images: Tensor) -> FeatureOutput:
        """See `NetworkSystem.forward`; maps and vector of the padded image."""
        maps = self.network(self.padded(images)[:, 0])
        return FeatureOutput(maps, self.network.backbone.pool(maps))

    def loss(self, output: FeatureOutput, target: Target) -> dict[str, Tensor]:
        """Of the labelled regions; regions of other processes are not gathered."""
        logits, vectors = self.network.regions(output.maps, target["boxes"])
        return pretraining_losses(self.network.head, logits, vectors, target["label"].long())


class ClassificationSystem(_System):
    """One class for an image, which is resized to the square of the model."""

    network: SceneClassifier

    def forward(self, images: Tensor) -> ClassificationOutput:
        """See `NetworkSystem.forward`."""
        x, side = images[:, 0], self.network.backbone.size
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x.float(), (side, side), mode="bicubic", antialias=True).to(x.dtype)
        return ClassificationOutput(*self.network(x))

    def loss(self, output: ClassificationOutput, target: Target) -> dict[str, Tensor]:
        return {"total": smoothed_cross_entropy(output.logits, target["label"], 0.0)}


class SegmentationSystem(_System):
    """One class for each pixel."""

    network: Segmenter

    def forward(self, images: Tensor) -> SegmentationOutput:
        """See `NetworkSystem.forward`."""
        padded = self.padded(images)[:, 0]
        logits, auxiliary = (_magnified(x, padded, images, True) for x in self.network(padded))
        return SegmentationOutput(logits, [auxiliary])

    def loss(self, output: SegmentationOutput, target: Target) -> dict[str, Tensor]:
        main = cross_entropy(output.logits, target["label"])
        auxiliary = cross_entropy(output.auxiliary[0], target["label"])
        return {"total": main + 0.4 * auxiliary, "main": main, "auxiliary": auxiliary}


class DetectionSystem(_System):
    """Boxes by FCOS; a target has `boxes` float [N, 5] (image, x1, y1, x2, y2 in pixels) and `label` [N]."""

    network: Detector

    def forward(self, images: Tensor) -> DetectionOutput:
        """See `NetworkSystem.forward`."""
        raw, size = self.network(self.padded(images)[:, 0]), _size(images)
        return DetectionOutput(
            raw, lambda: [Detections(*x) for x in self.network.bbox_head.detect(raw, size)]
        )

    def loss(self, output: DetectionOutput, target: Target) -> dict[str, Tensor]:
        return self.network.bbox_head.losses(output.raw, target["boxes"], target["label"])


class InstanceSystem(_System):
    """Boxes and masks by Mask R-CNN; a target has `boxes`, `label` and `masks` bool [N, H, W]."""

    network: InstanceSegmenter

    def forward(self, images: Tensor) -> DetectionOutput:
        """See `NetworkSystem.forward`."""
        levels, size = self.network(self.padded(images)[:, 0]), _size(images)
        return DetectionOutput(
            (levels, size), lambda: [Detections(*x) for x in self.network.roi_head.detect(levels, size)]
        )

    def loss(self, output: DetectionOutput, target: Target) -> dict[str, Tensor]:
        levels, size = output.raw
        objects = (target["boxes"], target["label"], target["masks"])
        return self.network.roi_head.losses(levels, size, *objects)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


class ChangeSystem(_System, NetworkDetector):
    """Change from the first to the second date."""

    network: ChangeNetwork

    def forward(self, images: Tensor) -> ChangeOutput:
        """See `NetworkSystem.forward`."""
        padded = self.padded(images)
        return ChangeOutput.of_classes(_magnified(self.network(padded), padded, images, False))

    def loss(self, output: ChangeOutput, target: Target) -> dict[str, Tensor]:
        assert output.classes is not None
        entropy = cross_entropy(output.classes, target["label"])
        dice = dice_loss(output.classes, target["label"])
        return {"total": entropy + 3 * dice, "entropy": entropy, "dice": dice}


def _magnified(logits: Tensor, padded: Tensor, images: Tensor, corners: bool) -> Tensor:
    """Logits of a stride at the size of the padded image, cut to that of the image."""
    size = padded.shape[-2:]
    return crop_like(F.interpolate(logits, size, mode="bilinear", align_corners=corners), images)


# --- cards ---------------------------------------------------------------------------------------------
IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
RELEASED = (  # the names of other files are not established
    Released(
        "pretrain_dynamicvis_b_bf16_mamba_epoch_200.pth", "hub:KyanChen/DynamicVis", "pre-trained on fMoW"
    ),
)
TITLE = "DynamicVis: An Efficient and General Visual Foundation Model for Remote Sensing Image Understanding"
ORDER = "The order of the dates matters: exchanging them gives another map."
NO_NAMES = (
    "The names inside the authors' files for this head were not established: only the backbone and the "
    "pyramid of a pre-training file load, as a start for training."
)
NO_DATA = "No reader of boxes and no score of detection comes with it: it is trained from Python."
QUIRKS = (
    "The chosen tokens enter the mixer in the order of their scores, not of the raster.",
    "Updates are weighed by a softmax over all tokens, about 1/tokens each, which is not renormalised.",
    "The global tokens are the means of the rows of the map.",
    "The attention over the cells of a region takes the query of the transposed place for its vertical part.",
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden cases dynamicvis/base-64 and dynamicvis/base-64-pretrain-head",
    "bound of the comparison with the published implementation",
    "golden",
)
KINDS: dict[str, tuple[Task, str, tuple[str, ...]]] = {
    "": (
        Task.PRETRAINING,
        "A selective-scan backbone that spends its blocks on the highest-scored tokens",
        (),
    ),
    "cls": (Task.CLASSIFICATION, "Scene classification on the backbone of DynamicVis", (NO_NAMES,)),
    "seg": (Task.SEGMENTATION, "Roads or buildings by UPerNet on the backbone of DynamicVis", (NO_NAMES,)),
    "det": (Task.DETECTION, "Boxes by FCOS on the backbone of DynamicVis", (NO_NAMES, NO_DATA)),
    "ins": (
        Task.DETECTION,
        "Boxes and masks by Mask R-CNN on the backbone of DynamicVis",
        (NO_NAMES, NO_DATA),
    ),
    "cd": (Task.CHANGE, "Change between two dates on the backbone of DynamicVis", (ORDER, NO_NAMES)),
}


def _card(kind: str, size: str, slug: str) -> Card:
    task, summary, limits = KINDS[kind]
    return Card(
        slug=slug,
        title=TITLE,
        task=task,
        status=Status.RUNS if kind or size != "b" else Status.REPRODUCED,
        date_order=DateOrder.ORDERED if kind == "cd" else None,
        summary=f"{summary}; the {'base' if size == 'b' else 'large'} size.",
        year=2025,
        paper="arXiv:2503.16426",
        repository="https://github.com/KyanChen/DynamicVis",
        inputs=Inputs(
            dates=2 if kind == "cd" else 1,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            size_multiple=1 if kind == "cls" else 32,
            normalisation=IMAGENET,
        ),
        classes="binary-change" if kind == "cd" else "",
        licences=Licences(code="Apache-2.0"),
        figures=() if kind or size != "b" else (GOLDEN,),
        parameters=PARAMETERS[kind, size],
        threshold=0.5 if kind == "cd" else None,
        checkpoints="Hugging Face KyanChen/DynamicVis",
        released=RELEASED if not kind and size == "b" else (),
        quirks=QUIRKS,
        limits=(
            "A checkpoint is for square images of one size (512 or 1024 pixels); for others its position "
            "table is resized.",
            "The paper's tables of accuracy were not available here, so no score of it is claimed.",
            *limits,
        ),
    )


PARAMETERS = {
    ("", "b"): 41_404_801,
    ("", "l"): 96_024_385,
    ("cls", "b"): 36_770_142,
    ("cls", "l"): 91_275_038,
    ("seg", "b"): 72_847_684,
    ("seg", "l"): 129_040_132,
    ("det", "b"): 48_932_683,
    ("det", "l"): 105_125_131,
    ("ins", "b"): 65_110_631,
    ("ins", "l"): 121_303_079,
    ("cd", "b"): 52_857_154,
    ("cd", "l"): 109_049_602,
}
HEAD = _card("", "b", "dynamicvis")
VARIANTS = {
    f"{kind}-{size}" if kind else size: _card(
        kind, size, f"dynamicvis/{kind}-{size}" if kind else f"dynamicvis/{size}"
    )
    for kind in KINDS
    for size in SIZES
}


def from_official(tensors: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The tensors of an official file (or of this library's own) for a network with grid x grid positions.

    Prefixes of wrappers and the constants of the data preprocessor are left out; the position table is
    resized bicubically where the grid differs.
    """
    found = {k.removeprefix("module."): v for k, v in tensors.items()}
    found = {k: v for k, v in found.items() if not k.startswith("data_preprocessor.")}
    if (table := found.get("backbone.pos_embed")) is not None:
        found["backbone.pos_embed"] = resize_position(table, grid, grid)
    return found


@register(HEAD, *VARIANTS.values())
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    size: int | None = None,
    classes: int | None = None,
    routing: str = "default",
) -> NetworkSystem:
    """The system of a card; `dynamicvis` by itself is `dynamicvis/b`.

    Args:
        weights: a file of the authors or of this library.
        untrained: random weights, for training.
        size: side of the images that the position table is for: 512 for pre-training and classification,
            1024 elsewhere, unless given. The table of a file is resized to it bicubically.
        classes: of pre-training (63), classification (30), segmentation (2) or detection (1).
        routing: `default`, or `all-tokens` for the ablation without a choice of tokens.

    Raises:
        SystemNotReadyError: neither weights nor `untrained`.
        SettingError: a setting out of its range.
        WeightsMismatchError and others of `terralapse.layers.weights`.
    """
    if routing not in ROUTINGS:
        raise SettingError(f"routing={routing}", "no such routing", f"Choose from {', '.join(ROUTINGS)}.")
    if size is not None and size < 32:
        raise SettingError(f"size={size}", "is below the deepest stride, 32", "Take a larger one.")
    if weights is None and not untrained:
        load_weights(nn.Identity(), card)  # says what is missing before the network takes memory
    kind, _, letter = ("-" + (card.slug.partition("/")[2] or "b")).rpartition("-")
    kind = kind.removeprefix("-")
    side = size or (512 if kind in ("", "cls") else 1024)
    system = _system(card, kind, SIZES[letter], side, ROUTINGS[routing], classes)
    if not untrained:
        grid = system.network.backbone.grid
        load_weights(system.network, card, weights, lambda tensors: from_official(tensors, grid))
    system.network.eval()
    return system


def _system(card: Card, kind: str, size: Size, side: int, routing: Routing, classes: int | None) -> _System:
    match kind:
        case "cls":
            return ClassificationSystem(card, SceneClassifier(size, side, routing, classes or 30))
        case "seg":
            return SegmentationSystem(card, Segmenter(size, side, routing, classes or 2))
        case "det":
            return DetectionSystem(card, Detector(size, side, routing, classes or 1))
        case "ins":
            return InstanceSystem(card, InstanceSegmenter(size, side, routing, classes or 1))
        case "cd":
            return ChangeSystem(card, ChangeNetwork(size, side, routing))
        case _:
            return PretrainingSystem(card, Pretraining(size, side, routing, classes or 63))
