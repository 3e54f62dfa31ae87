"""Sentences about two pictures by a system that writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from terralapse import registry
from terralapse.errors import ModelInputError
from terralapse.tasks.captions import Captioner


def describer_of(
    slug: str, weights: Path | str | None = None, vocabulary: Path | str | None = None
) -> Callable[[np.ndarray, np.ndarray], str]:
    """What gives a sentence about two pictures, uint8 [h, w, 3] each, the earlier one first.

    Args:
        slug: of a system that writes sentences about pairs in natural colours.
        weights: its file, None for the weights that come with it; vocabulary: the file of its words.

    Raises:
        ModelInputError: it writes no sentences.
        SettingError: the vocabulary is not known.
        And what building the system raises.
    """
    given = {"weights": weights, "vocabulary": vocabulary}
    system = registry.build(slug, **{k: v for k, v in given.items() if v is not None})
    if not isinstance(system, Captioner):
        raise ModelInputError(slug, "writes no sentences", "See `terralapse systems --task language`.")
    system.need_vocabulary()

    def describe(before: np.ndarray, after: np.ndarray) -> str:
        both = torch.from_numpy(np.stack([before, after])).permute(0, 3, 1, 2)[None].float()
        return system.caption(both)[0]  # pyright: ignore[reportAttributeAccessIssue]

    return describe
