"""Mamba-FCS: semantic change from a Siamese VMamba, with fusion in space and frequency, guided by change.

Source: "Mamba-FCS: Joint Spatio-Frequency Feature Fusion, Change-Guided Attention, and SeK Loss for Enhanced
Semantic Change Detection in Remote Sensing", IEEE JSTARS 19, 2026 (arXiv:2508.08232). Differs from the
published code in: the SeK loss stays finite (see `terralapse.tasks.sek_loss`); class 0, which has no
supervision, cannot win inside of change unless it is asked for; the network is built for any widths.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Released, Status, Task
from terralapse.data.pairs import IGNORE
from terralapse.labels import LANDSAT_SCD, SECOND_MAMBA
from terralapse.layers.dct import ChannelConv
from terralapse.layers.decoding import up_to
from terralapse.layers.pairing import halves
from terralapse.layers.vmamba import (
    Checkpointing,
    VSSBlock,
    VSSEncoder,
    load_imagenet,
    official_names,
    to_nchw,
    to_nhwc,
)
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.losses import cross_entropy, lovasz_softmax, similarity
from terralapse.tasks.network import NetworkDetector, Target, crop_like
from terralapse.tasks.sek_loss import sek_loss
from terralapse.tasks.semantic_change import SemanticChangeOutput, semantic_target

DIMS, DEPTHS, DROP_PATH = (128, 256, 512, 1024), (2, 2, 15, 2), 0.6  # VMamba-Base
PROTOCOL = "per-date protocol over the test set; the checkpoint was chosen on that set, so optimistic"
NOTEBOOK = "per-date protocol, printed by the authors' notebook with their checkpoint"
TITLE = (
    "Mamba-FCS: Joint Spatio- Frequency Feature Fusion, Change-Guided Attention, and SeK Loss for "
    "Enhanced Semantic Change Detection in Remote Sensing"
)
INPUTS = Inputs(
    dates=2,
    bands=("red", "green", "blue"),
    units=(Unit.RGB255,),
    size_multiple=32,
    normalisation=Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
)
QUIRKS = (
    "Four attention layers (5,578,240 parameters) are part of the checkpoint and never run.",
    "The gates of the heads for 2 and 5 classes have a hidden layer of width zero: they are constant.",
    "The authors let class 0 win inside of predicted change: `maps(argmax_over_zero=True)`.",
    "The published SeK loss changes its small constants after the first call: "
    "`sek_loss(faithful=True, first_call=...)`.",
    "The two semantic decoders share no weights, their classifier does.",
)
LIMITS = (
    "The order of the dates matters: each has a decoder of its own.",
    "The amplitudes of its Fourier transform depend on the size of the image: run it at {size} x {size}, "
    "the size that it was trained at; other sizes work and are worse by an unknown amount.",
    "It sees a whole tile at once, so a pixel depends on everything in its tile.",
    "Its scores were chosen on the test set, and whether the released weights reach them is not established.",
)
LICENCES = Licences(code="MIT", weights="not stated")


def _figures(dataset: str, protocol: str, *values: float) -> tuple[Figure, ...]:
    names = ("OA", "F_scd", "mIoU", "SeK")[-len(values) :]
    return tuple(Figure(n, v, dataset, protocol, "paper") for n, v in zip(names, values, strict=True))


SECOND = Card(
    slug="mamba-fcs/second",
    title=TITLE,
    task=Task.SEMANTIC_CHANGE,
    status=Status.REPRODUCED,
    date_order=DateOrder.ORDERED,
    summary="Semantic change on a selective-scan encoder, fusing space and frequency, guided by change; the "
    "seven classes of SECOND.",
    year=2025,
    paper="arXiv:2508.08232",
    repository="https://github.com/Buddhi19/MambaFCS",
    inputs=INPUTS,
    classes=SECOND_MAMBA.slug,
    licences=LICENCES,
    released=(
        Released(
            "SECOND_SeK_0.255.pth",
            "hub:buddhi19/MambaFCS",
            "SECOND, SeK 0.255, the figure of the paper",
            sha256="b1f3252f2761fd63c0b6076ee0abdc5c95a079716f0ff29733581d6d327a1522",
        ),
        Released("20000_model_0.253.pth", "hub:buddhi19/MambaFCS", "SECOND, iteration 20,000, SeK 0.253"),
    ),
    figures=(
        *_figures("SECOND test", PROTOCOL, 0.8862, 0.6578, 0.7407, 0.2550),
        *_figures("SECOND test", NOTEBOOK, 0.6542, 0.7406, 0.2526),
        Figure(
            "largest relative error of outputs",
            1e-4,
            "golden case mamba-fcs/second",
            "bound of the comparison with the published implementation on a CPU, losses included",
            "golden",
        ),
    ),
    quirks=QUIRKS,
    limits=tuple(line.format(size=512) for line in LIMITS),
    parameters=206_148_071,
    checkpoints="Hugging Face buddhi19/MambaFCS",
)
LANDSAT = Card(
    slug="mamba-fcs/landsat-scd",
    title=TITLE,
    task=Task.SEMANTIC_CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.ORDERED,
    summary="The same network for the five classes of Landsat-SCD.",
    year=2025,
    paper="arXiv:2508.08232",
    repository="https://github.com/Buddhi19/MambaFCS",
    inputs=INPUTS,
    classes=LANDSAT_SCD.slug,
    licences=LICENCES,
    released=(
        Released(
            "105000_model_0.661.pth",
            "hub:buddhi19/MambaFCS",
            "Landsat-SCD, iteration 105,000, before the SeK loss sets in; its name says 0.661",
        ),
    ),
    figures=_figures("Landsat-SCD test", PROTOCOL, 0.9625, 0.8927, 0.8881, 0.6026),
    quirks=(*QUIRKS, "Training adds the SeK loss only from iteration 150,000 on: set `sek_weight` to 0.5."),
    limits=(
        *(line.format(size=416) for line in LIMITS),
        "The authors' lists are not known; if they hold the augmented copies, the test set leaks.",
    ),
    parameters=206_144_852,
    checkpoints="Hugging Face buddhi19/MambaFCS",
)


# --- blocks --------------------------------------------------------------------------------------------
class ChannelGate(nn.Module):
    """The sum of two gates, one from the average and one from the maximum of each channel: 0..2.

    With fewer than 16 channels the hidden layer has no unit, and both gates are the sigmoid of a bias. The
    empty tensors are part of the published checkpoints.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 16
        linear = _EmptyLinear if hidden == 0 else nn.Linear
        self.fc = nn.Sequential(linear(dim, hidden), nn.ReLU(), linear(hidden, dim), nn.Sigmoid())
        self.constant = hidden == 0

    def forward(self, x: Tensor) -> Tensor:
        if self.constant:
            bias = self.fc[2].bias
            assert isinstance(bias, Tensor)
            return x * (2 * bias.sigmoid())[:, None, None].to(x.dtype)
        return x * (self.fc(x.mean(dim=(2, 3))) + self.fc(x.amax(dim=(2, 3))))[:, :, None, None]


class _EmptyLinear(nn.Linear):
    """A linear map from or to nothing; torch's own start divides by, and warns of, the missing units."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias) if self.out_features else None


class SpatialGate(nn.Module):
    """A gate for each position from two summaries over the channels, their mean and their maximum."""

    def __init__(self, maximum_first: bool, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=bias)
        self.maximum_first = maximum_first

    def forward(self, x: Tensor) -> Tensor:
        both = [x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)]
        return x * self.conv(torch.cat(both[::-1] if self.maximum_first else both, dim=1)).sigmoid()


def _conv_bn(dim: int, out: int, size: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(dim, out, size, padding=size // 2), nn.BatchNorm2d(out), nn.ReLU()]


class PyramidFusion(nn.Module):
    """From `dim` to `out` channels through windows of 1, 3 and 5 pixels, weighed by channel and position."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if dim == out else nn.Conv2d(dim, out, 1)
        self.branch1 = nn.Sequential(*_conv_bn(dim, out))
        self.branch3 = nn.Sequential(*_conv_bn(dim, out, 3))
        self.branch5 = nn.Sequential(nn.Conv2d(dim, dim, 5, padding=2, groups=dim), *_conv_bn(dim, out))
        self.channel_att = ChannelGate(3 * out)
        self.spatial_att = SpatialGate(maximum_first=False, bias=True)
        self.final_conv = nn.Sequential(*_conv_bn(3 * out, out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] to [B, out, H, W]."""
        wide = torch.cat([self.branch1(x), self.branch3(x), self.branch5(x)], dim=1)
        return self.final_conv(self.spatial_att(self.channel_att(wide))) + self.shortcut(x)


def log_amplitude(x: Tensor) -> Tensor:
    """log(1 + |F|) of the orthonormal Fourier transform of each map of [B, C, H, W], in float32: half
    precision has no transform for most sizes. Phases are lost, so shifting a map around changes nothing.

    Where a graph is exported the transform is written as products with its matrix: the formats of networks
    know no complex numbers.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        if not torch.compiler.is_exporting():
            return torch.fft.fft2(x, norm="ortho").abs().log1p()
        (rc, rs), (cc, cs) = (_fourier(side, x) for side in x.shape[-2:])
        real, imaginary = rc @ x @ cc - rs @ x @ cs, rc @ x @ cs + rs @ x @ cc
        return (real.square() + imaginary.square()).sqrt().log1p()


def _fourier(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [side, side] of the orthonormal transform."""
    place = torch.arange(side, dtype=torch.float64, device=like.device)
    angle = torch.outer(place, place).remainder(side) * (2 * math.pi / side)
    return tuple((f(angle) / math.sqrt(side)).to(like.dtype) for f in (torch.cos, torch.sin))  # pyright: ignore


class FrequencyBranch(nn.Module):
    """A linear map of the amplitudes of each channel's Fourier transform."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(log_amplitude(x).to(x.dtype))


class UnusedAttention(nn.Module):
    """Weights that the published network holds and never uses; here so that its files load whole."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)


class JointFusion(nn.Module):
    """The two dates, their amplitudes and their absolute difference in one map, weighed by channel and
    position (JSF)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fft_pre = FrequencyBranch(dim)
        self.fft_post = FrequencyBranch(dim)
        self.reduce_conv = nn.Conv2d(5 * dim, dim, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(dim)
        self.ch_gate = ChannelConv(dim)
        self.sp_gate = SpatialGate(maximum_first=True, bias=False)
        self.cross_attn = UnusedAttention(dim)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Two maps [B, C, H, W] to one."""
        five = [before, self.fft_pre(before), after, self.fft_post(after), (before - after).abs()]
        x = F.relu(self.reduce_bn(self.reduce_conv(torch.cat(five, dim=1))))
        x = x * self.ch_gate(x.mean(dim=(2, 3))).sigmoid()[:, :, None, None]
        return self.sp_gate(x)


class SqueezeExcitation(nn.Module):
    """A gate for each channel from the averages of all (Hu et al. 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            nn.Linear(dim, dim // 16), nn.ReLU(), nn.Linear(dim // 16, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excitation(x.mean(dim=(2, 3)))[:, :, None, None]


class ResidualSE(nn.Module):
    """Two 3 x 3 convolutions with squeeze-and-excitation, and a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.se = SqueezeExcitation(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.se(self.bn2(self.conv2(y))) + x)


def _vss(dim: int) -> nn.Sequential:
    return nn.Sequential(to_nhwc(), VSSBlock(dim, drop_path=0.1), to_nchw())


# --- decoders ------------------------------------------------------------------------------------------
class ChangeDecoder(nn.Module):
    """From deep to shallow: fuse the dates, add what comes from below, smooth, scan; `dims` shallow first.

    In the names, fusions are numbered from the deepest, smoothing and scans by their stage.
    """

    def __init__(self, dims: tuple[int, int, int, int]) -> None:
        super().__init__()
        d1, d2, d3, d4 = dims
        self.st_block_41, self.st_block_31, self.st_block_21, self.st_block_11 = map(_vss, (d4, d3, d2, d1))
        self.fuse_layer_1, self.fuse_layer_2 = JointFusion(d4), JointFusion(d3)
        self.fuse_layer_3, self.fuse_layer_4 = JointFusion(d2), JointFusion(d1)
        self.down_sample_1, self.down_sample_2 = PyramidFusion(d4, d3), PyramidFusion(d3, d2)
        self.down_sample_3 = PyramidFusion(d2, d1)
        self.smooth_layer_3, self.smooth_layer_2, self.smooth_layer_1 = map(ResidualSE, (d3, d2, d1))

    def forward(self, before: list[Tensor], after: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Four features of either date to the change feature of stride 4 and those of all strides, shallow
        first, which guide the semantic decoders."""
        a1, a2, a3, a4 = before
        b1, b2, b3, b4 = after
        p4 = self.st_block_41(self.fuse_layer_1(a4, b4))
        p3 = self.fuse_layer_2(a3, b3)
        p3 = self.st_block_31(self.smooth_layer_3(p3 + up_to(self.down_sample_1(p4), p3.shape)))
        p2 = self.fuse_layer_3(a2, b2)
        p2 = self.st_block_21(self.smooth_layer_2(p2 + up_to(self.down_sample_2(p3), p2.shape)))
        p1 = self.fuse_layer_4(a1, b1)
        p1 = self.st_block_11(self.smooth_layer_1(p1 + up_to(self.down_sample_3(p2), p1.shape)))
        return p1, [p1, p2, p3, p4]


class SemanticDecoder(nn.Module):
    """The classes of one date, its features weighed by where change is (change-guided attention)."""

    def __init__(self, dims: tuple[int, int, int, int]) -> None:
        super().__init__()
        d1, d2, d3, d4 = dims
        self.st_block_4_semantic, self.st_block_3_semantic = _vss(d4), _vss(d3)
        self.st_block_2_semantic, self.st_block_1_semantic = _vss(d2), _vss(d1)
        self.down_sample_1, self.down_sample_2 = PyramidFusion(d4, d3), PyramidFusion(d3, d2)
        self.down_sample_3 = PyramidFusion(d2, d1)
        self.smooth_layer_3_semantic, self.smooth_layer_2_semantic = ResidualSE(d3), ResidualSE(d2)
        self.smooth_layer_1_semantic, self.smooth_layer_0_semantic = ResidualSE(d1), ResidualSE(d1)

    def forward(self, features: list[Tensor], change: list[Tensor]) -> Tensor:
        """Features of one date and those of change, shallow first, to [B, dims[0], H / 4, W / 4]. The change
        features are not detached: what the classes teach reaches the change decoder."""
        f1, f2, f3, f4 = (guided(f, c) for f, c in zip(features, change, strict=True))
        p4 = self.st_block_4_semantic(f4)
        p3 = self.smooth_layer_3_semantic(f3 + up_to(self.down_sample_1(p4), f3.shape))
        p3 = self.st_block_3_semantic(p3)
        p2 = self.smooth_layer_2_semantic(f2 + up_to(self.down_sample_2(p3), f2.shape))
        p2 = self.st_block_2_semantic(p2)
        p1 = self.smooth_layer_1_semantic(f1 + up_to(self.down_sample_3(p2), f1.shape))
        return self.smooth_layer_0_semantic(self.st_block_1_semantic(p1))


def guided(feature: Tensor, change: Tensor) -> Tensor:
    """Change-guided attention: the feature where there is change, zero where there is surely none."""
    return feature * change.sigmoid()


# --- network and system --------------------------------------------------------------------------------
class MambaFCS(Checkpointing):
    """The network with the names of the published checkpoints.

    Args:
        classes: K of the semantic heads, class 0 ("unchanged") included.
        dims, depths, drop_path_rate: of the VMamba encoder; four widths of at least 16.

    Raises:
        ValueError: a width is below 16.
    """

    def __init__(
        self,
        classes: int = 7,
        dims: tuple[int, int, int, int] = DIMS,
        depths: tuple[int, int, int, int] = DEPTHS,
        drop_path_rate: float = DROP_PATH,
    ) -> None:
        super().__init__()
        if min(dims) < 16:
            raise ValueError(f"widths of {dims}: each must be at least 16")
        self.encoder = VSSEncoder(dims, depths, drop_path_rate)
        self.decoder_bcd = ChangeDecoder(dims)
        self.decoder_T1 = SemanticDecoder(dims)
        self.decoder_T2 = SemanticDecoder(dims)
        self.main_clf_cd = PyramidFusion(dims[0], 2)
        self.aux_clf = PyramidFusion(dims[0], classes)

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two images [B, 3, H, W] to the logits of change [B, 2, H, W] and of the classes of either date
        [B, K, H, W]."""
        both = [halves(f) for f in self.encoder(torch.cat([before, after]))]
        features_before, features_after = ([f[date] for f in both] for date in (0, 1))
        change, guides = self.decoder_bcd(features_before, features_after)
        heads = (
            self.main_clf_cd(change),
            self.aux_clf(self.decoder_T1(features_before, guides)),
            self.aux_clf(self.decoder_T2(features_after, guides)),
        )
        classes, first, second = (up_to(h, before.shape) for h in heads)
        return classes, first, second


class MambaFCSDetector(NetworkDetector):
    """Mamba-FCS behind the contract of semantic change.

    `sek_weight` is that of the SeK loss, which training may change on its way; `faithful_sek` takes the
    published form of it, which can be NaN.
    """

    network: MambaFCS

    def __init__(self, card: Card, network: MambaFCS, sek_weight: float = 0.5) -> None:
        super().__init__(card, network)
        self.sek_weight, self.faithful_sek = sek_weight, False

    def forward(self, images: Tensor) -> SemanticChangeOutput:
        """See `NetworkSystem.forward`."""
        padded = self.padded(images)
        logits = self.network(padded[:, 0], padded[:, 1])
        return SemanticChangeOutput(*(crop_like(x, images) for x in logits))

    def loss(self, output: SemanticChangeOutput, target: Target) -> dict[str, Tensor]:
        """0.5 SeK + CE_cd + 0.5 (CE_1 + CE_2) + 0.5 (L_1 + L_2 + L_cd) + 0.05 similarity, L being
        Lovász-softmax; the classes are learned inside of change only."""
        before, after = target["before"], target["after"]
        changed = semantic_target(before, after)
        first, second = (torch.where(y == 0, IGNORE, y) for y in (before, after))
        heads = ((output.classes, changed), (output.before, first), (output.after, second))
        ce = [cross_entropy(x, y) for x, y in heads]
        lovasz = [lovasz_softmax(x, y) for x, y in heads]
        parts = {
            "change": ce[0],
            "semantic": ce[1] + ce[2],
            "lovasz": lovasz[0] + lovasz[1] + lovasz[2],
            "similarity": similarity(output.before, output.after, before == 0),
            "sek": sek_loss(output.before, output.after, before, after, changed, faithful=self.faithful_sek),
        }
        weights = {"change": 1.0, "semantic": 0.5, "lovasz": 0.5, "similarity": 0.05, "sek": self.sek_weight}
        # A part of weight zero is left out: it may be no number.
        total = torch.stack([w * parts[name] for name, w in weights.items() if w]).sum()
        return {"total": total, **parts}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from a VMamba of the same widths and depths that was trained on ImageNet; the
        norms of its outputs, which that does not have, keep their start.

        Raises:
            WeightsMismatchError: names or shapes are not those of the encoder.
        """
        load_imagenet(self.network.encoder, published)


@register(SECOND, LANDSAT)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    sek_weight: float | None = None,
) -> MambaFCSDetector:
    """Mamba-FCS with the weights of a file, ours or the authors'.

    Args:
        card: `SECOND` or `LANDSAT`.
        weights: a `.safetensors` file, or a checkpoint of tensors only.
        untrained: random weights, for training.
        sek_weight: of the SeK loss; None for 0.5 on SECOND and 0 on Landsat-SCD, as published for the start.

    Raises:
        SystemNotReadyError: no file is given, and no weights come with the library.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    second = card.slug == SECOND.slug
    # Without memory and random numbers where a file fills all of it anyway.
    with torch.device("cpu" if untrained else "meta"):
        network = MambaFCS(classes=7 if second else 5)
    if not untrained:
        load_weights(network.to_empty(device="cpu"), card, weights, official_names)
    weight = (0.5 if second else 0.0) if sek_weight is None else sek_weight
    return MambaFCSDetector(card, network.eval(), sek_weight=weight)
