"""A map of the earlier date for systems that want one, made from the earlier image by fixed rules.

These rules are ours: five classes by colour and brightness of each pixel alone, so that a pixel gets the same
class whatever is around it, with thresholds that nothing was fitted to. Such a map is no land-cover map; it
lets systems that need one run and be trained where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.data.pairs import IGNORE
from terralapse.errors import BandError
from terralapse.grid.pair import Pair
from terralapse.labels import RULES, ClassScheme
from terralapse.sensors import Unit

COLOURS = ("red", "green", "blue")
GREEN = 0.1  # excess green (2 g - r - b) / (r + g + b) above which a pixel is vegetation ...
LIT = 25.0  # ... if it is brighter than this: the colour of darker ones is noise
DARK = 60.0  # mean of the colours below which it is water or shadow
BLUE, WATER = 1.25, 120.0  # so is what is bluer than red by this factor and darker than this
BRIGHT, GREY = 160.0, 0.25  # mean above which, and saturation below which, it is built-up
BROWN, SOIL = 1.2, 0.15  # red over blue, and saturation, above which it is bare soil
REFLECTANCE = 0.3  # that is shown as 255


def rule_map(rgb: np.ndarray) -> np.ndarray:
    """Classes of `labels.RULES`, uint8 [H, W] and 255 for no data, of an image float [3, H, W] of 0..255.

    The first rule that holds decides: vegetation where it is green and not dark; water or shadow where it is
    dark, or blue and not bright; bright built-up where it is bright and grey; bare soil where it is brown;
    other.
    """
    red, green, blue = (np.nan_to_num(c.astype(np.float32)) for c in rgb)
    total = red + green + blue
    mean, high = total / 3, np.maximum(np.maximum(red, green), blue)
    saturation = 1 - np.minimum(np.minimum(red, green), blue) / np.maximum(high, 1)
    names = {c.name: c.value for c in RULES.classes}
    rules = (
        ("vegetation", (2 * green - red - blue > GREEN * total) & (mean > LIT)),
        ("dark", (mean < DARK) | ((blue > BLUE * red) & (mean < WATER))),
        ("bright", (mean > BRIGHT) & (saturation < GREY)),
        ("soil", (red > BROWN * blue) & (saturation > SOIL)),
    )
    found = np.select([here for _, here in rules], [names[n] for n, _ in rules], names["other"])
    return np.where(np.isnan(rgb).any(axis=0), IGNORE, found).astype(np.uint8)


def rule_map_of(image: np.ndarray, bands: Sequence[str], unit: Unit, name: str) -> np.ndarray:
    """`rule_map` of an image [C, H, W] with these bands, in RGB of 0 to 255 or in reflectance.

    Raises:
        BandError: a colour is missing, or the unit says nothing about brightness; names `name`.
    """
    missing = [c for c in COLOURS if c not in bands]
    if missing or unit not in (Unit.RGB255, Unit.REFLECTANCE):
        fault = (
            f"has no band {', '.join(missing)}" if missing else f"is in units of unknown brightness ({unit})"
        )
        raise BandError(
            name,
            f"{fault}, and a map by rules is made of red, green and blue",
            "Give a map in a file, or an image in colours of 0 to 255 or in reflectance.",
        )
    colours = image[[bands.index(c) for c in COLOURS]]
    return rule_map(colours if unit is Unit.RGB255 else colours * (255 / REFLECTANCE))


class RuleSource:
    """The map of a scene, by rules: a `terralapse.grid.map_before.MapSource`."""

    def ids(self, grid: GeoBox, before: np.ndarray, pair: Pair) -> np.ndarray:
        return rule_map_of(before, [b.name for b in pair.bands], pair.unit, pair.before.name)

    def fingerprint(self) -> dict[str, Any]:
        return {"rules": [GREEN, LIT, DARK, BLUE, WATER, BRIGHT, GREY, BROWN, SOIL, REFLECTANCE]}


class WithRuleMap:
    """A data set of pairs whose samples carry the map of their earlier image by rules."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.title: str = f"{dataset.title} (map by rules)"
        self.scheme: ClassScheme = dataset.scheme
        self.names: list[str] = dataset.names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self._dataset[index]
        return replace(sample, map=rule_map_of(sample.images[0], sample.bands, sample.unit, sample.name))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
