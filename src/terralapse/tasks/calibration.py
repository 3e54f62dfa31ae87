"""Making probabilities mean what they say: one temperature, chosen on held-out pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

IGNORE = 255


def fit_temperature(logits: npt.ArrayLike, label: npt.ArrayLike, most: int = 2_000_000) -> float:
    """The temperature T for which sigmoid(logit / T) has the lowest negative log-likelihood.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. It moves no pixel across
    another, so no ranking and no F1 at the best threshold changes.

    Args:
        logits: log-odds of change, any shape.
        label: 0, 1, or 255 for pixels that do not count; the same shape.
        most: when there are more pixels, every n-th is taken.

    Returns:
        T between 0.1 and 10; 1 when all pixels are of one class, where no temperature is best.
    """
    z, y = np.asarray(logits, np.float64).ravel(), np.asarray(label).ravel()
    z, y = z[y != IGNORE], y[y != IGNORE] == 1
    step = max(1, -(-len(z) // most))
    z, y = z[::step], y[::step]
    if y.all() or not y.any():
        return 1.0
    signed = np.where(y, -z, z)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, signed / np.exp(log_temperature)).mean())

    bounds = (np.log(0.1), np.log(10.0))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))
