"""Views of one pair for consistency training: a weak one, which only moves pixels, and a strong one of it.

The ranges are those of UniMatch (Yang et al. 2023, arXiv:2208.09910) and SemiCD-VL: scale 0.8 to 1.2, a crop,
a flip; then colours and blur, drawn for each date by itself; and the box of CutMix. In numpy and Pillow, on
images in physical units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter

from terralapse.data.pairs import IGNORE

SCALE = (0.8, 1.2)
JITTER = (0.5, 0.5, 0.5, 0.25)  # brightness, contrast, saturation, hue
JITTERED, BLURRED, CUT = 0.8, 0.5, 0.5  # probabilities
BLUR = (0.1, 2.0)  # standard deviation in pixels
AREA, ASPECT = (0.02, 0.4), 0.3  # share of the image; aspect 0.3 to 1 / 0.3
HUES = 256  # of Pillow
Rng = np.random.Generator


def scaled_crop(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    size: int,
    rng: Rng,
    scale: tuple[float, float] = SCALE,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A square of a pair at another scale.

    Args:
        images: float32 [T, C, H, W]; resized bilinearly.
        maps: uint8 [H, W] by name; resized to the nearest.
        size: of the square.
        rng: the only source of randomness.
        scale: of the longer side, uniform.

    Returns:
        Images [T, C, size, size], 0 beyond the image, and maps, `IGNORE` beyond it.
    """
    height, width = images.shape[-2:]
    long = int(rng.integers(round(max(height, width) * scale[0]), round(max(height, width) * scale[1]) + 1))
    h, w = (max(1, round(side * long / max(height, width))) for side in (height, width))
    row, col = (int(rng.integers(max(0, side - size) + 1)) for side in (h, w))
    # The window of the resized image, in pixels of the original.
    ratio = (height / h, width / w)
    tall, wide = min(size, h), min(size, w)
    box = (col * ratio[1], row * ratio[0], (col + wide) * ratio[1], (row + tall) * ratio[0])

    def cut(plane: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((wide, tall), how, box=box))

    flat = images.reshape(-1, height, width)
    found = np.zeros((len(flat), size, size), np.float32)
    for target, plane in zip(found, flat, strict=True):
        target[:tall, :wide] = cut(plane, Image.Resampling.BILINEAR)
    moved = {name: np.full((size, size), IGNORE, np.uint8) for name in maps}
    for name, plane in maps.items():
        moved[name][:tall, :wide] = cut(plane.astype(np.uint8), Image.Resampling.NEAREST)
    return found.reshape(*images.shape[:2], size, size), moved


def strong_view(images: np.ndarray, rng: Rng, colours: bool) -> np.ndarray:
    """Other light and other sharpness for each date of [T, C, H, W] by itself.

    With `colours`, red, green and blue of 0 to 255, as Pillow changes them (in whole numbers). Without, bands
    of any unit are scaled in brightness and in contrast around their mean, and blurred as well.
    """
    change = _strong_rgb if colours else _strong_bands
    return np.stack([change(image, rng) for image in images]).astype(np.float32)


def _strong_rgb(image: np.ndarray, rng: Rng) -> np.ndarray:
    shown = Image.fromarray(np.nan_to_num(image).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    if rng.random() < JITTERED:
        factors = [float(rng.uniform(1 - x, 1 + x)) for x in JITTER[:3]]
        turn = int(rng.uniform(-JITTER[3], JITTER[3]) * HUES)
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for step in rng.permutation(4):
            shown = kinds[step](shown).enhance(factors[step]) if step < 3 else _turn_hue(shown, turn)
    if rng.random() < BLURRED:
        shown = shown.filter(ImageFilter.GaussianBlur(float(rng.uniform(*BLUR))))
    return np.asarray(shown).transpose(2, 0, 1)


def _turn_hue(image: Image.Image, by: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(((np.asarray(hue).astype(np.int16) + by) % HUES).astype(np.uint8))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _strong_bands(image: np.ndarray, rng: Rng) -> np.ndarray:
    if rng.random() < JITTERED:
        brightness, contrast = (float(rng.uniform(1 - x, 1 + x)) for x in JITTER[:2])
        image = image * brightness
        mean = image.mean(axis=(1, 2), keepdims=True)
        image = mean + (image - mean) * contrast
    if rng.random() < BLURRED:
        sigma = float(rng.uniform(*BLUR))
        image = np.stack([gaussian_filter(band, sigma) for band in image])
    return image


def cut_box(size: int, rng: Rng) -> np.ndarray:
    """The box of CutMix, bool [size, size]; empty in half of the draws."""
    box = np.zeros((size, size), bool)
    if rng.random() >= CUT:
        return box
    area = float(rng.uniform(*AREA)) * size * size
    while True:
        aspect = float(rng.uniform(ASPECT, 1 / ASPECT))
        w, h = int(math.sqrt(area / aspect)), int(math.sqrt(area * aspect))
        row, col = int(rng.integers(size)), int(rng.integers(size))
        if row + h <= size and col + w <= size:
            box[row : row + h, col : col + w] = True
            return box
