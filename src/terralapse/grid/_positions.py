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


def compose(a: Affine, b: Affine) -> Affine:
    """The affine that applies `b` and then `a`; written out because affine 2 and 3 spell it differently."""
    return Affine(
        a.a * b.a + a.b * b.d,
        a.a * b.b + a.b * b.e,
        a.a * b.c + a.b * b.f + a.c,
        a.d * b.a + a.e * b.d,
        a.d * b.b + a.e * b.e,
        a.d * b.c + a.e * b.f + a.f,
    )


def linear(a: Affine) -> Affine:
    """An affine without its translation."""
    return Affine(a.a, a.b, 0.0, a.d, a.e, 0.0)


@lru_cache(maxsize=256)
def same_crs(a: CRS | None, b: CRS | None) -> bool:
    """Whether two systems are the same; remembered, because comparing their definitions is slow."""
    return a == b


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
        return Target(
            compose(self.affine, move), self.crs, (height, width), self.field, compose(self.to_field, move)
        )


class Mapping:
    """From the pixels of a target to those of a source grid."""

    def __init__(self, source: GeoBox, target: Target) -> None:
        self.source, self.target = source, target
        self._to_pixel = ~source.affine
        same = same_crs(source.crs, target.crs)
        self._transform = None
        if not same and source.crs is not None and target.crs is not None:
            self._transform = transformer(target.crs, source.crs)
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
        return compose(self._to_pixel, self.target.affine)

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
        across, down = _Axis(cols + float(base_x)), _Axis(rows + float(base_y))
        nodes = self.exact(*np.broadcast_arrays(across.nodes[None, :] - base_x, down.nodes[:, None] - base_y))
        bad = ~(np.isfinite(nodes[0]) & np.isfinite(nodes[1]))
        planes = [np.where(bad, 0.0, n) for n in nodes]
        x, y = (_between(p, down, across) for p in planes)
        for cell_row, cell_col in self._poor_cells(planes, bad, down, across, (float(base_x), float(base_y))):
            r, c = down.pixels(cell_row), across.pixels(cell_col)
            px, py = np.broadcast_arrays(across.at[None, c] - base_x, down.at[r, None] - base_y)
            x[r, c], y[r, c] = self.exact(px, py)
        return snap(x), snap(y)

    def _poor_cells(
        self,
        planes: list[np.ndarray],
        bad: np.ndarray,
        down: _Axis,
        across: _Axis,
        base: tuple[float, float],
    ) -> np.ndarray:
        """(row, col) of the cells whose polynomial misses the projection of their middle."""
        mid_down, mid_across = _Axis(down.middles()), _Axis(across.middles())
        true = self.exact(
            *np.broadcast_arrays(mid_across.at[None, :] - base[0], mid_down.at[:, None] - base[1])
        )
        with np.errstate(invalid="ignore"):
            errors = [
                np.abs(_between(p, mid_down, mid_across) - t) for p, t in zip(planes, true, strict=True)
            ]
            poor = ~(np.maximum(*errors) <= _EXACT)
        rows, cols = poor.shape
        for i in range(4):
            for j in range(4):
                poor |= bad[i : i + rows, j : j + cols]
        return np.argwhere(poor)


def _between(plane: np.ndarray, down: _Axis, across: _Axis) -> np.ndarray:
    """Node values [rows, cols] interpolated at all positions of two axes."""
    return across.interpolate(np.ascontiguousarray(down.interpolate(np.ascontiguousarray(plane.T)).T))


class _Axis:
    """One axis of the lattice: ascending positions `at`, and the nodes around them. Cell i lies between the
    nodes i + 1 and i + 2."""

    def __init__(self, at: np.ndarray) -> None:
        self.at = at
        self.first = int(np.floor(at[0] / _CELL))
        self.cells = int(np.floor(at[-1] / _CELL)) - self.first + 1
        self.nodes = (self.first - 1 + np.arange(self.cells + 3)) * float(_CELL)
        self._starts = np.searchsorted(at, self.nodes[1:-1])

    def pixels(self, cell: int) -> slice:
        """The positions inside a cell."""
        return slice(int(self._starts[cell]), int(self._starts[cell + 1]))

    def middles(self) -> np.ndarray:
        """The middle of each cell."""
        return self.nodes[1:-2] + _CELL / 2

    def interpolate(self, values: np.ndarray) -> np.ndarray:
        """Cubic polynomials through four nodes each: [n, nodes] to [n, positions]."""
        out = np.empty((len(values), len(self.at)))
        for cell in range(self.cells):
            here = self.pixels(cell)
            t = self.at[here] / _CELL - (self.first + cell)
            before, p0, p1, beyond = (values[:, cell + i, None] for i in range(4))
            part = t * (beyond - before + 3 * (p0 - p1)) / 6
            part += (before + p1) / 2 - p0
            part *= t
            part += p1 - before / 3 - p0 / 2 - beyond / 6
            part *= t
            part += p0
            out[:, here] = part
        return out
