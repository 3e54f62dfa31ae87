"""ChangeMamba: binary change, semantic change and building damage on one selective-scan encoder.

Source: Chen, Song, Han, Xia and Yokoya, "ChangeMamba: Remote Sensing Change Detection With Spatiotemporal
State Space Model", IEEE TGRS 62, 2024, arXiv:2404.03425; MambaBCD, MambaSCD and MambaBDA as in the released
code, whose parameters they have by name. Differs from it in: both dates pass through the encoder as one batch
(the same numbers, since nothing in it looks across a batch); semantic labels that are truly ignored count
nowhere; a batch without a graded building still trains the map of buildings; and a fourth size, `nano`, with
narrower decoders, is ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terralapse.cards import (
    Card,
    DateOrder,
    Figure,
    Inputs,
    Licences,
    Normalisation,
    Released,
    Status,
    Task,
    Weights,
)
from terralapse.layers.decoding import ResBlock, interleave, pointwise, up_to
from terralapse.layers.vmamba import (
    Checkpointing,
    VSSBlock,
    VSSEncoder,
    load_imagenet,
    official_names,
    to_nchw,
    to_nhwc,
)
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.damage import DamageOutput
from terralapse.tasks.losses import change_losses, damage_losses, semantic_change_losses
from terralapse.tasks.network import NetworkDetector, Target, crop_like
from terralapse.tasks.semantic_change import SemanticChangeOutput, semantic_target

PIXELS = 32  # stride of the deepest stage
SECOND_CLASSES = 7  # with "unchanged"
DAMAGE_CLASSES = 5  # with background
DECODER_DROP_PATH = 0.1


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Widths and depths of the encoder's stages, its stochastic depth, and the width of the decoders."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    drop_path_rate: float
    width: int = 128


SIZES = {
    "nano": Size((24, 48, 96, 192), (1, 1, 2, 1), 0.1, width=48),
    "tiny": Size((96, 192, 384, 768), (2, 2, 4, 2), 0.2),
    "small": Size((96, 192, 384, 768), (2, 2, 15, 2), 0.3),
    "base": Size((128, 256, 512, 1024), (2, 2, 15, 2), 0.6),
}
PARAMETERS = {
    "bcd-nano": 1_653_098,
    "bcd-tiny": 32_613_506,
    "bcd-small": 53_999_618,
    "bcd-base": 92_399_874,
    "scd-tiny": 37_125_641,
    "scd-small": 58_511_753,
    "scd-base": 97_034_889,
    "bda-nano": 1_971_199,
    "bda-tiny": 34_869_767,
    "bda-small": 56_255_879,
    "bda-base": 94_717_575,
}
KINDS = {
    "bcd": ("MambaBCD", Task.CHANGE, "binary-change", "Binary change"),
    "scd": ("MambaSCD", Task.SEMANTIC_CHANGE, "second-mamba", "Semantic change in the classes of SECOND"),
    "bda": ("MambaBDA", Task.DAMAGE, "xbd-damage", "Buildings and their damage in the grades of xBD"),
}
TITLE = "ChangeMamba: Remote Sensing Change Detection With Spatiotemporal State Space Model"
ZENODO = "zenodo:15479555"
ENCODERS = {  # VMamba on ImageNet, with the md5 that is known
    "tiny": ("vssm_tiny_0230_ckpt_epoch_262.pth", "d64653bba8f6e5c0d6f4ac6275e1be61"),
    "small": ("vssm_small_0229_ckpt_epoch_222.pth", ""),
    "base": ("vssm_base_0229_ckpt_epoch_237.pth", "3e4110259f482f552dc70abcf3381e71"),
}
BCD_FILES = {  # the F1 in the names of the files, by size
    "LEVIRCD+": {"tiny": "0.8803", "small": "0.8825", "base": "0.8823"},
    "SYSU": {"tiny": "0.8316", "small": "0.8336", "base": "0.8331"},
    "WHU": {"tiny": "0.9409", "small": "0.9404", "base": "0.9419"},
}
SCD_FILES = {  # the from-to SeK in the names of the files, and the md5 that is known
    "tiny": ("0.2208", "d1c1d50267da8063b9caa56b63ff1396"),
    "base": ("0.2292", ""),
}

# OA, F1, IoU and kappa in percent, as the authors' README has them for retrained weights.
BCD_SCORES = {
    "tiny": {
        "SYSU-CD": (91.36, 81.29, 68.48, 75.68),
        "LEVIR-CD+": (99.03, 88.04, 78.63, 87.53),
        "WHU-CD": (99.57, 94.09, 88.84, 93.87),
    },
    "small": {
        "SYSU-CD": (92.39, 83.36, 71.46, 78.43),
        "LEVIR-CD+": (99.02, 87.81, 78.27, 87.30),
        "WHU-CD": (99.57, 94.06, 88.79, 93.84),
    },
    "base": {
        "SYSU-CD": (92.30, 83.11, 71.10, 78.13),
        "LEVIR-CD+": (99.06, 88.39, 79.20, 87.91),
        "WHU-CD": (99.58, 94.19, 89.02, 93.98),
    },
}
SCD_SCORES = {  # OA, F_scd, mIoU, SeK
    "tiny": (88.07, 63.44, 73.33, 23.34),
    "small": (88.38, 64.10, 73.61, 24.04),
    "base": (88.12, 64.03, 73.68, 24.11),
}
BDA_SCORES = {  # F1 of location, of damage, overall, and of the grades none, minor, major, destroyed
    "tiny": (87.53, 78.35, 81.11, 96.18, 61.71, 76.49, 87.89),
    "small": (86.61, 78.80, 81.14, 95.99, 62.82, 76.26, 88.37),
    "base": (87.38, 78.84, 81.41, 95.94, 62.74, 76.46, 88.58),
}
CHOSEN = "weights that the authors retrained, from their README; the checkpoint was chosen on the test set"
PROTOCOLS = {
    "bcd": f"one confusion matrix over whole test images, class change; {CHOSEN}",
    "scd": "per-date: the README does not say so, but others have run its tiny weights and found this SeK "
    f"per date, and 0.2208 from-to as in the name of the file; {CHOSEN}",
    "bda": "F1 over the test set, damage where the label has a building, not masked with the predicted "
    f"building, harmonic mean; {CHOSEN}",
}
QUIRKS = (
    "The numbers of parameters printed in the paper are not those of the released code.",
    "The released decoder allocates on a GPU in float32; here it follows its input.",
)
ORDER = "The order of the dates matters: exchanging them gives another map."
LIMITS = {
    "bcd": (
        ORDER,
        "Trained on RGB aerial images; each of the authors' files knows the changes of its data set.",
    ),
    "scd": (
        ORDER,
        "Class ids are those of ChangeMamba and Mamba-FCS; other codes for SECOND number them otherwise.",
        "Class 0 of the maps of a date gets no supervision, so it is never chosen inside of change.",
    ),
    "bda": (
        ORDER,
        "Buildings are found on the image before alone.",
        "The authors list no checkpoint of it any more.",
    ),
}
WEIGHTS_LICENCE = (
    "Apache-2.0 as far as it is ours to give; some of the training data is for research or states none"
)
HERE = "whole tiles, counts summed over the set, the threshold of the card, interval by bootstrap over tiles"
XVIEW2 = "official scorer of xView2 on whole tiles; there is no test split and no destroyed building"
SHIPPED: dict[
    str, dict[str, Any]
] = {  # what the small size was trained to here: file, temperature, threshold, scores, limits
    "bcd-nano": {
        "weights": (
            Weights(
                "changemamba-bcd-nano.safetensors",
                sha256="ccbd5f10d598e687e429e2d0f441d0f4e75435ffa9054952ff0134b4fd5d0d38",
                licence=WEIGHTS_LICENCE,
            ),
        ),
        "temperature": 0.7269,
        "threshold": 0.22,
        "licences": Licences(
            code="Apache-2.0",
            weights=WEIGHTS_LICENCE,
            data="MS-HS-BCD: no licence stated, public research data of Gaofen-1",
        ),
        "limits": (
            ORDER,
            "It knows buildings only, of one Chinese city and two dates, at about 2.5 m.",
            "It was trained without weights of ImageNet on two cores, and finds less than lapsenet/rgb.",
        ),
        "gsd_range": (0.5, 5.0),
        "figures": (
            Figure("change F1", 0.378, "MS-HS-BCD val, Gaofen-1 RGB 2.5 m", HERE, "here", (0.299, 0.469)),
            Figure("change F1", 0.307, "MS-HS-BCD test, Gaofen-1 RGB 2.5 m", HERE, "here", (0.088, 0.479)),
        ),
    },
    "bda-nano": {
        "weights": (
            Weights(
                "changemamba-bda-nano.safetensors",
                sha256="9ecfaa4fe5f2b4b69d2368426e7aaffa9a77ad1a1a06f6274ad6f257f5d4a021",
                licence="CC BY-NC-SA 4.0, as xBD: not for commercial use",
            ),
        ),
        "licences": Licences(
            code="Apache-2.0",
            weights="CC BY-NC-SA 4.0, as xBD: not for commercial use",
            data="xBD: CC BY-NC-SA 4.0; Ida-BD: no licence stated",
        ),
        "limits": (
            ORDER,
            "A demonstration: trained on five tiles of two hurricanes, scored on two more; it grades badly, "
            "and never saw a destroyed building.",
            "Buildings are found on the image before alone.",
        ),
        "gsd_range": (0.3, 1.0),
        "figures": tuple(
            Figure(
                name,
                value,
                "two held-out tiles of xBD and Ida-BD, which also chose the epoch",
                XVIEW2,
                "here",
            )
            for name, value in (
                ("F1 location", 0.608),
                ("F1 none", 0.428),
                ("F1 minor", 0.091),
                ("F1 major", 0.138),
            )
        ),
    },
}
WHOLE_TILE = "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended."


def _figures(kind: str, size: str) -> tuple[Figure, ...]:
    found: list[tuple[str, str, float]] = []
    if kind == "bcd":
        for data, scores in BCD_SCORES[size].items():
            found += [
                (name, data, x) for name, x in zip(("OA", "change F1", "IoU", "kappa"), scores, strict=True)
            ]
    elif kind == "scd":
        names = ("OA", "F_scd", "mIoU", "SeK")
        found = [(name, "SECOND", x) for name, x in zip(names, SCD_SCORES[size], strict=True)]
    else:
        grades = [f"F1 {grade}" for grade in ("none", "minor", "major", "destroyed")]
        names = ("F1 location", "F1 damage", "F1 overall", *grades)
        found = [(name, "xBD", x) for name, x in zip(names, BDA_SCORES[size], strict=True)]
    return tuple(
        Figure(name, round(x / 100, 4), f"{data} test", PROTOCOLS[kind], "paper") for name, data, x in found
    )


def _released(kind: str, size: str) -> tuple[Released, ...]:
    files = []
    if kind == "bcd":
        for data, scores in BCD_FILES.items():
            name = f"MambaBCD_{size.title()}_{data}_F1_{scores[size]}.pth"
            files.append(Released(name, ZENODO, f"trained on {data}, F1 {scores[size]}"))
    elif kind == "scd" and size in SCD_FILES:
        sek, md5 = SCD_FILES[size]
        name = f"MambaSCD_{size.title()}_SECOND_SeK_{sek}.pth"
        files.append(Released(name, ZENODO, f"trained on SECOND, from-to SeK {sek}", md5=md5))
    encoder, md5 = ENCODERS[size]
    files.append(Released(encoder, ZENODO, "VMamba on ImageNet, to start the encoder from", md5=md5))
    return tuple(files)


def _card(kind: str, size: str) -> Card:
    name, task, classes, what = KINDS[kind]
    ours = size == "nano"
    title = f"{TITLE}: {name}, {size}"
    return Card(
        slug=f"changemamba/{kind}-{size}",
        title=f"{title} (a size of our own)" if ours else title,
        task=task,
        status=Status.REPRODUCED if size == "tiny" else Status.RUNS,  # golden cases are of this size
        date_order=DateOrder.ORDERED,
        summary=f"{what}: a selective scan over both dates side by side, interleaved and stacked"
        + (", in a size of our own that is small enough for a CPU." if ours else "."),
        year=2024,
        paper="arXiv:2404.03425",
        repository="https://github.com/ChenHongruixuan/MambaCD",
        inputs=Inputs(
            dates=2,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            size_multiple=PIXELS,
            halo=64,
            normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        classes=classes,
        licences=Licences(
            code="Apache-2.0 (the authors' vendors VMamba, MIT)",
            weights="" if ours else "CC BY 4.0 (Zenodo)",
        ),
        released=() if ours else _released(kind, size),
        figures=() if ours else _figures(kind, size),
        quirks=() if ours else QUIRKS,
        limits=(*LIMITS[kind], WHOLE_TILE),
        parameters=PARAMETERS[f"{kind}-{size}"],
        checkpoints=_checkpoints(kind, size),
    )


def _checkpoints(kind: str, size: str) -> str:
    if size == "nano" or kind == "bda":
        return "none"
    if (kind, size) == ("scd", "small"):
        return "none (Zenodo 15479555 has tiny and base)"
    return "Zenodo 15479555 (first version 14037770)"


def _shipped(card: Card) -> Card:
    """The card with what was trained here, if anything was."""
    ours = dict(SHIPPED.get(card.slug.partition("/")[2], {}))
    if not ours:
        return card
    inputs = replace(card.inputs, gsd_range=ours.pop("gsd_range"))
    return replace(card, inputs=inputs, **{**ours, "limits": (*ours["limits"], WHOLE_TILE)})


HEAD = replace(_card("bcd", "tiny"), slug="changemamba", title=TITLE)
VARIANTS = tuple(
    _shipped(_card(kind, size)) for kind in KINDS for size in SIZES if f"{kind}-{size}" in PARAMETERS
)


# --- decoders --------------------------------------------------------------------------------------------
def scan_block(inputs: int | None, width: int, **block: Any) -> nn.Sequential:
    """A `VSSBlock` between channel-first maps, after a 1 x 1 convolution where `inputs` is given."""
    scan = VSSBlock(width, DECODER_DROP_PATH, **block)
    first = [] if inputs is None else [nn.Conv2d(inputs, width, 1)]
    return nn.Sequential(*first, to_nhwc(), scan, to_nchw())


class ChangeDecoder(nn.Module):
    """Both dates scanned in three arrangements at each level, fused, and brought together top down.

    The arrangements: stacked over channels; columns of the dates interleaved; the dates side by side.
    """

    def __init__(self, dims: tuple[int, ...], width: int, **block: Any) -> None:
        super().__init__()
        self.levels = len(dims)
        for level, dim in enumerate(dims, start=1):
            self.add_module(f"st_block_{level}1", scan_block(2 * dim, width, **block))
            self.add_module(f"st_block_{level}2", scan_block(dim, width, **block))
            self.add_module(f"st_block_{level}3", scan_block(dim, width, **block))
            self.add_module(f"fuse_layer_{level}", pointwise(5 * width, width))
            if level < self.levels:
                self.add_module(f"smooth_layer_{level}", ResBlock(width))

    def forward(self, before: list[Tensor], after: list[Tensor]) -> Tensor:
        """[B, width, H / 4, W / 4] from the pyramids of both dates."""
        x = self._fused(self.levels, before[-1], after[-1])
        for level in range(self.levels - 1, 0, -1):
            here = self._fused(level, before[level - 1], after[level - 1])
            x = self.get_submodule(f"smooth_layer_{level}")(here + up_to(x, here.shape))
        return x

    def _fused(self, level: int, before: Tensor, after: Tensor) -> Tensor:
        stacked, mixed, beside = (self.get_submodule(f"st_block_{level}{i}") for i in (1, 2, 3))
        crossed = mixed(interleave(before, after))
        wide, seam = beside(torch.cat([before, after], dim=3)), before.shape[3]
        parts = [
            stacked(torch.cat([before, after], dim=1)),
            crossed[..., ::2],
            crossed[..., 1::2],
            wide[..., :seam],
            wide[..., seam:],
        ]
        return self.get_submodule(f"fuse_layer_{level}")(torch.cat(parts, dim=1))


class SemanticDecoder(nn.Module):
    """The pyramid of one date, brought together top down with a scan at each level."""

    def __init__(self, dims: tuple[int, ...], width: int, **block: Any) -> None:
        super().__init__()
        self.levels = len(dims)
        self.add_module(f"st_block_{self.levels}_semantic", scan_block(dims[-1], width, **block))
        for level, dim in enumerate(dims[:-1], start=1):
            self.add_module(f"st_block_{level}_semantic", scan_block(None, width, **block))
            self.add_module(f"trans_layer_{level}", pointwise(dim, width))
            self.add_module(f"smooth_layer_{level}_semantic", ResBlock(width))
        self.smooth_layer_0_semantic = ResBlock(width)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[B, width, H / 4, W / 4] from the pyramid of a date."""
        x = self.get_submodule(f"st_block_{self.levels}_semantic")(features[-1])
        for level in range(self.levels - 1, 0, -1):
            here = self.get_submodule(f"trans_layer_{level}")(features[level - 1])
            x = self.get_submodule(f"smooth_layer_{level}_semantic")(here + up_to(x, here.shape))
            x = self.get_submodule(f"st_block_{level}_semantic")(x)
        return self.smooth_layer_0_semantic(x)


# --- networks --------------------------------------------------------------------------------------------
class TwoDates(Checkpointing, ABC):
    """The shared encoder, and the decoders of a task. Sides must be multiples of the deepest stride.

    Args:
        dims, depths, drop_path_rate, width: as in `Size`.
        classes: of the map that has more than change or buildings, with "unchanged" or background; None for
            `CLASSES`.
        block: options of `VSSBlock`.
    """

    CLASSES = 2

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        drop_path_rate: float,
        width: int = 128,
        classes: int | None = None,
        bands: int = 3,
        **block: Any,
    ) -> None:
        super().__init__()
        self.encoder = VSSEncoder(dims, depths, drop_path_rate, bands, **block)
        self.add_decoders(dims, width, self.CLASSES if classes is None else classes, **block)

    @abstractmethod
    def add_decoders(self, dims: tuple[int, ...], width: int, classes: int, **block: Any) -> None:
        """Adds what follows the encoder."""

    def pyramids(self, before: Tensor, after: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The features of both dates [B, 3, H, W], from one pass over a batch of both."""
        both = [f.unflatten(0, (2, -1)) for f in self.encoder(torch.stack([before, after]).flatten(0, 1))]
        return [f[0] for f in both], [f[1] for f in both]


class MambaBCD(TwoDates):
    """Binary change."""

    def add_decoders(self, dims: tuple[int, ...], width: int, classes: int, **block: Any) -> None:
        self.decoder = ChangeDecoder(dims, width, **block)
        self.main_clf = nn.Conv2d(width, classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits [B, classes, H, W] of normalised images [B, 3, H, W]."""
        return up_to(self.main_clf(self.decoder(*self.pyramids(before, after))), before.shape)


class MambaSCD(TwoDates):
    """Semantic change: `classes` of each date."""

    CLASSES = SECOND_CLASSES

    def add_decoders(self, dims: tuple[int, ...], width: int, classes: int, **block: Any) -> None:
        self.decoder_bcd = ChangeDecoder(dims, width, **block)
        self.decoder_T1 = SemanticDecoder(dims, width, **block)
        self.decoder_T2 = SemanticDecoder(dims, width, **block)
        self.main_clf_cd = nn.Conv2d(width, 2, 1)
        self.aux_clf = nn.Conv2d(width, classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of change [B, 2, H, W] and of the classes of both dates [B, classes, H, W]."""
        first, second = self.pyramids(before, after)
        maps = (
            self.main_clf_cd(self.decoder_bcd(first, second)),
            self.aux_clf(self.decoder_T1(first)),
            self.aux_clf(self.decoder_T2(second)),
        )
        change, sem1, sem2 = (up_to(m, before.shape) for m in maps)
        return change, sem1, sem2


class MambaBDA(TwoDates):
    """Building damage: buildings from the image before, `classes` of damage from both."""

    CLASSES = DAMAGE_CLASSES

    def add_decoders(self, dims: tuple[int, ...], width: int, classes: int, **block: Any) -> None:
        self.decoder_damage = ChangeDecoder(dims, width, **block)
        self.decoder_building = SemanticDecoder(dims, width, **block)
        self.main_clf = nn.Conv2d(width, classes, 1)
        self.aux_clf = nn.Conv2d(width, 2, 1)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of buildings [B, 2, H, W] and of damage [B, classes, H, W]."""
        first, second = self.pyramids(before, after)
        building = self.aux_clf(self.decoder_building(first))
        damage = self.main_clf(self.decoder_damage(first, second))
        return up_to(building, before.shape), up_to(damage, before.shape)


# --- systems ---------------------------------------------------------------------------------------------
class _Detector(NetworkDetector):
    """What the three have in common."""

    network: Any

    def maps(self, images: Tensor) -> Any:
        """What the network returns for images [B, 2, 3, H, W] of any size, padded."""
        padded = self.padded(images)
        return self.network(padded[:, 0], padded[:, 1])

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the published VMamba of its size, trained on ImageNet, or from that of
        another ChangeMamba of its size."""
        inner = {k.removeprefix("encoder."): v for k, v in published.items() if k.startswith("encoder.")}
        if inner:
            load_strict(self.network.encoder, inner, "the encoder of a ChangeMamba")
        else:
            load_imagenet(self.network.encoder, published)


class MambaBCDDetector(_Detector):
    """MambaBCD behind the contract of change detectors."""

    network: MambaBCD

    def forward(self, images: Tensor) -> ChangeOutput:
        return ChangeOutput.of_classes(crop_like(self.maps(images), images))

    def loss(self, output: ChangeOutput, target: Target) -> dict[str, Tensor]:
        assert output.classes is not None
        return change_losses(output.classes, target["label"])

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        _raise_second(self.network.main_clf, by)


class MambaSCDDetector(_Detector):
    """MambaSCD behind the contract of change detectors."""

    network: MambaSCD

    def forward(self, images: Tensor) -> SemanticChangeOutput:
        return SemanticChangeOutput(*(crop_like(m, images) for m in self.maps(images)))

    def loss(self, output: SemanticChangeOutput, target: Target) -> dict[str, Tensor]:
        first, second = target["before"], target["after"]
        label = semantic_target(first, second)
        return semantic_change_losses(output.classes, output.before, output.after, label, first, second)

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of change of every pixel; for calibration."""
        _raise_second(self.network.main_clf_cd, by)


class MambaBDADetector(_Detector):
    """MambaBDA behind the contract of change detectors: change is a damaged building."""

    network: MambaBDA

    def forward(self, images: Tensor) -> DamageOutput:
        return DamageOutput(*(crop_like(m, images) for m in self.maps(images)))

    def loss(self, output: DamageOutput, target: Target) -> dict[str, Tensor]:
        return damage_losses(output.building, output.damage, target["building"], target["damage"])


def _raise_second(head: nn.Conv2d, by: float) -> None:
    """Adds to the bias of the second class, which is change."""
    assert head.bias is not None
    with torch.no_grad():
        head.bias[1] += by


@register(HEAD, *VARIANTS)
def build(card: Card, weights: Path | str | None = None, *, untrained: bool = False) -> _Detector:
    """The system of a card; `changemamba` by itself is `changemamba/bcd-tiny`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of the authors, or one of ours.
        untrained: random weights, for training.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    kind, _, size = card.slug.partition("/")[2].partition("-")
    chosen = SIZES[size or "tiny"]
    sizes = (chosen.dims, chosen.depths, chosen.drop_path_rate, chosen.width)
    system: _Detector
    match kind:
        case "scd":
            system = MambaSCDDetector(card, MambaSCD(*sizes))
        case "bda":
            system = MambaBDADetector(card, MambaBDA(*sizes))
        case _:
            system = MambaBCDDetector(card, MambaBCD(*sizes))
    if not untrained:
        load_weights(system.network, card, weights, official_names)
    system.network.eval()
    return system
