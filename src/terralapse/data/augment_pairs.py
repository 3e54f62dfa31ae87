"""The augmentation that most published recipes share: crop, flips, right angles, order of dates, light.

Everything is drawn once for all dates and all label maps, except light, which is drawn for each date. What
only this project's own change networks use (free angles, misregistration, seasons) is in
`terralapse.data.augment`. In numpy and Pillow only, on images in physical units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from terralapse.data.pairs import IGNORE
from terralapse.errors import SettingError

Maps = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class AugmentRecipe:
    """Probabilities and ranges; the defaults flip and turn, and nothing else.

    Args:
        hflip, vflip: probability of a flip.
        turn: probability of a turn by 90, 180 or 270 degrees, equally likely: 1 as in ChangeMamba (never
            upright), 0.75 for the four directions alike.
        swap: probability of reversing the order of dates, and of the maps `before` and `after` with it.
        crop_tries: crops that are drawn until one is good enough; the last is taken as it is.
        crop_largest: a crop is good enough when it holds two classes or more of the first map and none has
            at least this share of its annotated pixels (ChangeMamba: 0.75 with 10 tries); 1 takes the first.
        area_low, area_high: share of the image's area that is cut out and resized (bicubic, labels nearest);
            1 and 1 cut a crop without resizing.
        aspect: the cut out part is up to this much wider than high, or higher than wide.
        light: probability, for each date by itself, of the three that follow.
        brightness: largest shift, in the units of the images (10 of 255, for example).
        contrast: largest relative change of the distance from the mean of the date.
        saturation: largest relative change of the distance of each band from the mean of the bands.

    Raises:
        SettingError: a number out of its range.
    """

    hflip: float = 0.5
    vflip: float = 0.5
    turn: float = 0.75
    swap: float = 0.0
    crop_tries: int = 10
    crop_largest: float = 1.0
    area_low: float = 1.0
    area_high: float = 1.0
    aspect: float = 4 / 3
    light: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.area_low <= self.area_high <= 1:
            raise SettingError(
                f"area_low={self.area_low:g}, area_high={self.area_high:g}",
                "is no range of shares",
                "Give two numbers above 0 and up to 1, the lower one first.",
            )
        for name, low in (("crop_tries", 1), ("aspect", 1)):
            if getattr(self, name) < low:
                raise SettingError(f"{name}={getattr(self, name):g}", "is too small", f"Give {low} or more.")
        for name in ("hflip", "vflip", "turn", "swap", "light"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(
                    f"{name}={getattr(self, name):g}", "is no probability", "Give a number of 0 to 1."
                )


def augment(
    images: np.ndarray,
    labels: Maps,
    recipe: AugmentRecipe,
    rng: np.random.Generator,
    size: int | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One draw of a recipe.

    Args:
        images: float32 [T, C, H, W].
        labels: maps [H, W] by name, any number.
        rng: the only source of randomness.
        size: height and width of the result; None keeps the whole image (then `area_low` has no meaning,
            and a turn exchanges height and width).

    Returns:
        Images and maps of `size`. Beyond an image that is smaller, images are 0 and maps `IGNORE`.
    """
    images, maps, _ = augment_all(images, labels, None, recipe, rng, size)
    return images, maps


def augment_all(
    images: np.ndarray,
    labels: Maps,
    series: np.ndarray | None,
    recipe: AugmentRecipe,
    rng: np.random.Generator,
    size: int | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """`augment` for images that may come with a series [T, C, h, w] of the same place, of another scale and
    with the same middle: it is flipped and turned with them, and stays as it is in all else.

    Raises:
        SettingError: there is a series, and the recipe cuts out a part of the images: the middle of the
            series would no longer be theirs.
    """
    if series is not None:
        _check_whole(images, recipe, size)
    if size is not None:
        resized = recipe.area_low < 1 or recipe.area_high < 1
        images, labels = (_resized_crop if resized else _crop)(images, labels, recipe, rng, size)
    flips = tuple(axis for axis, p in ((-1, recipe.hflip), (-2, recipe.vflip)) if rng.random() < p)
    turns = int(rng.integers(1, 4)) if rng.random() < recipe.turn else 0
    images = np.rot90(np.flip(images, flips), turns, axes=(-2, -1))
    if series is not None:
        series = np.ascontiguousarray(np.rot90(np.flip(series, flips), turns, axes=(-2, -1)))
    moved = {k: np.ascontiguousarray(np.rot90(np.flip(v, flips), turns)) for k, v in labels.items()}
    if rng.random() < recipe.swap:
        images = images[::-1]
        other = {"before": "after", "after": "before"}
        moved = {other.get(k, k): v for k, v in moved.items()}
    images = np.ascontiguousarray(images)
    if recipe.light > 0:
        images = np.stack([_relit(i, recipe, rng) if rng.random() < recipe.light else i for i in images])
    return images, {k: moved[k] for k in labels}, series


def _check_whole(images: np.ndarray, recipe: AugmentRecipe, size: int | None) -> None:
    height, width = images.shape[-2:]
    if size is None or (height == width == size and recipe.area_low == recipe.area_high == 1):
        return
    raise SettingError(
        f"size={size}",
        f"cuts images of {height} x {width} pixels that come with a series of all of their ground",
        "Train on whole images (their own size, area_low and area_high of 1), or without the series.",
    )


def _crop(
    images: np.ndarray, labels: Maps, recipe: AugmentRecipe, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    height, width = images.shape[-2:]
    down, across = max(0, size - height), max(0, size - width)
    if down or across:  # the image lies anywhere in the padded one
        top, left = int(rng.integers(down + 1)), int(rng.integers(across + 1))
        border = ((top, down - top), (left, across - left))
        images = np.pad(images, ((0, 0), (0, 0), *border))
        labels = {k: np.pad(v, border, constant_values=IGNORE) for k, v in labels.items()}
        height, width = images.shape[-2:]
    first = next(iter(labels.values()), None)
    row = col = 0
    for _ in range(recipe.crop_tries):
        row, col = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        if recipe.crop_largest >= 1 or first is None:
            break
        if _largest_share(first[row : row + size, col : col + size]) < recipe.crop_largest:
            break
    window = (..., slice(row, row + size), slice(col, col + size))
    return images[window], {k: v[window] for k, v in labels.items()}


def _largest_share(label: np.ndarray) -> float:
    """Share of the annotated pixels that the most frequent class has; 1 where there is no or one class."""
    counts = np.bincount(label[label != IGNORE].ravel())
    return float(counts.max() / counts.sum()) if counts.size else 1.0


def _resized_crop(
    images: np.ndarray, labels: Maps, recipe: AugmentRecipe, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    height, width = images.shape[-2:]
    area = height * width * rng.uniform(recipe.area_low, recipe.area_high)
    aspect = math.exp(rng.uniform(-math.log(recipe.aspect), math.log(recipe.aspect)))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    row, col = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    window = (..., slice(row, row + h), slice(col, col + w))
    planes = images[window].reshape(-1, h, w)
    resized = np.stack([_bicubic(plane, size) for plane in planes])
    maps = {
        k: np.asarray(Image.fromarray(v[window]).resize((size, size), Image.Resampling.NEAREST))
        for k, v in labels.items()
    }
    return resized.reshape(*images.shape[:2], size, size), maps


def _bicubic(plane: np.ndarray, size: int) -> np.ndarray:
    """A plane [h, w] resized to a square as Pillow does it (antialiased), within the values that it had."""
    done = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
    return done if np.isnan(plane).all() else np.clip(done, np.nanmin(plane), np.nanmax(plane))


def _relit(image: np.ndarray, recipe: AugmentRecipe, rng: np.random.Generator) -> np.ndarray:
    """One date [C, H, W] in another light."""
    shift, stretch, colour = (
        float(rng.uniform(-x, x)) for x in (recipe.brightness, recipe.contrast, recipe.saturation)
    )
    grey = image.mean(axis=0, keepdims=True)
    image = grey + (image - grey) * (1 + colour)
    mean = np.nanmean(image) if not np.isnan(image).all() else 0.0
    return (mean + (image - mean) * (1 + stretch) + shift).astype(np.float32)
