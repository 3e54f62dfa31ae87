"""Small language models and networks for tests of systems that answer instructions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from terralapse.layers.language_model import LanguageModel, Start

TEXTS = (
    "please judge whether these two images have changed please answer yes or no",
    "please determine how many roads and buildings have changed?",
    "there are 0 1 2 3 4 5 6 7 8 9 no new roads and new buildings q a",
    "the scene is the same as before",
)


def tokenizer(texts: Iterable[str] = TEXTS) -> Any:
    """Whole words, cut at blanks, with tokens for start, end and the unknown."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = sorted({w for t in texts for w in t.split()})
    table = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *words])}
    whole = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(words: int, width: int = 32, spread: float = 0.2, seed: int = 0) -> Any:
    """A LLaMA of two layers with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=spread,
            tie_word_embeddings=False,
        )
    )


def language_model(texts: Iterable[str] = TEXTS, start: Start = "end", **options: Any) -> LanguageModel:
    """Both together."""
    known = tokenizer(texts)
    return LanguageModel(llama(len(known), **options), known, start)
