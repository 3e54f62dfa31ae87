"""Robust change vector analysis: a change vector that forgives small shifts and different views.

Thonfeld, Feilhauer, Braun and Menz, Robust Change Vector Analysis (RCVA) for multi-sensor very high
resolution optical satellite data, Int. J. Appl. Earth Obs. Geoinf. 50, 2016. A pixel is compared with all
pixels of a small window on the other date and keeps the smallest difference; both directions are tried and
the smaller one counts. Here the nearest neighbour is chosen by the whole spectrum rather than band by band.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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

RADIUS = 2  # a window of 5 x 5 pixels

CARD = Card(
    slug="rcva",
    title="Robust change vector analysis",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Smallest spectral distance within a 5 x 5 window on the other date, cut by Kittler-Illingworth; "
    "forgives misregistration and relief displacement of up to two pixels.",
    year=2016,
    paper="Thonfeld et al., Robust Change Vector Analysis (RCVA) for multi-sensor very high resolution "
    "optical satellite data, Int. J. Appl. Earth Obs. Geoinf. 50, 2016",
    inputs=Inputs(dates=2, halo=RADIUS),
    classes="binary-change",
    licences=Licences(code="Apache-2.0"),
    limits=(
        "Changes narrower than its window vanish: at 10 m and coarser that is most of them.",
        "Colour is all it sees; a roof turned to rubble of the same colour is not found.",
        "Lawns and trees of another season are flagged as readily as debris (measured on the Joplin pair).",
        "It assumes that less than about half of the scene has changed.",
        "The probability is a distance to the threshold, not a calibrated frequency.",
    ),
)


class RobustChangeVectorAnalysis(ChangeDetector):
    """rho(p) = min( min_q |x2(q) - x1(p)|, min_q |x1(q) - x2(p)| ), q in the window of p."""

    def __init__(self, card: Card = CARD, radius: int = RADIUS) -> None:
        self.card = card
        self.radius = radius
        self.halo = radius

    def fit(self, sample: PairSample) -> dict[str, Any]:
        state = match_dates(valid_pixels(sample))
        squared = []
        for block in sample:
            images = torch.from_numpy(block.images)[None]
            known = usable(images, torch.from_numpy(block.valid)[None, None].expand(1, 2, -1, -1))
            squared.append(self.squared_distance(images, known, state)[known])
        return state | change_cut(torch.cat(squared).double().numpy())

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        known = usable(images, valid)
        return cut_probability(self.squared_distance(images, known, state), state).where(known, 0.0)

    def squared_distance(self, images: Tensor, known: Tensor, state: dict[str, Any]) -> Tensor:
        """rho^2, float [B, H, W]; zero where not known. Unknown neighbours are never chosen."""
        r, (height, width) = self.radius, images.shape[-2:]
        scaled = scale_dates(images, state).where(known[:, None, None], 0.0)
        padded = F.pad(scaled.flatten(1, 2), (r, r, r, r)).unflatten(1, scaled.shape[1:3])
        open_ = F.pad(known, (r, r, r, r))
        nearest = torch.full_like(scaled[:, 0, 0], torch.inf)
        for dy in range(2 * r + 1):
            for dx in range(2 * r + 1):
                there = (..., slice(dy, dy + height), slice(dx, dx + width))
                for here, other in ((0, 1), (1, 0)):
                    distance = (padded[:, other][there] - scaled[:, here]).square().sum(dim=1)
                    nearest = torch.minimum(nearest, distance.where(open_[there], torch.inf))
        return nearest.where(known, 0.0)


@register(CARD)
def build(card: Card, *, radius: int = RADIUS) -> RobustChangeVectorAnalysis:
    """The detector with a window of `radius` pixels on each side; it has no weights."""
    return RobustChangeVectorAnalysis(card, radius)
