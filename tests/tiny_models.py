"""Language and vision-language models of transformers with two layers and random weights, and tokenizers made
in memory: they say nothing of sense, and go the whole way that a real one goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

TALK = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<image>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def tokenizer(marks: tuple[str, ...] = MARKS) -> Any:
    """Of bytes: every text can be read, and every token is one."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": [m for m in marks if m != "<|end|>"]})
    fast.chat_template = TALK
    return fast


def text_config(words: int, **more: Any) -> dict[str, Any]:
    """Of a tiny decoder."""
    return {
        "vocab_size": words, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16384,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    } | more  # fmt: skip


def tiny_llama(**more: Any) -> tuple[Any, Any]:
    """A model that writes, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = tokenizer()
    config = transformers.LlamaConfig(**text_config(len(words), **more))
    return transformers.LlamaForCausalLM(config).eval(), words


def tiny_llava() -> tuple[Any, Any]:
    """A model that sees, and its processor: 4 tokens an image of 28 pixels."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**text_config(len(words))),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
    )
    processor = transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=words, patch_size=14, vision_feature_select_strategy="default",
        chat_template=TALK, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def save(folder: Path, made: tuple[Any, Any]) -> Path:
    """As `save_pretrained` writes it."""
    for part in made:
        part.save_pretrained(folder)
    return folder
