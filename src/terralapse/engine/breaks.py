"""Breaks in the series of every pixel: when its season and trend stopped to hold, and by how much.

The method is of the CCDC family, for one index. Step by step, and after whom:

1. Model: intercept, trend, and one to three harmonics of the year, by ordinary least squares (Zhu and
   Woodcock 2014, eq. 1-2; there by bands and with the harmonics fixed). Harmonics are added at 18 and 24
   observations, three observations a coefficient (Zhu et al. 2015). Series of one date a year have no season:
   intercept and trend only.
2. Start: the first window of twelve observations (six without a season) that covers a year. Clouds that the
   masks missed are set aside by iteratively reweighted least squares with Tukey's bisquare, as in the Tmask
   step of Zhu and Woodcock 2014, but on the index itself. The window is kept when it is stable: its
   first and last residual and the drift over it are within three standard errors (the same paper, section on
   initialisation); otherwise it moves on by one observation.
3. Monitoring: one observation after another. Its residual is standardised by the standard error of a
   prediction, not by the RMSE alone, so that it follows Student's t (recursive residuals: Brown, Durbin and
   Evans 1975). CCDC compares with a normal limit; with few observations that gives more false alarms.
4. Break: `k` residuals in a row beyond the limit (Zhu and Woodcock 2014: three; later versions: six) and to
   one side (the counterpart, for one index, of the angle between change vectors in COLD, Zhu et al. 2020).
   The break is dated at the first of them. Shorter runs are set aside as outliers. Every observation that
   stays is taken into the model at once, by recursive least squares, which gives the ordinary fit.
5. After a break the procedure starts again at the break. Before the first model it looks back in the same way
   for a break at the model's beginning (as the reference implementation of CCDC does).

Magnitude: the model after minus the model before, both at the date of the break. Where no model holds from
the break on (too few observations, or no stable ones), the median residual of the `k` observations; the pixel
is marked so. Probability: one minus the p-value of Chow's (1960) prediction test of the `k` observations,
multiplied by the number of observations that were monitored (Bonferroni); it holds for independent normal
residuals and is no calibrated chance of a change on the ground.

References: Zhu and Woodcock 2014, Remote Sensing of Environment 144; Zhu, Woodcock, Holden and Yang 2015, RSE
162; Zhu et al. 2020, RSE 238; Brown, Durbin and Evans 1975, J. R. Stat. Soc. B 37; Chow 1960, Econometrica
28.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from terralapse.errors import SettingError

YEAR = 365.25  # days
PICKS = ("largest", "first", "last")
_SEASON_MONTHS = 4  # calendar months that dates must fall into to show a season


@dataclass(frozen=True)
class BreakSettings:
    """How breaks are found.

    Attributes:
        probability: share of the residuals that lies inside of the limit when nothing changes.
        consecutive: exceedances in a row that make a break; None takes 6 with a season and 3 without.
        harmonics: of the year, 0 to 3; None takes as many as the dates allow.
        floor: smallest standard error, in units of the index: what sensor and rounding alone give.
        since: day (since 1970-01-01) before which breaks are not reported; the model still learns from it.
        pick: which break of a pixel is written: the `largest`, `first` or `last`.
    """

    probability: float = 0.99
    consecutive: int | None = None
    harmonics: int | None = None
    floor: float = 0.0
    since: float | None = None
    pick: Literal["largest", "first", "last"] = "largest"

    def __post_init__(self) -> None:
        if not 0.5 < self.probability < 1:
            raise SettingError(
                f"probability {self.probability:g}", "lies outside of 0.5 to 1", "Give a share, e.g. 0.99."
            )
        if self.consecutive is not None and not 2 <= self.consecutive <= 20:
            raise SettingError(
                f"consecutive {self.consecutive}",
                "is not between 2 and 20",
                "One odd value is no change; CCDC takes 3 to 6.",
            )
        if self.harmonics is not None and not 0 <= self.harmonics <= 3:
            raise SettingError(f"harmonics {self.harmonics}", "is not 0, 1, 2 or 3", "Leave it out.")
        if not self.floor >= 0 or not np.isfinite(self.floor):
            raise SettingError(f"floor {self.floor:g}", "is no standard error", "Give 0 or more.")
        if self.pick not in PICKS:
            raise SettingError(f"pick {self.pick}", "is unknown", f"Choose one of {', '.join(PICKS)}.")


@dataclass(frozen=True)
class BreakModel:
    """The model of a series: coefficients of the first and the fullest fit, `k`, days of the first window."""

    least: int
    most: int
    consecutive: int
    span_days: float

    @property
    def needed(self) -> int:
        """Observations that a pixel needs."""
        return 3 * self.least + self.consecutive

    @property
    def text(self) -> str:
        """For people."""
        if self.most == 2:
            return "trend without a season"
        low, high = (self.least - 2) // 2, (self.most - 2) // 2
        count = f"{low}" if low == high else f"{low} to {high}"
        return f"trend and {count} harmonic{'' if count == '1' else 's'} of the year"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"observations_needed": self.needed, "text": self.text}


@dataclass
class Breaks:
    """What is found, one value a pixel of a block (arrays [h, w]).

    `day` int32 since 1970-01-01 (0 where `count` is 0), `count` uint8, `magnitude` float32 (NaN without a
    break), `probability` float32 0..1 (0 without a break), `error` float32: residual standard error of the
    last model, `code` uint8 of `terralapse.labels.SERIES_QUALITY`, `observations` and `outliers` int32.
    """

    day: np.ndarray
    count: np.ndarray
    magnitude: np.ndarray
    probability: np.ndarray
    error: np.ndarray
    code: np.ndarray
    observations: np.ndarray
    outliers: np.ndarray


def choose_model(days: Sequence[float] | np.ndarray, settings: BreakSettings) -> BreakModel:
    """The model that the dates of a series allow.

    Dates in four or more calendar months show a season, and a model without one would take it for change:
    such series need twelve observations and `k` more, and more than a year. Anniversary dates need six and
    `k`.

    Raises:
        SettingError: too few dates; the number needed is named.
    """
    times = np.unique(np.asarray(days, np.float64))
    months = {str(m)[5:7] for m in times.astype("datetime64[D]").astype("datetime64[M]")}
    seasonal = settings.harmonics > 0 if settings.harmonics is not None else len(months) >= _SEASON_MONTHS
    k = settings.consecutive or (6 if seasonal else 3)
    least = 4 if seasonal else 2
    most = least
    if seasonal:
        limit = 3 if settings.harmonics is None else settings.harmonics
        most = 2 + 2 * max(h for h in range(1, limit + 1) if h == 1 or 3 * (2 + 2 * h) + k <= len(times))
    model = BreakModel(least, most, k, YEAR if seasonal else 0.0)
    span = times[-1] - times[0] if len(times) else 0.0
    if len(times) < model.needed or span <= model.span_days:
        over = " over more than a year" if seasonal else ""
        ways = [f"Give at least {model.needed} dates{over}"]
        if 3 * least + 2 <= len(times) and span > model.span_days:
            ways.append(f"lower --consecutive (now {k}) to {len(times) - 3 * least}")
        if seasonal and settings.harmonics is None:
            ways.append("set --harmonics 0 where there is no season")
        hint = ", or ".join(ways) + ". Composites need no model: --no-breaks."
        raise SettingError(
            f"{len(times)} dates over {span:,.0f} days",
            f"are too few for a model of {model.text}, which needs {model.needed}{over}",
            hint,
        )
    return model


def design(days: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 [T, 8]: 1, years since the middle of the series, cosine and sine of 1 to 3 cycles a year."""
    t = np.asarray(days, np.float64)
    phase = 2 * np.pi * t / YEAR
    columns = [np.ones_like(t), (t - (t.min() + t.max()) / 2) / YEAR]
    for h in (1, 2, 3):
        columns += [np.cos(h * phase), np.sin(h * phase)]
    return np.ascontiguousarray(np.stack(columns, axis=1))


def find_breaks(
    values: np.ndarray,
    days: Sequence[float] | np.ndarray,
    settings: BreakSettings | None = None,
    model: BreakModel | None = None,
    threads: int = 1,
) -> Breaks:
    """Breaks of a block.

    Args:
        values: float32 [T, h, w] of one index, NaN where there is no observation.
        days: of each date since 1970-01-01, ascending; fractions and equal dates are legal.
        settings: see `BreakSettings`.
        model: see `choose_model`, which makes it from the dates by default.
        threads: the result does not depend on them.

    Raises:
        SettingError: too few dates.
    """
    from scipy import special, stats

    from terralapse.engine import _breaks

    settings = settings or BreakSettings()
    model = model or choose_model(days, settings)
    t = np.asarray(days, np.float64)
    if (np.diff(t) < 0).any():
        raise ValueError("the dates are not in order")
    dates, height, width = values.shape
    y = np.ascontiguousarray(np.asarray(values, np.float32).reshape(dates, -1).T)
    freedom = np.arange(dates + 1)
    limits = np.full(dates + 1, np.inf)
    limits[1:] = stats.t.ppf(0.5 + settings.probability / 2, freedom[1:])
    ints, reals = np.zeros((len(y), 7), np.int32), np.zeros((len(y), 3))
    since = -np.inf if settings.since is None else float(settings.since)
    # A floor of zero would make any change of a constant series infinitely unlikely.
    floor = max(settings.floor, 1e-9)
    x, pick = design(t), PICKS.index(settings.pick)

    def work(rows: slice) -> None:
        _breaks.detect(
            y[rows], t, x, limits, model.least, model.most, model.consecutive, model.span_days, floor, since,
            pick, ints[rows], reals[rows],
        )  # fmt: skip

    step = max(256, -(-len(y) // (4 * threads)))
    parts = [slice(i, i + step) for i in range(0, len(y), step)]
    if threads == 1:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))
    day, count, code, observations, dof, looks, outliers = (c.reshape(height, width) for c in ints.T)
    magnitude, f, error = (c.reshape(height, width) for c in reals.T)
    broken = count > 0
    chance = np.where(broken, special.fdtrc(model.consecutive, np.maximum(dof, 1), f) * looks, 1.0)
    return Breaks(
        day=np.where(broken, day, 0),
        count=np.minimum(count, 254).astype(np.uint8),
        magnitude=np.where(broken, magnitude, np.nan).astype(np.float32),
        probability=(1 - np.minimum(chance, 1)).astype(np.float32),
        error=error.astype(np.float32),
        code=code.astype(np.uint8),
        observations=observations,
        outliers=outliers,
    )
