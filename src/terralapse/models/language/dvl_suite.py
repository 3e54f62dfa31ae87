"""DVLChat: a language model over images of many dates that answers, and prompts a mask decoder where a mask
is asked.

Source: Xuan et al., "DynamicVL: Benchmarking Multimodal Large Language Models for Dynamic City
Understanding", NeurIPS 2025 (arXiv:2505.21076). The paper describes it, its code and weights were not
released: a model of the LISA family (Lai et al. 2024) of a vision-language model (Qwen2.5-VL-7B) and SAM,
whose image encoder stays frozen and whose mask decoder is trained; the state of the token `[SEG]` becomes,
through an MLP, the prompt of the decoder; two sets of LoRA weights, of which a prefix chooses one: `[QA]`
for answers, `[SE]` for masks. The paper does not say, and this library chose: ranks and their layers, the
fusion of the two dates before the decoder (a 1 x 1 convolution of both and their difference that starts as
the later date), the weights of the losses (LISA's), and that the state is that of `[SEG]` itself. Any
language model of `transformers` will do; one that sees no images gets tokens of SAM's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card, DateOrder, Figure, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.dvl import DvlQuestion, Part, message
from terralapse.data.pictures import read_rgb
from terralapse.errors import ModelInputError, SettingError, SystemNotReadyError
from terralapse.layers.chat_models import library, read_model
from terralapse.layers.chat_tokens import END, IMAGE, QA, SE, SEG, Bytes, Hub, Tokenizer, official_sam
from terralapse.layers.lora import Chosen, add_lora
from terralapse.layers.weights import load_strict, read_tensors
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.dice import binary_dice

TITLE = "DynamicVL: Benchmarking Multimodal Large Language Models for Dynamic City Understanding"
WEIGHTS = {"text": 1.0, "bce": 2.0, "dice": 0.5}  # of the losses, as LISA has them
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


# --- cards -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """`rank` and `alpha` of LoRA, the linear layers that it is added to, and `side` x `side` tokens that a
    language model without eyes gets of an image."""

    rank: int
    alpha: float
    layers: tuple[str, ...]
    tokens: int
    sets: int = 2  # for answers and for masks


SIZES = {
    "dvlchat": Size(8, 16.0, ("q_proj", "v_proj"), 8),
    "dvlchat-nano": Size(8, 16.0, ("q_proj", "k_proj", "v_proj", "o_proj"), 4),
}
LIMITS = (
    "Code and weights of DVLChat were not released; ranks, fusion of dates and weights of losses are ours.",
    "It has no weights yet: the language model and SAM are files that you give.",
    "Made for aerial images of American cities at 1 m; five classes of land cover.",
    "A mask is of the change between two dates; the text of an answer is not checked against it.",
)
GOLDEN = Figure(
    "largest relative error of the benchmark's scores",
    1e-6,
    "golden case dvl-suite/metrics",
    "scores, loss and mask coding as the released scripts compute them; says nothing about DVLChat",
    "golden",
)


def _card(variant: str, summary: str) -> Card:
    return Card(
        slug=f"dvl-suite/{variant}",
        title=TITLE,
        task=Task.LANGUAGE,
        status=Status.RUNS,
        date_order=DateOrder.ORDERED,
        summary=summary,
        year=2025,
        paper="arXiv:2505.21076",
        repository="https://github.com/weihao1115/dynamicvl",
        inputs=Inputs(
            dates=0,
            bands=("red", "green", "blue"),
            units=(Unit.RGB255,),
            gsd_range=(1, 1),
            normalisation=Normalisation(MEAN, STD),
        ),
        licences=Licences(code="Apache-2.0"),
        limits=LIMITS,
        threshold=None,
        checkpoints="none",
    )


CHAT_CARD = _card(
    "dvlchat", "Answers on series of dates, with masks, over a language model and SAM that you give."
)
NANO_CARD = _card(
    "dvlchat-nano", "The same with a tiny language model and a tiny SAM, for tests and experiments."
)
HEAD = replace(
    CHAT_CARD,
    slug="dvl-suite",
    summary="Benchmark and dialogue on many dates of American cities in one-metre aerial images.",
    figures=(GOLDEN,),
)


# --- the network -----------------------------------------------------------------------------------------
class PairFusion(nn.Module):
    """Features of both dates and their difference to those of one image, by a 1 x 1 convolution that starts
    as the later date alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.mix.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.weight[:, width : 2 * width, 0, 0] = torch.eye(width)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.mix(torch.cat([before, after, after - before], dim=1))


class DVLChat(nn.Module):
    """The whole network.

    Args:
        language: a model of `transformers` with `get_input_embeddings` that takes `inputs_embeds`.
        sam: a `SamModel`.
        size: of what is added to them.
        seg: the id of `[SEG]`.
        image: the id of `<image>`, in whose place stand the tokens of an image.
    """

    def __init__(self, language: Any, sam: Any, size: Size, seg: int, image: int) -> None:
        super().__init__()
        self.size, self.seg, self.image = size, seg, image
        self.chosen = Chosen()
        language.requires_grad_(False)
        sam.requires_grad_(False)
        sam.mask_decoder.requires_grad_(True)
        self.language, self.sam = language, sam
        add_lora(language, size, self.chosen)
        words = language.get_input_embeddings()
        words.requires_grad_(True)  # the five tokens are new
        if (head := language.get_output_embeddings()) is not None:
            head.requires_grad_(True)
        hidden, width = words.embedding_dim, sam.config.prompt_encoder_config.hidden_size
        self.look = nn.Linear(width, hidden)
        self.prompt = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.fuse = PairFusion(width)

    @property
    def side(self) -> int:
        """Pixels of a side of the images that SAM takes."""
        return self.sam.config.vision_config.image_size

    def trained(self) -> dict[str, Tensor]:
        """The weights that training changes, by their names: all that a file of weights holds."""
        learnt = {name for name, p in self.named_parameters() if p.requires_grad}
        return {k: v for k, v in self.state_dict().items() if k in learnt}

    # --- images ------------------------------------------------------------------------------------------
    def see(self, images: Tensor) -> Tensor:
        """Features [N, C, h, w] of normalised images [N, 3, S, S]; SAM's encoder is frozen."""
        with torch.no_grad():
            return self.sam.get_image_embeddings(images)

    def tokens(self, features: Tensor) -> Tensor:
        """Features [N, C, h, w] as [N, t^2, D] for the language model."""
        small = F.adaptive_avg_pool2d(features, self.size.tokens).flatten(2).transpose(1, 2)
        return self.look(small)

    # --- text --------------------------------------------------------------------------------------------
    def embed(self, ids: Sequence[Tensor], seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of ids with `<image>` in the place of each image, filled up to one length.

        Args:
            ids: int64 [L_b] each.
            seen: [N, t^2, D], the images of all rows in order.

        Returns:
            embeddings [B, L, D]; bool [B, L], what is there; int64 [B, L] ids, -1 at tokens of images and
            after the end.
        """
        words, rows, known, at = self.language.get_input_embeddings(), [], [], 0
        for row in ids:
            parts, names = [], []
            start = 0
            places = (row == self.image).nonzero().flatten().tolist()
            for place in [*places, len(row)]:
                if place > start:
                    parts.append(words(row[start:place]))
                    names.append(row[start:place])
                if place < len(row):
                    parts.append(seen[at].to(words.weight.dtype))
                    names.append(row.new_full((seen.shape[1],), -1))
                    at += 1
                start = place + 1
            rows.append(torch.cat(parts))
            known.append(torch.cat(names))
        if at != len(seen):
            raise ValueError(f"the texts have places for {at} images, and there are {len(seen)}")
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        names = nn.utils.rnn.pad_sequence(known, batch_first=True, padding_value=-1)
        lengths = torch.tensor([len(r) for r in rows], device=embedded.device)
        there = torch.arange(embedded.shape[1], device=embedded.device) < lengths[:, None]
        return embedded, there, names

    def read(self, embedded: Tensor, there: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] of what follows each place, and its last hidden states [B, L, D]."""
        with self.chosen.use(rows):
            out = self.language(
                inputs_embeds=embedded,
                attention_mask=there.long(),
                output_hidden_states=True,
                use_cache=False,
            )
        return out.logits, out.hidden_states[-1]

    # --- masks -------------------------------------------------------------------------------------------
    def segment(self, states: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits of masks [M, S, S] for states of `[SEG]` [M, D] and features of the two dates [M, C, h,
        w]."""
        sparse = self.prompt(states.to(before.dtype))[:, None, None]  # [M, 1, 1, C]
        features = self.fuse(before, after)
        empty = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, _ = self.sam.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings().expand_as(features),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=empty.expand_as(features),
            multimask_output=False,
        )
        return F.interpolate(masks[:, 0].float(), (self.side, self.side), mode="bilinear")[:, 0]


@dataclass(frozen=True)
class Taught:
    """A question with its answer: `images` float32 [N, 3, H, W] of 0..255, `text` with `<image>` for each,
    `answer`, and with a mask `mask` bool [H, W]: then the last two images are its dates."""

    images: np.ndarray
    text: str
    answer: str
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Said:
    """What it answers: a text without its special tokens and, where it wrote `[SEG]`, the probability of a
    mask, float32 [H, W] at the size of the last image."""

    text: str
    probability: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """bool [H, W], from a probability of a half on."""
        return None if self.probability is None else self.probability >= 0.5


class DVLChatSystem:
    """DVLChat with its texts: taught by `loss`, asked by `say`, and an answerer of DVL-Bench by being
    called."""

    def __init__(self, card: Card, network: DVLChat, tokenizer: Tokenizer) -> None:
        self.card, self.network, self.tokenizer = card, network, tokenizer
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    @property
    def device(self) -> torch.device:
        return self.network.look.weight.device

    def to(self, device: torch.device | str) -> DVLChatSystem:
        """Moves the network."""
        self.network.to(device)
        return self

    # --- learning ----------------------------------------------------------------------------------------
    def loss(self, batch: Sequence[Taught]) -> dict[str, Tensor]:
        """`total` and its parts: the cross-entropy of the answers, and BCE and Dice of the masks of those
        that have one."""
        network, images = self.network, [i for one in batch for i in one.images]
        features = network.see(self._pixels(images))
        prompts = [self._prompt(one.text, masked=one.mask is not None) for one in batch]
        answers = [[*self.tokenizer.encode(one.answer), self.tokenizer.id_of(END)] for one in batch]
        ids = [torch.tensor(p + a, device=self.device) for p, a in zip(prompts, answers, strict=True)]
        embedded, there, names = network.embed(ids, network.tokens(features))
        rows = torch.tensor([int(one.mask is not None) for one in batch], device=self.device)
        logits, states = network.read(embedded, there, rows)
        target = names.clone()
        for row, answer in enumerate(answers):  # only the answer is taught
            target[row, : int(there[row].sum()) - len(answer)] = -1
        parts = {
            "text": F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), target[:, 1:].flatten(), ignore_index=-1
            )
        }
        wanted = [k for k, one in enumerate(batch) if one.mask is not None]
        if wanted:
            parts |= self._mask_losses(batch, wanted, features, states, target)
        parts = {name: WEIGHTS[name] * value for name, value in parts.items()}
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def _mask_losses(
        self, batch: Sequence[Taught], wanted: list[int], features: Tensor, states: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        ends = np.cumsum([len(one.images) for one in batch])
        segs = target == self.network.seg
        if not all(int(segs[k].sum()) == 1 for k in wanted):
            raise ModelInputError(
                self.card.slug, f"an answer with a mask has no or several {SEG}", f"Write one {SEG}."
            )
        last = [int(ends[k]) for k in wanted]
        found = self.network.segment(
            torch.stack([states[k][segs[k]][0] for k in wanted]),
            features[[e - 2 for e in last]],
            features[[e - 1 for e in last]],
        )
        masks = [torch.from_numpy(np.asarray(batch[k].mask, np.float32))[None, None] for k in wanted]
        side = (self.network.side, self.network.side)
        truth = torch.cat([F.interpolate(m, side, mode="nearest") for m in masks])[:, 0].to(found)
        return {
            "bce": F.binary_cross_entropy_with_logits(found, truth),
            "dice": binary_dice(found.sigmoid(), truth),
        }

    # --- answering ---------------------------------------------------------------------------------------
    @torch.inference_mode()
    def say(self, images: Sequence[np.ndarray], text: str, masked: bool = False, longest: int = 256) -> Said:
        """The answer to a text with `<image>` for each image, the likeliest token after each.

        Args:
            images: float32 [3, H, W] of 0..255 each; with `masked` the last two are the dates of the mask.
            masked: use the weights for masks.
            longest: tokens of the answer.

        Raises:
            ModelInputError: another number of images than the text has places for, or fewer than two for a
                mask.
        """
        if text.count(IMAGE) != len(images) or (masked and len(images) < 2):
            raise ModelInputError(
                self.card.slug,
                f"has {len(images)} images and a text with {text.count(IMAGE)} places for them",
                f"Write {IMAGE} where each image comes; a mask needs two dates.",
            )
        network = self.network.eval()
        features = network.see(self._pixels(images)) if images else None
        seen = network.tokens(features) if features is not None else torch.zeros(0, 1, 1, device=self.device)
        ids = self._prompt(text, masked=masked)
        prompt, end = len(ids), self.tokenizer.id_of(END)
        rows = torch.tensor([int(masked)], device=self.device)
        state: Tensor | None = None
        while len(ids) - prompt < longest:
            embedded, there, _ = network.embed([torch.tensor(ids, device=self.device)], seen)
            logits, states = network.read(embedded, there, rows)
            if ids[-1] == network.seg and state is None and len(ids) > prompt:
                state = states[:, -1]
            following = int(logits[0, -1].argmax())
            if following == end:
                break
            ids.append(following)
        said = self.tokenizer.decode(ids[prompt:])
        if state is None or features is None or len(images) < 2:
            return Said(said)
        found = network.segment(state, features[-2:-1], features[-1:]).sigmoid()
        size = images[-1].shape[1:]
        whole = F.interpolate(found[None], size, mode="bilinear")[0, 0]
        return Said(said, whole.float().cpu().numpy())

    def __call__(self, question: DvlQuestion, parts: Sequence[Part]) -> Said:
        """An answer to a question of DVL-Bench, shown as `parts`."""
        text, images = _written(parts)
        return self.say(images, text, masked=question.task.kind == "mask")

    def taught(self, question: DvlQuestion) -> Taught:
        """A question of DVL-Instruct for `loss`."""
        text, images = _written(message(question))
        mask = question.read_mask() if question.mask else None
        return Taught(np.stack(images), text, question.answer, mask)

    def _prompt(self, text: str, *, masked: bool) -> list[int]:
        return self.tokenizer.encode(f"{SE if masked else QA}{text}\n")

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of any sizes, resized and normalised, [N, 3, S, S]."""
        side = (self.network.side, self.network.side)
        rows = [torch.from_numpy(np.ascontiguousarray(i, np.float32))[None] for i in images]
        whole = torch.cat([F.interpolate(r, side, mode="bilinear", antialias=True) for r in rows])
        return ((whole - self._mean) / self._std).to(self.device)


def _written(parts: Sequence[Part]) -> tuple[str, list[np.ndarray]]:
    """A message as one text with `<image>` for each image, and the images."""
    text = "".join(part.text + IMAGE * len(part.images) for part in parts)
    return text, [read_rgb(path) for part in parts for path in part.images]


# --- files -----------------------------------------------------------------------------------------------
def load_trained(network: DVLChat, path: Path | str) -> None:
    """Fills what training changes from a file that holds exactly that, see `DVLChat.trained`.

    Raises:
        FileMissingError, UnreadableFileError, UnsafeWeightsError, WeightsMismatchError.
    """
    tensors = read_tensors(path)
    own = network.trained()
    holder = nn.Module()
    for name, tensor in own.items():
        holder.register_buffer(name.replace(".", "/"), tensor.clone())
    load_strict(holder, {k.replace(".", "/"): v for k, v in tensors.items()}, source=str(path))
    filled = {k.replace("/", "."): v for k, v in holder.state_dict().items()}
    network.load_state_dict(filled, strict=False)  # all names were checked


def _read_sam(t: Any, path: Path) -> Any:
    """SAM from the folder of a `SamModel`, or from Meta's file of ViT-H."""
    if path.is_dir():
        return read_model(path, "SamModel", None)[1]
    huge = t.SamVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        global_attn_indexes=[7, 15, 23, 31],
    )
    sam = t.SamModel(t.SamConfig(vision_config=huge))
    load_strict(sam, official_sam(read_tensors(path)), source=str(path))
    return sam


def tiny_language(words: int, width: int = 64, layers: int = 2) -> Any:
    """A random language model of the family of Qwen2, small enough for a test."""
    t = library()
    config = t.Qwen2Config(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    return t.Qwen2ForCausalLM(config)


def tiny_sam(side: int = 64) -> Any:
    """A random SAM for images of `side` pixels."""
    t = library()
    patch, width = 8, 32
    return t.SamModel(
        t.SamConfig(
            vision_config=t.SamVisionConfig(
                hidden_size=32,
                output_channels=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=side,
                patch_size=patch,
                global_attn_indexes=[1],
                window_size=4,
                mlp_dim=64,
                num_pos_feats=width // 2,
                initializer_range=0.1,  # that of the class leaves nothing of an image
            ),
            prompt_encoder_config=t.SamPromptEncoderConfig(
                hidden_size=width, image_size=side, patch_size=patch, mask_input_channels=4
            ),
            mask_decoder_config=t.SamMaskDecoderConfig(
                hidden_size=width, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
            ),
        )
    )


@register(HEAD, CHAT_CARD, NANO_CARD)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    language: Path | str | Any = None,
    sam: Path | str | Any = None,
    tokenizer: Tokenizer | None = None,
    layers: Sequence[str] | None = None,
    rank: int | None = None,
) -> DVLChatSystem:
    """The system of a card; `dvl-suite` by itself is `dvl-suite/dvlchat`.

    Args:
        card: one of this file.
        weights: a file of what training changes.
        untrained: new adapters, prompt and fusion.
        language: the folder of a model of `transformers`, or a model with a `tokenizer`.
        sam: the folder of a `SamModel`, Meta's file of ViT-H, or a model. The nano size makes small random
            ones of both.
        tokenizer: of a model that is given.
        layers, rank: of LoRA, in the place of those of the size.

    Raises:
        MissingExtraError: `transformers` is not installed.
        SystemNotReadyError: a file that is needed is not given.
        And those of `load_trained`.
    """
    size = SIZES[card.slug.partition("/")[2] or "dvlchat"]
    size = replace(size, layers=tuple(layers or size.layers), rank=rank or size.rank)
    t = library()
    if card is NANO_CARD or card.slug == NANO_CARD.slug:
        tokenizer = tokenizer or Bytes()
        language = tiny_language(len(Bytes())) if language is None else language
        sam = tiny_sam() if sam is None else sam
    for name, given in (("language", language), ("sam", sam)):
        if given is None:
            raise SystemNotReadyError(
                card.slug,
                f"needs the {name} model, and none comes with it",
                f"Give the folder of one as {name}=, or build {NANO_CARD.slug}.",
            )
    if isinstance(language, str | Path):
        _, read, words = read_model(language)
        tokenizer = Hub(words)
        read.resize_token_embeddings(len(tokenizer))
        language = read
    if isinstance(sam, str | Path):
        sam = _read_sam(t, Path(sam))
    if tokenizer is None:
        raise SettingError("tokenizer", "of the language model is not given", "Give `tokenizer=`.")
    network = DVLChat(language, sam, size, tokenizer.id_of(SEG), tokenizer.id_of(IMAGE))
    if weights is not None:
        load_trained(network, weights)
    elif not untrained:
        raise SystemNotReadyError(
            card.slug, "no weights come with it", "Give a file of weights with --weights."
        )
    network.eval()
    return DVLChatSystem(card, network, tokenizer)
