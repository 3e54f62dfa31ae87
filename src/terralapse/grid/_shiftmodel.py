"""Shifts measured at places, as a function of place: one shift, an affine map, or a smooth field.

All coordinates are (row, col) in pixels of the common grid, all shifts (dy, dx): how far the content of the
second date lies from that of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine

from terralapse.grid._positions import Field

_AGREE_PX = 0.5  # blocks this close to a model agree with it, however small the scatter
_SHARE = 0.5  # of the reliable blocks must agree
# A richer model must leave at most this share of the error of a simpler one, on blocks that it has not seen,
# and differ from it by this many pixels somewhere.
_BETTER = {"shift": 1.0, "affine": 0.93, "local": 0.8}
_WORTH_PX = 0.3
_LOCAL_BLOCKS = 12
_LOCAL_PX = 4.0  # a block farther off than this is no part of a smooth field
_MAX_SLOPE = 0.02  # pixels per pixel: beyond it the scenes do not differ by a shift


@dataclass(frozen=True)
class Correction:
    """What is done to the date that is moved: the pixel at p shows what lies at `affine(p)`, displaced by
    `field` (see `terralapse.grid._positions.Target`)."""

    affine: Affine = Affine.identity()  # noqa: RUF009 - immutable
    field: Field | None = None

    @staticmethod
    def shift(shift: tuple[float, float], moved: int) -> Correction:
        """Undoes one shift everywhere."""
        sign = 1 if moved == 1 else -1
        return Correction(Affine.translation(sign * shift[1], sign * shift[0]))

    @property
    def is_none(self) -> bool:
        """Whether nothing is moved."""
        return self.affine.is_identity and self.field is None

    def as_dict(self) -> dict[str, Any] | None:
        """JSON-ready; None when nothing is moved."""
        if self.is_none:
            return None
        local = self.field.as_dict() if isinstance(self.field, LocalField) else None
        return {"affine": [round(float(v), 9) for v in self.affine[:6]], "local": local}


@dataclass(frozen=True)
class LocalField:
    """A smooth displacement through what blocks measured, which fades to nothing far from all of them.

    A Gaussian process: shift(p) = sum over blocks of exp(-|p - centre|² / 2 reach²) * coefficient. `centres`
    (row, col) [n, 2], `coefficients` (dy, dx) [n, 2]. Called with (x, y) it returns the movement of content
    (dx, dy), times `sign`.
    """

    centres: np.ndarray
    coefficients: np.ndarray
    reach: float
    sign: float = 1.0

    def at(self, points: np.ndarray) -> np.ndarray:
        """Shifts [m, 2] at points (row, col) [m, 2]."""
        return _gaussian(points, self.centres, self.reach) @ self.coefficients

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = np.shape(x)
        shifts = self.sign * self.at(np.column_stack([np.ravel(y), np.ravel(x)]))
        return shifts[:, 1].reshape(shape), shifts[:, 0].reshape(shape)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "reach_px": round(self.reach, 2),
            "centres": self.centres.round(1).tolist(),
            "coefficients_px": self.coefficients.round(4).tolist(),
        }


def fit_local(centres: np.ndarray, shifts: np.ndarray, weights: np.ndarray) -> tuple[LocalField, np.ndarray]:
    """A local field, and what each block is off when it is left out. Reach and noise are those that predict
    left-out blocks best."""
    spacing = _spacing(centres)
    best: tuple[float, LocalField, np.ndarray] | None = None
    for reach in (1.0, 1.5, 2.5):
        kernel = _gaussian(centres, centres, reach * spacing)
        for noise in (0.02, 0.1, 0.5, 2.0):
            inverse = np.linalg.inv(kernel + np.diag(noise / np.maximum(weights, 0.05)))
            coefficients = inverse @ shifts
            left_out = coefficients / np.diag(inverse)[:, None]
            error = _trimmed_rms(left_out, weights)
            if best is None or error < best[0]:
                best = error, LocalField(centres, coefficients, reach * spacing), left_out
    if best is None:
        raise ValueError("no block to fit a field to")
    return best[1], best[2]


def _gaussian(a: np.ndarray, b: np.ndarray, reach: float) -> np.ndarray:
    return np.exp(-0.5 * ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2) / reach**2)


@dataclass(frozen=True)
class ShiftModel:
    """`coefficients` [3, 2]: shift = [1, row - r0, col - c0] @ coefficients, with (r0, c0) the middle."""

    kind: str  # "shift", "affine", "local"
    coefficients: np.ndarray
    shape: tuple[int, int]
    standard_error: float
    local: LocalField | None = None

    def at(self, points: np.ndarray) -> np.ndarray:
        """Shifts [n, 2] at points (row, col) [n, 2]."""
        plane = _design(points, self.shape) @ self.coefficients
        return plane if self.local is None else plane + self.local.at(points)

    def at_centre(self) -> tuple[float, float]:
        """The shift in the middle of the grid."""
        dy, dx = self.at(np.array([[self.shape[0] / 2, self.shape[1] / 2]]))[0]
        return float(dy), float(dx)

    def _probes(self) -> np.ndarray:
        h, w = self.shape
        rows, cols = np.meshgrid(np.linspace(0, h, 9), np.linspace(0, w, 9), indexing="ij")
        return np.column_stack([rows.ravel(), cols.ravel()])

    def largest(self) -> float:
        """The largest shift anywhere on the grid, in pixels."""
        return float(np.hypot(*self.at(self._probes()).T).max())

    def distance(self, other: ShiftModel) -> float:
        """The median difference to another model over the grid, in pixels."""
        points = self._probes()
        return float(np.median(np.hypot(*(self.at(points) - other.at(points)).T)))

    def departure(self, other: ShiftModel) -> float:
        """The largest difference to another model over the grid, in pixels."""
        points = self._probes()
        return float(np.hypot(*(self.at(points) - other.at(points)).T).max())

    def correction(self, moved: int) -> Correction:
        """The correction that undoes the shifts by moving one of the dates."""
        (ty, tx), (y_row, x_row), (y_col, x_col) = self.coefficients
        r0, c0 = self.shape[0] / 2, self.shape[1] / 2
        sign = 1.0 if moved == 1 else -1.0
        affine = Affine(
            1 + sign * x_col,
            sign * x_row,
            sign * (tx - x_col * c0 - x_row * r0),
            sign * y_col,
            1 + sign * y_row,
            sign * (ty - y_col * c0 - y_row * r0),
        )
        if self.local is None:
            return Correction(affine)
        return Correction(affine, replace(self.local, sign=-sign))


def _design(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    middle = np.array(shape) / 2
    return np.column_stack([np.ones(len(points)), points - middle])


def fit_model(
    centres: np.ndarray,
    shifts: np.ndarray,
    weights: np.ndarray,
    shape: tuple[int, int],
    *,
    min_agree: int = 3,
) -> ShiftModel | None:
    """The simplest model that the blocks agree on; None when they do not agree on any.

    Args:
        centres, shifts, weights: of the reliable blocks, [n, 2], [n, 2] and [n].
        shape: of the common grid.
        min_agree: blocks that must lie on the model.
    """
    if len(centres) < max(1, min_agree):
        return None
    best: ShiftModel | None = None
    best_error = np.inf
    for name in ("shift", "affine", "local"):
        fitted = _fit(name, centres, shifts, weights / weights.mean(), shape, min_agree)
        if fitted is None:
            continue
        model, error = fitted
        if best is None or (error < _BETTER[name] * best_error and model.departure(best) > _WORTH_PX):
            best, best_error = model, error
    return best


def _fit(
    kind: str,
    centres: np.ndarray,
    shifts: np.ndarray,
    weights: np.ndarray,
    shape: tuple[int, int],
    min_agree: int,
) -> tuple[ShiftModel, float] | None:
    """A model of one kind and its error on left-out blocks (root of the trimmed mean square, pixels)."""
    design = _design(centres, shape)
    if kind == "shift":
        design = design[:, :1]
    elif len(centres) < 3 * design.shape[1] or min(np.ptp(centres, axis=0)) < 0.3 * max(shape):
        return None  # too few blocks, or all in a line
    solved = _robust(design, shifts, weights)
    if solved is None:
        return None
    coefficients, agree = solved
    if kind != "local" and (agree.sum() < min_agree or agree.sum() < _SHARE * len(agree)):
        return None
    full = np.zeros((3, 2))
    full[: len(coefficients)] = coefficients
    if np.abs(full[1:]).max() > _MAX_SLOPE:
        return None
    gram = (design[agree] * weights[agree, None]).T @ design[agree]
    hat = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(gram), design) * weights
    residual = shifts - design @ coefficients
    local = None
    if kind == "local":
        near = np.hypot(*residual.T) < _LOCAL_PX
        if near.sum() < _LOCAL_BLOCKS or near.sum() < _SHARE * len(near):
            return None
        local, left_out = fit_local(centres[near], residual[near], weights[near])
        residual = residual - local.at(centres)
        residual[near] = left_out
    else:
        residual = residual / np.maximum(1 - np.clip(hat, 0, 0.9), 0.1)[:, None]
    error = _trimmed_rms(residual, weights)
    spread = error / max(1, int(agree.sum())) ** 0.5
    return ShiftModel(kind, full, shape, float(spread), local), error


def _robust(
    design: np.ndarray, shifts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Least squares on the blocks that agree: from the best of many small samples, then reweighted."""
    n, k = design.shape
    draws = np.random.default_rng(0)
    best, best_cost = None, np.inf
    for _ in range(200 if k > 1 else min(n, 200)):
        pick = draws.choice(n, size=min(n, k), replace=False)
        trial = np.linalg.lstsq(design[pick], shifts[pick], rcond=None)[0]
        cost = float(np.median(np.hypot(*(shifts - design @ trial).T)))
        if cost < best_cost:
            best, best_cost = trial, cost
    if best is None:
        return None
    agree = np.ones(n, bool)
    for _ in range(10):
        size = np.hypot(*(shifts - design @ best).T)
        limit = max(_AGREE_PX, 3 * 1.4826 * float(np.median(size)))
        now = size <= min(limit, 4 * _AGREE_PX)
        if now.sum() < k:
            return None
        root = np.sqrt(weights[now, None])
        best = np.linalg.lstsq(design[now] * root, shifts[now] * root, rcond=None)[0]
        if (now == agree).all():
            break
        agree = now
    return best, agree


def _trimmed_rms(residual: np.ndarray, weights: np.ndarray) -> float:
    """Weighted root mean square of the better three quarters."""
    size = (residual**2).sum(axis=1)
    kept = np.argsort(size)[: max(1, -(-3 * len(size) // 4))]
    return float(np.sqrt(np.average(size[kept], weights=weights[kept])))


def _spacing(centres: np.ndarray) -> float:
    """The median distance of a block to its nearest neighbour."""
    d = np.hypot(*(centres[:, None, :] - centres[None, :, :]).transpose(2, 0, 1))
    np.fill_diagonal(d, np.inf)
    return float(np.median(d.min(axis=1)))
