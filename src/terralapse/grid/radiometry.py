"""Relative radiometric normalisation: the second date brought to the scale of the first, band by band.

Pixels that did not change are found by iteratively reweighted multivariate alteration detection (Nielsen,
IEEE TIP 16, 2007), which does not care about gains and offsets, and the line through them is the reduced
major axis, which does not prefer either date (Canty and Nielsen, RSE 112, 2008, use the orthogonal one).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.special import chdtrc, gammaincinv

from terralapse.grid.pair import Pair
from terralapse.grid.scene import Note, Window

_SIDE = 128  # pixels of a sampled window
_WINDOWS = 256
_PIXELS = 400_000
_UNCHANGED = 0.95  # probability of no change of an invariant pixel
_MIN_PIXELS = 200
_MIN_SHARE = 0.005
_MIN_R2 = 0.25
_ROUNDS = 50


@dataclass
class Radiometry:
    """after * gain + offset is comparable with before. `gains`, `offsets`, `r2`: one a band; `pixels`: how
    many invariant pixels they rest on, of `sampled`. Not applied when `why` is not empty."""

    bands: list[str]
    gains: list[float] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    r2: list[float] = field(default_factory=list)
    pixels: int = 0
    sampled: int = 0
    why: str = ""

    @property
    def applied(self) -> bool:
        """Whether there is a line to apply."""
        return not self.why

    def apply(self, after: np.ndarray) -> np.ndarray:
        """The second date [C, h, w] on the scale of the first."""
        gains, offsets = (np.array(v, np.float32)[:, None, None] for v in (self.gains, self.offsets))
        return after * gains + offsets

    def notes(self) -> list[Note]:
        """What a reader of the report must know."""
        if self.applied:
            text = (
                f"The image after was fitted to the image before over {self.pixels:,} pixels that did not "
                f"change (R² {min(self.r2):.2f} or better)."
            )
            return [Note("info", "radiometry-fitted", text)]
        text = f"The radiometry of the dates could not be matched: {self.why}. It is left as it is."
        return [Note("warning", "radiometry-not-fitted", text)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "applied": self.applied,
            "why_not": self.why or None,
            "invariant_pixels": self.pixels,
            "sampled_pixels": self.sampled,
            "bands": [
                {"name": b, "gain": float(g), "offset": float(o), "r2": round(float(r), 4)}
                for b, g, o, r in zip(self.bands, self.gains, self.offsets, self.r2, strict=False)
            ],
        }


def fit_radiometry(pair: Pair) -> Radiometry:
    """Fits the second date of a pair to the first; reads a sample that depends only on the grid."""
    before, after = _sample(pair)
    return fit_lines(before, after, [b.name for b in pair.bands])


def fit_lines(before: np.ndarray, after: np.ndarray, bands: list[str]) -> Radiometry:
    """Gains and offsets from pixels of both dates, float64 [n, C] each."""
    result = Radiometry(bands, sampled=len(before))
    if len(before) < _MIN_PIXELS:
        result.why = f"only {len(before)} pixels can be compared"
        return result
    invariant = no_change_probability(before, after) > _UNCHANGED
    result.pixels = int(invariant.sum())
    if result.pixels < max(_MIN_PIXELS, _MIN_SHARE * len(before)):
        result.why = f"only {result.pixels} of {len(before)} pixels look the same on both dates"
        return result
    x, y = after[invariant], before[invariant]
    spread_x, spread_y = x.std(axis=0), y.std(axis=0)
    if not (spread_x.all() and spread_y.all()):
        result.why = "a band has one value everywhere"
        return result
    r = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0) / (spread_x * spread_y)
    if (r <= 0).any() or (r**2 < _MIN_R2).any():
        worst = bands[int(r.argmin())]
        result.why = f"the dates do not follow one line in band {worst} (R² {max(r.min(), 0) ** 2:.2f})"
        return result
    gains = spread_y / spread_x
    result.gains = gains.tolist()
    result.offsets = (y.mean(axis=0) - gains * x.mean(axis=0)).tolist()
    result.r2 = (r**2).tolist()
    return result


def _weighted_variance(channels: int) -> float:
    """Variance of a normal variate under weights equal to its own probability of no change, over the variance
    without: what the reweighting takes away from the spread that it is judged by."""
    u = (np.arange(10_000) + 0.5) / 10_000
    return float(((1 - u) * 2 * gammaincinv(channels / 2, u)).mean() / (0.5 * channels))


def no_change_probability(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Probability that each pixel did not change, [n] of [n, C] pairs, by iteratively reweighted MAD.

    Unlike in the paper the spread of the variates is corrected for the weights that it is computed with;
    otherwise each round judges by a smaller spread than the last, until few pixels are left.
    """
    n, channels = before.shape
    scale_x, scale_y = before.std(axis=0), after.std(axis=0)
    x = (before - before.mean(axis=0)) / np.where(scale_x > 0, scale_x, 1)
    y = (after - after.mean(axis=0)) / np.where(scale_y > 0, scale_y, 1)
    weight, previous, shrunk = np.ones(n), np.full(channels, np.inf), 1.0
    consistent = _weighted_variance(channels)
    for _ in range(_ROUNDS):
        total = weight.sum()
        dx, dy = x - weight @ x / total, y - weight @ y / total
        sxx, syy, sxy = ((a * weight[:, None]).T @ b / total for a, b in ((dx, dx), (dy, dy), (dx, dy)))
        ridge = 1e-9 * np.eye(channels)
        sxx, syy = sxx + ridge, syy + ridge
        values, a = eigh(sxy @ np.linalg.solve(syy, sxy.T), sxx)
        rho = np.sqrt(np.clip(values, 0, 1 - 1e-12))
        b = np.linalg.solve(syy, sxy.T @ a)
        b /= np.sqrt(np.maximum(np.einsum("ij,ik,kj->j", b, syy, b), 1e-30))
        variates = dx @ a - dy @ b
        z = (variates**2 / np.maximum(2 * (1 - rho), 1e-12)).sum(axis=1)
        weight = chdtrc(channels, z * shrunk)
        shrunk = consistent
        if np.abs(rho - previous).max() < 1e-4 or weight.sum() < 10 * channels:
            break
        previous = rho
    return weight


def _sample(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that both dates have, thinned evenly, [n, C] each."""
    height, width = pair.shape
    side = min(_SIDE, height, width)
    spacing = max(side, int((height * width / _WINDOWS) ** 0.5))
    rows, cols = (range((n - side) % spacing // 2, n - side + 1, spacing) for n in (height, width))
    per_window = max(1, _PIXELS // (len(rows) * len(cols)))
    pixels = []
    for row in rows:
        for col in cols:
            block = pair.read(Window(row, col, side, side))
            values = block.images[:, :, block.valid]
            step = max(1, -(-values.shape[2] // per_window))
            pixels.append(values[:, :, ::step])
    every = np.concatenate(pixels, axis=2).astype(np.float64)
    return every[0].T, every[1].T
