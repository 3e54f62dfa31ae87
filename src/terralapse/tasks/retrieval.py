"""Images and captions in one space: what such a network returns, and how it is taught."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from terralapse.tasks.network import NetworkSystem, Target


@dataclass
class RetrievalOutput:
    """`images` [B, D] and `texts` [T, D] of unit length, `owner` int64 [T] the image of each text, `words`
    int64 [T] a number that is the same for texts of the same words, `scale` the factor of cosines."""

    images: Tensor
    texts: Tensor
    owner: Tensor
    words: Tensor
    scale: Tensor

    def positive(self) -> Tensor:
        """bool [B, T]: whether a text is one of the image's, or has the same words as one of them."""
        own = self.owner[None] == torch.arange(len(self.images), device=self.owner.device)[:, None]
        same = self.words[:, None] == self.words[None]
        return (own.float() @ same.float()) > 0


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """The symmetric contrastive loss where several items may belong to one: the mean over images, and over
    texts, of the mean of -log softmax at what belongs to them; half the sum of both.

    Args:
        logits: [B, T].
        positive: bool [B, T]; one or more in each row and in each column.
    """

    def one_way(rows: Tensor, belongs: Tensor) -> Tensor:
        log = rows.log_softmax(dim=1)
        return -((log * belongs).sum(dim=1) / belongs.sum(dim=1)).mean()

    return (one_way(logits, positive.float()) + one_way(logits.T, positive.T.float())) / 2


def number_of(tokens: Tensor) -> Tensor:
    """A number int64 [T] that is the same for the same row of tokens [T, L]."""
    powers = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=torch.int64)
    return (tokens * (powers * 2654435761 + 40503)).sum(dim=1) ^ (tokens * powers * powers).sum(dim=1)


class TextImageSystem(NetworkSystem):
    """A network with an image tower and a text tower.

    A batch holds `tokens` int64 [B, L], one caption an image (in training), or `captions` int64 [B, R, L],
    where rows of zeros are none.
    """

    extras = ("tokens", "captions")

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """[B, D] of normalised images [B, 3, H, W]."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """[T, D] of ids [T, L]."""

    @abstractmethod
    def tokens_of(self, captions: Sequence[str]) -> np.ndarray:
        """Captions as int64 [R, L]."""

    @abstractmethod
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""

    def forward(
        self, images: Tensor, tokens: Tensor | None = None, captions: Tensor | None = None
    ) -> RetrievalOutput:
        if tokens is not None:
            rows, owner = tokens, torch.arange(len(tokens), device=tokens.device)
        elif captions is not None:
            there = (captions != 0).any(dim=2)
            rows, owner = captions[there], there.nonzero()[:, 0]
        else:
            raise ValueError("a batch without captions cannot be compared with any")
        return RetrievalOutput(
            unit(self.encode_image(images[:, 0])),
            unit(self.encode_text(rows)),
            owner,
            number_of(rows),
            self.scale(),
        )

    def loss(self, output: RetrievalOutput, target: Target) -> dict[str, Tensor]:
        logits = output.scale * output.images @ output.texts.T
        return {"total": multi_positive_loss(logits, output.positive())}


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in single precision."""
    return torch.nn.functional.normalize(x.float(), dim=1)
