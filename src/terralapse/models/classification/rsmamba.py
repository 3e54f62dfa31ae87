"""RSMamba: scene classification by one Mamba mixer run along three orders of the tokens, weighed by a gate.

Source: Chen et al., "RSMamba: Remote Sensing Image Classification with State Space Model", IEEE GRSL 2024
(arXiv:2403.19654). Differs from the official code in: the random order of the tokens is drawn anew in
training only; elsewhere it is a function of a seed (see `shuffle_seed`). Class tokens and the sine-cosine
position table, which the paper has in ablations only, are left out. `rsmamba/eurosat-nano` is a small one of
this library for tiles of 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terralapse.cards import Card, Figure, Inputs, Licences, Normalisation, Status, Task, Weights
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import EUROSAT, scheme
from terralapse.layers.mamba import MambaMixer, PathType, path_gate, run_paths, seeded_shuffle
from terralapse.layers.position import resize_position
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.classification import ClassificationOutput
from terralapse.tasks.label_smoothing import smoothed_cross_entropy
from terralapse.tasks.network import NetworkSystem, Target


@dataclass(frozen=True)
class Size:
    """Blocks, channels of a token, and how the image is cut into tokens."""

    depth: int
    width: int
    image: int = 224
    patch: int = 16
    stride: int = 8


SIZES = {
    "s": Size(16, 192),
    "b": Size(24, 192),
    "l": Size(36, 256),
    "h": Size(48, 320),
    "eurosat-nano": Size(8, 96, image=64, patch=16, stride=8),
}
# Classes in the authors' order, and mean and standard deviation of the training images, of the data sets.
DATA_SETS = {
    "uc": (
        "ucmerced-rsmamba",
        (123.770241, 125.41281689, 115.35737613),
        (44.17314347, 41.63589266, 39.5737929),
    ),
    "aid": ("aid-rsmamba", (101.02608706, 103.9996994, 93.50157708), (40.36728927, 37.11132278, 35.90649976)),
    "nwpu": (
        "resisc45-rsmamba",
        (93.847266, 97.20128819, 87.66547902),
        (37.10216765, 34.61650149, 33.70191772),
    ),
}
PROTOCOL = (
    "macro mean over the official test list, percent; the checkpoint was chosen on that list, so optimistic"
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden case rsmamba/base-aid-224",
    "bound of the comparison with the published implementation, whose shuffles were seeded",
    "golden",
)
EUROSAT_PROTOCOL = (
    "the samples, whose splits share no block of one degree; mean over ten classes, bootstrap over tiles"
)
TITLE = "RSMamba: Remote Sensing Image Classification with State Space Model"


def _inputs(image: int, mean: Sequence[float], std: Sequence[float]) -> Inputs:
    return Inputs(
        dates=1,
        bands=("red", "green", "blue"),
        units=(Unit.RGB255,),
        gsd_range=(0.2, 30.0),
        normalisation=Normalisation(tuple(mean), tuple(std)),
    )


def _card(slug: str, status: Status, summary: str, parameters: int, figures: tuple[Figure, ...]) -> Card:
    return Card(
        slug=slug,
        title=TITLE,
        task=Task.CLASSIFICATION,
        status=status,
        summary=summary,
        year=2024,
        paper="arXiv:2403.19654",
        repository="https://github.com/KyanChen/RSMamba",
        inputs=_inputs(224, *DATA_SETS["aid"][1:]),
        licences=Licences(code="Apache-2.0", weights="Apache-2.0 (repository of the authors)"),
        parameters=parameters,
        threshold=None,
        figures=figures,
        checkpoints="Hugging Face KyanChen/RSMamba, one file a size and data set (names not established)",
        quirks=(
            "28 x 28 tokens at 224 pixels: the image is padded with zeros at its right and bottom edge only.",
            "One LayerNorm before the mixer is shared by all blocks.",
            "The official code draws the shuffled order anew in each pass, in tests as well; here it is "
            "fixed by a seed outside of training.",
            "Class ids of the checkpoints follow the random order of the authors' cls_names.txt: the class "
            "schemes ucmerced-rsmamba, aid-rsmamba and resisc45-rsmamba.",
        ),
        limits=(
            "A file does not say which data set it is for: `data` does, and with it the order of classes.",
            "One label for a whole image; a scene must be cut into tiles first.",
            "Images of other sizes are resized and cut to the square of the training size: edges get lost.",
        ),
    )


def _paper(*scores: float) -> tuple[Figure, ...]:
    names = ("UC Merced", "AID", "NWPU-RESISC45")
    return tuple(Figure("macro F1", s, n, PROTOCOL, "paper") for s, n in zip(scores, names, strict=True))


BASE = _card(
    "rsmamba",
    Status.REPRODUCED,
    "Scene classification by a selective scan along three paths, mixed by a learned gate; the base size.",
    6_382_878,
    (GOLDEN, *_paper(93.88, 91.66, 94.84)),
)
B = replace(BASE, slug="rsmamba/b", summary="RSMamba with 24 blocks of 192 channels.")
S = _card(
    "rsmamba/s",
    Status.RUNS,
    "RSMamba with 16 blocks of 192 channels, a size of the code that the paper does not score.",
    4_356_894,
    (),
)
L = _card(
    "rsmamba/l",
    Status.RUNS,
    "RSMamba with 36 blocks of 256 channels.",
    16_248_862,
    _paper(94.74, 91.90, 95.02),
)
H = _card(
    "rsmamba/h",
    Status.RUNS,
    "RSMamba with 48 blocks of 320 channels.",
    33_056_030,
    _paper(95.25, 92.63, 95.18),
)
NANO = Card(
    slug="rsmamba/eurosat-nano",
    title="RSMamba, a small one for tiles of Sentinel-2 at 10 m",
    task=Task.CLASSIFICATION,
    status=Status.RUNS,
    seed=False,
    summary="Ten kinds of land use for tiles of 64 x 64 pixels of Sentinel-2 in natural colours.",
    year=2024,
    paper="arXiv:2403.19654",
    inputs=replace(
        # Mean and standard deviation over all pixels of the 3,100 tiles of the training split.
        _inputs(64, (85.9396, 96.1288, 102.8543), (49.9073, 34.0278, 29.3874)),
        gsd_range=(8.0, 12.0),
        sensors=("sentinel2",),
    ),
    classes="eurosat",
    licences=Licences(
        code="Apache-2.0",
        data="EuroSAT: MIT; contains modified Copernicus Sentinel data 2015-2018",
    ),
    weights=(
        Weights(
            "rsmamba-eurosat-nano.safetensors",
            sha256="7b6af65757781f5ac1e5cc019afe8f9cc89d356be67ea35adc9d782501b36f39",
            licence="Apache-2.0",
        ),
    ),
    figures=tuple(
        Figure("macro F1", value, f"EuroSAT RGB {split}", EUROSAT_PROTOCOL, "here", interval)
        for value, split, interval in (
            (0.717, "val, which chose the epoch", (0.682, 0.747)),
            (0.692, "test", (0.664, 0.718)),
        )
    ),
    parameters=633_610,
    threshold=None,
    limits=(
        "It was trained on 3,100 tiles for an hour: three test tiles in ten are wrong, with most of the "
        "herbaceous vegetation and half of the permanent crops.",
        "It knows European land use in ten classes only, and every tile is called one of them.",
        "It was made for the 8-bit natural colours of EuroSAT; reflectance must be scaled alike.",
        "One label for a tile of 640 m; roads and rivers are recognised by the tile, not located.",
    ),
)


# --- the network ---------------------------------------------------------------------------------------
class PatchEmbedding(nn.Module):
    """Overlapping patches without bias; zeros at the right and bottom edge, so that a side of S gives
    ceil(S / stride) tokens."""

    def __init__(self, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        self.projection = nn.Conv2d(3, width, patch, stride, bias=False)
        nn.init.kaiming_normal_(self.projection.weight, mode="fan_in", nonlinearity="linear")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to tokens [B, h * w, C]."""
        down, right = (
            max((-(-s // self.stride) - 1) * self.stride + self.patch - s, 0) for s in images.shape[-2:]
        )
        return self.projection(F.pad(images, (0, right, 0, down))).flatten(2).transpose(1, 2)


class RSMambaBackbone(nn.Module):
    """From normalised images to one vector; the names of its parameters are the official ones.

    `path` says along which orders the mixers run, `shuffles` int64 [depth, L] holds the permutation of each
    block. With `redraw`, or in training, other permutations are drawn in each pass.
    """

    shuffles: Tensor

    def __init__(
        self, size: Size, path: PathType, position: bool = True, shuffle_seed: int | None = 0
    ) -> None:
        super().__init__()
        self.size, self.path, self.redraw = size, path, shuffle_seed is None
        self.grid = -(-size.image // size.stride)
        tokens, width = self.grid**2, size.width
        self.patch_embed = PatchEmbedding(width, size.patch, size.stride)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width)) if position else None
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList([MambaMixer(width) for _ in range(size.depth)])
        self.gate_layers = nn.ModuleList(
            [path_gate(width, path) for _ in range(size.depth if path.gated else 0)]
        )
        self.pre_norm = nn.LayerNorm(width, eps=1e-6)  # shared by all blocks
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        seeds = range(shuffle_seed or 0, (shuffle_seed or 0) + size.depth)
        shuffles = torch.stack([seeded_shuffle(tokens, s) for s in seeds])
        self.register_buffer("shuffles", shuffles, persistent=False)

    def forward(self, images: Tensor, checkpointing: bool = False) -> Tensor:
        """Normalised images [B, 3, S, S] to features [B, C]."""
        x = self.patch_embed(images)  # [B, L, C]
        if self.pos_embed is not None:
            x = x + self.pos_embed
        shuffles = self._permutations(x)
        for number in range(len(self.layers)):
            shuffle = None if shuffles is None else shuffles[number]
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._block, number, x, shuffle, use_reentrant=False)
            else:
                x = self._block(number, x, shuffle)
        return self.ln2(self.ln1(x).mean(dim=1))

    def _block(self, number: int, x: Tensor, shuffle: Tensor | None) -> Tensor:
        gate = self.gate_layers[number] if self.path.gated else None
        return x + run_paths(self.layers[number], self.pre_norm(x), self.path, gate, shuffle)

    def _permutations(self, x: Tensor) -> Tensor | None:
        """One for each block, the same for all images of the batch."""
        if not self.path.shuffled:
            return None
        if self.training or self.redraw:
            return torch.rand(len(self.layers), x.shape[1], device=x.device).argsort(dim=1)
        return self.shuffles


class LinearHead(nn.Module):
    """The last layer, under its official name."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class RSMamba(nn.Module):
    """Backbone and head. `checkpointing` saves memory in training at the price of a second forward pass."""

    def __init__(
        self,
        size: Size,
        classes: int,
        path: PathType = PathType.SHUFFLE_GATE,
        position: bool = True,
        shuffle_seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.backbone = RSMambaBackbone(size, path, position, shuffle_seed)
        self.head = LinearHead(size.width, classes)
        self.checkpointing = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, S, S] to logits [B, K] and features [B, C]."""
        feature = self.backbone(images, self.checkpointing)
        return self.head(feature), feature


# --- behind its task -----------------------------------------------------------------------------------
class RSMambaSystem(NetworkSystem):
    """RSMamba with the names of its classes, in the order of the logits."""

    network: RSMamba

    def __init__(self, card: Card, network: RSMamba, classes: tuple[str, ...], whole: bool) -> None:
        super().__init__(card, network)
        self.classes, self.whole = classes, whole

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] of any size as the network takes them, [B, C, S, S].

        The short edge is resized to 256 / 224 S and the centre is cut out, as in the official test pipeline;
        where tiles are `whole`, the image is resized to S x S. Images of S x S stay as they are.
        """
        side = self.network.backbone.size.image
        height, width = images.shape[-2:]
        if (height, width) == (side, side):
            return images
        if self.whole:
            return _resized(images, side, side)
        short = round(side * 256 / 224)
        scale = short / min(height, width)
        images = _resized(images, max(short, round(height * scale)), max(short, round(width * scale)))
        top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
        return images[..., top : top + side, left : left + side]

    def forward(self, images: Tensor) -> ClassificationOutput:
        """See `NetworkSystem.forward`; one date."""
        logits, feature = self.network(self.prepare(images[:, 0]))
        return ClassificationOutput(logits, feature)

    def loss(self, output: ClassificationOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy with label smoothing 0.1."""
        return {"total": smoothed_cross_entropy(output.logits, target["label"], 0.1)}


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    kind = images.dtype
    images = F.interpolate(
        images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return images.to(kind)


def from_official(tensors: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The tensors of an official checkpoint (or of this library's own) for a network of grid x grid tokens.

    Prefixes of wrappers and the constants of the data preprocessor are left out; the position table is
    resized bicubically where the grid differs.
    """
    found = {k.removeprefix("module."): v for k, v in tensors.items()}
    found = {k: v for k, v in found.items() if not k.startswith("data_preprocessor.")}
    if (table := found.get("backbone.pos_embed")) is not None:
        found["backbone.pos_embed"] = resize_position(table, grid, grid)
    return found


def class_names(classes: int | str | Path | Sequence[str]) -> tuple[str, ...]:
    """Names in the order of the logits: given, or read from a file with one a line; class_0, class_1, ... for
    a number.

    Raises:
        FileMissingError: there is no such file.
        SettingError: there are fewer than two classes, or a name twice.
    """
    if isinstance(classes, int):
        names = tuple(f"class_{i}" for i in range(classes))
    elif isinstance(classes, str | Path):
        if not Path(classes).is_file():
            raise FileMissingError(classes, "is not there", "Give a file with one class name a line.")
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = tuple(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise SettingError(f"classes={classes}", "are not two or more different classes", "Correct them.")
    return names


@register(BASE, B, S, L, H, NANO)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    data: str = "aid",
    classes: int | str | Path | Sequence[str] | None = None,
    image_size: int | None = None,
    path: str = PathType.SHUFFLE_GATE,
    shuffle_seed: int | None = 0,
) -> RSMambaSystem:
    """RSMamba with weights of the authors, or for training.

    Args:
        weights: a file of the authors or of this library.
        untrained: random weights.
        data: `uc`, `aid` or `nwpu`: sets mean and standard deviation, and the number of classes; without
            effect on `rsmamba/eurosat-nano`.
        classes: their number, their names in order, or a file of names (the authors' `cls_names.txt`).
        image_size: side of the images; the position table is resized bicubically from what the file holds.
        path: one of `PathType`.
        shuffle_seed: of the permutations outside of training (block i has seed + i); None draws them anew in
            each pass, as the official code does.

    Raises:
        SystemNotReadyError: neither weights nor `untrained`.
        SettingError, FileMissingError, WeightsMismatchError.
    """
    nano = card is NANO
    if data not in DATA_SETS:
        raise SettingError(f"data={data}", "no such data set", f"Choose from {', '.join(DATA_SETS)}.")
    if path not in list(PathType):
        raise SettingError(f"path={path}", "no such path", f"Choose from {', '.join(PathType)}.")
    if not nano:
        order, mean, std = DATA_SETS[data]
        inputs = replace(card.inputs, normalisation=Normalisation(mean, std))
        card = replace(card, inputs=inputs, classes=order if classes is None else "")
        names = class_names([c.name for c in scheme(order).classes] if classes is None else classes)
    else:
        names = class_names([c.name for c in EUROSAT.classes] if classes is None else classes)
    size = SIZES[card.slug.partition("/")[2] or "b"]
    if image_size is not None:
        if image_size < size.patch:
            raise SettingError(f"image_size={image_size}", "is smaller than a patch", "Take a larger one.")
        size = replace(size, image=image_size)
    network = RSMamba(size, len(names), PathType(path), shuffle_seed=shuffle_seed)
    if not untrained:
        grid = network.backbone.grid
        load_weights(network, card, weights, lambda tensors: from_official(tensors, grid))
    network.eval()
    return RSMambaSystem(card, network, names, whole=nano)
