"""Whether one detector is better than another on the same images, and how sure that is.

All statistics are the F1 of change of counts summed over images; images are the units that are drawn again or
exchanged, because pixels of one image are not independent. Counts are int [images, 2, 2], rows label, columns
prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT = 12  # up to this many images all 2^n exchanges are tried
Counts = npt.NDArray[np.integer]


def f1_of(counts: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """F1 of change of matrices [..., 2, 2]; NaN where nothing is labelled and nothing found."""
    tp = counts[..., 1, 1].astype(np.float64)
    wrong = counts[..., 0, 1].astype(np.float64) + counts[..., 1, 0]
    with np.errstate(invalid="ignore"):
        return np.where(
            2 * tp + wrong > 0, 2 * tp / np.where(2 * tp + wrong > 0, 2 * tp + wrong, 1.0), np.nan
        )


@dataclass(frozen=True)
class Compared:
    """`difference` is F1 of the first minus that of the second; `low` and `high` hold 95 % of the paired
    bootstrap; `p` is two-sided, by exchanging the two on whole images; `exact` when all exchanges were tried.
    What cannot be said is NaN (fewer than two images)."""

    difference: float
    low: float
    high: float
    p: float
    exact: bool
    images: int


def draws(images: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each image is drawn [samples, images]; the same for all detectors, which makes them pairs."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def f1_interval(
    counts: Counts, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of F1 over images drawn with replacement; NaN with fewer than two images."""
    if len(counts) < 2:
        return float("nan"), float("nan")
    return _ends(f1_of(_drawn(counts, draws(len(counts), samples, seed))), level)


def compare(
    first: Counts,
    second: Counts,
    *,
    samples: int = 2000,
    exchanges: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Compared:
    """Paired bootstrap and permutation test of two detectors on the same images.

    The null hypothesis of the test is that the two names could be exchanged on any image. The statistic is
    |difference of F1| of the summed counts. With up to 12 images all exchanges are tried and p is exact; the
    smallest p that n images allow is then 2 / 2^n. With more, p = (1 + hits) / (1 + exchanges).

    Raises:
        ValueError: the two do not count the same number of images.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} images against {len(second)}: a paired test needs the same images")
    number, exact = len(first), len(first) <= EXACT
    difference = float(f1_of(first.sum(axis=0)) - f1_of(second.sum(axis=0)))
    nan = float("nan")
    if number < 2 or np.isnan(difference):
        return Compared(difference, nan, nan, nan, exact, number)
    drawn = draws(number, samples, seed)
    low, high = _ends(f1_of(_drawn(first, drawn)) - f1_of(_drawn(second, drawn)), level)
    if exact:
        swap = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
    else:
        swap = np.random.default_rng([seed, 1]).integers(0, 2, (exchanges, number))
    gap = second.astype(np.int64) - first
    moved = _drawn(gap, swap)
    gaps = np.abs(f1_of(first.sum(axis=0) + moved) - f1_of(second.sum(axis=0) - moved))
    # An exchange without a defined F1 counts against the difference; rounding must not lose an equal one.
    hits = int((np.isnan(gaps) | (gaps >= abs(difference) - 1e-12)).sum())
    p = hits / len(gaps) if exact else (1 + hits) / (1 + len(gaps))
    return Compared(difference, low, high, p, exact, number)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p in the order given; NaN stays NaN and is no test."""
    order = [i for i in np.argsort(p, kind="stable") if p[i] == p[i]]
    adjusted, least = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def _drawn(counts: Counts, times: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Sums of counts, each image taken `times` [samples, images]: float64 [samples, 2, 2]."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    return (times.astype(np.float64) @ flat).reshape(len(times), 2, 2)


def _ends(values: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
