"""CDMaskFormer: binary change as a few queries, each of which says whether it is change, and where.

Source: Ma et al., "Rethinking Remote Sensing Change Detection With A Mask View", 2024, arXiv:2406.15320; the
network as in the released code, under whose names of parameters it can be loaded. Differs from it in: the
score of change is not stretched to its own minimum and maximum in each image, unless asked; the encoder's
fifth stage, of which nothing is used, is not built; both dates pass through the encoder as one batch, so that
its normalisation sees in training what it sees in evaluation, unless asked; an image that is all change has a
target as any other; and a size `nano` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.layers.decoding import up_to
from terralapse.layers.deformable_attention import DeformableLayer, centres
from terralapse.layers.mask_queries import MaskQueries
from terralapse.layers.seaformer import LARGE, SeaFormer, Stage
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.network import NetworkDetector, Target, crop_like
from terralapse.tasks.set_loss import changed_object, set_loss

PIXELS = 32  # stride of the deepest level
SURE = 1e-6  # a score is kept this far from 0 and 1, where log-odds end
STEM = "smb1.stem_block.0.c.weight"
DEAD = ("smb5.", "trans3.", "linear.")  # of the encoder; computed by the released code, used by nothing
PREFIXES = (  # of the released code, and here
    ("backbone.backbone.", "encoder."),
    ("decoderhead.sem_seg_head.pixel_decoder.transformer.encoder.", "pixel_decoder."),
    ("decoderhead.sem_seg_head.pixel_decoder.transformer.", "pixel_decoder."),
    ("decoderhead.sem_seg_head.", ""),
    ("decoderhead.", ""),
)


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The encoder's stages, first channels, heads and stochastic depth; width, heads, hidden channels and
    numbers of layers of the rest; and the stride at which the masks are trained."""

    stages: tuple[Stage, ...]
    stem: int
    encoder_heads: int
    drop_path: float
    width: int
    heads: int
    hidden: int
    mixing: int  # layers of deformable attention
    depth: int  # layers of the queries
    queries: int = 5
    points: int = 4  # that a pixel looks at in each level, in each head
    mask_stride: int = 1


SIZES = {
    "": Size(LARGE[:4], 32, 8, 0.1, 256, 8, 1024, mixing=4, depth=13),
    "nano": Size(
        (
            Stage(((3, 1, 12, 1), (3, 2, 24, 2))),
            Stage(((3, 3, 32, 2),)),
            Stage(((3, 3, 64, 2), (3, 3, 64, 1)), 1, 8, 2),
            Stage(((3, 3, 96, 2),), 1, 8, 2),
        ),
        stem=12,
        encoder_heads=4,
        drop_path=0.0,
        width=64,
        heads=4,
        hidden=128,
        mixing=1,
        depth=4,
        points=2,
        mask_stride=4,
    ),
}
TITLE = "Rethinking Remote Sensing Change Detection With A Mask View"
SUMMARY = "Binary change as mask classification: learned queries each predict a class and a mask"
LIMITS = (
    "The order of the dates matters: exchanging them gives another map.",
    "It sees a whole tile: results depend a little on how a scene is cut, and tiles are blended.",
    "A score above 1, where several queries claim a pixel, is cut to 1.",
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case cdmaskformer/cdmask",
    "bound of the comparison with the published implementation on a CPU, losses included",
    "golden",
)
HEAD = Card(
    slug="cdmaskformer",
    title=TITLE,
    task=Task.CHANGE,
    status=Status.REPRODUCED,
    date_order=DateOrder.ORDERED,
    summary=f"{SUMMARY}.",
    year=2024,
    paper="arXiv:2406.15320",
    repository="https://github.com/xwmaxwma/rschange",
    inputs=Inputs(
        dates=2,
        bands=RGB,
        units=(Unit.RGB255,),
        size_multiple=PIXELS,
        halo=64,
        normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ),
    classes="binary-change",
    licences=Licences(code="not stated (no licence file in the tree)"),
    quirks=(
        "The released code stretches the score of each image to 0..1, so that one pixel of any image is "
        "change and a constant score is not a number: `faithful=True`.",
        "The released code keeps the epoch and the threshold that score best on the test set.",
        "The fifth stage and the classifier of the encoder are in its files and used by nothing.",
        "A query attends to pixels of a probability of 0.15 and more in its mask, not 0.5.",
    ),
    figures=(GOLDEN,),
    limits=LIMITS,
    parameters=25_736_788,
)
NANO = replace(
    HEAD,
    slug="cdmaskformer/nano",
    title=f"{TITLE}: nano (a size of our own)",
    status=Status.RUNS,
    summary=f"{SUMMARY}, in a size of our own that is small enough for a CPU.",
    licences=Licences(code="Apache-2.0"),
    figures=(),
    quirks=(),
    parameters=645_788,
    checkpoints="none",
)


# --- network ---------------------------------------------------------------------------------------------
class SqueezeExcite(nn.Module):
    """Weights in 0..1 for the channels of a map, from its mean, through four narrow maps side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 32)
        for i in range(1, 5):
            self.add_module(f"fc{i}", nn.Sequential(nn.Linear(width, narrow, bias=False), nn.ReLU()))
        self.fc = nn.Sequential(nn.Linear(4 * narrow, width, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3))
        parts = [self.get_submodule(f"fc{i}")(mean) for i in range(1, 5)]
        return self.fc(torch.cat(parts, dim=1))[..., None, None]


def separable(width: int) -> nn.Sequential:
    """From 2 x `width` channels to `width`: depthwise 3 x 3, 1 x 1, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
        nn.Conv2d(2 * width, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class ChangeExtractor(nn.Module):
    """Maps of two dates to one map of what differs: each date is weighed pixel by pixel with what its
    difference to the other one says, and channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.catconvA, self.catconvB = separable(width), separable(width)
        self.catconv = separable(width)
        self.convA, self.convB = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 1, 1)
        self.senetv2 = SqueezeExcite(width)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        apart = before - after
        channels = self.senetv2(apart)
        first = torch.sigmoid(self.convA(self.catconvA(torch.cat([apart, before], dim=1))))
        second = torch.sigmoid(self.convB(self.catconvB(torch.cat([apart, after], dim=1))))
        return self.catconv(torch.cat([first * before * channels, second * after * channels], dim=1))


def group_norm(width: int) -> nn.GroupNorm:
    """Eight channels a group, as 32 groups of 256 have."""
    return nn.GroupNorm(max(1, width // 8), width)


def projected(inputs: int, width: int, *, kernel: int = 1, act: bool = False) -> nn.Sequential:
    """Convolution and group normalisation, then ReLU where `act` says so."""
    conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, group_norm(width), *([nn.ReLU()] if act else []))


class PixelDecoder(nn.Module):
    """Four maps of one width: the three coarse ones mixed by deformable attention, the finest one fused
    with the mixed map at stride 8. Positions are convolutions of the maps, not waves."""

    def __init__(self, channels: Sequence[int], size: Size) -> None:
        super().__init__()
        width = size.width
        self.input_proj = nn.ModuleList(projected(c, width) for c in reversed(channels))
        self.pos_linear = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in channels)
        mixed = len(channels) - 1
        self.level_embed = nn.Parameter(torch.randn(mixed, width))
        self.layers = nn.ModuleList(
            DeformableLayer(width, size.heads, mixed, size.points, size.hidden) for _ in range(size.mixing)
        )
        self.adapter_1 = projected(channels[0], width, act=True)
        self.layer_1 = projected(width, width, kernel=3, act=True)
        self.mask_features = nn.Conv2d(width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The maps from coarse to fine, the positions of their pixels, and the features of masks, from maps
        fine to coarse."""
        inputs = [proj(m) for proj, m in zip(self.input_proj, reversed(maps), strict=True)]
        positions = [conv(m) for conv, m in zip(self.pos_linear, inputs, strict=True)]
        coarse, finest = inputs[:-1], maps[0]
        sides = [(m.shape[2], m.shape[3]) for m in coarse]
        x = torch.cat([m.flatten(2) for m in coarse], dim=2).transpose(1, 2)
        place = torch.cat(
            [p.flatten(2) + e[:, None] for p, e in zip(positions[:-1], self.level_embed, strict=True)], dim=2
        ).transpose(1, 2)
        at = centres(sides, x.device)
        for layer in self.layers:
            x = layer(x, place, at, sides)
        parts = x.transpose(1, 2).split([h * w for h, w in sides], dim=2)
        found = [p.unflatten(2, side) for p, side in zip(parts, sides, strict=True)]
        fine = self.layer_1(self.adapter_1(finest) + up_to(found[-1], finest.shape))
        return [*found, fine], positions, self.mask_features(fine)


class CDMaskFormer(nn.Module):
    """The network of a size.

    Args:
        apart: while training, batch normalisation of the encoder sees the dates one after the other, as
            in the released code, and not both at once, as it does in evaluation.
    """

    offset: Tensor

    def __init__(self, size: Size, bands: int = 3, apart: bool = False) -> None:
        super().__init__()
        self.apart = apart
        self.encoder = SeaFormer(size.stages, size.stem, size.encoder_heads, size.drop_path, bands)
        channels = [stage.bottlenecks[-1][2] for stage in size.stages]
        for level, width in enumerate(channels, start=1):
            self.add_module(f"tff{level}", ChangeExtractor(width))
        self.pixel_decoder = PixelDecoder(channels, size)
        self.predictor = MaskQueries(size.width, size.heads, size.hidden, size.depth, size.queries)
        self.register_buffer("offset", torch.zeros(()))  # of the log-odds; 0 in the authors' files

    def pyramids(self, before: Tensor, after: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder's maps of both dates, from stride 4 to 32."""
        if self.apart:
            return self.encoder(before), self.encoder(after)
        both = [m.unflatten(0, (2, -1)) for m in self.encoder(torch.cat([before, after]))]
        return [m[0] for m in both], [m[1] for m in both]

    def changes(self, before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
        """What differs at each level."""
        return [
            self.get_submodule(f"tff{level}")(*dates)
            for level, dates in enumerate(zip(before, after, strict=True), start=1)
        ]

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes [P, B, Q, 2] and of masks [P, B, Q, H / 4, W / 4] of normalised images
        [B, C, H, W] whose sides are multiples of 32; the last of the P predictions is the result."""
        return self.predictor(*self.pixel_decoder(self.changes(*self.pyramids(before, after))))


def change_score(logits: Tensor, masks: Tensor, size: torch.Size) -> Tensor:
    """How much the queries claim each pixel as change, float32 [B, H, W], 0 and more: the sum over them of
    the probability of change times that of being in the mask, which is enlarged to `size` first.

    Args:
        logits: of classes [B, Q, 2].
        masks: logits [B, Q, h, w].
    """
    inside = up_to(masks.float(), size).sigmoid()
    change = logits.float().softmax(dim=-1)[..., 1]
    return (change[..., None, None] * inside).sum(dim=1)  # a product of matrices would follow autocast


def stretched(score: Tensor) -> Tensor:
    """Each image of [B, H, W] from its minimum to its maximum as 0 to 1; zero where they are the same."""
    low, high = score.amin(dim=(1, 2), keepdim=True), score.amax(dim=(1, 2), keepdim=True)
    return (score - low) / torch.where(high > low, high - low, 1.0)


# --- system ----------------------------------------------------------------------------------------------
@dataclass
class MaskChangeOutput(ChangeOutput):
    """`score` float32 [B, H, W] as the queries give it (see `change_score`), never stretched;
    `query_classes` [P, B, Q, 2] and `query_masks` [P, B, Q, h, w], the logits of all predictions."""

    score: Tensor | None = None
    query_classes: Tensor | None = None
    query_masks: Tensor | None = None


class CDMaskFormerDetector(NetworkDetector):
    """CDMaskFormer behind the contract of change detectors.

    Args:
        faithful: the score of each image is stretched to 0..1, as in the released code.
        mask_stride: at which the masks are trained.
    """

    network: CDMaskFormer

    def __init__(
        self, card: Card, network: CDMaskFormer, *, faithful: bool = False, mask_stride: int = 1
    ) -> None:
        super().__init__(card, network)
        self.faithful, self.mask_stride = faithful, mask_stride

    def forward(self, images: Tensor) -> MaskChangeOutput:
        padded = self.padded(images)
        classes, masks = self.network(padded[:, 0], padded[:, 1])
        score = crop_like(change_score(classes[-1], masks[-1], padded.shape), images)
        share = stretched(score) if self.faithful else score
        logits = torch.logit(share, SURE) + self.network.offset
        return MaskChangeOutput(logits, None, score, classes, masks)

    def loss(self, output: MaskChangeOutput, target: Target) -> dict[str, Tensor]:
        assert output.query_classes is not None
        assert output.query_masks is not None
        label = target["label"]
        down, right = (-side % PIXELS for side in label.shape[1:])
        label = nn.functional.pad(label, (0, right, 0, down), value=255)
        size = (label.shape[1] // self.mask_stride, label.shape[2] // self.mask_stride)
        return set_loss(output.query_classes, output.query_masks, changed_object(label, size))

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        self.network.offset += by

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the released SeaFormer of its size, trained on ImageNet, or from that of
        another CDMaskFormer of its size. Filters for red, green and blue are inflated to other bands."""
        tensors = _plain(published)
        inner = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
        body = {k: v for k, v in (inner or tensors).items() if not k.startswith(DEAD)}
        own = self.network.encoder.state_dict()
        if STEM in body and body[STEM].shape != own[STEM].shape:
            body[STEM] = inflate_stem(body[STEM], self.bands)
        load_strict(self.network.encoder, body, "the published SeaFormer")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of training, and with the names of the released code as they are here."""
    for prefix in ("module.", "net."):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in PREFIXES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        found[name] = tensor
    return found


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file of the authors, or of ours, under the names used here, without what is used by
    nothing: the encoder's last stage and classifier, and the buffers of the loss."""
    plain = _plain(tensors)
    unused = (*(f"encoder.{name}" for name in DEAD), "loss.")
    kept = {k: v for k, v in plain.items() if not k.startswith(unused)}
    return {"offset": torch.zeros(()), **kept}


@register(HEAD, NANO)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    bands: Sequence[str] | None = None,
    faithful: bool = False,
) -> CDMaskFormerDetector:
    """The system of a card.

    Args:
        card: `HEAD` or `NANO`.
        weights: a file of the authors (a checkpoint with nothing but tensors, or its `state_dict`), or one
            of ours.
        untrained: random weights, for training.
        bands: other bands than red, green and blue.
        faithful: as the released code has it: the score of each image is stretched to 0..1, and batch
            normalisation sees the dates one after the other while training.

    Raises:
        SystemNotReadyError: no file is given, and none comes with it.
        ModelInputError: `bands` names a band twice or none.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    card = card_for_bands(card, bands)
    size = SIZES[card.slug.partition("/")[2]]
    assert card.inputs.bands is not None
    network = CDMaskFormer(size, len(card.inputs.bands), apart=faithful)
    if not untrained:
        load_weights(network, card, weights, official_names)
    network.eval()
    return CDMaskFormerDetector(card, network, faithful=faithful, mask_stride=size.mask_stride)
