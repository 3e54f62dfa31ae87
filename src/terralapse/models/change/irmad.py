"""Iteratively reweighted multivariate alteration detection.

Nielsen, The regularized iteratively reweighted MAD method for change detection in multi- and hyperspectral
data, IEEE TIP 16(2), 2007. Both dates are X and Y. Canonical correlation analysis finds the pairs of
combinations a'X and b'Y that agree best; their differences, the MAD variates, hold what does not agree. The
sum of their squares over their variances, Z, is chi-square distributed where nothing changed; its tail
probability is the weight of the pixel in the next round, until the correlations settle.

In real scenes the background is noisier than the weights admit, and 1 - P(chi2 > Z) would call most of it
changed. The probability returned here is therefore centred on the point where the histogram of the cube root
of Z, which is near normal for a chi-square variable, splits in two (`change_cut`): it rises with Z as the
paper's does. The paper's own map is `no_change_probability`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import chdtrc
from torch import Tensor

from terralapse.cards import Card, DateOrder, Inputs, Licences, Status, Task
from terralapse.errors import NoValidDataError
from terralapse.grid.pair import PairSample
from terralapse.layers.unsupervised import change_cut, count_valid, cut_probability, usable
from terralapse.registry import register
from terralapse.tasks.change import ChangeDetector

CARD = Card(
    slug="ir-mad",
    title="Iteratively reweighted multivariate alteration detection",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Canonical correlation of the two dates, reweighted by the chi-square probability of no change; "
    "blind to gain, offset and any linear mixing of the bands.",
    year=2007,
    paper="Nielsen, The regularized iteratively reweighted MAD method for change detection in multi- and "
    "hyperspectral data, IEEE TIP 16(2), 2007",
    inputs=Inputs(dates=2, halo=0),
    classes="binary-change",
    licences=Licences(code="Apache-2.0"),
    default_rank=50,
    limits=(
        "It needs a stable background: where most of the scene has changed the reweighting may settle on the "
        "changed part.",
        "With three broad bands it has little to work with; it is at its best with multispectral data.",
        "It looks at single pixels: misregistration draws the outline of every object.",
        "Seasonal change of vegetation is change to it, unless all vegetation changed alike.",
        "The probability is a distance to the cut that was found in the scene, not a calibrated frequency.",
    ),
)

MAX_ROUNDS = 50
PIXELS = 300_000  # of the sample; more do not move the correlations
SETTLED = 1e-4  # largest move of a canonical correlation in the last round
RANK_TOLERANCE = 1e-6  # eigenvalues of a correlation matrix below this share of the largest are no dimension
LEAST_VARIANCE = 1e-6  # of a MAD variate of unit canonical variates: below it the dates are the same numbers


class IRMAD(ChangeDetector):
    """Z = sum_i (a_i'X - b_i'Y)^2 / (2 (1 - rho_i)); P(no change) = P(chi2_k > Z)."""

    halo = 0

    def __init__(self, card: Card = CARD) -> None:
        self.card = card

    def fit(self, sample: PairSample) -> dict[str, Any]:
        total = count_valid(sample)
        if total < 2 * len(sample.pair.bands) + 2:
            raise NoValidDataError(
                sample.pair.before.name,
                "fewer valid pixels than canonical correlation needs",
                "Give a larger scene, or fewer bands with `--bands`.",
            )
        shift = first_pixel(sample)
        blocks = pixel_blocks(sample, shift, step=max(1, -(-total // PIXELS)))
        found, rounds, settled = None, 0, False
        while rounds < MAX_ROUNDS and not settled:
            new = canonical_analysis(*weighted_moments(blocks, found))
            rounds += 1
            settled = found is not None and have_settled(found["rho"], new["rho"])
            found = new
        assert found is not None
        z = np.concatenate([chi_square(pixels, found) for pixels in blocks])
        a, b = found["a"] / found["sigma"], found["b"] / found["sigma"]
        return {
            "mean": (found["mean"] + shift).tolist(),  # [2][C]
            "a": a.T.tolist(),  # [k][C], divided by the standard deviation of its MAD variate
            "b": b.T.tolist(),
            "rho": found["rho"].tolist(),
            "degrees": len(found["rho"]),
            "rounds": rounds,
            "settled": settled,
        } | change_cut(z)

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        known = usable(images, valid)
        z = self.statistic(images, state).where(known, 0.0)
        return cut_probability(z, state).where(known, 0.0)

    def statistic(self, images: Tensor, state: dict[str, Any]) -> Tensor:
        """Z, float [B, H, W], of images [B, 2, C, H, W]; NaN where a date is missing."""
        like = {"dtype": images.dtype, "device": images.device}
        if not state["degrees"]:
            return torch.zeros_like(images[:, 0, 0])
        centred = images - torch.tensor(state["mean"], **like)[None, :, :, None, None]
        mad = torch.einsum("kc,bchw->bkhw", torch.tensor(state["a"], **like), centred[:, 0])
        mad = mad - torch.einsum("kc,bchw->bkhw", torch.tensor(state["b"], **like), centred[:, 1])
        return mad.square().sum(dim=1)

    def no_change_probability(self, images: Tensor, state: dict[str, Any]) -> Tensor:
        """P(chi2_k > Z), float [B, H, W]: the paper's own map, before any cut."""
        z = self.statistic(images, state)
        return torch.special.gammaincc(torch.full_like(z, max(state["degrees"], 1) / 2), z / 2)


def first_pixel(sample: PairSample) -> np.ndarray:
    """One valid spectrum of each date, float64 [2, C]: sums are taken about it, which keeps their digits."""
    block = next(b for b in sample if b.valid.any())
    return block.images[:, :, block.valid][:, :, 0].astype(np.float64)


def pixel_blocks(sample: PairSample, shift: np.ndarray, step: int) -> list[np.ndarray]:
    """Every `step`-th valid pixel of each block, about `shift`: float64 [2, C, n]."""
    return [b.images[:, :, b.valid][:, :, ::step].astype(np.float64) - shift[..., None] for b in sample]


def weighted_moments(blocks: list[np.ndarray], found: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean [2C] and covariance [2C, 2C] of the stacked dates, accumulated block by block.

    The weight of a pixel is its chi-square probability of no change under `found`; one in the first round.
    """
    weight, first, second = 0.0, np.zeros(1), np.zeros((1, 1))
    for pixels in blocks:
        flat = pixels.reshape(-1, pixels.shape[2])
        w = np.ones(flat.shape[1])
        if found is not None and len(found["rho"]):
            w = chdtrc(len(found["rho"]), chi_square(pixels, found))
        weight += w.sum()
        first = first + flat @ w
        second = second + (flat * w) @ flat.T
    mean = first / weight
    return mean, second / weight - np.outer(mean, mean)


def have_settled(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether no canonical correlation moved by `SETTLED` or more."""
    return len(old) == len(new) and bool(np.abs(new - old).max(initial=0.0) < SETTLED)


def canonical_analysis(mean: np.ndarray, covariance: np.ndarray) -> dict[str, Any]:
    """Canonical pairs of the two dates: `a`, `b` [C, k] with unit variates, `rho` [k], `sigma` [k] of the MAD
    variates, and `mean` [2, C]."""
    c = len(mean) // 2
    white_x, white_y = whitening(covariance[:c, :c]), whitening(covariance[c:, c:])
    left, rho, right = np.linalg.svd(white_x.T @ covariance[:c, c:] @ white_y, full_matrices=False)
    rho = np.clip(rho, 0.0, 1.0)
    return {
        "a": white_x @ left,
        "b": white_y @ right.T,
        "rho": rho,
        "sigma": np.sqrt(np.maximum(2 * (1 - rho), LEAST_VARIANCE)),
        "mean": mean.reshape(2, c),
    }


def whitening(covariance: np.ndarray) -> np.ndarray:
    """W [C, r] with W' S W = I: the regularisation. Constant bands and directions in which the bands are
    copies of each other carry no dimension, so r may be less than C, and the chi-square counts r."""
    deviation = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    moving = deviation > 1e-9 * max(float(deviation.max(initial=0.0)), 1e-30)
    if not moving.any():
        return np.zeros((len(covariance), 0))
    unit = np.where(moving, 1 / np.where(moving, deviation, 1.0), 0.0)
    values, vectors = np.linalg.eigh(covariance * np.outer(unit, unit))
    kept = values > RANK_TOLERANCE * values[-1]
    return unit[:, None] * vectors[:, kept] / np.sqrt(values[kept])


def chi_square(pixels: np.ndarray, found: dict[str, Any]) -> np.ndarray:
    """Z [N] of pixels [2, C, N] under the canonical analysis `found`."""
    centred = pixels - found["mean"][..., None]
    mad = found["a"].T @ centred[0] - found["b"].T @ centred[1]
    return ((mad / found["sigma"][:, None]) ** 2).sum(axis=0)


@register(CARD)
def build(card: Card) -> IRMAD:
    """The detector; it has no weights."""
    return IRMAD(card)
