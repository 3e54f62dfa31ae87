"""Two small towers for images and captions, of this library: a CPU trains them in minutes.

Words are hashed to places of a table, so that no vocabulary travels with the weights; two words of one place
are one word.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACES = 4096  # of the table of words; 0 is padding
START = 2.6592600369327779  # log(1 / 0.07)
_WORD = re.compile(r"[a-z]+|\d+|%")


def hashed_words(text: str, length: int) -> np.ndarray:
    """The words, numbers and per cent signs of a text as int64 [length] of 1 to PLACES - 1, 0 after its end;
    a longer text is cut."""
    words = _WORD.findall(text.lower())[:length]
    row = np.zeros(length, np.int64)
    row[: len(words)] = [1 + zlib.crc32(w.encode()) % (PLACES - 1) for w in words]
    return row


def _halving(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.GELU(),
        nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.GELU(),
    )  # fmt: skip


class TwoTowers(nn.Module):
    """Images [B, 3, H, W] of any size and captions int64 [B, L] to [B, embed].

    The image tower keeps the 4 x 4 parts of an image apart, since captions speak of places in it.

    Args:
        width: channels of the last stage and of the words.
        embed: width of the embedding.
        length: words of a caption.
    """

    def __init__(self, width: int = 128, embed: int = 128, length: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.length = length
        self.stem = nn.Sequential(
            _halving(3, width // 4), _halving(width // 4, width // 2), _halving(width // 2, width)
        )
        self.image_out = nn.Linear(width * 16, embed)
        self.words = nn.Embedding(PLACES, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.text_norm = nn.LayerNorm(width)
        self.text_out = nn.Linear(width, embed)
        self.logit_scale = nn.Parameter(torch.tensor(START))
        nn.init.normal_(self.words.weight, std=0.02)

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, embed] of normalised images."""
        return self.image_out(F.adaptive_avg_pool2d(self.stem(images), 4).flatten(1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, embed] of words; those of a text without words are read as one padding."""
        missing = tokens == 0
        missing = missing & ~missing.all(dim=1, keepdim=True)
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        x = self.text_norm(self.reader(x, src_key_padding_mask=missing))
        there = (~missing).to(x.dtype)[..., None]
        return self.text_out((x * there).sum(dim=1) / there.sum(dim=1))
