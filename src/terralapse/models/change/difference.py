"""The plain difference of two images with Otsu's threshold: what every method has to beat.

Nothing is normalised and nothing is learned. It is here so that a table of scores has an honest floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from terralapse.cards import Card, DateOrder, Inputs, Licences, Status, Task
from terralapse.grid.pair import PairSample
from terralapse.layers.unsupervised import otsu, usable, valid_pixels
from terralapse.registry import register
from terralapse.tasks.change import ChangeDetector

CARD = Card(
    slug="difference",
    title="Absolute difference with Otsu's threshold",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Mean absolute difference over the bands, cut by Otsu's rule: the baseline of the score table.",
    year=1979,
    paper="Otsu, A threshold selection method from gray-level histograms, IEEE TSMC 9(1), 1979",
    inputs=Inputs(dates=2, halo=0),
    classes="binary-change",
    licences=Licences(code="Apache-2.0"),
    limits=(
        "A change of light, haze or calibration between the dates is reported as change.",
        "Otsu's rule splits every scene in two, however little has changed, unless the dates are identical.",
        "Bands with large numbers drown the others.",
    ),
)


class AbsoluteDifference(ChangeDetector):
    """mean_b |x2_b - x1_b| over the threshold of Otsu."""

    halo = 0

    def __init__(self, card: Card = CARD) -> None:
        self.card = card

    def fit(self, sample: PairSample) -> dict[str, Any]:
        pixels = valid_pixels(sample)
        difference = np.abs(pixels[1] - pixels[0]).mean(axis=0)
        cut = otsu(difference)
        if cut is None:  # the same difference everywhere: nothing stands out
            return {"cut": None, "slope": None}
        # Between the means of the two groups the log-odds go from -2 to 2.
        apart = difference[difference > cut].mean() - difference[difference <= cut].mean()
        return {"cut": cut, "slope": float(4.0 / apart)}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        known = usable(images, valid)
        difference = (images[:, 1] - images[:, 0]).abs().mean(dim=1).where(known, 0.0)
        if state["cut"] is None:
            return torch.zeros_like(difference)
        return torch.sigmoid(state["slope"] * (difference - state["cut"])).where(known, 0.0)


@register(CARD)
def build(card: Card) -> AbsoluteDifference:
    """The detector; it has no weights."""
    return AbsoluteDifference(card)
