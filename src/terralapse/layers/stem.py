"""Networks for other bands than the red, green and blue of their papers: the card, and the first layer.

The rule, for a first convolution that was trained on RGB: each of the colours that the new bands contain
keeps its filter; any other band gets the mean of the three; then all are scaled by 3 / C, so that an image
whose bands all carry the same values gives what the grey image gave to the RGB filters. With the three
colours, in any order, nothing is scaled and the answer is exactly that of the RGB network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from terralapse.cards import Card, Normalisation, Stretch
from terralapse.errors import ModelInputError
from terralapse.sensors import Unit

RGB = ("red", "green", "blue")
UNITS = (Unit.REFLECTANCE, Unit.RAW, Unit.RGB255)


def inflate_stem(weight: Tensor, bands: Sequence[str], trained: Sequence[str] = RGB) -> Tensor:
    """The weight [O, C, k, k] of a first convolution for `bands`, from one [O, len(trained), k, k].

    Raises:
        ModelInputError: the weight is not for `trained`.
    """
    if weight.ndim != 4 or weight.shape[1] != len(trained):
        raise ModelInputError(
            "the first convolution",
            f"has the shape {list(weight.shape)}, and {len(trained)} bands were expected",
            "Give the weights of a network for red, green and blue.",
        )
    mean = weight.mean(dim=1)
    planes = [weight[:, trained.index(b)] if b in trained else mean for b in bands]
    return torch.stack(planes, dim=1) * (len(trained) / len(bands))


def card_for_bands(card: Card, bands: Sequence[str] | None) -> Card:
    """The card of the same system for other bands; the card itself when `bands` is None or already its own.

    Anything but red, green and blue of 0 to 255 comes in units without a fixed range, so that each band is
    stretched to the 2nd and 98th percentile of both dates of the scene, and 0..1 is brought to about -1..1.

    Raises:
        ModelInputError: a band is named twice, or none is.
    """
    if bands is None or tuple(bands) == card.inputs.bands:
        return card
    if not bands or len(set(bands)) < len(bands):
        raise ModelInputError(
            card.slug, f"cannot take the bands {', '.join(bands) or '(none)'}", "Name each band once."
        )
    count = len(bands)
    inputs = replace(
        card.inputs,
        bands=tuple(bands),
        units=UNITS,
        gsd_range=None,
        sensors=(),
        normalisation=Normalisation((0.5,) * count, (0.25,) * count, Stretch.SCENE_PERCENTILE),
    )
    return replace(card, inputs=inputs, weights=(), figures=(), default_rank=None)
