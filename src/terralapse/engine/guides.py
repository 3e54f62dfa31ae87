"""Labels of another model for training with few labels, made with the systems of this library alone.

A segmenter says where buildings are at each date, and detectors that need no training say where the two
dates differ at all. None of them sees a label of change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from terralapse import registry
from terralapse.cards import Task
from terralapse.data.labellers import SegmenterLabeller
from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.pseudo_labels import Evidence
from terralapse.engine.evaluate import array_pair, predict_whole
from terralapse.errors import SettingError
from terralapse.tasks.change import ChangeDetector


def segmenter_labeller(slug: str, weights: Path | str | None = None, **options: Any) -> SegmenterLabeller:
    """A trained segmenter of two classes (ground, building) as a labeller; `options` are the labeller's.

    Raises:
        SettingError: the system does not segment.
        SystemNotReadyError, and others of `terralapse.layers.weights`: its weights are missing or do not fit.
    """
    card = registry.card(slug)
    if card.task is not Task.SEGMENTATION or card.classes != "buildings":
        raise SettingError(
            slug, "does not segment buildings", "Choose a system such as cvmh-unet/buildings-nano."
        )
    return SegmenterLabeller(registry.build(slug, weights=weights), **options)


def joint_evidence(
    detectors: Sequence[ChangeDetector], low: float, high: float, smooth: float = 3.0, turns: int = 1
) -> Evidence:
    """What several detectors agree on in a pair, which each is fitted on by itself.

    The product of their probabilities is smoothed, because they look at pixels and buildings are larger: what
    is at least `high` changed, what is below `low` did not, and between them nothing is said.

    Args:
        detectors: of change.
        low, high: of the smoothed product.
        smooth: standard deviation in pixels.
        turns: 1 to 4; a probability is the mean of so many quarter turns of the pair.

    Raises:
        SettingError: no detector, limits that are no range, or no such number of turns.
    """
    if not 1 <= turns <= 4:
        raise SettingError(f"turns={turns}", "is no number of quarter turns", "Give 1 to 4.")
    if not detectors or not 0 <= low <= high <= 1:
        raise SettingError(
            f"low={low:g}, high={high:g}",
            "is no range, or no detector is given",
            "Give 0 <= low <= high <= 1.",
        )

    def found(pair: LabelledPair) -> np.ndarray:
        product, valid = np.ones(pair.images.shape[2:], np.float32), np.ones(pair.images.shape[2:], bool)
        for detector in detectors:
            total = np.zeros_like(product)
            for turn in range(turns):
                scene = array_pair(_turned(pair, turn), detector)
                probability, known = predict_whole(detector, scene, detector.fit(scene.sample()))
                total += np.rot90(np.where(known, probability, np.float32(0)), -turn)
                valid &= np.rot90(known, -turn)
            product *= total / turns
        joint = gaussian_filter(product, smooth)
        label = np.where(joint >= high, 1, np.where(joint < low, 0, IGNORE))
        return np.where(valid, label, IGNORE).astype(np.uint8)

    return found


def _turned(pair: LabelledPair, turns: int) -> LabelledPair:
    """By quarter turns; without its label, which nobody here may see."""
    images = np.ascontiguousarray(np.rot90(pair.images, turns, axes=(2, 3)))
    return replace(pair, images=images, label=np.full(images.shape[2:], IGNORE, np.uint8))
