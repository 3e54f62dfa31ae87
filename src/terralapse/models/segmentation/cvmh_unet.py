"""CVMH-UNet: a U-shaped network of selective scans and convolutions with frequency attention in its skips.

Source: Cao et al., "Remote Sensing Image Segmentation Using Vision Mamba and Multi-Scale Multi-Frequency
Feature Fusion", Remote Sensing 17(8), 1390, 2025. Nobody published its code, so this is a reconstruction: the
paper fixes that scan and convolution run side by side in a block, that the scan crosses the image in other
orders than VMamba's, and that the skips weigh channels by cosine frequencies and positions by convolutions.
Everything else is a decision taken here, after VM-UNet (Ruan and Xiang 2024, arXiv:2402.02491), whose
skeleton is part of this file (`VM_UNET`) and whose checkpoints load into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.labels import BUILDINGS, ISPRS
from terralapse.layers.dct import ChannelConv, DCTPool
from terralapse.layers.drop_path import DropPath
from terralapse.layers.scan import cross_paths, cs2d_paths, diagonal_paths, full_paths
from terralapse.layers.vmamba import SS2D, PathTable
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.dice import dice_loss
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkSystem, Target, crop_like
from terralapse.tasks.segmentation import SegmentationOutput

Four = tuple[int, int, int, int]
SCANS: Mapping[str, PathTable] = {
    "ss2d": cross_paths,  # VMamba: rows, columns, and both backwards
    "diag": diagonal_paths,  # both diagonals, and both backwards
    "cross": cs2d_paths,  # rows, columns and both diagonals, forwards: our reading of CS2D
    "full": full_paths,  # all eight
}


@dataclass(frozen=True)
class Design:
    """What the network is made of; the defaults are the reconstruction.

    `dims`, `depths`: channels and blocks of the encoder's stages; `decoder_depths` from the deepest on.
    `state`: values of state per channel and direction. `scan`: a key of `SCANS`. `local`: the convolutions
    beside each scan. `residual`: the sum with the input of a block. `skip`: `mfms` or a plain sum.
    `gate`: of frequencies, by a convolution across channels or by two linear maps. `names`, `split`: the
    cosine frequencies, see `terralapse.layers.dct.DCTPool`. `drop_path` grows towards the middle of the U.
    """

    dims: Four = (96, 192, 384, 768)
    depths: Four = (2, 2, 2, 2)
    decoder_depths: Four = (2, 2, 2, 1)
    state: int = 16
    scan: Literal["ss2d", "diag", "cross", "full"] = "cross"
    local: bool = True
    residual: bool = True
    skip: Literal["mfms", "sum"] = "mfms"
    gate: Literal["conv", "linear"] = "conv"
    names: str = "top16"
    split: bool = False
    drop_path: float = 0.2


BASE = Design()
VM_UNET = Design(scan="ss2d", local=False, skip="sum")
NANO = Design(
    dims=(24, 48, 96, 192), depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), state=4, drop_path=0.05
)


# --- cards ---------------------------------------------------------------------------------------------
IMAGENET = {
    "red": (123.675, 58.395),
    "green": (116.28, 57.12),
    "blue": (103.53, 57.375),
}


def _inputs(bands: tuple[str, ...], gsd: tuple[float, float]) -> Inputs:
    """Infrared has no statistics of ImageNet: it takes those of red."""
    mean, std = zip(*(IMAGENET.get(b, IMAGENET["red"]) for b in bands), strict=True)
    return Inputs(
        dates=1,
        bands=bands,
        units=(Unit.RGB255,),
        gsd_range=gsd,
        size_multiple=32,
        normalisation=Normalisation(mean, std),
    )


RECONSTRUCTION = (
    "No code or weights exist: this is a reconstruction, and none of the paper's scores is claimed for it.",
    "From the paper: a scan and convolutions side by side with a residual, crossed scan orders, and skips "
    "with frequency attention, a convolution across channels and a local branch.",
    "Decided here: the skeleton of VM-UNet, which orders the scan takes, the sum of both sides as what a "
    "skip weighs, its pooling to 7 x 7, the sixteen frequencies and their mean, normalisation and recipe.",
    "It sees a whole tile at once, so a pixel depends on everything in its tile.",
)
QUIRKS = (
    "The mean of sixteen fixed frequencies is one fixed filter; `Design(split=True)` gives each group of "
    "channels its own, as FcaNet does.",
    "As in VM-UNet the feature of stride 4 is no skip; the head spreads each position over 4 x 4 pixels.",
)
CARD = Card(
    slug="cvmh-unet",
    title=(
        "Remote Sensing Image Segmentation Using Vision Mamba and Multi-Scale Multi-Frequency Feature Fusion"
    ),
    task=Task.SEGMENTATION,
    status=Status.RUNS,
    summary="A U-shaped hybrid of selective scan and convolution with frequency attention in its skips.",
    year=2024,
    paper="Remote Sensing 17(8), 1390 (2025)",
    inputs=_inputs(("red", "green", "blue"), (0.05, 0.05)),
    classes=ISPRS.slug,
    licences=Licences(code="none published"),
    quirks=QUIRKS,
    limits=RECONSTRUCTION,
    parameters=35_696_853,
    checkpoints="none",
)
POTSDAM = replace(
    CARD, slug="cvmh-unet/potsdam", summary="The six classes of ISPRS Potsdam, from RGB of 0.05 m."
)
VAIHINGEN = replace(
    CARD,
    slug="cvmh-unet/vaihingen",
    summary="The six classes of ISPRS Vaihingen, from infrared, red and green of 0.09 m.",
    inputs=_inputs(("nir", "red", "green"), (0.09, 0.09)),
)
GID15 = replace(
    CARD,
    slug="cvmh-unet/gid15",
    summary="The fifteen classes of GID-15 and background, from four bands of Gaofen-2.",
    inputs=_inputs(("nir", "red", "green", "blue"), (3.2, 4.0)),
    classes="",
    limits=(
        *RECONSTRUCTION,
        "Classes are numbers 0 (background) to 15 in the order of the labels that it is trained on: no "
        "reader of GID-15 comes with the library.",
    ),
    parameters=35_698_639,
)
NANO_CARD = replace(
    CARD,
    slug="cvmh-unet/buildings-nano",
    title="CVMH-UNet, a small one for buildings",
    seed=False,
    summary="Buildings in colour images of 0.3 to 0.5 m; the network with a quarter of its widths.",
    inputs=_inputs(("red", "green", "blue"), (0.3, 0.5)),
    classes=BUILDINGS.slug,
    licences=Licences(code="Apache-2.0"),
    limits=(
        "The widths are a quarter of those of the reconstruction, and every stage has one block.",
        "It knows roofs from straight above; what it was trained on it says where weights come with it.",
        RECONSTRUCTION[-1],
    ),
    parameters=1_312_357,
)
CLASSES = {CARD.slug: 6, POTSDAM.slug: 6, VAIHINGEN.slug: 6, GID15.slug: 16, NANO_CARD.slug: 2}


# --- blocks, all on [B, H, W, C] -----------------------------------------------------------------------
class PatchEmbed(nn.Module):
    """4 x 4 pixels to one position."""

    def __init__(self, bands: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """[B, bands, H, W] to [B, H / 4, W / 4, dim]."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerge(nn.Module):
    """2 x 2 positions to one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class PatchExpand(nn.Module):
    """One position to scale x scale of a `scale`-th of the channels."""

    def __init__(self, dim: int, scale: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, scale * dim, bias=False)
        self.norm = nn.LayerNorm(dim // scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        s = self.scale
        x = self.expand(x).unflatten(3, (s, s, -1))  # [B, H, W, row, column, C / s]
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class LocalBranch(nn.Module):
    """A linear map, a depthwise 3 x 3 convolution, a linear map; on [B, H, W, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class HybridBlock(nn.Module):
    """x + (scan(LN(x)) + local(LN(x))): what is far and what is near, side by side (HVSSBlock).

    With `checkpointing` the scan computes again in the backward pass what it did not keep.
    """

    def __init__(self, dim: int, drop_path: float, design: Design) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(
            dim, state=design.state, conv_bias=True, gated=True, paths=SCANS[design.scan]
        )
        if design.local:
            self.local = LocalBranch(dim)
        self.has_local, self.residual = design.local, design.residual
        self.drop_path = DropPath(drop_path)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        normal = self.ln_1(x)
        # Not the local branch: computed twice, its batch norms would count every batch twice.
        if self.checkpointing and torch.is_grad_enabled():
            found = checkpoint(self.self_attention, normal, use_reentrant=False)
            assert isinstance(found, Tensor)
        else:
            found = self.self_attention(normal)
        if self.has_local:
            found = found + self.local(normal)
        return x + self.drop_path(found) if self.residual else found


class FrequencySkip(nn.Module):
    """What encoder and decoder have at one stride, weighed once by channel, from the frequencies of each
    channel's map, and once by position, from a bottleneck of convolutions (MFMSBlock)."""

    def __init__(self, dim: int, design: Design) -> None:
        super().__init__()
        self.pool = DCTPool(dim, names=design.names, split=design.split)
        if design.gate == "conv":
            self.gate: nn.Module = ChannelConv(dim)
        else:
            narrow = max(1, dim // 16)
            self.gate = nn.Sequential(
                nn.Linear(dim, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, dim, bias=False)
            )
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim // 4, 1, bias=False),
            nn.BatchNorm2d(dim // 4),
            nn.ReLU(),
            nn.Conv2d(dim // 4, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
        )
        self.join = nn.Sequential(nn.Conv2d(2 * dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Two maps [B, H, W, C] to one."""
        both = (encoded + decoded).permute(0, 3, 1, 2)
        by_channel = both * self.gate(self.pool(both)).sigmoid()[:, :, None, None]
        by_position = both * self.local(both).sigmoid()
        return self.join(torch.cat([by_channel, by_position], dim=1)).permute(0, 2, 3, 1)


class EncoderStage(nn.Module):
    """Blocks, then the step to the next stride, if there is one."""

    def __init__(self, dim: int, rates: list[float], design: Design, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(HybridBlock(dim, rate, design) for rate in rates))
        self.downsample = PatchMerge(dim) if merge else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class DecoderStage(nn.Module):
    """The step from the next stride, unless it is the deepest, then blocks."""

    def __init__(self, dim: int, rates: list[float], design: Design, expand: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(HybridBlock(dim, rate, design) for rate in rates))
        self.upsample = PatchExpand(2 * dim, 2) if expand else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.upsample(x))


# --- network and system --------------------------------------------------------------------------------
class CVMHUNet(nn.Module):
    """The network; with `VM_UNET` it is VM-UNet, by that network's names."""

    def __init__(self, classes: int, bands: int = 3, design: Design = BASE) -> None:
        super().__init__()
        dims = design.dims
        self.patch_embed = PatchEmbed(bands, dims[0])
        down = _rates(design.drop_path, design.depths)
        self.layers = nn.ModuleList(
            EncoderStage(dim, rates, design, merge=number < 3)
            for number, (dim, rates) in enumerate(zip(dims, down, strict=True))
        )
        up = _rates(design.drop_path, design.decoder_depths[::-1])[::-1]
        self.layers_up = nn.ModuleList(
            DecoderStage(dim, rates[::-1], design, expand=number > 0)
            for number, (dim, rates) in enumerate(zip(dims[::-1], up, strict=True))
        )
        if design.skip == "mfms":
            self.skips = nn.ModuleList(FrequencySkip(dim, design) for dim in dims[:0:-1])
        self.has_skips = design.skip == "mfms"
        self.final_up = PatchExpand(dims[0], 4)
        self.final_conv = nn.Conv2d(dims[0] // 4, classes, 1)
        self.apply(_start)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K, H, W] of normalised images [B, bands, H, W], whose sides are multiples of 32."""
        x = self.patch_embed(images)
        entered = []  # what entered each stage of the encoder
        for stage in self.layers:
            entered.append(x)
            x = stage(x)
        for number, stage in enumerate(self.layers_up):
            if number > 0:  # the deepest stage has no skip, and what entered the first stage is none
                encoded = entered[4 - number]
                x = self.skips[number - 1](encoded, x) if self.has_skips else encoded + x
            x = stage(x)
        return self.final_conv(self.final_up(x).permute(0, 3, 1, 2))

    @property
    def checkpointing(self) -> bool:
        """Whether all scans compute again in the backward pass what they did not keep."""
        return all(b.checkpointing for b in self._blocks())

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for block in self._blocks():
            block.checkpointing = on

    def _blocks(self) -> list[HybridBlock]:
        return [m for m in self.modules() if isinstance(m, HybridBlock)]


def _rates(most: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Drop rates of each stage's blocks, growing linearly from 0 to `most` over all of them."""
    last = max(sum(depths) - 1, 1)
    flat = iter(most * number / last for number in range(sum(depths)))
    return [[next(flat) for _ in range(depth)] for depth in depths]


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def from_official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a VM-UNet checkpoint by the names of `CVMHUNet(design=VM_UNET)`: without their prefix."""
    return {k.removeprefix("vmunet."): v for k, v in tensors.items()}


class CVMHUNetSystem(NetworkSystem):
    """The network behind the contract of segmentation."""

    network: CVMHUNet

    def forward(self, images: Tensor) -> SegmentationOutput:
        """See `NetworkSystem.forward`; `images` [B, 1, C, H, W]."""
        return SegmentationOutput(crop_like(self.network(self.padded(images[:, 0])), images))

    def loss(self, output: SegmentationOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy plus Dice."""
        ce = cross_entropy(output.logits, target["label"])
        dice = dice_loss(output.logits, target["label"])
        return {"total": ce + dice, "cross_entropy": ce, "dice": dice}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts patch embedding, scans and merging from a VMamba or VM-UNet file of the same widths and
        depths (names `patch_embed.*`, `layers.*`). Everything else keeps its start: convolutions, skips and
        decoder. Its scans were trained for the orders `ss2d`; for others this is a start and no more.

        Raises:
            WeightsMismatchError: a part of the encoder is missing, unknown or of another shape.
        """
        tensors = from_official(published)
        body = {k: v for k, v in tensors.items() if k.startswith(("patch_embed.", "layers."))}
        own = self.network.state_dict()
        kept = {
            k: v for k, v in own.items() if not k.startswith(("patch_embed.", "layers.")) or ".local." in k
        }
        load_strict(self.network, kept | body, "the published encoder")


@register(CARD, POTSDAM, VAIHINGEN, GID15, NANO_CARD)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    design: Design | None = None,
) -> CVMHUNetSystem:
    """CVMH-UNet with the weights of a file.

    Args:
        card: one of this file.
        weights: a `.safetensors` file, or a checkpoint of tensors only.
        untrained: random weights, for training.
        design: in place of the card's, for ablations.

    Raises:
        SystemNotReadyError: no file is given, and no weights come with the library.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    own = NANO if card.slug == NANO_CARD.slug else BASE
    network = CVMHUNet(CLASSES[card.slug], len(card.inputs.bands or ()), design or own)
    if not untrained:
        load_weights(network, card, weights, from_official)
    return CVMHUNetSystem(card, network.eval())
