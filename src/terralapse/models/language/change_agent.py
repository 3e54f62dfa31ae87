"""Change-Agent: one network that masks what changed between two dates and says it in a sentence.

Source: Liu, Chen, Zhang, Qi, Zou and Shi, "Change-Agent: Towards Interactive Comprehensive Remote Sensing
Change Interpretation and Analysis", IEEE TGRS 2024 (arXiv:2403.19646), and its released code, whose names its
parameters have. A shared MiT sees both dates; two necks of BI3 layers compare its last maps, one for the mask
and one for the sentence. Differs from the released code in: parameters that it registers and never uses are
not here (12,747,776 of them, left out of its files as they are read); images of any size; the size `nano` is
ours. The agent of the paper, a language model that calls this network as a tool, is no part of this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.words import END, NULL, Vocabulary
from terralapse.errors import SettingError
from terralapse.labels import LEVIR_MCI
from terralapse.layers.decoding import pointwise
from terralapse.layers.mix_transformer import MixSize, MixTransformer, both_dates, load_mix_transformer
from terralapse.layers.sliding import slide
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.captions import (
    Captioner,
    MaskedCaptionOutput,
    balanced,
    beam_search,
    caption_loss,
    greedy,
    padded_rows,
)
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkDetector, Target, crop_like

TITLE = "Change-Agent: Towards Interactive Comprehensive Remote Sensing Change Interpretation and Analysis"
STRIDE = 32
WINDOW = 256  # the size of its images; of larger ones it sees windows
OVERLAP = 64
ROWS = 16  # of the position tables, of which an image of 256 pixels uses 8

Goal = Literal["both", "captions", "mask"]


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The encoder, whose last stage is as wide as everything after it; BI3 pairs of a neck; heads; the width
    of perceptrons in channels; words and the tokens of the longest sentence."""

    encoder: MixSize
    pairs: int
    heads: int
    hidden: int
    vocabulary: int
    longest: int = 41
    dropout: float = 0.1


PAPER = Size(MixSize((64, 128, 320, 512), (2, 2, 2, 2)), 3, 8, 4, 468)
NANO = Size(
    MixSize((16, 32, 48, 64), (1, 1, 1, 1), (1, 2, 3, 4), mlp=2, drop_path_rate=0.0),
    1,
    4,
    2,
    431,
    dropout=0.0,
)
QUIRKS = (
    "The position tables are exchanged: columns are looked up in the table of rows and the other way round.",
    "In the neck of the sentence both dates are updated from what they were; in that of the mask the later "
    "date sees the earlier one as it has become, and each is added to what it was.",
    "While sentences are taught, their end is hidden from attention; while they are written, it is not.",
    "A beam does not weigh its scores by length, so it favours short sentences.",
    "Scores of sentences in the paper are of ids of the vocabulary, not of words, which matters for METEOR.",
)
LIMITS = (
    "Made for suburbs of Texas at 0.5 m: roads and buildings; nothing else is in the mask.",
    "A sentence is what annotators of LEVIR-CC would write: its numbers are guesses, nothing is counted.",
    "The order of the dates matters.",
    "Images larger than 256 pixels are masked in windows, and shrunk to 256 pixels to be described.",
)
LICENCES = Licences(
    code="MIT; its read-me says academic purposes only",
    weights="as the code; starts from MiT on ImageNet, which is for non-commercial use",
    data="LEVIR-MCI: academic use",
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden cases change-agent/mci and change-agent/bi3",
    "bound of the comparison with the published implementation on a CPU; written sentences are the same",
    "golden",
)


def _card(variant: str, size: Size, parameters: int) -> Card:
    ours = size is not PAPER
    what = "MCI, mask and sentence" if not ours else "nano (a size of our own)"
    return Card(
        slug=f"change-agent/{variant}",
        title=f"{TITLE}: {what}",
        task=Task.LANGUAGE,
        status=Status.RUNS if ours else Status.REPRODUCED,
        date_order=DateOrder.ORDERED,
        summary="A mask of changed roads and buildings, and a sentence about what changed"
        + (", small enough for a CPU." if ours else "."),
        year=2024,
        paper="arXiv:2403.19646",
        repository="https://github.com/Chen-Yang-Liu/Change-Agent",
        inputs=Inputs(
            dates=2,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            gsd_range=(0.5, 0.5),
            size_multiple=STRIDE,
            halo=OVERLAP,
            normalisation=Normalisation(
                (0.39073 * 255, 0.38623 * 255, 0.32989 * 255), (0.15329 * 255, 0.14628 * 255, 0.13648 * 255)
            ),
        ),
        classes=LEVIR_MCI.slug,
        licences=Licences(code=LICENCES.code, data=LICENCES.data) if ours else LICENCES,
        figures=() if ours else (GOLDEN,),
        quirks=QUIRKS,
        limits=LIMITS[2:] if ours else LIMITS,
        parameters=parameters,
        checkpoints="none" if ours else "Hugging Face lcybuaa/Change-Agent, MCI_model.pth",
    )


MCI_CARD, NANO_CARD = _card("mci", PAPER, 117_754_903), _card("nano", NANO, 1_391_042)
HEAD = replace(MCI_CARD, slug="change-agent", title=TITLE)
MODELS = (HEAD, MCI_CARD, NANO_CARD)


# --- BI3 -------------------------------------------------------------------------------------------------
class LocalPerception(nn.Module):
    """Three depthwise convolutions of different shapes side by side, brought together and added."""

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.d_conv_3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.d_conv_1x5 = nn.Conv2d(dim, dim, (1, 5), padding=(0, 2), groups=dim)
        self.d_conv_5x1 = nn.Conv2d(dim, dim, (5, 1), padding=(2, 0), groups=dim)
        self.BN = nn.BatchNorm2d(3 * dim, momentum=momentum)
        self.conv_1 = nn.Conv2d(3 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides = torch.cat([self.d_conv_3x3(x), self.d_conv_1x5(x), self.d_conv_5x1(x)], dim=1)
        return x + self.conv_1(F.gelu(self.BN(sides)))


class DifferenceAttention(nn.Module):
    """GDFA: each place of one date asks where the dates differ: keys and values are made of its map times the
    difference of the other to it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.fuse_conv = pointwise(dim, dim)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Tokens [B, L, C] for two maps [B, C, h, w]."""
        differing = self.fuse_conv(one * (other - one)).flatten(2).transpose(1, 2)
        asked = one.flatten(2).transpose(1, 2)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.to_q, asked), (self.to_k, differing), (self.to_v, differing))
        )
        rate = self.dropout if self.training else 0.0
        return self.to_out(F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear maps."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class InteractionLayer(nn.Module):
    """BI3: what one date makes of the other.

    The published layer takes the other date twice, and sends both copies through the same normalisation,
    whose running statistics move twice a step: a momentum of 1 - 0.9^2 does the same.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.att = DifferenceAttention(dim, heads, dropout)
        self.feedforward = Perceptron(dim, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.Q_d_conv, self.K_d_conv = LocalPerception(dim, 0.1), LocalPerception(dim, 1 - 0.9**2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """The map [B, C, h, w] of one date after it has seen that of the other."""
        size = one.shape[2:]
        one, other = self.Q_d_conv(one), self.K_d_conv(other)
        y = self.norm1(self.att(one, other) + one.flatten(2).transpose(1, 2))
        y = self.norm2(self.feedforward(y) + y)
        return y.transpose(1, 2).unflatten(2, size)


class Interaction(nn.Module):
    """Both necks, their position tables, and the head of the mask."""

    def __init__(self, size: Size, classes: int) -> None:
        super().__init__()
        dims, dim = size.encoder.dims, size.encoder.dims[-1]

        def pair() -> nn.ModuleList:
            made = [InteractionLayer(dim, size.heads, size.hidden * dim, size.dropout) for _ in range(2)]
            return nn.ModuleList(made)

        self.h_embedding, self.w_embedding = (nn.Embedding(ROWS, dim // 2) for _ in range(2))
        self.h_embedding_CD, self.w_embedding_CD = (nn.Embedding(ROWS, dim // 2) for _ in range(2))
        self.Dynamic_DIF_aware_TR = nn.ModuleList(pair() for _ in range(size.pairs))
        self.Transformer_aug_CD = nn.ModuleList(pair() for _ in range(size.pairs))
        self.conv_dif = nn.ModuleList(nn.Sequential(nn.Conv2d(d, d, 1), nn.BatchNorm2d(d)) for d in dims)
        self.conv_fuse = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * d, 2 * d, 3, padding=1),
                nn.BatchNorm2d(2 * d),
                nn.ReLU(),
                nn.Conv2d(2 * d, 2 * d, 1),
            )
            for d in dims
        )
        self.to_fused = nn.ModuleList(
            nn.Sequential(*pointwise(2 * d, 2 * d), _doubled(2 * d, 2 * dims[max(k - 1, 0)]))
            for k, d in enumerate(dims)
        )
        self.to_seg = nn.Sequential(_doubled(2 * dims[0], dims[0]), nn.Conv2d(dims[0], classes, 1))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def compare(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """What the sentence is written from: two maps, each layer of a pair reading both as they were."""
        before, after = self._placed(before, after, self.h_embedding, self.w_embedding)
        for pair in self.Dynamic_DIF_aware_TR:
            one, other = pair.children()
            before, after = one(before, after), other(after, before)
        return before, after

    def _locate(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the mask: the later date sees the earlier as it has become."""
        before, after = self._placed(before, after, self.h_embedding_CD, self.w_embedding_CD)
        for pair in self.Transformer_aug_CD:
            one, other = pair.children()
            before = one(before, after) + before
            after = other(after, before) + after
        return before, after

    @staticmethod
    def _placed(before: Tensor, after: Tensor, h: nn.Embedding, w: nn.Embedding) -> tuple[Tensor, Tensor]:
        """With the code of each place added; the tables are exchanged, as in the released code."""
        rows, columns = before.shape[2:]
        code = torch.cat(
            [h.weight[:columns].expand(rows, -1, -1), w.weight[:rows, None].expand(-1, columns, -1)], dim=2
        ).permute(2, 0, 1)
        return before + code, after + code

    def detect(self, before: list[Tensor], after: list[Tensor]) -> Tensor:
        """Logits [B, K, H, W] of what changed, from the features of both dates, shallow first."""
        pairs = [*zip(before[:3], after[:3], strict=True), self._locate(before[3], after[3])]
        up: Tensor | None = None
        for k in (3, 2, 1, 0):
            one, other = pairs[k]
            alike = F.cosine_similarity(one, other, dim=1)[:, None]
            differing = self.conv_dif[k](other - one) + alike
            fused = self.conv_fuse[k](torch.cat([one, differing, other], dim=1))
            up = self.to_fused[k](fused if up is None else fused + up)
        return self.to_seg(up)


def _doubled(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


# --- the sentence ----------------------------------------------------------------------------------------
class Residual(nn.Module):
    """Three convolutions around which the input goes too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.left = nn.Sequential(
            *pointwise(dim, half),
            *(nn.Conv2d(half, half, 3, padding=1), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, dim, 1), nn.BatchNorm2d(dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x) + x)


class WordLayer(nn.Module):
    """A layer of a transformer decoder, around which its input goes too."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = (nn.MultiheadAttention(dim, heads, dropout) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, later: Tensor, hidden: Tensor | None) -> Tensor:
        """Of words [L, B, C] and places [N, B, C]; `later` bool [L, L] and `hidden` bool [B, L] are what
        attention must not see."""
        own = self.self_attn(x, x, x, attn_mask=later, key_padding_mask=hidden, need_weights=False)[0]
        y = self.norm1(x + self.dropout(own))
        y = self.norm2(y + self.dropout(self.multihead_attn(y, memory, memory, need_weights=False)[0]))
        inner = self.linear2(self.dropout(F.relu(self.linear1(y))))
        return self.norm3(y + self.dropout(inner)) + x


class WordDecoder(nn.Module):
    """From two maps to the words of a sentence, each from those before it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim = size.encoder.dims[-1]
        self.Conv1, self.LN = nn.Conv2d(2 * dim, dim, 1), Residual(dim)
        self.vocab_embedding = nn.Embedding(size.vocabulary, dim)
        layer = WordLayer(dim, size.heads, size.hidden * dim, size.dropout)
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.dropout = nn.Dropout(size.dropout)
        self.wdc = nn.Linear(dim, size.vocabulary)
        self.register_buffer("places", sinusoids(size.longest, dim), persistent=False)
        nn.init.uniform_(self.vocab_embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.wdc.weight, -0.1, 0.1)
        nn.init.zeros_(self.wdc.bias)

    def memory(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        """What the words look at: the places [N, B, C] of two maps [B, C, h, w]."""
        return self.LN(self.Conv1(torch.cat(maps, dim=1))).flatten(2).permute(2, 0, 1)

    def forward(self, memory: Tensor, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] of the word after each of the words int64 [B, L], from those up to it that are not
        `hidden` (bool [B, L])."""
        length = ids.shape[1]
        places = self.get_buffer("places")[:length, None]
        x = self.dropout(self.vocab_embedding(ids.t()) + places)
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        for layer in self.transformer.get_submodule("layers").children():
            x = layer(x, memory, later, hidden)
        return self.wdc(self.dropout(x)).transpose(0, 1)


def sinusoids(length: int, dim: int) -> Tensor:
    """Codes [length, dim] of places: sines in the even channels, cosines in the odd ones."""
    speed = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = torch.arange(length)[:, None] * speed
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


# --- the network -----------------------------------------------------------------------------------------
class MCI(nn.Module):
    """Encoder, necks and head, and the decoder of words.

    Args:
        size: widths and depths.
        classes: of the mask, "no change" included.
    """

    def __init__(self, size: Size, classes: int = 3) -> None:
        super().__init__()
        self.longest = size.longest
        self.encoder = MixTransformer(size.encoder)
        self.interaction = Interaction(size, classes)
        self.decoder = WordDecoder(size)
        self._still: list[nn.Module] = []

    def look(self, images: Tensor) -> list[list[Tensor]]:
        """The features of both dates of images [B, 2, 3, H, W], sides multiples of 32."""
        return both_dates(self.encoder, images[:, 0], images[:, 1])

    def remember(self, features: list[list[Tensor]]) -> Tensor:
        """What a sentence is written from, [N, B, C]."""
        return self.decoder.memory(self.interaction.compare(features[0][3], features[1][3]))

    def teach(self, goal: Goal) -> None:
        """What training changes from now on: everything, or one branch behind an encoder that stays as it
        is, down to its running statistics."""
        necks = dict(self.interaction.named_children())
        mask = {n for n in necks if n.endswith("_CD") or n.startswith(("conv_", "to_"))}
        taught = {
            "both": [self],
            "captions": [self.decoder, *(m for n, m in necks.items() if n not in mask)],
            "mask": [m for n, m in necks.items() if n in mask],
        }[goal]
        known = {id(m) for part in taught for m in part.modules()}
        self._still = [m for m in self.modules() if id(m) not in known and not list(m.children())]
        self.requires_grad_(False)
        for part in taught:
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> MCI:
        super().train(mode)
        for module in self._still:
            module.eval()
        return self


UNREAD = re.compile(
    r"encoder_trans_dict\..*\.(att\.([QKV]_LN|fuse_conv2)|PCM)\..*"
    r"|encoder_trans_dict\.Dynamic_DIF_aware_TR\.\d+\.2\..*"
    r"|decoder_dict\.(transformer\.layers\.\d+\.fc_alpha\d|position_encoding)\..*"
)
PREFIXES = {
    "encoder_dict.cnn.segformer.": "encoder.",
    "encoder_trans_dict.": "interaction.",
    "decoder_dict.": "decoder.",
}


def official_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released file under the names used here, without those that its code never reads; ours
    as they are. A released file holds three tables, whose names come first."""
    found = {}
    for name, tensor in tensors.items():
        if UNREAD.fullmatch(name):
            continue
        for theirs, here in PREFIXES.items():
            if name.startswith(theirs):
                name = here + name.removeprefix(theirs)
        found[name] = tensor
    return found


# --- the system ------------------------------------------------------------------------------------------
class ChangeAgent(Captioner, NetworkDetector):
    """MCI as a detector of change, by its mask, and as a writer of sentences."""

    network: MCI
    extras = ("tokens",)
    goal: Goal = "both"

    def __init__(self, card: Card, network: MCI, vocabulary: Vocabulary | None) -> None:
        super().__init__(card, network)
        self.vocabulary, self.longest = vocabulary, network.longest

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> MaskedCaptionOutput:
        """Of normalised images [B, 2, 3, H, W] of any size, and in training sentences int64 [B, L]."""
        if tokens is None:
            mask = (
                slide(self._masks, images, WINDOW, WINDOW - OVERLAP)
                if _large(images)
                else self._masks(images)
            )
            return MaskedCaptionOutput(mask=mask[0])
        features = self.network.look(self.padded(images))
        hidden = (tokens == NULL) | (tokens == END)
        words = self.network.decoder(self.network.remember(features), tokens, hidden)
        return MaskedCaptionOutput(words, mask=crop_like(self.network.interaction.detect(*features), images))

    def _masks(self, images: Tensor) -> list[Tensor]:
        return [crop_like(self.network.interaction.detect(*self.network.look(self.padded(images))), images)]

    def respond(
        self, batch: Mapping[str, Tensor], state: Mapping[str, Any], usable: Tensor | None = None
    ) -> MaskedCaptionOutput:
        """As any system; a batch without `tokens` is described."""
        output: MaskedCaptionOutput = super().respond(batch, state, usable)
        if output.words is not None:
            return output
        return self.written(output, self.normalise(batch["images"], usable, state))

    def write(self, images: Tensor, beam: int = 1) -> Tensor:
        """Sentences int64 [B, L] about normalised images; those larger than 256 pixels are shrunk."""
        if beam < 1:
            raise SettingError(f"beam={beam}", "follows no sentence", "Give 1 (greedy) or more.")
        if _large(images):
            flat = F.interpolate(
                images.flatten(0, 1), (WINDOW, WINDOW), mode="bilinear", antialias=True, align_corners=False
            )
            images = flat.unflatten(0, images.shape[:2])
        memory = self.network.remember(self.network.look(self.padded(images)))
        decoder, length = self.network.decoder, self.longest
        if beam == 1:
            return greedy(
                lambda ids: decoder(memory, ids, ids == NULL)[:, -1], len(images), length, images.device
            )
        rows = [
            beam_search(
                lambda ids, one=one: decoder(one[:, None].expand(-1, len(ids), -1), ids)[:, -1],
                beam,
                length,
                images.device,
            )
            for one in memory.unbind(dim=1)
        ]
        return padded_rows(rows)

    def loss(self, output: MaskedCaptionOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropies of mask and words, each divided by its own value while both are taught.

        Raises:
            SettingError: the data have nothing to teach what is asked for.
        """
        parts: dict[str, Tensor] = {}
        if self.goal != "captions" and "label" in target:
            assert output.mask is not None
            parts["mask"] = cross_entropy(output.mask, target["label"])
        if self.goal != "mask" and output.words is not None:
            parts["captions"] = caption_loss(output.words, target["tokens"])
        if not parts:
            raise SettingError(f"goal={self.goal}", "has nothing to learn from these data", "Choose another.")
        every = list(parts.values())
        return {"total": balanced(*every) if len(every) > 1 else every[0], **parts}

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the published MiT-B1 (`mit_b1.pth`), trained on ImageNet."""
        load_mix_transformer(self.network.encoder, published, self.bands)

    def caption(self, images: Tensor, beam: int = 1) -> list[str]:
        """Sentences about pairs [B, 2, 3, H, W] in 0 to 255.

        Raises:
            SettingError: the vocabulary is not known, or `beam` is below 1.
        """
        self.need_vocabulary()
        with torch.inference_mode():
            return self.sentences(self.write(self.normalise(images, None, {}), beam))


def _large(images: Tensor) -> bool:
    return max(images.shape[-2:]) > WINDOW


@register(*MODELS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    vocabulary: Path | str | None = None,
    goal: str = "both",
) -> ChangeAgent:
    """The system of a card; `change-agent` by itself is `change-agent/mci`.

    Args:
        card: one of `MODELS`.
        weights: the released file (`MCI_model.pth`), or one of ours.
        untrained: random weights, for training.
        vocabulary: the file of the words that the weights know (`vocab.json` of the release), or `own` for
            the words that come with the library, which `nano` has by itself. Without one, `mci` masks
            changes and writes ids.
        goal: what training teaches: `both`, or `captions` or `mask` alone, with everything else as it is.

    Raises:
        SystemNotReadyError: no file is given; none comes with it.
        SettingError: no such goal.
        FileMissingError, UnreadableFileError: from the vocabulary.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    if goal not in get_args(Goal):
        raise SettingError(f"goal={goal}", "teaches nothing", f"Choose one of {', '.join(get_args(Goal))}.")
    size = NANO if card.slug.endswith("/nano") else PAPER
    known: Vocabulary | None = None
    if vocabulary == "own" or (vocabulary is None and size is NANO):
        known = Vocabulary.own()
    elif vocabulary is not None:
        known = Vocabulary.read(vocabulary)
    network = MCI(size if known is None else replace(size, vocabulary=len(known)), len(LEVIR_MCI.classes))
    if not untrained:
        load_weights(network, card, weights, official_names)
    network.teach(goal)  # pyright: ignore[reportArgumentType]
    network.eval()
    system = ChangeAgent(card, network, known)
    system.goal = goal  # pyright: ignore[reportAttributeAccessIssue]
    return system
