"""Change vector analysis (Malila 1980) with the unsupervised threshold of Bruzzone and Prieto (2000).

The change vector of a pixel is the difference of its two spectra. Here each date is first put on a robust
scale of its own and each band is divided by its noise, so that no band wins because of its units; the
magnitude is cut by the minimum-error rule of Kittler and Illingworth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terralapse.cards import Card, DateOrder, Inputs, Licences, Status, Task
from terralapse.grid.pair import PairSample
from terralapse.layers.unsupervised import (
    change_cut,
    cut_probability,
    match_dates,
    scale_dates,
    usable,
    valid_pixels,
)
from terralapse.registry import register
from terralapse.tasks.change import ChangeDetector

CARD = Card(
    slug="cva",
    title="Change vector analysis with a minimum-error threshold",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Length of the spectral change vector on robustly scaled bands, cut by Kittler-Illingworth.",
    year=2000,
    paper="Bruzzone and Prieto, Automatic analysis of the difference image for unsupervised change "
    "detection, IEEE TGRS 38(3), 2000",
    inputs=Inputs(dates=2, halo=0),
    classes="binary-change",
    licences=Licences(code="Apache-2.0"),
    limits=(
        "Every spectral change counts: crops, leaves, shadows and water are flagged like buildings.",
        "It assumes that less than about half of the scene has changed.",
        "It looks at single pixels: a shift between the dates draws the outline of every object.",
        "The probability is a distance to the threshold, not a calibrated frequency.",
    ),
)


class ChangeVectorAnalysis(ChangeDetector):
    """rho = |d|, d_b = (x2_b - x1_b) / noise_b on matched dates; change where rho exceeds the cut."""

    halo = 0

    def __init__(self, card: Card = CARD) -> None:
        self.card = card

    def fit(self, sample: PairSample) -> dict[str, Any]:
        pixels = valid_pixels(sample)  # [2, C, N]
        state = match_dates(pixels)
        images = torch.from_numpy(pixels)[None, ..., None]  # [1, 2, C, N, 1]
        squared = change_vector(images, state).square().sum(dim=1).numpy().ravel()
        return state | change_cut(squared)

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        squared = change_vector(images, state).square().sum(dim=1)  # [B, H, W]
        known = usable(images, valid)
        return cut_probability(squared.where(known, 0.0), state).where(known, 0.0)

    def direction(self, images: Tensor, state: dict[str, Any]) -> Tensor:
        """Unit change vectors float [B, C, H, W]: which bands rose and which fell; zero where nothing moved,
        NaN where a date is missing."""
        vector = change_vector(images, state)
        length = vector.norm(dim=1, keepdim=True)
        return vector / length.clamp_min(torch.finfo(vector.dtype).tiny ** 0.5)


def change_vector(images: Tensor, state: dict[str, Any]) -> Tensor:
    """d [B, C, H, W] in units of the noise of each band, from images [B, 2, C, H, W]."""
    scaled = scale_dates(images, state)
    return scaled[:, 1] - scaled[:, 0]


@register(CARD)
def build(card: Card) -> ChangeVectorAnalysis:
    """The detector; it has no weights."""
    return ChangeVectorAnalysis(card)
