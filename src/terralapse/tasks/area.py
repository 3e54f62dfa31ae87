"""Areas and accuracies from a stratified sample: how many points, where, and what they say of the whole map.

Pixels of a map are biased as areas: what a map misses and what it invents do not cancel. A sample in which
every stratum of the map has points that somebody has looked at gives areas without that bias, and their
intervals.

Source: Olofsson et al., "Good practices for estimating area and assessing accuracy of land change", Remote
Sensing of Environment 148 (2014), equations 1 to 13; where several strata share a class of the map, the ratio
estimator of Stehman, International Journal of Remote Sensing 35 (2014), of which those equations are the case
of one stratum a class. The finite population correction is left out, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terralapse.errors import SettingError

Z = 1.959963984540054  # of a normal distribution, 95 % two-sided
ALLOCATIONS = ("rare", "proportional", "equal", "neyman")
LEAST = 2  # points of a stratum, without which it has no variance
RARE = 50  # points that a stratum gets at least
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """An estimate with its standard error. NaN where the sample says nothing of it (a class that it has
    not)."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by the normal distribution; it may leave the range that a share can have."""
        return self.value - Z * self.error, self.value + Z * self.error


@dataclass(frozen=True)
class Estimates:
    """What a sample says, class by class in the order of the columns of its counts.

    `area` in the unit of the strata; `share` of the whole; `users` (of what is mapped as the class, how much
    is it) and `producers` (of what is the class, how much is mapped so); `overall`. `mapped` is the area of
    the map, and `proportions` [classes of the map, classes] the error matrix in shares of area.
    """

    area: tuple[Measured, ...]
    share: tuple[Measured, ...]
    users: tuple[Measured, ...]
    producers: tuple[Measured, ...]
    overall: Measured
    mapped: Floats
    proportions: Floats


def sample_size(
    shares: Sequence[float], users: Sequence[float], error: float, pixels: float = math.inf
) -> int:
    """Points for a standard error of the overall accuracy (equation 13).

    Args:
        shares: of the strata in the area, summing to 1.
        users: the accuracy that is expected in each, 0 to 1.
        error: that is wanted, for example 0.01.
        pixels: of the whole map.

    Raises:
        SettingError: an error that is not above 0 and below 0.5, or accuracies that are none.
    """
    if not 0 < error < 0.5:
        raise SettingError(f"standard error {error}", "is not between 0 and 0.5", "Give one like 0.01.")
    weight, right = np.asarray(shares, np.float64), np.asarray(users, np.float64)
    if ((right < 0) | (right > 1)).any():
        raise SettingError("expected accuracy", "is not between 0 and 1", "Give one like 0.8.")
    spread = np.sqrt(right * (1 - right))
    wanted = (weight @ spread) ** 2 / (error**2 + float(weight @ spread**2) / pixels)
    return max(LEAST * len(weight), math.ceil(wanted - 1e-9))


def allocate(
    size: int,
    shares: Sequence[float],
    pixels: Sequence[int],
    how: str = "rare",
    least: int = RARE,
    users: Sequence[float] | None = None,
) -> list[int]:
    """Points of each stratum; they sum to `size` unless that leaves a stratum without two, or asks for more
    pixels than one has.

    Args:
        size: points in all.
        shares: of the strata in the area.
        pixels: of each; none gets more points than it has.
        how: `rare` gives `least` to each stratum that would get fewer by its share, and the rest by share;
            `proportional` by share; `equal`; `neyman` by share and spread, for which `users` is needed.
        least: see `rare`; it is lowered where `size` is not enough for it.
        users: the accuracy that is expected in each, for `neyman`.

    Raises:
        SettingError: another way, or fewer points than two a stratum.
    """
    weight, most = np.asarray(shares, np.float64), np.asarray(pixels)
    if how not in ALLOCATIONS:
        raise SettingError(f"allocation {how}", "is not known", f"Use {', '.join(ALLOCATIONS)}.")
    if size < LEAST * len(weight):
        raise SettingError(
            f"size {size}", f"is less than {LEAST} points for each of {len(weight)} strata", "Ask for more."
        )
    if how == "equal":
        wanted = np.full(len(weight), size / len(weight))
    elif how == "neyman":
        right = np.asarray(users if users is not None else np.full(len(weight), 0.8), np.float64)
        spread = weight * np.sqrt(np.clip(right * (1 - right), 1e-4, None))
        wanted = size * spread / spread.sum()
    else:
        wanted = size * weight / weight.sum()
        if how == "rare":
            floor = min(least, size // len(weight))
            few = wanted < floor
            # By share among those that keep their share; what the floor takes may push one below it again.
            while few.any() and not few.all():
                wanted = np.where(few, floor, (size - floor * few.sum()) * weight / weight[~few].sum())
                again = few | (wanted < floor)
                if (again == few).all():
                    break
                few = again
    return np.minimum(np.maximum(_rounded(wanted, size), LEAST), most).tolist()


def _rounded(wanted: Floats, size: int) -> npt.NDArray[np.int64]:
    """Whole numbers of the same sum: the largest remainders are rounded up."""
    whole = np.floor(wanted).astype(np.int64)
    missing = size - int(whole.sum())
    whole[np.argsort(-(wanted - whole), kind="stable")[:missing]] += 1
    return whole


def estimate(
    counts: npt.ArrayLike, areas: Sequence[float], classes: Sequence[int] | None = None
) -> Estimates:
    """Areas and accuracies of a labelled sample.

    Args:
        counts: [strata, classes], points of a stratum (row) that turned out to be of a class (column).
        areas: of each stratum, in any unit.
        classes: the column that each stratum is mapped as; by default stratum i as class i.

    Raises:
        SettingError: a stratum with fewer than two labelled points.
    """
    found = np.asarray(counts, np.float64)
    size, n = np.asarray(areas, np.float64), found.sum(axis=1)
    mapped_as = np.arange(len(found)) if classes is None else np.asarray(classes)
    if (n < LEAST).any():
        few = ", ".join(str(i + 1) for i in np.flatnonzero(n < LEAST))
        raise SettingError(
            "sample", f"has fewer than {LEAST} labelled points in stratum {few}", "Label more of its points."
        )
    q, total = found.shape[1], float(size.sum())
    p = found / n[:, None]  # share of each class in each stratum
    within = p * (1 - p) / (n - 1)[:, None]  # variance of that share
    area = size @ p
    area_error = np.sqrt((size**2) @ within)
    own = p[np.arange(len(p)), mapped_as]
    right = float(size @ own) / total
    right_error = math.sqrt(float((size**2) @ (own * (1 - own) / (n - 1)))) / total
    users, producers = [], []
    proportions, mapped = np.zeros((q, q)), np.zeros(q)
    for j in range(q):
        mine = (mapped_as == j).astype(np.float64)
        mapped[j] = size @ mine
        proportions[j] = (size * mine) @ p / total
        hit = mine * p[:, j]  # mapped as the class and being it
        users.append(_ratio(size, n, hit, mine, hit * mine))
        producers.append(_ratio(size, n, hit, p[:, j], hit))
    return Estimates(
        tuple(Measured(float(a), float(e)) for a, e in zip(area, area_error, strict=True)),
        tuple(Measured(float(a) / total, float(e) / total) for a, e in zip(area, area_error, strict=True)),
        tuple(users),
        tuple(producers),
        Measured(right, right_error),
        mapped,
        proportions,
    )


def _ratio(size: Floats, n: Floats, y: Floats, x: Floats, both: Floats) -> Measured:
    """The ratio of two totals of indicators, from their means `y`, `x` and the mean of their product in each
    stratum (Stehman 2014, equations 27 and 28)."""
    below = float(size @ x)
    if below <= 0:
        return Measured(math.nan, math.nan)
    r = float(size @ y) / below
    # n / (n - 1) makes the variances those of a sample; dividing by n leaves n - 1.
    spread = y * (1 - y) + r * r * x * (1 - x) - 2 * r * (both - x * y)
    return Measured(r, math.sqrt(max(float((size**2) @ (spread / (n - 1))), 0.0)) / below)
