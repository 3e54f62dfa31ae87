"""LENet: binary change from a SwinV2 whose two dates exchange layers and are weighed by their difference.

Source: "A Remote Sensing Image Change Detection Method Integrating Layer Exchange and Channel-Spatial
Differences", IEEE JSTARS 2025, doi:10.1109/JSTARS.2025.3576831; the network `LENet4` of the released code
(dyzy41/lenet), whose parameters it has by name. Differs from it in: both dates pass through a stage of the
encoder as one batch (the same numbers); the Swin-T that the code builds and never runs is not here; images
smaller than a window are padded; ignored pixels are left out of the mean of the loss, and the heads start at
a low rate of change (both as published with `faithful=True`). The size `nano`, for any image, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.layers.decoding import up_to
from terralapse.layers.fpn import FPN
from terralapse.layers.layer_exchange import DifferenceWeighting, GatedFusion, exchange
from terralapse.layers.pairing import halves
from terralapse.layers.sliding import slide
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.swin_v2 import SwinBlocks, SwinV2, imagenet_names
from terralapse.layers.upernet import FCNHead
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkDetector, Target, crop_like

AUXILIARY = 0.3  # weight of the loss of each auxiliary head
PRIOR = 3.0  # log-odds of no change where the heads start, about 5 % of change
LEVELS = (1, 2, 3, 4)  # of the decoder: strides 4, 8, 16, 32


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """One size of the network.

    `dim` is the width of the first stage of the encoder, `width` that of the decoder; `heads` and
    `decoder_heads` are from the finest level to the coarsest; `side` is that of the images where it is fixed,
    and `stride` the step from one such window to the next in a larger image.
    """

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    decoder_heads: tuple[int, ...]
    window: int
    side: int | None
    stride: int = 0
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1


BASE = Size(128, (2, 2, 18, 2), (4, 8, 16, 32), 256, (4, 8, 16, 32), 8, side=256, stride=170)
NANO = Size(
    12, (1, 1, 2, 1), (1, 2, 4, 8), 24, (1, 1, 2, 2), 4, side=None, mlp_ratio=2.0, drop_path_rate=0.05
)

TITLE = (
    "A Remote Sensing Image Change Detection Method Integrating Layer Exchange and Channel-Spatial "
    "Differences"
)
QUIRKS = (
    "The released code builds and saves a Swin-T, `backbone.*`, that it never runs; it is not loaded.",
    "Bands are red, green, blue although the configuration asks for a swap: it acts on three channels only, "
    "and a pair has six.",
    "Each fusion of the decoder ends in a hard sigmoid, so that its maps lie in 0 to 1.",
    "The mean of the loss counts ignored pixels in the denominator (here only with `faithful=True`).",
)
ORDER = "The order of the dates matters: each has weights of its own after the shared encoder."
TOGETHER = "The encoder sees both dates at once, so that no features of an image can be kept for other pairs."
LIMITS = (
    ORDER,
    TOGETHER,
    "Its windows fix the network to 256 x 256 pixels: anything larger is cut into windows of that size every "
    "170 pixels whose logits are averaged, as the authors do; anything smaller is padded.",
    "No weights are published, and the abstract gives no scores.",
)
NANO_LIMITS = (
    ORDER,
    TOGETHER,
    "It sees a whole tile at once, so what it says depends a little on how a scene is cut.",
)

GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case lenet/clcd",
    "bound of the comparison with the published implementation on a CPU, losses included",
    "golden",
)
HEAD = Card(
    slug="lenet",
    title=TITLE,
    task=Task.CHANGE,
    status=Status.REPRODUCED,
    date_order=DateOrder.ORDERED,
    summary="A Siamese SwinV2 whose two feature pyramids exchange layers, weighted by differences.",
    year=2025,
    paper="doi:10.1109/JSTARS.2025.3576831",
    repository="https://github.com/dyzy41/lenet",
    inputs=Inputs(
        dates=2,
        bands=RGB,
        units=(Unit.RGB255,),
        size_multiple=1,  # any side will do: see `slide`
        halo=64,
        normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ),
    classes="binary-change",
    licences=Licences(code="not stated (no licence file); a fork of mmsegmentation, Apache-2.0"),
    figures=(GOLDEN,),
    quirks=QUIRKS,
    limits=LIMITS,
    parameters=168_063_726,
    checkpoints="none",
)
SMALL = replace(
    HEAD,
    slug="lenet/nano",
    title="LENet, nano (a size of our own)",
    status=Status.RUNS,
    summary="LENet in a size of our own that is small enough for a CPU and takes images of any size.",
    inputs=replace(HEAD.inputs, size_multiple=32),
    licences=Licences(code="Apache-2.0"),
    figures=(),
    quirks=(),
    limits=NANO_LIMITS,
    parameters=880_005,
)


# --- network ---------------------------------------------------------------------------------------------
class LENet(nn.Module):
    """The network in one size.

    Names of parameters are those of the released code without the wrappers; see `official_names`.
    """

    def __init__(self, size: Size, bands: int = 3) -> None:
        super().__init__()
        width, dims = size.width, tuple(size.dim * 2**i for i in range(len(LEVELS)))
        self.side, self.stride = size.side, size.stride
        self.encoder = SwinV2(
            bands,
            size.dim,
            size.depths,
            size.heads,
            size.window,
            size.side,
            size.mlp_ratio,
            size.drop_path_rate,
        )
        self.rwe = nn.ModuleList(DifferenceWeighting(c) for c in (size.dim, *dims))
        self.fpnA, self.fpnB = FPN(dims, width, extra=0), FPN(dims, width, extra=0)

        def blocks() -> nn.ModuleDict:
            sides = {level: size.side and size.side // 2 ** (level + 1) for level in LEVELS}
            heads = dict(zip(LEVELS, size.decoder_heads, strict=True))
            return nn.ModuleDict(
                {
                    str(n): SwinBlocks(width, 2, heads[n], size.window, sides[n], size.mlp_ratio)
                    for n in LEVELS
                }
            )

        def fusions() -> nn.ModuleDict:
            return nn.ModuleDict({str(n): GatedFusion(width) for n in LEVELS})

        def head() -> FCNHead:
            made = FCNHead(2 * width, 2, width)
            nn.init.normal_(made.conv_seg.weight, std=0.01)
            nn.init.zeros_(made.conv_seg.bias)  # pyright: ignore[reportArgumentType]
            return made

        self.decode_layersA, self.decode_layersB = blocks(), blocks()
        self.channelA, self.channelB = fusions(), fusions()
        for level in LEVELS[:-1]:
            self.add_module(f"re_weight{level}", DifferenceWeighting(width))
        self.decode_head = head()
        self.auxiliary_head = nn.ModuleList(head() for _ in range(2))

    @property
    def checkpointing(self) -> bool:
        """Whether all attention blocks compute again in the backward pass what they did not keep."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, SwinV2 | SwinBlocks):
                module.checkpointing = on

    def weighted(self, before: Tensor, after: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both dates after the patches and after each stage, weighed by their difference, which is what the
        next stage sees: five pairs of maps, the first two at stride 4."""
        found, pair = [], (before, after)
        for weigh, (name, _) in zip(self.rwe, self.encoder.steps(), strict=True):
            both = self.encoder.step(name, torch.cat(pair))
            pair = weigh(*halves(both))
            found.append(pair)
        return found

    def pyramids(
        self, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The levels of both dates, with every second one exchanged, through a pyramid for each; still
        exchanged."""
        first, second = exchange(before, after)
        return self.fpnA(first), self.fpnB(second)

    def change_maps(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Maps [B, 2 width, h, w] at strides 8, 4 and 4, each a refinement of the one before."""
        levels = self.weighted(before, after)[1:]
        first, second = exchange(*self.pyramids([p[0] for p in levels], [p[1] for p in levels]))
        maps: list[Tensor] = []
        a = b = None
        for level in reversed(LEVELS):
            one, other = first[level - 1], second[level - 1]
            if a is not None and b is not None:
                one, other = one + b, other + a  # crossed, as published
            a, b = self._crossed(level, one, other)
            if level > 1:
                a, b = (F.interpolate(x, scale_factor=2, mode="bilinear") for x in (a, b))
            if level < len(LEVELS):
                a, b = self.get_submodule(f"re_weight{level}")(a, b)
                maps.append(torch.cat([a, b], dim=1))
        return maps

    def _crossed(self, level: int, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Each date through its blocks, fused with the other date as it came in."""
        name = str(level)
        seen_a, seen_b = self.decode_layersA[name](one), self.decode_layersB[name](other)
        return (
            self.channelA[name](torch.cat([seen_a, other], dim=1)),
            self.channelB[name](torch.cat([seen_b, one], dim=1)),
        )

    def heads(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, 2, h, w] of the finest map, and of the auxiliary heads at strides 8 and 4."""
        first, second = self.auxiliary_head
        return self.decode_head(maps[2]), first(maps[0]), second(maps[1])

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits of no change and change [B, 2, H, W] of normalised images [B, C, H, W]: of `side` pixels, or
        of sides that are multiples of 32."""
        return up_to(self.decode_head(self.change_maps(before, after)[2]), before.shape)


def official_names(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the released code to those of `LENet`, which are left alone; the Swin-T that is never run is
    left out."""
    found = {}
    for name, value in published.items():
        name = name.removeprefix("module.")
        if name.startswith("backbone."):
            continue
        if name.startswith("model.model."):
            name = f"encoder.{name.removeprefix('model.model.')}"
        found[name.removeprefix("model.")] = value
    return found


# --- loss ------------------------------------------------------------------------------------------------
def change_losses(
    main: Tensor, auxiliary: Sequence[Tensor], label: Tensor, over_all: bool = False
) -> dict[str, Tensor]:
    """Cross-entropy of the main head and 0.3 times that of each auxiliary one, with its parts.

    Args:
        main, auxiliary: logits [B, 2, h, w], enlarged to the label.
        label: [B, H, W] of 0, 1, 255.
        over_all: divide by all pixels, with those that are ignored, as the released code does.
    """
    named = {"main": main, **{f"aux{i}": x for i, x in enumerate(auxiliary)}}
    parts = {k: cross_entropy(up_to(x, label.shape), label, over_all=over_all) for k, x in named.items()}
    extra = sum((v for k, v in parts.items() if k != "main"), main.new_zeros(()))
    return {"total": parts["main"] + AUXILIARY * extra, **parts}


# --- system ----------------------------------------------------------------------------------------------
@dataclass
class LENetOutput(ChangeOutput):
    """`auxiliary`: logits [B, 2, H, W] of the auxiliary heads; none outside of training."""

    auxiliary: tuple[Tensor, ...] = ()


class LENetDetector(NetworkDetector):
    """LENet behind the contract of change detectors. `faithful`: with the published mean of the loss."""

    network: LENet

    def __init__(self, card: Card, network: LENet, faithful: bool = False) -> None:
        super().__init__(card, network)
        self.faithful = faithful

    @property
    def window(self) -> int | None:
        return self.network.side

    def forward(self, images: Tensor) -> LENetOutput:
        padded = self.padded(images)
        side, stride = self.network.side, self.network.stride
        maps = self._logits(padded) if side is None else slide(self._logits, padded, side, stride)
        main, *auxiliary = (crop_like(m, images) for m in maps)
        return LENetOutput(main[:, 1] - main[:, 0], main, tuple(auxiliary))

    def _logits(self, images: Tensor) -> list[Tensor]:
        """Of the main head, and in training of the auxiliary ones, for images [B, 2, C, H, W], at their
        size."""
        before, after = images[:, 0], images[:, 1]
        if not self.network.training:
            return [self.network(before, after)]
        return [up_to(x, images.shape) for x in self.network.heads(self.network.change_maps(before, after))]

    def loss(self, output: LENetOutput, target: Target) -> dict[str, Tensor]:
        assert output.classes is not None
        return change_losses(output.classes, output.auxiliary, target["label"], self.faithful)

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from a SwinV2 of its size that was trained on ImageNet (timm's file or the
        authors'), or from that of another LENet. The patches of a network for RGB are spread over other
        bands, see `terralapse.layers.stem`; a LENet of this library must have the same bands."""
        own = {k: v for k, v in official_names(published).items() if k.startswith("encoder.")}
        ours = any(k.startswith("encoder.") for k in published)
        found = {k.removeprefix("encoder."): v for k, v in own.items()} or imagenet_names(published)
        stem = "patch_embed.proj.weight"
        if stem in found and not ours:
            found[stem] = inflate_stem(found[stem], self.bands)
        load_strict(self.network.encoder, found, "the encoder to start from")

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of change of every pixel; for calibration."""
        _shift(self.network.decode_head, by)


def _shift(head: FCNHead, by: float) -> None:
    """Adds to the bias of the second class, which is change."""
    assert head.conv_seg.bias is not None
    with torch.no_grad():
        head.conv_seg.bias[1] += by


@register(HEAD, SMALL)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: Sequence[str] | None = None,
    faithful: bool = False,
) -> LENetDetector:
    """The system of a card.

    Args:
        card: `HEAD` or `SMALL`.
        weights: a file in the layout of the released code, or one of ours.
        untrained: random weights, for training.
        bands: others than red, green and blue, of both dates.
        faithful: the loss and the start of the heads as published; see the head of this file.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        ModelInputError: of `bands`.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    own = card_for_bands(card, bands)
    count = len(own.inputs.bands or RGB)
    network = LENet(NANO if card.slug == SMALL.slug else BASE, count)
    system = LENetDetector(own, network, faithful)
    if not untrained:
        load_weights(network, own, weights, official_names)
    elif not faithful:
        for head in (network.decode_head, *network.auxiliary_head):
            assert isinstance(head, FCNHead)
            _shift(head, -PRIOR)
    network.eval()
    return system
