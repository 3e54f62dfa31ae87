"""DeltaVLM: instructions about two dates, answered by a language model that is shown how the dates relate.

Source: Deng et al., "DeltaVLM: Interactive Remote Sensing Image Change Analysis via Instruction-guided
Difference Perception", arXiv:2507.22346, Remote Sensing 2026, and its released code. One vision transformer
sees both dates; CSRM relates each of them to their difference; a Q-Former that reads the instruction asks
both, and its queries stand before the instruction in a language model that is never trained. Differs from
the released code in: CSRM is applied in training too (there it is commented out, and applied when answers
are written); any causal language model will do, and none comes with it; projections for a contrast that it
does not train are left out of its files; the size `nano` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.chat import WORDS, ChatEncoding
from terralapse.errors import ModelInputError, SettingError, SystemNotReadyError
from terralapse.layers.change_mask_decoder import ChangeMaskDecoder
from terralapse.layers.eva_vit import EVA_G, EvaSize, EvaVit
from terralapse.layers.language_model import (
    BertTokens,
    Instructions,
    LanguageModel,
    OwnTokens,
    Start,
    Writing,
    filled,
    load_language_model,
)
from terralapse.layers.qformer import QFormer, QFormerSize
from terralapse.layers.weights import load_strict, read_tensors
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.chat import GOALS, ChatOutput, ChatSystem
from terralapse.tasks.network import Target

TITLE = (
    "DeltaVLM: Interactive Remote Sensing Image Change Analysis via Instruction-guided Difference Perception"
)
POSITIVE = 2.0  # weight of changed pixels in the loss of the mask


# --- sizes and cards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The vision transformer, of which the last `taught` blocks learn (None: all of it); the Q-Former, whose
    number of words is that of the tokens of an instruction; the dropout of CSRM."""

    vision: EvaSize
    asking: QFormerSize
    taught: int | None = 2
    dropout: float = 0.5


PAPER = Size(EVA_G, QFormerSize(768, 12, 12, 3072, 30_523, 1408, 32))
NANO = Size(
    EvaSize(112, 14, 96, 3, 4, 256),
    QFormerSize(96, 4, 4, 192, 0, 96, 8, dropout=0.0),
    taught=None,
    dropout=0.0,
)
QUIRKS = (
    "A text of the language model begins with its token for the end, behind the 32 soft tokens; there is "
    "no system prompt.",
    'Instructions and answers are put into lower case, lose . ! " ( ) * # : ; ~ and all words after the '
    "50th, so that the third question of a talk may lose its end.",
    "In training even a first question begins with q:, at the test of single questions none does.",
    "The released training leaves CSRM out and the released evaluation does not; here both have it.",
    "The branch for masks mixes up filters and channels before it compares them.",
)
LIMITS = (
    "The language model (the authors' is Vicuna-7B-v1.5) is not part of the checkpoint: bring your own, "
    "under its own licence. Released weights speak to Vicuna alone.",
    "The keys of the released checkpoint were not seen here; of the vision transformer it may hold blocks 37 "
    "and 38 alone, so that the file of EVA-CLIP is needed beside it.",
    "Made for suburbs of Texas at 0.5 m: roads and buildings. Its open questions were answered by a language "
    "model too.",
    "Numbers and places in an answer are guesses of a language model: nothing is counted.",
    "Images are shrunk to a small square, so a large scene has to be cut first.",
)
GOLDEN = Figure(
    "largest relative error of outputs",
    1e-4,
    "golden cases deltavlm/eva-vit, deltavlm/csrm-qformer and deltavlm/mask-decoder",
    "bound of the comparison with the published implementation on a CPU, at reduced widths; the language "
    "model is no part of it",
    "golden",
)


def _card(variant: str, size: Size, parameters: int | None) -> Card:
    ours = size is not PAPER
    return Card(
        slug=f"deltavlm/{variant}",
        title=f"{TITLE}: {'nano (a size of our own)' if ours else 'the size of the paper, for Vicuna-7B'}",
        task=Task.LANGUAGE,
        status=Status.RUNS if ours else Status.REPRODUCED,
        date_order=DateOrder.ORDERED,
        summary="Answers instructions about a pair of dates through a difference module and a frozen "
        + ("language model, small enough for a CPU." if ours else "language model."),
        year=2025,
        paper="arXiv:2507.22346",
        repository="https://github.com/hanlinwu/DeltaVLM",
        inputs=Inputs(
            dates=2,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            gsd_range=(0.5, 0.5),
            normalisation=Normalisation(
                (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
                (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255),
            ),
        ),
        licences=Licences(
            code="BSD-3-Clause file headers, no licence file",
            weights="" if ours else "as the code; the language model has its own",
            data="ChangeChat-105k CC BY 4.0; images of LEVIR-MCI: academic use",
        ),
        threshold=None,
        figures=() if ours else (GOLDEN,),
        quirks=QUIRKS,
        limits=LIMITS,
        parameters=parameters,
        checkpoints="none" if ours else "Hugging Face hlwu/DeltaVLM",
    )


PAPER_CARD, NANO_CARD = _card("vicuna-7b", PAPER, 1_188_613_376), _card("nano", NANO, None)
HEAD = replace(PAPER_CARD, slug="deltavlm", title=TITLE)
MODELS = (HEAD, PAPER_CARD, NANO_CARD)


# --- the network -----------------------------------------------------------------------------------------
class WideNorm(nn.LayerNorm):
    """A layer norm in float32, whatever comes in."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(input.dtype)


# Parts that learn beside the blocks of the vision transformer; the queries, which are no module, do too.
TAUGHT = ("ln_vision", "context1", "context2", "gate1", "gate2", "context3", "qformer", "llm_proj")


class DeltaNetwork(nn.Module):
    """All that learns: from two dates and an instruction to the soft tokens of a language model.

    Args:
        size: its dimensions.
        width: of the embeddings of the language model.
        masks: whether it has the branch for masks.
    """

    def __init__(self, size: Size, width: int, masks: bool = False) -> None:
        super().__init__()
        c = size.vision.width
        self.size, self.goal = size, "answers"
        self.visual_encoder, self.ln_vision = EvaVit(size.vision), WideNorm(c)
        self.context1, self.gate1 = (nn.Linear(c, c, bias=False) for _ in range(2))
        self.context2, self.gate2 = (nn.Linear(c, c) for _ in range(2))
        self.context3 = nn.Linear(3 * c, c)
        self.dropout = nn.Dropout(size.dropout)
        self.qformer = QFormer(size.asking)
        self.query_tokens = nn.Parameter(torch.empty(1, size.asking.queries, size.asking.width))
        nn.init.normal_(self.query_tokens, std=0.02)
        self.llm_proj = nn.Linear(size.asking.width, width)
        self.mask_decoder = ChangeMaskDecoder() if masks else None

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """F_1 and F_2 [B, N, C] of both dates [B, 2, 3, S, S], class token first."""
        seen = self.ln_vision(self.visual_encoder(images.flatten(0, 1)))
        before, after = seen.unflatten(0, images.shape[:2]).unbind(dim=1)
        return before, after

    def relate(self, before: Tensor, after: Tensor) -> Tensor:
        """CSRM, token by token: E = [E_1 ; E_2], [B, 2 N, C], with D = F_2 - F_1 and, for either date,

        C_t = tanh(W_c D + U_c F_t),  G_t = sigmoid(W_g D + U_g F_t),  E_t = W_o [F_t ; D ; G_t * C_t]
        """
        difference = after - before
        w_c, w_g = self.context1(difference), self.gate1(difference)
        related = []
        for date in (before, after):
            context = self.dropout(torch.tanh(w_c + self.context2(date)))
            gate = self.dropout(torch.sigmoid(w_g + self.gate2(date)))
            related.append(self.context3(torch.cat([date, difference, gate * context], dim=2)))
        return torch.cat(related, dim=1)

    def ask(self, related: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What queries and words come to, [B, Q + L, D], queries first; see `QFormer`."""
        return self.qformer(self.query_tokens.expand(len(related), -1, -1), ids, mask, related)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Soft tokens [B, Q, width] for normalised images and an instruction."""
        asked = self.ask(self.relate(*self.look(images)), ids, mask)
        return self.llm_proj(asked[:, : self.size.asking.queries])

    def masks(self, images: Tensor) -> Tensor:
        """Log-odds of change [B, 1, h, w] of normalised images, from the difference of their tokens."""
        assert self.mask_decoder is not None
        before, after = self.look(images)
        return self.mask_decoder(after - before)

    def teach(self, goal: str) -> None:
        """Lets learn what a goal needs: for `answers` all but the vision transformer, of which the last
        blocks; for `masks` its branch alone; for `both` all of these. What stays is in evaluation, and so is
        the vision transformer while its blocks learn."""
        self.goal = goal
        self.requires_grad_(False)
        if goal != "masks":
            blocks, number = self.visual_encoder.blocks, self.size.taught
            taught = [self.visual_encoder] if number is None else list(blocks)[len(blocks) - number :]
            for part in [*taught, *(getattr(self, name) for name in TAUGHT)]:
                part.requires_grad_(True)
            self.query_tokens.requires_grad_(True)
        if goal != "answers" and self.mask_decoder is not None:
            self.mask_decoder.requires_grad_(True)

    def train(self, mode: bool = True) -> DeltaNetwork:
        super().train(mode)
        if self.goal == "masks":
            for name, part in self.named_children():
                part.train(mode and name == "mask_decoder")
        self.visual_encoder.eval()
        return self


def mask_loss(odds: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy in which a changed pixel weighs twice; the mean over pixels.

    Args:
        odds: [B, 1, h, w], brought to the size of the label.
        label: int64 [B, H, W] of 0 and 1.
    """
    odds = _sized(odds, label.shape[-2:])[:, 0].float()
    weight = 1 + (POSITIVE - 1) * label
    return F.binary_cross_entropy_with_logits(odds, label.float(), weight)


def _sized(odds: Tensor, size: Sequence[int]) -> Tensor:
    if odds.shape[-2:] == tuple(size):
        return odds
    return F.interpolate(odds, tuple(size), mode="bilinear", align_corners=False)


# --- published names ---------------------------------------------------------------------------------------
UNREAD = re.compile(
    r"(vision_proj|text_proj)\.(weight|bias)|temp|llm_model\..*|Qformer\.cls\..*"
    r"|Qformer\.bert\.embeddings\.position_ids|mask_decoder\.stages\.\d+\.attn\.rpi"
)
FROM_EVA = re.compile(r"(cls_token|pos_embed|patch_embed\.|blocks\.).*")
NOT_EVA = re.compile(r"blocks\.39\..*|norm\..*|fc_norm\..*|head\..*")  # of its 40th block and of classes


def official_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of LAVIS or of DeltaVLM under the names used here, without those that nothing
    reads; ours as they are."""
    return {
        name.replace("Qformer.bert.", "qformer.", 1): tensor
        for name, tensor in tensors.items()
        if not UNREAD.fullmatch(name)
    }


def eva_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `eva_vit_g.pth` under the names used here, without its last block and its head."""
    return {
        f"visual_encoder.{name}": tensor
        for name, tensor in tensors.items()
        if FROM_EVA.fullmatch(name) and not NOT_EVA.fullmatch(name)
    }


HUB_NAMES = (
    (r"vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.",
        r"visual_encoder.blocks.\1.attn.proj.",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"vision_model\.post_layernorm\.", "ln_vision."),
    (r"qformer\.embeddings\.layernorm\.", "qformer.embeddings.LayerNorm."),
    (
        r"qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.",
        r"qformer.encoder.layer.\1.\2.self.",
    ),
    (r"language_projection\.", "llm_proj."),
)


def instructblip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of InstructBLIP as `transformers` saves it (`Salesforce/instructblip-vicuna-7b` on the
    hub) under the names used here, without its language model. The bias of the keys, which is zero, is not
    here."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith(("language_model.", "lm_head.")) or name.endswith("position_ids"):
            continue
        for theirs, here in HUB_NAMES:
            name, changed = re.subn(f"^{theirs}", here, name)
            if changed:
                break
        if name.endswith("attn.qkv.bias"):
            start, (q, _, v) = name.removesuffix("qkv.bias"), tensor.chunk(3)
            found |= {f"{start}q_bias": q, f"{start}v_bias": v}
        else:
            found[name] = tensor.reshape(1, 1, -1) if name.endswith("cls_token") else tensor
    return found


# --- the system ------------------------------------------------------------------------------------------
class DeltaVLM(ChatSystem):
    """The network before its language model.

    `language` is not part of `network`: it is neither trained nor saved, and moves to where the images are.
    """

    network: DeltaNetwork

    def __init__(
        self,
        card: Card,
        network: DeltaNetwork,
        language: LanguageModel,
        instructions: Instructions,
        encoding: ChatEncoding,
    ) -> None:
        super().__init__(card, network, encoding)
        self.language, self.instructions = language, instructions

    def to(self, device: torch.device | str) -> DeltaVLM:
        self.language.to(device)
        return super().to(device)

    def soft_tokens(self, images: Tensor, instructions: Sequence[str]) -> Tensor:
        """What the language model is shown of normalised images [B, 2, 3, S, S], [B, Q, D].

        Raises:
            ModelInputError: images of another size.
        """
        self._check(images)
        ids, mask = filled([self.instructions.ids(i) for i in instructions], images.device)
        return self.network(images, ids, mask)

    def _check(self, images: Tensor) -> None:
        side = self.network.size.vision.side
        if images.shape[1:] != (2, 3, side, side):
            raise ModelInputError(
                self.card.slug,
                f"takes two dates of 3 x {side} x {side}, and these are {list(images.shape[1:])}",
                "Use `ask`, which brings images to its size.",
            )

    def forward(
        self, images: Tensor, instruction: Sequence[str] | None = None, answer: Sequence[str] | None = None
    ) -> ChatOutput:
        """See `ChatSystem`."""
        self.language.to(images.device)
        found = ChatOutput()
        if self.goal != "answers":
            self._check(images)
            found.mask = self.network.masks(images)
        if self.goal == "masks":
            return found
        assert instruction is not None, "a batch of instructions has them"
        soft = self.soft_tokens(images, instruction)
        if answer is None:
            found.texts = self.language.write(soft, instruction, self.writing)
        else:
            found.loss = self.language.loss(soft, self.language.taught(instruction, answer))
        return found

    def loss(self, output: ChatOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy of the answers, that of the masks, or the sum of both; by the goal."""
        parts: dict[str, Tensor] = {}
        if output.loss is not None:
            parts["answer"] = output.loss
        if output.mask is not None:
            parts["mask"] = mask_loss(output.mask, target["label"])
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def mask(self, images: Tensor) -> Tensor:
        """Probability of change float32 [B, H, W] for pairs [B, 2, 3, H, W] of 0 to 255.

        Raises:
            SettingError: the system was built without the branch for masks.
        """
        if self.network.mask_decoder is None:
            raise SettingError(self.card.slug, "has no branch for masks", "Build it with masks=True.")
        with torch.inference_mode():
            odds = self.network.masks(self.normalise(self.squared(images), None, {}))
            return _sized(odds, images.shape[-2:])[:, 0].float().sigmoid()

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts from InstructBLIP as `transformers` saves it, without its language model; CSRM, which it
        does not have, stays as it is. All other names have to be there, and no others.

        Raises:
            WeightsMismatchError: names or shapes differ.
        """
        _load(self.network, instructblip_names(published), "the published InstructBLIP", NEW)


ANY, NOTHING = re.compile(".*"), re.compile("(?!)")
NEW = re.compile(r"(context|gate)\d\..*|mask_decoder\..*")  # what InstructBLIP does not have


def _load(network: nn.Module, tensors: dict[str, Tensor], source: str, kept: re.Pattern[str]) -> None:
    """Strictly, but for the names `kept`, which stay as they are where the file does not have them."""
    own = network.state_dict()
    missing = {k: v for k, v in own.items() if k not in tensors and kept.fullmatch(k)}
    load_strict(network, {**missing, **tensors}, source)


@register(*MODELS)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    language: Path | str | LanguageModel | None = None,
    tokenizer: Path | str | None = None,
    vision: Path | str | None = None,
    base: Path | str | None = None,
    start: Start = "end",
    dtype: str = "auto",
    words: int | None = WORDS,
    masks: bool = False,
    goal: str = "answers",
    beams: int = 1,
    longest: int = 256,
    repetition_penalty: float = 1.5,
) -> DeltaVLM:
    """The system of a card; `deltavlm` by itself is `deltavlm/vicuna-7b`.

    Args:
        card: one of `MODELS`.
        weights: a file of ours, or the released `checkpoint_best.pth`.
        untrained: random weights, for training, over which `vision` and `base` are laid.
        language: the language model: its folder, `owner/name@commit` of the hub, or one that is loaded.
        tokenizer: `vocab.txt` of bert-base-uncased, with which the Q-Former reads instructions; `nano` reads
            them with the tokens of its language model when none is given.
        vision: `eva_vit_g.pth` of LAVIS, for what a released checkpoint leaves out.
        base: `instruct_blip_vicuna7b_trimmed.pth` of LAVIS, to start training from.
        start: what texts of the language model begin with: `end` as released, or `own`.
        dtype: of the language model.
        words: after which texts are cut; None for never.
        masks: whether there is the branch for masks, in the network and in its files.
        goal: what training teaches: `answers`, `masks` or `both`.
        beams, longest, repetition_penalty: how answers are written; see `Writing`.

    Raises:
        SystemNotReadyError: no weights are given, or no language model.
        SettingError: no such goal, or a branch that it needs is missing.
        MissingExtraError: `transformers` is not installed.
        FileMissingError, UnreadableFileError: from the files.
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    size = NANO if card.slug.endswith("/nano") else PAPER
    if goal not in GOALS or (goal != "answers" and not masks):
        raise SettingError(
            f"goal={goal}, masks={masks}", "teaches nothing", f"Choose {', '.join(GOALS)}, with masks=True."
        )
    if weights is None and not untrained:
        raise SystemNotReadyError(
            card.slug, "no weights come with it", f"Give a file of weights ({card.checkpoints})."
        )
    if language is None:
        raise SystemNotReadyError(
            card.slug,
            "no language model comes with it",
            "Give the folder of one: language=FOLDER (the authors' is Vicuna-7B-v1.5).",
        )
    if tokenizer is None and size is PAPER:
        raise SystemNotReadyError(
            card.slug,
            "does not come with the words of its Q-Former",
            "Give vocab.txt of bert-base-uncased: tokenizer=FILE.",
        )
    spoken = language if isinstance(language, LanguageModel) else load_language_model(language, start, dtype)
    read = OwnTokens(spoken.tokenizer) if tokenizer is None else BertTokens(tokenizer)
    size = replace(size, asking=replace(size.asking, words=read.size))
    network = DeltaNetwork(size, spoken.width, masks)
    given = [(vision, eva_names), (base, official_names), (None if untrained else weights, official_names)]
    tensors: dict[str, Tensor] = {}
    for path, names in given:
        if path is not None:
            tensors |= names(read_tensors(path))
    if tensors:
        source = ", ".join(str(path) for path, _ in given if path is not None)
        _load(network, tensors, source, NOTHING if not untrained else NEW if base is not None else ANY)
    network.teach(goal)
    network.eval()
    system = DeltaVLM(card, network, spoken, read, ChatEncoding(size.vision.side, words))
    system.goal, system.writing = goal, Writing(beams, longest, 1, repetition_penalty)
    return system
