"""Captions of single images, written and taught: outputs, systems, and what is counted.

Keys of a batch beside `images`: in training `tokens` int64 [B, L], one caption an image; otherwise `captions`
int64 [B, R, L], the references. Ids are one more than those of the tokenizer, so that 0 fills up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terralapse.tasks.caption_metrics import caption_scores, words
from terralapse.tasks.measures import Measure, Scores
from terralapse.tasks.network import NetworkSystem, Target


@dataclass
class ImageCaptionOutput:
    """`loss`: of captions that were given, in training. `texts`: captions that were written, with
    `references`, those of the batch, of each image. What was not asked for is None or empty."""

    loss: Tensor | None = None
    texts: list[str] | None = None
    references: list[list[str]] = field(default_factory=list)


class ImageCaptioner(NetworkSystem):
    """A network that writes a caption of an image. `forward` returns an `ImageCaptionOutput`."""

    extras = ("tokens", "captions")

    @abstractmethod
    def tokens_of(self, captions: Sequence[str]) -> np.ndarray:
        """Captions as int64 [R, L], always of the same length."""

    @abstractmethod
    def keep(self, folder: Path) -> Path:
        """Writes the whole model, as it is now, as a folder of the program that it comes from; returns it."""

    def caption(self, images: Tensor) -> list[str]:
        """Captions of images [B, 3, H, W] of 0 to 255."""
        with torch.inference_mode():
            return self.forward(self.normalise(images[:, None], None, {})).texts

    def loss(self, output: ImageCaptionOutput, target: Target) -> dict[str, Tensor]:
        """Cross-entropy of the captions."""
        assert output.loss is not None, "a batch to learn from holds tokens"
        return {"total": output.loss}


class ImageCaptionMeasure(Measure):
    """Scores of captions over the whole corpus, by words; `empty` is the share of images that got none.
    Training maximises `captions.bleu4`. CIDEr-D weighs words by the whole corpus: counts are the captions
    themselves, in one row of numbers: of each image how many texts, then of each its length and characters,
    the written one first."""

    monitor = "captions.bleu4"
    sums = False
    stream: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("stream", [], dist_reduce_fx="cat")

    def update(self, output: ImageCaptionOutput, target: Mapping[str, Any]) -> None:
        """Counts a batch of captions that were written."""
        for text, references in zip(output.texts or (), output.references, strict=True):
            row = [1 + len(references)]
            for said in (text, *references):
                row += [len(said), *map(ord, said)]
            self.stream.append(torch.tensor(row, dtype=torch.int64, device=self.device))

    def counts(self) -> dict[str, np.ndarray]:
        stream: Any = self.stream  # one tensor once processes were brought together
        rows = stream if isinstance(stream, list) else [stream]
        return {"stream": torch.cat(rows).cpu().numpy() if rows else np.empty(0, np.int64)}

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {"stream": np.concatenate([p["stream"] for p in parts])}

    @staticmethod
    def said(stream: np.ndarray) -> list[list[str]]:
        """Of each image the written caption and its references, from a row of numbers."""
        left = iter(stream.tolist())
        return [
            ["".join(chr(next(left)) for _ in range(next(left))) for _ in range(number)] for number in left
        ]

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        images = [[words(text) for text in texts] for texts in self.said(counts["stream"])]
        if not images:
            return {"captions": {"images": 0, "bleu4": float("nan")}}
        found = caption_scores([i[0] for i in images], [i[1:] for i in images]).as_dict()
        empty = float(np.mean([not i[0] for i in images]))
        return {"captions": {**found, "images": len(images), "empty": empty}}
