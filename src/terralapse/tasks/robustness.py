"""What can be wrong with the later image of a pair, as pure functions with exact definitions.

Values are 0..255: RGB as it is, and any other unit stretched with the 2nd and 98th percentile of each band
over both dates of the pair (0..255, not clipped), changed there, and brought back. A disturbance acts on the
LATER date alone, so that a detector sees a difference between the dates that is no change on the ground;
`swapped` exchanges the two. The label stays that of the undisturbed pair. NaN stays NaN.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from terralapse.errors import SettingError
from terralapse.sensors import Unit

AIRLIGHT = 230.0  # of 0..255: the bright grey of thin haze, the same in all bands
CUBIC = (-0.0625, 0.5625, 0.5625, -0.0625)  # Keys 1981, a = -1/2, half way between two pixels
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns
Apply = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Perturbation:
    """`apply` takes float64 [C, H, W] of 0..255 and a generator; None exchanges the dates. `amount` is the
    number that the definition turns on, in the unit that it says."""

    slug: str
    title: str
    group: str
    amount: float
    definition: str
    apply: Apply | None


def brightness(factor: float) -> Apply:
    """x' = factor x."""
    return lambda x, _: factor * x


def haze(opacity: float) -> Apply:
    """x' = (1 - opacity) x + opacity A, A = 230: a veil of one thickness everywhere (Koschmieder 1924)."""
    return lambda x, _: (1 - opacity) * x + opacity * AIRLIGHT


def blur(sigma: float) -> Apply:
    """A Gaussian of `sigma` pixels, cut at 4 sigma, borders mirrored; pixels without data have no weight."""

    def apply(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
        known = np.isfinite(x)
        total = ndimage.gaussian_filter(np.where(known, x, 0.0), (0, sigma, sigma), mode="reflect")
        weight = ndimage.gaussian_filter(known.astype(np.float64), (0, sigma, sigma), mode="reflect")
        return np.where(known, total / np.maximum(weight, 1e-12), np.nan)

    return apply


def noise(sigma: float) -> Apply:
    """x' = x + n, n normal with standard deviation `sigma`, independent for each pixel and band."""
    return lambda x, rng: x + rng.normal(0.0, sigma, x.shape)


def shift(pixels: float) -> Apply:
    """Content moved by whole or half pixels along one of the four directions of the grid, which the generator
    draws. Half a pixel is interpolated by cubic convolution. What moves in from outside repeats the edge."""
    if pixels * 2 != round(pixels * 2):
        raise ValueError(f"{pixels} is no multiple of half a pixel")

    def apply(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down, across = DIRECTIONS[int(rng.integers(4))]
        axis, sign = (1, down) if down else (2, across)
        size = x.shape[axis]
        start = np.arange(size) - sign * math.floor(pixels)
        if pixels == math.floor(pixels):
            return x.take(start.clip(0, size - 1), axis=axis)
        taps = [start - sign * k for k in (-1, 0, 1, 2)]
        return np.sum(
            [w * x.take(t.clip(0, size - 1), axis=axis) for w, t in zip(CUBIC, taps, strict=True)], axis=0
        )

    return apply


PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("darker", "20 % darker", "brightness", 0.8, "x' = 0.8 x", brightness(0.8)),
    Perturbation("brighter", "20 % brighter", "brightness", 1.2, "x' = 1.2 x", brightness(1.2)),
    Perturbation("haze-20", "haze 20 %", "haze", 0.2, "x' = 0.8 x + 0.2 · 230", haze(0.2)),
    Perturbation("haze-40", "haze 40 %", "haze", 0.4, "x' = 0.6 x + 0.4 · 230", haze(0.4)),
    Perturbation("blur-1", "blur 1 px", "blur", 1.0, "Gaussian, standard deviation 1 pixel", blur(1.0)),
    Perturbation("blur-2", "blur 2 px", "blur", 2.0, "Gaussian, standard deviation 2 pixels", blur(2.0)),
    Perturbation(
        "noise-10", "noise 10", "noise", 10.0, "normal noise, standard deviation 10 of 255", noise(10.0)
    ),
    *(
        Perturbation(
            f"shift-{pixels:g}",
            f"shift {pixels:g} px",
            "shift",
            pixels,
            f"{pixels:g} pixel{'s' if pixels > 1 else ''} left, right, up or down, drawn for each image"
            + (" (cubic convolution)" if pixels % 1 else ""),
            shift(pixels),
        )
        for pixels in (0.5, 1.0, 2.0, 4.0)
    ),
    Perturbation("swapped", "dates swapped", "order", 0.0, "the two dates exchanged", None),
)


def perturbation(slug: str) -> Perturbation:
    """The perturbation of a name.

    Raises:
        SettingError: there is none.
    """
    for one in PERTURBATIONS:
        if one.slug == slug:
            return one
    known = ", ".join(p.slug for p in PERTURBATIONS)
    raise SettingError(f"perturbation {slug}", "is not known", f"Choose from {known}.")


def perturb(images: np.ndarray, unit: Unit, how: Perturbation, key: str, seed: int = 0) -> np.ndarray:
    """A pair with a disturbed later date; the same for the same arguments, on every machine.

    Args:
        images: float32 [2, C, H, W] in `unit`, NaN where there is no data.
        unit: RGB of 0..255 is clipped to that range afterwards, as a camera would; others are not.
        how: what to do.
        key: the name of the sample: with `seed` it decides what is drawn at random.
        seed: of the whole run.

    Returns:
        float32 [2, C, H, W], a new array.
    """
    if how.apply is None:
        return images[::-1].copy()
    rng = np.random.default_rng([seed, zlib.crc32(key.encode()), zlib.crc32(how.slug.encode())])
    low, high = _range(images, unit)
    scaled = (images[1].astype(np.float64) - low) / (high - low) * 255.0
    made = how.apply(scaled, rng)
    if unit is Unit.RGB255:
        made = made.clip(0.0, 255.0)
    after = low + made * (high - low) / 255.0
    return np.stack([images[0], after.astype(np.float32)])


def _range(images: np.ndarray, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """What 0 and 255 stand for in each band: float64 [C, 1, 1] twice."""
    bands = images.shape[1]
    if unit is Unit.RGB255:
        return np.zeros((bands, 1, 1)), np.full((bands, 1, 1), 255.0)
    low, high = np.zeros(bands), np.full(bands, 255.0)
    for band in range(bands):
        values = images[:, band][np.isfinite(images[:, band])]
        if values.size:
            low[band], high[band] = np.percentile(values.astype(np.float64), (2.0, 98.0))
            if high[band] - low[band] < 1e-6 * max(1.0, abs(high[band])):
                high[band] = low[band] + 1.0  # a constant band: any width will do
    return low[:, None, None], high[:, None, None]
