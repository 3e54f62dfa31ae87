"""GAIA: BLIP-2 trained further to caption images, from a model of the user's own.

Source: Zavras, Michail, Zhu, Demir and Papoutsis, "GAIA: A Global, Multi-modal, Multi-scale Vision-Language
Dataset for Remote Sensing Image Analysis", IEEE GRSM 2026 (arXiv:2502.09598), and Li et al., "BLIP-2", ICML
2023 (arXiv:2301.12597). As in the second stage of BLIP-2, the image encoder and the language model stay as
they are, and the queries, their transformer and the projection learn from the cross-entropy of captions. The
first paper's code and settings of this training are not published: the rest is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.errors import SettingError, SystemNotReadyError
from terralapse.layers.blip2 import Blip2, texts_of
from terralapse.layers.language_model import Writing
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.image_captions import ImageCaptioner, ImageCaptionOutput

PREFIX = "The image showcases:"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of 0..1
FOLDER = "transformers"
CARD = Card(
    slug="gaia/blip2",
    title=(
        "GAIA: A Global, Multi-modal, Multi-scale Vision-Language Dataset for Remote Sensing Image Analysis: "
        "BLIP-2"
    ),
    task=Task.LANGUAGE,
    status=Status.RUNS,
    summary="BLIP-2 of your own, trained further to caption images; its language model stays as it is.",
    year=2025,
    paper="arXiv:2502.09598",
    repository="https://github.com/Orion-AI-Lab/GAIA",
    inputs=Inputs(
        dates=1,
        bands=("red", "green", "blue"),
        units=(Unit.RGB255,),
        normalisation=Normalisation(tuple(255 * m for m in MEAN), tuple(255 * s for s in STD)),
    ),
    licences=Licences(code="MIT", weights="those of the user's BLIP-2 and of its language model"),
    checkpoints="none",
    limits=(
        "The model is the user's to bring, for example blip2-opt-2.7b in the form of transformers.",
        "Models whose language model has an encoder of its own (blip2-flan-t5-*) are not read.",
        "The figures of the paper are not known, and its training is not published.",
        "A caption is a guess of a language model: nothing is counted or measured.",
    ),
    threshold=None,
)


class GaiaBlip2(ImageCaptioner):
    """A BLIP-2; see `terralapse.layers.blip2`. `network` is what learns, and all that is saved as weights.

    Args:
        longest: tokens of a caption, its start and end included; longer ones are cut, and counted by `cut`.
        prefix: what all captions begin with, and is left out of what is taught.
    """

    def __init__(self, card: Card, blip: Blip2, longest: int, prefix: str, writing: Writing) -> None:
        super().__init__(card, blip.network)
        self.blip, self.longest, self.prefix, self.writing = blip, longest, prefix, writing
        self.cut = 0

    def to(self, device: torch.device | str) -> GaiaBlip2:
        self.blip.to(device)
        return super().to(device)

    def tokens_of(self, captions: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(captions), self.longest), np.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = self.blip.language.answer(caption.removeprefix(self.prefix).strip(), self.longest)
            self.cut += ids[-1] != self.blip.language.end
            row[: len(ids)] = np.array(ids) + 1
        return rows

    def forward(
        self, images: Tensor, tokens: Tensor | None = None, captions: Tensor | None = None
    ) -> ImageCaptionOutput:
        """See `ImageCaptioner`; normalised images [B, 1, 3, H, W] of any size."""
        self.blip.to(images.device)
        soft, language = self.network(self.blip.look(images[:, 0])), self.blip.language
        if tokens is not None:
            rows = [(list(language.start), row) for row in _ids(tokens)]
            return ImageCaptionOutput(language.loss(soft, language.joined(rows)))
        texts = language.write(soft, [""] * len(images), self.writing)
        found = ImageCaptionOutput(texts=texts)
        if captions is not None:
            found.references = [texts_of(language, [r for r in _ids(rows) if r]) for rows in captions]
        return found

    def keep(self, folder: Path) -> Path:
        """Writes `transformers` in `folder`; see `Blip2.save`."""
        return self.blip.save(folder / FOLDER)


def _ids(rows: Tensor) -> list[list[int]]:
    """Ids of the tokenizer, of rows int64 [R, L] of them plus one."""
    return [[i - 1 for i in row if i] for row in rows.tolist()]


@register(CARD)
def build(
    card: Card,
    weights: Path | str | None = None,
    *,
    untrained: bool = False,
    folder: Path | str | None = None,
    dtype: str = "auto",
    longest: int = 64,
    prefix: str = PREFIX,
    beams: int = 1,
    length: int = 60,
) -> GaiaBlip2:
    """A BLIP-2 of the user, with what training here has changed of it.

    Args:
        weights: of training here: the queries, their transformer and the projection.
        untrained: take these as the folder has them, to train them further.
        folder: the model: a folder as `save_pretrained` writes it, or `owner/name@commit` of the hub. One
            that training here has written needs `untrained` in place of `weights`.
        dtype: of what stays; `auto` for that of the files.
        longest, prefix: see `GaiaBlip2`.
        beams, length: how captions are written: beams, and tokens at most.

    Raises:
        SystemNotReadyError: no folder, or neither `weights` nor `untrained`.
        SettingError: a number makes no sense, or the folder prepares images in another way.
        and those of `terralapse.layers.blip2.Blip2` and of `load_weights`.
    """
    if folder is None:
        raise SystemNotReadyError(
            card.slug,
            "no model comes with it",
            "Give the folder of a BLIP-2: --build folder=FOLDER, or build_folder in a recipe.",
        )
    if longest < 3:
        raise SettingError(f"longest={longest}", "leaves no room for a caption", "Take 64.")
    if weights is None and not untrained:
        raise SystemNotReadyError(
            card.slug,
            "no weights come with it",
            "Give a file of weights, or untrained=true for the model as its folder has it.",
        )
    writing = Writing(beams, length, 1, 1.0)
    blip = Blip2(folder, dtype)
    said = blip.preparation()
    for name, known in (("image_mean", MEAN), ("image_std", STD)):
        if not np.allclose(said.get(name, known), known, atol=1e-3):
            raise SettingError(
                blip.folder, f"normalises images by {name} {said[name]}", f"Take a model with {list(known)}."
            )
    if weights is not None:
        load_weights(blip.network, card, weights)
    blip.network.eval()
    return GaiaBlip2(card, blip, longest, prefix, writing)
