"""Making probabilities mean what they say: a temperature and an offset, chosen on held-out pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

IGNORE = 255


def fit_scaling(logits: npt.ArrayLike, label: npt.ArrayLike, most: int = 2_000_000) -> tuple[float, float]:
    """The temperature T and offset b for which sigmoid(logit / T + b) has the lowest negative log-likelihood.

    Platt 1999. A temperature alone (Guo et al. 2017) cannot mend what a Dice loss does where change is rare:
    it makes too much of everything, and the mean probability ends up above the share that changed. Neither
    moves one pixel past another, so no ranking and no F1 at the best threshold changes.

    Args:
        logits: log-odds of change, any shape.
        label: 0, 1, or 255 for pixels that do not count; the same shape.
        most: when there are more pixels, every n-th is taken.

    Returns:
        T between 0.05 and 20, and b; 1 and 0 when all pixels are of one class, where no scaling is best.
    """
    z, y = np.asarray(logits, np.float64).ravel(), np.asarray(label).ravel()
    z, y = z[y != IGNORE], y[y != IGNORE] == 1
    step = max(1, -(-len(z) // most))
    z, y = z[::step], y[::step]
    if y.all() or not y.any():
        return 1.0, 0.0
    sign = np.where(y, -1.0, 1.0)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(x[0])
        wrong = sign * (slope * z + x[1])
        pull = sign * expit(wrong)
        return float(np.logaddexp(0.0, wrong).mean()), np.array([(pull * z).mean() * slope, pull.mean()])

    found: Any = minimize(loss, np.zeros(2), jac=True, bounds=[(-3.0, 3.0), (-20.0, 20.0)])
    return float(np.exp(-found.x[0])), float(found.x[1])
