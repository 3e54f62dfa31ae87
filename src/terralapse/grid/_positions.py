"""Where the pixels of one grid lie in another: exact map projections at the cost of a polynomial.

A projection is evaluated on a lattice of every 64th pixel and interpolated with cubic polynomials between;
cells where that is not exact to a thousandth of a pixel (poles, the antimeridian, the edge of a projection's
domain) are evaluated pixel by pixel. The lattice is anchored to the world, not to the window asked for, so a
pixel has the same position whatever window it is computed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from terralapse.grid._resample import snap

_CELL = 64  # pixels between lattice nodes
_IDENTITY = Affine.identity()
_EXACT = 1e-3  # pixels: a cell that is interpolated worse than this is evaluated in full

Field = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A displacement: (x, y) in pixels of a grid to (dx, dy) in pixels; content moves by it."""


def apply(a: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An affine applied to coordinates."""
    return a.a * x + a.b * y + a.c, a.d * x + a.e * y + a.f


def linear(a: Affine) -> Affine:
    """An affine without its translation."""
    return Affine(a.a, a.b, 0.0, a.d, a.e, 0.0)


@lru_cache(maxsize=64)
def transformer(source: CRS, target: CRS) -> Transformer:
    """The transformation between two systems, x before y. Safe to share between threads."""
    return Transformer.from_crs(source.proj, target.proj, always_xy=True)


@dataclass(frozen=True)
class Target:
    """A grid whose pixels are wanted: `affine` maps its pixels to `crs`.

    `field` displaces content; it is a function of the pixels of another grid (the whole common grid), to
    which `to_field` maps the pixels of this one.
    """

    affine: Affine
    crs: CRS | None
    shape: tuple[int, int]
    field: Field | None = None
    to_field: Affine = _IDENTITY

    def world(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World coordinates of pixel coordinates, where the content to show there comes from."""
        if self.field is not None:
            dx, dy = self.field(*apply(self.to_field, x, y))
            dx, dy = apply(linear(~self.to_field), dx, dy)
            x, y = x - dx, y - dy
        return apply(self.affine, x, y)

    def crop(self, row: int, col: int, height: int, width: int) -> Target:
        """A window of this grid, as a grid."""
        move = Affine.translation(col, row)
        return Target(self.affine * move, self.crs, (height, width), self.field, self.to_field * move)


class Mapping:
    """From the pixels of a target to those of a source grid."""

    def __init__(self, source: GeoBox, target: Target) -> None:
        self.source, self.target = source, target
        self._to_pixel = ~source.affine
        same = source.crs == target.crs
        self._transform = None if same or source.crs is None else transformer(target.crs, source.crs)
        # Longitudes are taken within half a turn of the middle of the source.
        self._turn_from = None
        if source.crs is not None and source.crs.geographic:
            middle = apply(source.affine, np.array(source.shape.x / 2), np.array(source.shape.y / 2))[0]
            self._turn_from = float(middle) - 180.0

    @property
    def affine(self) -> Affine | None:
        """Target pixels to source pixels when that is an affine map (no projection, no field, no turn)."""
        if self._transform is not None or self.target.field is not None:
            return None
        if self._turn_from is not None:
            h, w = self.target.shape
            lon, _ = self.target.world(np.array([0, w, 0, w]), np.array([0, 0, h, h]))
            if lon.min() < self._turn_from or lon.max() > self._turn_from + 360:
                return None
        return self._to_pixel * self.target.affine

    def exact(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source pixel coordinates of target pixel coordinates; not finite where there are none."""
        wx, wy = self.target.world(x, y)
        if self._transform is not None:
            wx, wy = self._transform.transform(wx, wy)
        if self._turn_from is not None:
            with np.errstate(invalid="ignore"):
                wx = self._turn_from + (wx - self._turn_from) % 360.0
        with np.errstate(invalid="ignore"):
            return apply(self._to_pixel, np.asarray(wx), np.asarray(wy))

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Source positions (x, y) of the centres of all target pixels, float64 [H, W]."""
        h, w = self.target.shape
        return self._grid(h, w, 0.5)

    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Source positions of the corners of all target pixels, float64 [H + 1, W + 1]."""
        h, w = self.target.shape
        return self._grid(h + 1, w + 1, 0.0)

    def _grid(self, h: int, w: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
        cols, rows = np.arange(w) + offset, np.arange(h) + offset
        direct = self.affine
        if direct is not None:
            x, y = apply(direct, cols[None, :], rows[:, None])
            return snap(np.array(np.broadcast_to(x, (h, w)))), snap(np.array(np.broadcast_to(y, (h, w))))
        # Window pixel + base = pixel counted from the origin of the world, where the lattice is anchored.
        base_x, base_y = apply(
            ~linear(self.target.affine), np.array(self.target.affine.c), np.array(self.target.affine.f)
        )
        across = _Axis(cols + float(base_x))
        down = _Axis(rows + float(base_y))
        nodes = self.exact(*np.broadcast_arrays(across.nodes[None, :] - base_x, down.nodes[:, None] - base_y))
        bad = ~(np.isfinite(nodes[0]) & np.isfinite(nodes[1]))
        planes = [np.where(bad, 0.0, n) for n in nodes]
        x, y = (down.weights @ p @ across.weights.T for p in planes)
        self._evaluate_bad_cells(x, y, planes, bad, down, across, (float(base_x), float(base_y)))
        return snap(x), snap(y)

    def _evaluate_bad_cells(
        self,
        x: np.ndarray,
        y: np.ndarray,
        planes: list[np.ndarray],
        bad: np.ndarray,
        down: _Axis,
        across: _Axis,
        base: tuple[float, float],
    ) -> None:
        """Finds the cells where the polynomial is not good enough, and evaluates their pixels one by one."""
        mid = [down.middle @ p @ across.middle.T for p in planes]
        centre_x = across.nodes[1:-2] + _CELL / 2 - base[0]
        centre_y = down.nodes[1:-2] + _CELL / 2 - base[1]
        true = self.exact(*np.broadcast_arrays(centre_x[None, :], centre_y[:, None]))
        with np.errstate(invalid="ignore"):
            error = np.maximum(np.abs(mid[0] - true[0]), np.abs(mid[1] - true[1]))
        wrong = ~(error <= _EXACT) | (np.abs(down.middle) @ bad @ np.abs(across.middle).T > 0)
        for cell_row, cell_col in np.argwhere(wrong):
            rows = slice(*np.searchsorted(down.at, down.nodes[cell_row + 1] + np.array([0, _CELL])))
            cols = slice(*np.searchsorted(across.at, across.nodes[cell_col + 1] + np.array([0, _CELL])))
            px, py = np.broadcast_arrays(across.at[None, cols] - base[0], down.at[rows, None] - base[1])
            x[rows, cols], y[rows, cols] = self.exact(px, py)


class _Axis:
    """One axis of the lattice: its nodes around the positions `at`, and the weights that interpolate."""

    def __init__(self, at: np.ndarray) -> None:
        self.at = at
        first = int(np.floor(at[0] / _CELL))
        cells = int(np.floor(at[-1] / _CELL)) - first + 1
        self.nodes = (first - 1 + np.arange(cells + 3)) * float(_CELL)
        cell = np.clip(np.floor(at / _CELL).astype(int) - first, 0, cells - 1)
        self.weights = self._cubic(cell, at / _CELL - first - cell)
        self.middle = self._cubic(np.arange(cells), np.full(cells, 0.5))

    def _cubic(self, cell: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Lagrange weights on the nodes -1, 0, 1, 2 around each position, as a dense matrix."""
        weights = np.zeros((len(t), len(self.nodes)))
        at = np.arange(len(t))
        weights[at, cell] = -t * (t - 1) * (t - 2) / 6
        weights[at, cell + 1] = (t + 1) * (t - 1) * (t - 2) / 2
        weights[at, cell + 2] = -(t + 1) * t * (t - 2) / 2
        weights[at, cell + 3] = (t + 1) * t * (t - 1) / 6
        return weights
