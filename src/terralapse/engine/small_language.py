"""A small language model of one's own, made from the texts of a data set of instructions.

It knows the words of these texts and how answers follow instructions, and it sees no image. Frozen behind a
network that does, it stands in for the large models of the papers on a machine without a GPU: it is no model
of English.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from terralapse.data.chat import Chats, plain_text
from terralapse.errors import OutputExistsError, SettingError
from terralapse.layers.chat_models import library
from terralapse.layers.language_model import IGNORED, LanguageModel, load_language_model

END = "</s>"
SOFT = 8  # vectors before a text


@dataclass(frozen=True)
class SmallLanguage:
    """Width, layers and heads of a LLaMA, and how many tokens it knows; steps of its training, texts of a
    step, and the highest rate."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    tokens: int = 1024
    steps: int = 600
    batch: int = 32
    lr: float = 2e-3
    seed: int = 0


def texts_of(dataset: Chats) -> list[tuple[str, str]]:
    """Every instruction of a data set with each of its answers, as networks are told them."""
    turns = (dataset.turn(i) for i in range(len(dataset)))
    return [(plain_text(t.instruction), plain_text(a)) for t in turns for a in t.answers]


def make_language_model(
    texts: Sequence[tuple[str, str]], out: Path | str, how: SmallLanguage | None = None
) -> LanguageModel:
    """Trains a small LLaMA on texts and saves it with its tokenizer, as `save_pretrained` does.

    Args:
        texts: instructions with their answers.
        out: a folder that is not there yet, or is empty.

    Raises:
        MissingExtraError: `transformers` is not installed.
        OutputExistsError: there is something in `out`.
        SettingError: there are no texts.
    """
    how, out = how or SmallLanguage(), Path(out)
    if out.exists() and any(out.iterdir()):
        raise OutputExistsError(out, "is not empty", "Name another folder.")
    if not texts:
        raise SettingError("texts", "are none", "Give instructions with their answers.")
    known = library()
    tokenizer = _pieces(texts, how.tokens)
    torch.manual_seed(how.seed)
    config = known.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=how.width,
        intermediate_size=2 * how.width,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        num_key_value_heads=how.heads,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = known.LlamaForCausalLM(config)
    _train(model, tokenizer, texts, how)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return load_language_model(out)


def _pieces(texts: Sequence[tuple[str, str]], size: int) -> Any:
    """A tokenizer of pieces of bytes, learned from the texts: it can spell any text, and knows frequent
    words."""
    pieces = importlib.import_module("tokenizers")
    bytes_ = pieces.pre_tokenizers.ByteLevel(add_prefix_space=True)
    whole = pieces.Tokenizer(pieces.models.BPE())
    whole.pre_tokenizer, whole.decoder = bytes_, pieces.decoders.ByteLevel()
    trainer = pieces.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=bytes_.alphabet(), show_progress=False
    )
    whole.train_from_iterator((part for text in texts for part in text), trainer)
    return library().PreTrainedTokenizerFast(
        tokenizer_object=whole, eos_token=END, bos_token=END, clean_up_tokenization_spaces=False
    )


def _train(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], how: SmallLanguage) -> None:
    """Cross-entropy of all tokens, behind random vectors where soft tokens will stand."""
    spoken = LanguageModel(model, tokenizer)  # for its texts; it freezes the model
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), how.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, how.steps)
    drawing = torch.Generator().manual_seed(how.seed)
    for _ in range(how.steps):
        chosen = [texts[n] for n in torch.randint(len(texts), (how.batch,), generator=drawing).tolist()]
        batch = spoken.taught([q for q, _ in chosen], [a for _, a in chosen])
        words = model.get_input_embeddings()(batch.ids)
        soft = words.detach().std() * torch.randn(how.batch, SOFT, words.shape[2], generator=drawing)
        seen = torch.cat([batch.mask.new_ones(how.batch, SOFT), batch.mask], dim=1)
        logits = model(inputs_embeds=torch.cat([soft, words], dim=1), attention_mask=seen).logits
        labels = batch.ids.masked_fill(batch.mask == 0, IGNORED)
        loss = F.cross_entropy(logits[:, SOFT - 1 : -1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
