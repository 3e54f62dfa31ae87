"""TCSSM: questions on change in regions that were never seen, by a scan that a text on the place conditions.

Source: Ghazaei and Aptoula, "Text-conditioned State Space Model For Domain-generalized Change Detection
Visual Question Answering", arXiv:2508.08974, 2025. No code, weights or data were released, and the abstract
gives one idea: the input-dependent parameters of a selective scan (step, B, C) are predicted jointly from the
sequence of both dates and a text on geography and disaster. Everything else is a design of this library:
sizes, encoder, the order of the tokens, the fusion with the question, the losses, the encoder of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Inputs, Licences, Normalisation, Status, Task
from terralapse.data import building_talk, cdvqa, damage_questions
from terralapse.data.questions import Encoding, Words, hashed_text
from terralapse.errors import SettingError
from terralapse.labels import BUILDING_ANSWERS, CDVQA_ANSWERS, DAMAGE_ANSWERS, scheme
from terralapse.layers.mamba import RMSNorm
from terralapse.layers.mix_style import MixStyle
from terralapse.layers.vmamba import SS2D
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.network import Target
from terralapse.tasks.vqa import QuestionSystem, VqaOutput, alignment_loss, answer_loss, coral_loss

HASHED = 512  # places of the hashed text
METHODS = ("erm", "mixstyle", "coral")
ALIGNMENT = 0.1  # weight of the contrast of images and texts
CORAL = 1.0


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """`side` of the images in pixels, channels of the stages of the encoder, `grid` x `grid` tokens of
    `width` a date, blocks, states, rank of the step sizes, width of the text, dropout."""

    side: int
    dims: tuple[int, ...]
    grid: int
    width: int
    blocks: int
    state: int
    rank: int
    text: int
    dropout: float


SIZES = {
    "base": Size(256, (64, 128, 256), 16, 256, 4, 16, 16, 256, 0.1),
    "nano": Size(64, (24, 48), 8, 64, 2, 8, 4, 64, 0.1),
    "small": Size(256, (16, 32, 64, 64), 8, 64, 2, 8, 4, 64, 0.1),  # sees single buildings at 2.5 m
}
QUESTIONS: dict[str, tuple[str, Callable[[], Words]]] = {
    "damage": (DAMAGE_ANSWERS.slug, damage_questions.words),
    "cdvqa": (CDVQA_ANSWERS.slug, cdvqa.words),
    "buildings": (BUILDING_ANSWERS.slug, building_talk.words),
}
PARAMETERS = {
    "damage-base": 5_303_957,
    "damage-nano": 257_125,
    "cdvqa-base": 5_305_235,
    "cdvqa-nano": 257_443,
    "buildings-small": 398_198,
}
TITLE = "Text-conditioned State Space Model For Domain-generalized Change Detection Visual Question Answering"
LIMITS = (
    "No code, weights or data were released: this is a reconstruction from the abstract, and its sizes, "
    "order of tokens, fusion and losses are this library's.",
    "There are no weights and no figures of the authors to meet.",
    "It answers with one of a closed list; a question of another kind gets an answer of that list too.",
    "The whole image is resized to a square, so small buildings vanish from large scenes.",
)


def _card(questions: str, size: str) -> Card:
    what = {
        "damage": "on damaged buildings, of optical or radar images",
        "cdvqa": "of CDVQA",
        "buildings": "on changed buildings",
    }[questions]
    return Card(
        slug=f"tcssm/{questions}-{size}",
        title=TITLE,
        task=Task.VQA,
        status=Status.RUNS,
        date_order=DateOrder.ORDERED,
        summary=f"Answers questions {what} by a scan that a text on the place conditions; the {size} size.",
        year=2025,
        paper="arXiv:2508.08974",
        repository="https://github.com/Elman295/TCSSM",
        inputs=Inputs(
            dates=2,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            gsd_range=(0.3, 1),
            normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
        classes=QUESTIONS[questions][0],
        licences=Licences(code="none released"),
        threshold=None,
        limits=LIMITS,
        parameters=PARAMETERS[f"{questions}-{size}"],
        checkpoints="none",
    )


VARIANTS = tuple(_card(*name.split("-")) for name in PARAMETERS)
HEAD = replace(
    VARIANTS[0],
    slug="tcssm",
    summary="Answers questions about change in unseen regions, helped by a text on place and disaster.",
)


# --- the network -----------------------------------------------------------------------------------------
def _norm(width: int) -> nn.GroupNorm:
    """One that does not depend on the batch, in which domains are mixed."""
    return nn.GroupNorm(min(8, width), width)


class Stem(nn.Module):
    """Images of one kind, [B, bands, H, W], to [B, C, H / 4, W / 4]."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, width, 7, stride=4, padding=3)
        self.norm = _norm(width)

    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(images)))


class Residual(nn.Module):
    """x + conv(gelu(norm(conv(x)))), then a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = _norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.out = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.second(F.gelu(self.norm(self.first(x)))))


class DateEncoder(nn.Module):
    """One date to tokens: a stem for optical images and one for radar, and a trunk that both share.

    With `mix`, a `MixStyle` after the first stage, which sees both dates of a sample as one style.
    """

    def __init__(self, size: Size, mix: bool) -> None:
        super().__init__()
        self.grid = size.grid
        self.optical, self.radar = Stem(3, size.dims[0]), Stem(1, size.dims[0])
        stages: list[nn.Module] = [Residual(size.dims[0])]
        for narrow, wide in zip(size.dims, size.dims[1:], strict=False):
            stages.append(nn.Sequential(nn.Conv2d(narrow, wide, 2, stride=2), Residual(wide)))
        self.stages = nn.ModuleList(stages)
        self.mix = MixStyle() if mix else nn.Identity()
        self.out = nn.Conv2d(size.dims[-1], size.width, 1)

    def forward(self, images: Tensor, sar: Tensor) -> Tensor:
        """Normalised images [B, 2, 3, H, W], of which the later is radar where `sar` [B], to
        [B, 2, grid, grid, D]. Radar has one channel, of which the images hold three copies."""
        batch = len(images)
        before, after = self.optical(images[:, 0]), self.optical(images[:, 1])
        if sar.any():
            after = torch.where(sar[:, None, None, None], self.radar(images[:, 1, :1]), after)
        x = torch.stack([before, after], dim=1).flatten(0, 1)  # [2B, C, H / 4, W / 4]
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == 0:  # both dates side by side in the channels share the style that they get
                x = self.mix(x.unflatten(0, (batch, 2)).flatten(1, 2)).unflatten(1, (2, -1)).flatten(0, 1)
        x = F.adaptive_avg_pool2d(self.out(x), self.grid)
        return x.unflatten(0, (batch, 2)).permute(0, 1, 3, 4, 2)


class TextEncoder(nn.Module):
    """A hashed or embedded text [B, D_in] of unit length to [B, D]. Without biases, so that no text (zeros)
    is zero, and the scan then is a plain one; normalised, so that all other texts weigh the same."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.norm = RMSNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        spread = text * text.shape[1] ** 0.5  # to entries of about one
        return self.norm(self.fc2(F.gelu(self.fc1(spread))))


class QuestionEncoder(nn.Module):
    """Numbers of words [B, L] to [B, D]: a bidirectional GRU, and the mean of what it says of each word.

    In training some words become "unknown", so that this one means something when a new word is asked.
    """

    FORGET = 0.05

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, question: Tensor) -> Tensor:
        asked = question > 0
        if self.training:
            forgotten = (torch.rand(question.shape, device=question.device) < self.FORGET) & asked
            question = question.masked_fill(forgotten, 1)
        lengths = asked.sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(question), lengths, batch_first=True, enforce_sorted=False
        )
        said, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=question.shape[1]
        )
        mean = said.sum(dim=1) / lengths.to(said)[:, None]  # the rest is filled up with zeros
        return self.norm(mean)


class TextConditionedBlock(nn.Module):
    """x + SS2D(LN(x), W_t t): a text t shifts step, B and C of each direction at every position:

    [delta, B, C] = W_x u + W_t t;  Delta = softplus(W_dt delta + b_dt)

    W_t starts at zero, so that the block starts as a plain selective scan.
    """

    def __init__(self, width: int, text: int, state: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scan = SS2D(width, state=state, conv_bias=True, gated=True, rank=rank)
        self.directions = self.scan.x_proj_weight.shape[0]
        self.W_t = nn.Linear(text, self.directions * self.scan.parameters_a_direction, bias=False)
        nn.init.zeros_(self.W_t.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`x` [B, H, W, D] and `t` [B, D_t] to [B, H, W, D]."""
        shift = self.W_t(t).unflatten(1, (self.directions, -1))
        return x + self.dropout(self.scan(self.norm(x), shift))


class TCSSM(nn.Module):
    """The whole network.

    Args:
        size: its dimensions.
        words, answers: how many there are.
        inputs: length of a description.
        mix: whether styles are mixed in training.
    """

    def __init__(self, size: Size, words: int, answers: int, inputs: int = HASHED, mix: bool = False) -> None:
        super().__init__()
        width = size.width
        self.encoder = DateEncoder(size, mix)
        self.kind = nn.Parameter(torch.zeros(3, width))  # before, after, difference
        self.place = nn.Parameter(torch.zeros(size.grid, size.grid, width))
        nn.init.trunc_normal_(self.kind, std=0.02)
        nn.init.trunc_normal_(self.place, std=0.02)
        self.text = TextEncoder(inputs, size.text)
        self.blocks = nn.ModuleList(
            TextConditionedBlock(width, size.text, size.state, size.rank, size.dropout)
            for _ in range(size.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.question = QuestionEncoder(words, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.seen = nn.Linear(width, size.text)  # images in the space of the texts
        self.answer = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(size.dropout), nn.Linear(2 * width, answers)
        )

    def forward(
        self, images: Tensor, question: Tensor, description: Tensor, sar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K], the images in the space of the texts [B, D_t], and the texts there [B, D_t].

        Args:
            images: normalised, [B, 2, 3, H, W].
            question: int64 [B, L].
            description: [B, D_in].
            sar: bool [B].
        """
        before, after = self.encoder(images, sar).unbind(dim=1)  # [B, g, g, D] each
        t = self.text(description)
        x = torch.stack([before, after, after - before], dim=3) + self.kind
        x = (x + self.place[:, :, None]).flatten(2, 3)  # [B, g, 3g, D]: the three of a place are neighbours
        for block in self.blocks:
            x = block(x, t)
        tokens = self.norm(x).flatten(1, 2)  # [B, 3g^2, D]
        q = self.question(question)
        looked, _ = self.attention(q[:, None], tokens, tokens, need_weights=False)
        seen = tokens.mean(dim=1)
        # The attended part answers "where", the mean keeps shares of the area.
        return self.answer((looked[:, 0] + seen) * q), self.seen(seen), t


# --- behind its task -------------------------------------------------------------------------------------
class TCSSMSystem(QuestionSystem):
    """TCSSM with its questions and answers. `method` is how it is trained against new domains: `erm`,
    `mixstyle` or `coral`."""

    network: TCSSM

    def __init__(self, card: Card, network: TCSSM, encoding: Encoding, method: str) -> None:
        super().__init__(card, network, encoding)
        self.method = method

    def forward(
        self,
        images: Tensor,
        question: Tensor | None = None,
        description: Tensor | None = None,
        sar: Tensor | None = None,
    ) -> VqaOutput:
        """See `QuestionSystem`; without a description the scan is a plain one, without `sar` both dates are
        optical."""
        assert question is not None, "a batch of questions has them"
        batch = len(images)
        if description is None:
            description = images.new_zeros(batch, self.network.text.fc1.in_features)
        if sar is None:
            sar = torch.zeros(batch, dtype=torch.bool, device=images.device)
        return VqaOutput(*self.network(images, question, description, sar))

    def loss(self, output: VqaOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy of the answers, a tenth of the contrast of images and texts, and CORAL if chosen."""
        assert output.embedding is not None
        assert output.text is not None
        parts = {"answer": answer_loss(output.logits, target["answer"])}
        parts["align"] = ALIGNMENT * alignment_loss(output.embedding, output.text, target["domain"])
        if self.method == "coral":
            parts["coral"] = CORAL * coral_loss(output.embedding, target["domain"])
        return {"total": torch.stack(list(parts.values())).sum(), **parts}


@register(HEAD, *VARIANTS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    method: str = "erm",
    words: Path | str | None = None,
    answers: Sequence[str] | None = None,
    describe: Callable[[str], np.ndarray] | None = None,
    inputs: int = HASHED,
) -> TCSSMSystem:
    """The system of a card; `tcssm` by itself is `tcssm/damage-base`.

    Args:
        card: `HEAD` or one of `VARIANTS`.
        weights: a file of weights.
        untrained: random weights, for training.
        method: `erm`, `mixstyle` or `coral`; it changes training only.
        words: a file with one word a line, for questions of another set.
        answers: those of another set, in the order of the logits, or the slug of a scheme that has them.
        describe: a text to float32 [inputs], for a sentence encoder of your own; hashed words by default.
        inputs: the length of what `describe` gives.

    Raises:
        SettingError: no such method, or `inputs` that belongs to no `describe`.
        SystemNotReadyError: no file is given, and none comes with it.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    if method not in METHODS:
        raise SettingError(f"method={method}", "no such method", f"Choose from {', '.join(METHODS)}.")
    if inputs != HASHED and describe is None:
        raise SettingError(f"inputs={inputs}", "needs `describe`", "Give the encoder of the texts.")
    questions, _, name = (card.slug.partition("/")[2] or "damage-base").partition("-")
    size = SIZES[name]
    slug, known = QUESTIONS[questions]
    listed = (
        scheme(slug if answers is None else answers) if answers is None or isinstance(answers, str) else None
    )
    named = tuple(c.name for c in listed.classes) if listed else tuple(answers or ())
    if answers is not None:
        card = replace(card, classes=listed.slug if listed else "")
    encoding = Encoding(
        known() if words is None else Words.read(words),
        named,
        size.side,
        describe or partial(hashed_text, width=HASHED),
    )
    network = TCSSM(size, len(encoding.words), len(named), inputs, mix=method == "mixstyle")
    system = TCSSMSystem(card, network, encoding, method)
    if not untrained:
        load_weights(network, card, weights)
    network.eval()
    return system
