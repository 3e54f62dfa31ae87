"""Tokenizers of models that talk about images and draw masks, and the names in files of SAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

QA, SE, SEG, IMAGE, END = "[QA]", "[SE]", "[SEG]", "<image>", "<end>"


class Tokenizer(Protocol):
    """What is needed of a tokenizer: ids of a text without special ones at its ends, texts of ids, and the
    ids of the five tokens `QA`, `SE`, `SEG`, `IMAGE` and `END`."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def id_of(self, token: str) -> int: ...


class Bytes:
    """A tokenizer that needs no file: bytes of UTF-8, and the five tokens after them."""

    special = (QA, SE, SEG, IMAGE, END)

    def __len__(self) -> int:
        return 256 + len(self.special)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            at, token = min(((text.find(t), t) for t in self.special if t in text), default=(len(text), ""))
            ids += text[:at].encode()
            ids += [self.id_of(token)] if token else []
            text = text[at + len(token) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        found, raw = "", bytearray()
        for i in [*ids, -1]:
            if 0 <= i < 256:
                raw.append(i)
                continue
            found += raw.decode(errors="replace")
            raw.clear()
            found += self.special[i - 256] if i >= 256 else ""
        return found

    def id_of(self, token: str) -> int:
        return 256 + self.special.index(token)


class Hub:
    """A tokenizer of `transformers`, to which the five tokens are added."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        inner.add_special_tokens({"additional_special_tokens": list(Bytes.special)})

    def __len__(self) -> int:
        return len(self.inner)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int:
        return self.inner.convert_tokens_to_ids(token)


# --- files of SAM ---
_SAM = (  # what a file of Meta's SAM calls its parts, and `transformers`, in the order of replacing
    ("image_encoder.", "vision_encoder."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".blocks.", ".layers."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    (".norm", ".layer_norm"),
    ("iou_prediction_head.layers.0.", "iou_prediction_head.proj_in."),
    ("iou_prediction_head.layers.1.", "iou_prediction_head.layers.0."),
    ("iou_prediction_head.layers.2.", "iou_prediction_head.proj_out."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    ("point_embeddings.", "point_embed."),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
)
_SHARED = "shared_image_embedding.positional_embedding"


def official_sam(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of Meta's SAM (`sam_vit_h_4b8939.pth`), or of SAM inside of a file of the LISA
    family (`...visual_model.`), by the names of `SamModel`; those that have them already are left alone."""
    if _SHARED in tensors:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name.rpartition("visual_model.")[2]
        for theirs, ours in _SAM:
            new = new.replace(theirs, ours)
        head, at, rest = new.partition("output_hypernetworks_mlps.")
        if at and ".layers." in rest:
            number, _, layer = rest.partition(".layers.")
            kind, _, last = layer.partition(".")
            middle = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}[kind]
            new = f"{head}{at}{number}.{middle}.{last}"
        found[new] = tensor
    own = "prompt_encoder.shared_embedding.positional_embedding"
    if own in found:
        found[_SHARED] = found[own]
    return found
