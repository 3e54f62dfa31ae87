"""BLIP-2 of `transformers`, in parts: an image encoder and a language model that stay as they are, and
between them the queries that learn.

Source: Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large
Language Models", ICML 2023 (arXiv:2301.12597). The language model sees the projected queries, its token for
the start, and then the caption.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.errors import SettingError
from terralapse.layers.chat_models import model_folder, read_config, read_model
from terralapse.layers.language_model import LanguageModel

# What stands beside the weights and says how images and texts are prepared.
PREPARATION = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja")


class Queries(nn.Module):
    """What learns: the queries, the transformer in which they look at an image, and the projection."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens, self.qformer = model.query_tokens, model.qformer
        self.language_projection = model.language_projection

    def forward(self, seen: Tensor) -> Tensor:
        """Soft tokens [B, Q, D] of what the image encoder saw, [B, N, C]."""
        asked = self.qformer(
            query_embeds=self.query_tokens.expand(len(seen), -1, -1),
            encoder_hidden_states=seen.float(),
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        return self.language_projection(asked.last_hidden_state)


class Blip2:
    """A model of a folder. `network` is what learns, in single precision; image encoder and language model
    get no gradients and are always in evaluation.

    Args:
        source: a folder, or `owner/name@commit` of the hub; see
            `terralapse.layers.chat_models.model_folder`.
        dtype: of what stays: `auto` for that of the file, or `float32`, `float16`, `bfloat16`.

    Raises:
        MissingExtraError, FileMissingError, UnsafeWeightsError, UnreadableFileError: from the folder.
        SettingError: it is no BLIP-2, or its language model is no decoder alone; or no such `dtype`.
    """

    def __init__(self, source: Path | str, dtype: str = "auto") -> None:
        if dtype not in ("auto", "float32", "float16", "bfloat16"):
            raise SettingError(f"dtype={dtype}", "no such type", "Choose auto, float32, float16 or bfloat16.")
        self.folder = model_folder(source)
        stated = read_config(self.folder / "config.json")
        if stated.get("model_type") != "blip-2":
            fault = f"holds a model of the kind {stated.get('model_type')!r}, and this is for BLIP-2"
            raise SettingError(self.folder, fault, "Give the folder of blip2-opt-2.7b, for example.")
        if not stated.get("use_decoder_only_language_model", True):
            raise SettingError(
                self.folder,
                "holds a language model with an encoder of its own",
                "Give one that writes on, for example blip2-opt-2.7b.",
            )
        _, self.model, tokenizer = read_model(
            self.folder,
            "Blip2ForConditionalGeneration",
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            whole=True,
        )
        self._types = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}
        self.model.requires_grad_(False).eval()
        self.language = LanguageModel(self.model.language_model, tokenizer, "own")
        self._as_it_writes()
        self.network = Queries(self.model).float().requires_grad_(True)
        self.side = int(self.model.config.vision_config.image_size)

    def _as_it_writes(self) -> None:
        """Captions begin and end as `generate` of `transformers` begins and ends them."""
        end = self.model.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        self.language.end = self.language.end if end is None else int(end)
        first = self.model.config.text_config.bos_token_id
        self.language.start = [] if first is None else [int(first)]

    def to(self, device: torch.device | str) -> None:
        """Moves what stays."""
        self.model.vision_model.to(device)
        self.language.to(device)

    def look(self, images: Tensor) -> Tensor:
        """What the image encoder sees in normalised images [B, 3, H, W] of any size, [B, N, C]."""
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(
                images, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False
            )
        kind = self.model.vision_model.embeddings.patch_embedding.weight.dtype
        with torch.no_grad():
            return self.model.vision_model(pixel_values=images.to(kind)).last_hidden_state

    def preparation(self) -> dict[str, Any]:
        """How the folder says that images are prepared; empty where it says nothing.

        Raises:
            UnreadableFileError: the file is damaged.
        """
        for name in PREPARATION[:2]:
            path = self.folder / name
            if path.is_file():
                found = read_config(path)
                return found.get("image_processor", found)
        return {}

    def save(self, folder: Path) -> Path:
        """The whole model as `save_pretrained` writes it, in the types that it was read in, with its
        tokenizer and what prepares images. `folder` appears whole or not at all, in the place of an earlier
        one; returns it."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        tensors = {name: tensor.to(self._types[name]) for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(part, state_dict=tensors)
        self.language.tokenizer.save_pretrained(part)  # pyright: ignore[reportAttributeAccessIssue]
        for name in PREPARATION:
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, part / name)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        return folder


def texts_of(language: LanguageModel, rows: Sequence[Sequence[int]]) -> list[str]:
    """What rows of ids say."""
    return [str(language.tokenizer.decode(list(r), skip_special_tokens=True)).strip() for r in rows]
