"""What the unsupervised detectors of change share: pixels of a sample, the radiometric difference of two
dates, and cuts between "nothing happened" and "something did" that need no labels.

The fitting parts are numpy in float64 and return JSON-ready numbers; what runs on every tile is torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from terralapse.errors import NoValidDataError
from terralapse.grid.pair import PairSample

NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
STABLE = 0.8  # share of the pixels that the radiometry of two dates is matched on
ROUNDS = 10
NOISE_FLOOR = 0.02  # least noise of a band, in units of its own spread: two per cent is not change


def count_valid(sample: PairSample) -> int:
    """How many pixels of the sample can be compared.

    Raises:
        NoValidDataError: none.
    """
    total = sum(int(block.valid.sum()) for block in sample)
    if total == 0:
        raise NoValidDataError(
            f"{sample.pair.before.uri} and {sample.pair.after.uri}",
            "no pixel is usable on both dates where the scene was sampled",
            "Check nodata, cloud masks and the area of interest with `terralapse inspect`.",
        )
    return total


def valid_pixels(sample: PairSample, limit: int = 300_000) -> np.ndarray:
    """Valid pixels of a sample, evenly thinned to at most `limit`: float64 [2, C, N].

    Raises:
        NoValidDataError: there is none.
    """
    step = max(1, -(-count_valid(sample) // limit))
    picked, seen = [], 0
    for block in sample:
        pixels = block.images[:, :, block.valid]
        picked.append(pixels[:, :, -seen % step :: step])
        seen += pixels.shape[2]
    return np.concatenate(picked, axis=2).astype(np.float64)


# --- radiometry ------------------------------------------------------------------------------------
def match_dates(pixels: np.ndarray) -> dict[str, Any]:
    """Puts both dates on one scale, each by the mean and spread of its stable pixels, and measures the noise.

    Stable are the `STABLE` share of pixels that differ least, found by repetition from a robust start
    (concentration, as in least trimmed squares). The same is done to both dates, so a gain and an offset on
    either of them, band by band, change nothing, and swapping the dates only turns the sign of the
    difference.

    Args:
        pixels: [2, C, N].

    Returns:
        `centre` and `scale` [2][C] of each date and band, and `noise` [C], the robust standard deviation of
        the scaled difference.
    """
    low, high = np.quantile(pixels, [0.1, 0.9], axis=2)[..., None]
    start = np.clip(pixels, low, high)
    centre, scale = start.mean(axis=2), spread(start, pixels)
    stable = np.zeros(0, bool)
    for _ in range(ROUNDS):
        difference = np.diff((pixels - centre[..., None]) / scale[..., None], axis=0)[0]
        noise = np.maximum(NORMAL_MAD * np.median(np.abs(difference), axis=1), NOISE_FLOOR)
        distance = np.square(difference / noise[:, None]).sum(axis=0)
        found = distance <= np.quantile(distance, STABLE)
        if np.array_equal(found, stable):
            break
        stable = found
        centre, scale = pixels[:, :, stable].mean(axis=2), spread(pixels[:, :, stable], pixels)
    difference = np.diff((pixels - centre[..., None]) / scale[..., None], axis=0)[0]
    noise = np.maximum(NORMAL_MAD * np.median(np.abs(difference), axis=1), NOISE_FLOOR)
    return {"centre": centre.tolist(), "scale": scale.tolist(), "noise": noise.tolist()}


def spread(pixels: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Standard deviation [2, C]; of `fallback` where it is nothing, and 1 where that is nothing either."""
    found = pixels.std(axis=2)
    tiny = 1e-7 * np.abs(pixels).max(axis=2)  # rounding of the mean of a constant band
    wide = np.where(found > tiny, found, fallback.std(axis=2))
    return np.where(wide > tiny, wide, 1.0)


def scale_dates(images: Tensor, state: dict[str, Any]) -> Tensor:
    """Both dates on the scale of `match_dates`, in units of the noise of each band: [B, 2, C, H, W].

    NaN stays NaN.
    """
    like = {"dtype": images.dtype, "device": images.device}
    centre = torch.tensor(state["centre"], **like)[None, :, :, None, None]
    scale = torch.tensor(state["scale"], **like)[None, :, :, None, None]
    noise = torch.tensor(state["noise"], **like)[None, None, :, None, None]
    return (images - centre) / (scale * noise)


def usable(images: Tensor, valid: Tensor) -> Tensor:
    """bool [B, H, W]: both dates are valid and no band is NaN."""
    return valid.all(dim=1) & torch.isfinite(images).all(dim=2).all(dim=1)


# --- cuts ------------------------------------------------------------------------------------------
def otsu(values: np.ndarray, bins: int = 256) -> float | None:
    """The threshold that separates two groups best (Otsu 1979), or None when all values are equal."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return None
    counts, edges = np.histogram(values, bins, (low, high))
    mids = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    first = np.cumsum(counts * mids)[:-1]
    between = below * above * (first / below - ((counts * mids).sum() - first) / above) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))  # a gap between the groups: its middle
    return float(edges[[1 + best[0], 1 + best[-1]]].mean())


def kittler_illingworth(
    values: np.ndarray, bins: int = 256, least_changed: float = 2e-3, most_changed: float = 0.7
) -> float | None:
    """The minimum-error threshold of Kittler and Illingworth (1986) for two normal classes.

    The criterion J(T) = 1 + 2 (P0 ln s0 + P1 ln s1) - 2 (P0 ln P0 + P1 ln P1) is taken over a histogram of
    the central 99.9 %; only a minimum inside the range counts, because J always falls towards its ends.

    Args:
        values: one statistic a pixel, near normal where nothing changed.
        bins: of the histogram.
        least_changed, most_changed: the share of pixels above the threshold lies between these.

    Returns:
        The threshold, or None when J has no minimum: the histogram shows one class only.
    """
    low, high = np.quantile(values, [5e-4, 1 - 5e-4])
    if high <= low:
        return None
    counts, edges = np.histogram(values, bins, (low, high))
    share = counts / counts.sum()
    mids = (edges[1:] + edges[:-1]) / 2
    p0, m0, q0 = np.cumsum(share), np.cumsum(share * mids), np.cumsum(share * mids**2)
    p1, m1, q1 = 1 - p0, m0[-1] - m0, q0[-1] - q0
    with np.errstate(divide="ignore", invalid="ignore"):
        var0, var1 = q0 / p0 - (m0 / p0) ** 2, q1 / p1 - (m1 / p1) ** 2
        j = 1 + p0 * np.log(var0) + p1 * np.log(var1) - 2 * (p0 * np.log(p0) + p1 * np.log(p1))
    j[~((p1 > least_changed) & (p1 < most_changed) & np.isfinite(j))] = np.nan
    inner = j[1:-1]
    with np.errstate(invalid="ignore"):
        minima = 1 + np.flatnonzero((inner <= j[:-2]) & (inner <= j[2:]))
    if minima.size == 0:
        return None
    return float(edges[1 + minima[np.argmin(j[minima])]])


def change_cut(statistic: np.ndarray, far: float = 4.0, near: float = 2.326) -> dict[str, Any]:
    """Where a squared distance begins to mean change, and how fast doubt vanishes around that point.

    A squared distance is chi-square like where nothing changed, and the cube root of a chi-square variable is
    close to normal whatever its degrees of freedom (Wilson and Hilferty 1931): the cut is therefore sought on
    the cube root, where both classes of Kittler and Illingworth may be taken as normal. It is never put
    nearer to the no-change bulk than its 99 % point, and where the histogram shows one class only it is put
    `far` standard deviations above the bulk.

    Args:
        statistic: non-negative squared distances, one a pixel.
        far, near: in standard deviations of the no-change bulk, which are measured on its lower half.

    Returns:
        `cut` and `slope` for `cut_probability`, `rule` (`kittler-illingworth`, `bulk` or `identical`).
    """
    root = np.cbrt(statistic)
    if float(root.max()) < 1e-3:
        return {"cut": None, "slope": None, "rule": "identical"}
    centre, lower = np.quantile(root, [0.5, 0.1587])
    bulk = max(float(centre - lower), 1e-3)
    found = kittler_illingworth(root)
    rule = "bulk" if found is None else "kittler-illingworth"
    cut = float(centre) + far * bulk if found is None else max(found, float(centre) + near * bulk)
    changed = root > cut
    if not changed.any():
        return {"cut": cut, "slope": near / bulk, "rule": "bulk"}
    apart = root[changed].mean() - root[~changed].mean()
    pooled = (root[changed].var() * changed.sum() + root[~changed].var() * (~changed).sum()) / root.size
    return {"cut": cut, "slope": float(apart / max(pooled, bulk**2 / 4)), "rule": rule}


def cut_probability(statistic: Tensor, state: dict[str, Any]) -> Tensor:
    """Probability of change from a squared distance: 0.5 exactly at the cut, and the log-odds of two normal
    classes of equal variance around it (linear in the cube root). Zero everywhere for identical dates."""
    if state["cut"] is None:
        return torch.zeros_like(statistic)
    root = statistic.clamp_min(0).pow(1 / 3)
    return torch.sigmoid(state["slope"] * (root - state["cut"]))
