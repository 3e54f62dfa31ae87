from __future__ import annotations

import pytest
import torch

from terralapse import registry
from terralapse.cards import Stretch
from terralapse.errors import ModelInputError
from terralapse.layers.stem import RGB, card_for_bands, inflate_stem

FOUR = ("blue", "green", "red", "nir")
THIRTEEN = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge1",
    "rededge2",
    "rededge3",
    "nir",
    "nir08",
    "nir09",
    "cirrus",
    "swir16",
    "swir22",
)
WEIGHT = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("bands", [FOUR, THIRTEEN], ids=["4 bands", "13 bands"])
def test_a_grey_image_answers_as_it_did(bands: tuple[str, ...]) -> None:
    grey = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = inflate_stem(WEIGHT, bands)
    assert wide.shape == (8, len(bands), 3, 3)
    before = torch.nn.functional.conv2d(grey.expand(1, 3, 9, 9), WEIGHT)
    after = torch.nn.functional.conv2d(grey.expand(1, len(bands), 9, 9), wide)
    torch.testing.assert_close(after, before)


def test_colours_keep_their_filters_and_others_get_the_mean() -> None:
    wide = inflate_stem(WEIGHT, FOUR)
    for place, colour in ((0, 2), (1, 1), (2, 0)):
        torch.testing.assert_close(wide[:, place], 0.75 * WEIGHT[:, colour])
    torch.testing.assert_close(wide[:, 3], 0.75 * WEIGHT.mean(dim=1))


def test_the_order_of_the_colours_is_only_an_order() -> None:
    assert torch.equal(inflate_stem(WEIGHT, ("blue", "green", "red")), WEIGHT.flip(1))
    assert torch.equal(inflate_stem(WEIGHT, RGB), WEIGHT)


def test_a_weight_of_other_bands_is_refused() -> None:
    with pytest.raises(ModelInputError, match="3 bands were expected"):
        inflate_stem(WEIGHT[:, :2], FOUR)


def test_a_card_for_other_bands_says_how_they_are_scaled() -> None:
    card = registry.card("lapsenet/rgb")
    assert card_for_bands(card, None) is card
    assert card_for_bands(card, RGB) is card
    wide = card_for_bands(card, THIRTEEN)
    assert wide.inputs.bands == THIRTEEN
    assert wide.inputs.normalisation is not None
    assert wide.inputs.normalisation.stretch is Stretch.SCENE_PERCENTILE
    assert len(wide.inputs.normalisation.mean) == 13
    assert not wide.weights
    with pytest.raises(ModelInputError, match="Name each band once"):
        card_for_bands(card, ("red", "red"))
